"""Other optimisers than AdamW, most of them for little memory: what these learn from is the gradient of AdamW's model, made in parts; what
all of them keep is saved."""

import numpy as np
import pytest

import reference as ref
import tiny
from compiled import known
from conftest import SIMULATED
from neurogen_numba import backends
from neurogen_numba import config as configuration
from neurogen_numba.backends.cpu import CpuBackend
from neurogen_numba.backends.cuda import CudaBackend
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.distributed.communicator import Solo
from neurogen_numba.errors import ConfigError
from neurogen_numba.kernels.adamw import BLOCK
from neurogen_numba.kernels.muon import MOMENTUM, RMS, STEPS
from neurogen_numba.optim.low_memory import OPTIMIZERS
from neurogen_numba.optim.muon import Muon
from neurogen_numba.optim.optimizer import AdamW
from neurogen_numba.optim.parameters import Parameter, Parameters
from test_whole_step import watched

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY, TOKENS, BATCH = 300, 11, 3
OTHERS = [name for name in configuration.OPTIMIZERS if name != "adamw"]


def model(optimizer, **training):
    return NeuroGenModel.from_config(tiny.config(brain={"vocabulary": VOCABULARY}, optimizer=optimizer, **training), backend="cpu")


def text(seed=0, vocabulary=VOCABULARY):
    """(inputs, targets) [T, B], some of the targets ignored."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (TOKENS + 1, BATCH)).astype(np.int32)
    targets = ids[1:].copy()
    targets[2:4, 1] = -1
    return ids[:-1], targets


def values(made):
    return {name: value.copy() for name, value in made.brain.parameters.value.items()}


def test_every_name_has_an_optimiser():
    assert tuple(OPTIMIZERS) == configuration.OPTIMIZERS
    with pytest.raises(ConfigError, match="training.optimizer: unknown 'adam'; did you mean 'adamw'"):
        tiny.config(optimizer="adam")


@pytest.mark.parametrize("logits", [2**26, 128 * TOKENS * BATCH], ids=["one block", "three blocks"])
def test_gradients_made_in_parts_are_those_made_whole(logits, monkeypatch):
    """Loss, hits and gradients of two segments with dropout; the second has other tokens, whose rows are other ones."""
    monkeypatch.setattr(CpuBackend, "logits", logits)
    whole, parts = model("adamw", dropout=0.2, axon_dropout=0.2), model("adafactor", dropout=0.2, axon_dropout=0.2)
    acts = [made.activity(TOKENS, BATCH, learning=True) for made in (whole, parts)]
    blocks = {}

    def keep(name, first, rows, gradient):
        blocks[first] = gradient[: rows * 32].reshape(rows, 32).copy()
        assert not gradient[rows * 32 :].any()

    for made in (whole, parts):
        monkeypatch.setattr(made.optimizer, "apply", lambda *rows: None)
    monkeypatch.setattr(parts.optimizer, "update_rows", keep)
    for seed in (0, 1):
        inputs, targets = text(seed, vocabulary=VOCABULARY - 50 * seed)
        expected, found = (made.update(act, inputs, targets, 0.01) for made, act in zip((whole, parts), acts, strict=True))
        assert found == pytest.approx(expected, rel=1e-6)
        assert len(blocks) == (1 if logits == 2**26 else 3)
        rows, gradient = acts[1].token_rows, {**parts.brain.parameters.gradient}
        gradient["decoder.weight"] = np.concatenate([blocks[first] for first in sorted(blocks)])
        gradient["embedding.weight"] = np.zeros((VOCABULARY, 16), np.float32)
        gradient["embedding.weight"][rows.rows[rows.rows >= 0]] = rows.gradient[rows.rows >= 0]
        assert sorted(rows.rows[rows.rows >= 0]) == sorted(set(inputs.reshape(-1)))
        assert not rows.gradient[rows.rows < 0].any()
        for name, wanted in whole.brain.parameters.gradient.items():
            np.testing.assert_allclose(gradient[name], wanted, rtol=1e-4, atol=2e-6 * max(1e-3, abs(wanted).max()), err_msg=name)


@pytest.mark.parametrize("optimizer", configuration.ROW_WISE)
def test_the_norm_is_that_of_the_whole_gradient(optimizer):
    whole, parts = model("adamw"), model(optimizer)
    norms = [made.update(made.activity(TOKENS, BATCH, learning=True), *text(), 0.01)[2] for made in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert parts.optimizer.norm_before[0] == np.float32(norms[1])


@pytest.mark.parametrize("optimizer", OTHERS)
def test_it_memorises_a_text(optimizer):
    made = model(optimizer)
    act = made.activity(TOKENS, BATCH, learning=True)
    first, *_, last = (made.update(act, *text(), 0.01)[0] for _ in range(60))
    assert last < 0.5 * first


@pytest.mark.parametrize("optimizer", OTHERS)
def test_a_saved_model_learns_on_bit_for_bit(optimizer, tmp_path):
    straight = model(optimizer, dropout=0.1, axon_dropout=0.1)
    for seed in (0, 1):
        straight.train_step(*(ids.T for ids in text(seed)))
    straight.save(tmp_path / "saved")
    loaded = NeuroGenModel.load(tmp_path / "saved", backend="cpu")
    for seed in (2, 3):
        results = [made.train_step(*(ids.T for ids in text(seed))) for made in (straight, loaded)]
        assert results[0] == results[1]
    for name, value in values(straight).items():
        np.testing.assert_array_equal(loaded.brain.parameters.value[name], value, err_msg=name)


@pytest.mark.parametrize("optimizer", OTHERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_where_the_loss_is_not_finite_nothing_is_updated(optimizer, value):
    made = model(optimizer)
    inputs, targets = text()
    made.update(made.activity(TOKENS, BATCH, learning=True), inputs, targets, 0.01)
    sound = made.brain.parameters.value["decoder.bias"][7]
    made.brain.parameters.value["decoder.bias"][7] = value
    before, kept = values(made), {name: x.copy() for name, x in made.optimizer.tensors().items()}
    loss, _, norm = made.update(made.activity(TOKENS, BATCH, learning=True), inputs, targets, 0.01)
    assert not np.isfinite(loss) and not np.isfinite(norm) and made.optimizer.steps == 1
    for name, x in values(made).items():
        np.testing.assert_array_equal(x, before[name], err_msg=name)
    for name, x in made.optimizer.tensors().items():
        np.testing.assert_array_equal(x, kept[name], err_msg=name)
    made.brain.parameters.value["decoder.bias"][7] = sound
    assert np.isfinite(made.update(made.activity(TOKENS, BATCH, learning=True), inputs, targets, 0.01)[2])


def weigh(made, factor):
    """Multiply the gradients of the updates that follow."""
    count = NeuroGenModel._count_targets

    def weighed(act, targets):
        counted = count(made, act, targets)
        act.weight *= np.float32(factor)
        return counted

    made._count_targets = weighed


@pytest.mark.parametrize("optimizer", configuration.OPTIMIZERS)
def test_rescaled_moments_are_those_of_larger_gradients(optimizer):
    """A fourth of the gradient, with moments of a fourth, makes the same update."""
    made, rescaled = model(optimizer, clip=500), model(optimizer, clip=500)
    acts = [each.activity(TOKENS, BATCH, learning=True) for each in (made, rescaled)]
    for each, act in zip((made, rescaled), acts, strict=True):
        weigh(each, 1000)  # so that EPS is small beside them
        for seed in (0, 1):
            each.update(act, *text(seed), 0.01)
    before = values(made)
    rescaled.optimizer.rescale(0.25)
    weigh(rescaled, 250)
    for seed in (2, 3):
        norms = [each.update(act, *text(seed), 0.01)[2] for each, act in zip((made, rescaled), acts, strict=True)]
    assert norms[0] == pytest.approx(4 * norms[1], rel=1e-3) and norms[0] > made.optimizer.clip == 4 * rescaled.optimizer.clip
    for name, value in values(made).items():
        difference = np.abs(values(rescaled)[name] - value)  # moments of 8 bits are rounded at random
        assert difference.sum() < 0.05 * np.abs(value - before[name]).sum(), name


@pytest.mark.parametrize("ranks", [1, 3])
def test_muon_updates_bundles_and_adamw_the_rest(backend, ranks):
    """Each of three ranks updates its part."""
    table = [
        Parameter("broca.gain", (5,), ""),
        Parameter("lateral.weight", (2, 32, 32), "", decays=True, high=0.0, bundle=32),
        Parameter("feedback.weight", (17, 16, 16), "", decays=True, bundle=16),  # two blocks, the second nearly empty
        Parameter("decoder.weight", (3, 4), "", decays=True),
    ]
    found = {}
    for optimizer in (AdamW, Muon):
        parameters, rng = Parameters(table, backend), np.random.default_rng(0)
        for name, p in parameters.table.items():
            parameters.value[name][...] = backend.asarray(-np.abs(rng.normal(0, 1, p.shape)), "float32")
            parameters.gradient[name][...] = backend.asarray(rng.normal(0, 1, p.shape), "float32")
        parts, before = [], {name: backend.to_numpy(x).astype(np.float64) for name, x in parameters.value.items()}
        for rank in range(ranks):
            parts.append(optimizer(parameters, backend, weight_decay=0.1, clip=np.inf))
            communicator = Solo()
            communicator.rank, communicator.size, communicator.shard = rank, ranks, True
            parts[-1].keep(communicator)
            parts[-1].update(0.01)
        found[optimizer] = {name: backend.to_numpy(x).copy() for name, x in parameters.value.items()}
        moments = {letter: np.concatenate([backend.to_numpy(part.moments()[letter][0]) for part in parts]) for letter in "mv"}
    for name in ("broca.gain", "decoder.weight"):
        np.testing.assert_array_equal(found[Muon][name], found[AdamW][name])
    gradient = {name: backend.to_numpy(x).astype(np.float64) for name, x in parameters.gradient.items()}
    for name in ("lateral.weight", "feedback.weight"):
        steps = [
            ref.muon(p, g, np.zeros(g.shape), 0.01, MOMENTUM, 0.1, RMS, STEPS, 1e-7)
            for p, g in zip(before[name], gradient[name], strict=True)
        ]
        expected = np.minimum([p for p, _ in steps], parameters.table[name].high)
        np.testing.assert_allclose(found[Muon][name], expected, rtol=1e-4, atol=1e-6)
    assert len(moments["m"]) == parameters.flat_value.size == 5 * BLOCK and len(moments["v"]) == 2 * BLOCK
    assert (found[Muon]["lateral.weight"] <= 0).all()


def test_only_rows_of_tokens_in_the_segment_change():
    made = model("adafactor")
    inputs, targets = text()
    before = values(made)["embedding.weight"]
    made.update(made.activity(TOKENS, BATCH, learning=True), inputs, targets, 0.01)
    changed = (made.brain.parameters.value["embedding.weight"] != before).any(1)
    assert set(np.flatnonzero(changed)) == set(inputs.reshape(-1))


def test_the_moments_of_the_large_matrices_are_small():
    sizes = {name: sum(x.nbytes for x in model(name).optimizer.tensors().values()) for name in configuration.OPTIMIZERS}
    learned = model("adamw").parameters
    assert sizes["adamw"] == 8 * learned
    assert sizes["muon"] == 8 * learned - 4 * sum(arc.weight.size for arc in model("adamw").brain.projections)
    assert 2 * learned < sizes["adamw8bit"] < 2.1 * learned
    assert sizes["adafactor"] < 2.1 * (learned - VOCABULARY * (32 + 16)) + 4 * (2 * VOCABULARY + 32 + 16) + 100


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer, memory", [("muon", "full"), ("adamw8bit", "half"), ("adafactor", "recompute")])
def test_on_a_gpu_as_on_the_cpu(optimizer, memory):
    if SIMULATED and optimizer != "adafactor":
        pytest.skip("adafactor launches most kernels of all three, and an update takes the simulator most of a minute")
    settings = {"optimizer": optimizer, "activation_memory": memory, "dropout": 0.1, "axon_dropout": 0.1}
    config = tiny.config(brain={"vocabulary": 130, "chunk": 3}, **settings)
    inputs, targets = (ids[:5, :2] for ids in text(vocabulary=130))
    found, compiled = [], known()
    for backend in (backends.get("cpu"), CudaBackend(precision="fp32")):
        made = NeuroGenModel.from_config(config, backend=backend)
        act = made.activity(5, 2, learning=True)
        with watched() as launches:
            losses = [made.update(act, inputs, targets, 0.01) for _ in range(1 if SIMULATED else 2)]
        assert launches <= compiled
        kept = {name: x for name, x in made.optimizer.tensors().items() if x.dtype == "float32"}  # what the next update begins with
        found.append((losses, {name: backend.to_numpy(x) for name, x in (made.brain.parameters.value | kept).items()}))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-3)
    for name, expected in found[0][1].items():  # where a byte was rounded the other way, an update is a little different
        distance = np.linalg.norm(found[1][1][name] - expected)
        assert distance <= 2e-3 * np.linalg.norm(expected) + 1e-4, name
