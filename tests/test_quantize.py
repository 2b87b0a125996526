"""Quantised models: rounding, kernels that read codes, and `neurogen quantize` as a person uses it."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest

import reference as ref
import tiny
from neurogen_numba import presets
from neurogen_numba.brain.calibration import calibrate
from neurogen_numba.brain.connectome import real_weights
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.brain.quantize import quantized
from neurogen_numba.chat import main as chat
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.generate import main as generate
from neurogen_numba.kernels import codes
from neurogen_numba.migrate import main as migrate
from neurogen_numba.optim.quantization import DAMPING, TOP, Feedback, dequantize, nearest, quantize
from neurogen_numba.prune import main as prune
from neurogen_numba.quantize import main as quantize_command
from neurogen_numba.storage import checkpoint
from neurogen_numba.storage.checkpoint import seal
from neurogen_numba.train import main as train
from test_commands import refused

pytestmark = pytest.mark.usefixtures("one_thread")
BITS = pytest.mark.parametrize("bits", [8, 4])


def drawn(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


# Rounding


def test_codes_by_hand():
    weight = np.array([[7, -3.5, 0], [0, 0, 0]], np.float32)
    stored, scale = quantize(weight, 4)
    assert stored.dtype == np.uint8 and stored.shape == (2, 2)
    np.testing.assert_allclose(dequantize(stored, scale, 3)[0], weight[0], atol=0.5)
    assert not dequantize(stored, scale, 3)[1].any()
    stored, scale = quantize(np.array([[127, -2, 0.4]], np.float32), 8)
    assert scale == 1 and stored.tolist() == [[127, -2, 0]]
    assert codes.pack(np.array([[-8, 7, -7]], np.int8), 4).tolist() == [[0xF0, 0x81]]


@BITS
@pytest.mark.parametrize("columns", [1, 7, 64, 101])
def test_an_error_is_at_most_half_of_a_step_or_clipped(bits, columns):
    weight = drawn(9, columns)
    stored, scale = quantize(weight, bits)
    np.testing.assert_array_equal(dequantize(stored, scale, columns), ref.weights_of_codes(stored, scale, columns))
    error = np.abs(dequantize(stored, scale, columns) - weight)
    ends = scale[:, None] * (-TOP[bits] - 1), scale[:, None] * TOP[bits]  # a scale may be negative
    inside = (weight >= np.minimum(*ends)) & (weight <= np.maximum(*ends))
    assert inside.mean() > 0.5 and (error[inside] <= 0.501 * np.broadcast_to(np.abs(scale[:, None]), weight.shape)[inside]).all()
    largest = np.abs(weight).max(axis=1, keepdims=True) / TOP[bits]
    assert np.square(error).sum() <= np.square(np.rint(weight / largest) * largest - weight).sum() * 1.0001


def test_a_negative_scale_has_the_lowest_code_for_the_largest_weight():
    stored, scale = quantize(np.array([[8, -7, 3, 0]], np.float32), 4)
    assert codes.unpack(stored).tolist() == [[-8, 7, -3, 0]] and scale == pytest.approx(-1, abs=0.01)


def test_compensation_by_hand():
    """Two sources that always agree: half of the errors of both weights is left to one of them, which moves it to the next code."""
    weight, scale, same = np.array([[0.4, 0.4, -2.4]]), np.ones((1, 1)), np.ones((3, 3))
    same[2], same[:, 2] = 0, 0
    same[2, 2] = 1
    assert nearest(weight, scale, 4).tolist() == [[0, 0, -2]]
    assert Feedback(same).round(weight, scale, 4).tolist() == [[0, 1, -2]]
    assert Feedback(same).round(weight, scale, 4, high=0).tolist() == [[0, 0, -2]]
    assert Feedback(same).round(weight * 9, scale, 4).tolist() == [[4, 3, -8]]  # 3.6 -> 4, whose error 3.6 - 0.4 gets; -21.6 is clipped


@BITS
@pytest.mark.parametrize("inputs", [5, 150])  # more than one block of columns
def test_compensation_is_that_of_obq(bits, inputs):
    """Against the definition (Frantar & Alistarh 2022, "Optimal brain compression"): for every weight, the inverse of the moments of
    those that are left is computed anew."""
    mix, weight = drawn(inputs, inputs, 1), drawn(4, inputs)
    x = (drawn(400, inputs, 2) @ mix).astype(np.float64)
    moments, scale = x.T @ x / len(x), np.abs(drawn(4, inputs, 3)) / TOP[bits] + 0.01
    found = Feedback(moments).round(weight, scale, bits)
    damped = moments + DAMPING * np.diag(moments).mean() * np.eye(inputs)
    left, want, order = weight.astype(np.float64), np.zeros((4, inputs)), np.argsort(-np.diag(moments))
    for n, k in enumerate(order):
        rest = order[n:]
        inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
        want[:, k] = np.clip(np.rint(left[:, k] / scale[:, k]), -TOP[bits] - 1, TOP[bits])
        left[:, rest] -= np.outer(left[:, k] - want[:, k] * scale[:, k], inverse[0] / inverse[0, 0])
    assert (found == want).mean() > 0.99  # ties may be broken by rounding


def test_compensation_makes_the_error_of_the_product_smaller():
    mix, weight = drawn(32, 32, 1), drawn(20, 32)
    x = drawn(4000, 32, 2) @ mix  # inputs that are correlated
    plain, compensated = (dequantize(*quantize(weight, 4, moments), 32) for moments in (None, x.T @ x / len(x)))
    before, after = (np.square(x @ (rounded - weight).T).mean() for rounded in (plain, compensated))
    assert after < 0.6 * before


# Kernels


@BITS
@pytest.mark.parametrize("M, K, R", [(1, 64, 9), (3, 37, 5), (2, 130, 4), (codes.MAX_COLUMNS + 3, 37, 11)])
def test_a_product_with_codes(op, bits, M, K, R):
    stored, scale = padded(*quantize(drawn(R, K), bits))
    x, out = drawn(M, K, 1), np.full((M, R), np.nan, np.float32)
    op("quantized_product", out, x, stored, scale)
    np.testing.assert_allclose(out, x.astype(np.float64) @ ref.weights_of_codes(stored, scale, K).T, rtol=1e-4, atol=1e-4)


@BITS
def test_rows_of_codes(op, bits):
    stored, scale = padded(*quantize(drawn(5, 21), bits))
    tokens, x = np.array([[4, 0, 2], [2, 2, 1]], np.int32), np.full((2, 3, 21), np.nan, np.float32)
    op("code_rows", x, stored, tokens, scale)
    np.testing.assert_allclose(x, ref.weights_of_codes(stored, scale, 21)[tokens], rtol=1e-6)


def padded(stored, scale):
    """Rows of codes as parameters align them."""
    return np.pad(stored, ((0, 0), (0, -stored.shape[1] % 16)), constant_values=77), scale


# Models


def model_of(bits, **brain):
    """(a tiny model, quantised; the float32 model with the same weights)."""
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20, **brain}), backend="cpu")
    small, same = quantized(model, bits), copy.copy(model)
    for name in small.brain.parameters.quantized:
        same.brain.parameters.value[name][...] = small.brain.parameters.dense(name)
    same.brain.refresh()
    return small, same


@BITS
@pytest.mark.parametrize("brain", [{}, {"tied": True, "embedding": 32}])
def test_a_quantised_model_computes_with_the_weights_that_its_codes_stand_for(bits, brain):
    small, same = model_of(bits, **brain)
    ids = np.random.default_rng(1).integers(0, 20, (2, 25))
    np.testing.assert_allclose(small.logits(ids), same.logits(ids), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(small.connectome["wernicke_pfc"].weight, same.connectome["wernicke_pfc"].weight)
    act = [model.activity(1, 2) for model in (small, same)]  # one token: the product reads codes
    one, other = (model.backend.to_numpy(model.brain.forward_logits(a, ids[:, :1].T)) for model, a in zip((small, same), act, strict=True))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert small.parameters == same.parameters
    assert small.brain.parameters.nbytes < (0.6 if bits == 8 else 0.5) * same.brain.parameters.nbytes  # small bundles, many constants


def test_codes_are_copied_pickled_and_saved(tmp_path):
    small, _ = model_of(4)
    ids = np.arange(15)
    small.save(tmp_path / "saved")
    for other in (copy.copy(small), pickle.loads(pickle.dumps(small)), NeuroGenModel.load(tmp_path / "saved", backend="cpu")):
        np.testing.assert_array_equal(other.logits(ids), small.logits(ids))


def test_a_lesion_of_codes_ends():
    small, same = model_of(8)
    ids = np.arange(18)
    before = small.logits(ids)
    with small.lesion("thalamus_*"), same.lesion("thalamus_*"):
        np.testing.assert_allclose(small.logits(ids), same.logits(ids), rtol=1e-4, atol=1e-5)
        assert not np.allclose(small.logits(ids), before)
    np.testing.assert_array_equal(small.logits(ids), before)


def test_a_quantised_model_neither_learns_nor_is_quantised():
    small, _ = model_of(8)
    with pytest.raises(ConfigError, match="a quantised model does not learn"):
        small.train_step(np.arange(9), np.arange(9))
    with pytest.raises(ConfigError, match="quantised already"):
        quantized(small, 4)
    with pytest.raises(ConfigError, match="bits: 8 or 4, not 3"):
        quantized(NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}), backend="cpu"), 3)


def segments(count=2):
    return np.random.default_rng(0).integers(0, 20, (count, 8, 2)).astype(np.int32)


def test_moments_are_those_of_what_decoder_and_currents_read(backend):
    """A current is the product of its weights and sources, so moments of the sources give the mean of its square."""
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}), backend=backend)
    act, reads, squares = model.activity(8, 2), [], {}
    for ids in segments():
        model.score(act, ids, np.zeros_like(ids))
        reads.append(model.backend.to_numpy(act.decoder_input).reshape(16, -1))
        for name, current in act.currents.items():
            squares.setdefault(name, []).append(np.square(model.backend.to_numpy(current.value)).mean(axis=(0, 1)))
    groups, decoder = calibrate(model, iter(segments()))
    x = np.concatenate(reads).astype(np.float64)
    np.testing.assert_allclose(decoder, x.T @ x / len(x), rtol=1e-5, atol=1e-9)
    found = {}
    for group in groups:
        weight = np.concatenate([p.dense()[index, :, targets] for p, index, targets in group.bundles])
        current = group.bundles[0][0].arc.target
        found.setdefault(current, []).append(np.einsum("kn,kl,ln->n", weight, group.moments, weight))
    for name in found.keys() - {"thalamus.current"}:  # to which the embedding is added
        want = np.mean(squares[name], axis=0)
        assert want.any() or name == "working_memory.retain", name
        np.testing.assert_allclose(np.concatenate(found[name])[: len(want)], want, rtol=2e-4, atol=1e-7, err_msg=name)


def test_a_text_makes_the_errors_of_currents_smaller():
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}), backend="cpu")
    groups, _ = calibrate(model, segments(20))
    plain, compensated = (quantized(model, 4, text).brain.parameters for text in (None, segments(20)))

    def error(of, group):
        parts = [(of.dense(f"{p.arc.name}.weight") - p.dense())[index, :, targets] for p, index, targets in group.bundles]
        error = np.concatenate(parts)
        return np.einsum("kn,kl,ln->", error, group.moments, error)

    assert sum(error(compensated, group) for group in groups) < 0.8 * sum(error(plain, group) for group in groups)
    to_thalamus, rows = model.brain.parameters.value["embedding_thalamus.weight"], model.brain.parameters.value["embedding.weight"]
    before, after = (np.square((of.dense("embedding.weight") - rows) @ to_thalamus).sum() for of in (plain, compensated))
    assert after < 0.9 * before
    for p in model.brain.projections:
        weight, (sources, targets) = compensated.dense(f"{p.arc.name}.weight"), real_weights(p.arc, p.block, p.tile)
        assert not weight[~(sources[:, :, None] & targets[:, None, :])].any()
        assert not p.arc.inhibitory or weight.max() <= 0


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    patch = pytest.MonkeyPatch()
    patch.setitem(presets.PRESETS, "tiny", tiny.config(steps=30, checkpoint_interval=15, eval_interval=15, learning_rate=0.02))
    patch.chdir(folder)
    (folder / "sheep.txt").write_text("".join(f"{number} sheep went home.\n" for number in range(300)))
    assert train(["--preset", "tiny", "--data", "sheep.txt"]) == 0
    for bits in ("8", "4"):
        assert quantize_command(["tiny-1", "--bits", bits]) == 0
    yield folder
    patch.undo()


@BITS
def test_a_quantised_run_is_used_like_any_checkpoint(trained, capsys, monkeypatch, bits):
    name, manifest = f"tiny-1-int{bits}", json.loads((trained / f"runs/tiny-1-int{bits}/manifest.json").read_text())
    about = manifest["quantization"]
    assert manifest["version"] == 3 and about["bits"] == bits and about["loss"][1] == manifest["validation_loss"]
    assert about["loss"][1] < about["loss"][0] + 0.2 and about["bytes"][1] < 0.6 * about["bytes"][0] and min(about["tokens_per_second"]) > 0
    assert evaluate([name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(about["loss"][1])
    assert generate([name, "--prompt", "12 sheep", "--length", "20"]) == 0
    assert capsys.readouterr().out.startswith("12 sheep")
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError))
    assert chat([name, "--plain"]) == 0


def test_the_table_names_loss_size_and_speed(trained, capsys):
    assert quantize_command(["tiny-1@best", "named", "--calibrate", "sheep.txt"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("float32", "int8", "bytes of the weights", "held-out loss", "tokens/s", "neurogen chat named"))
    assert json.loads((trained / "named/manifest.json").read_text())["quantization"]["calibrated"] == "sheep.txt"


@pytest.mark.parametrize("flags, where", [([], "elsewhere"), (["--out", "runs"], "runs")])
def test_what_is_made_of_a_run_is_beside_it(trained, capsys, flags, where):
    shutil.copytree(trained / "runs/tiny-1", trained / "elsewhere/moved", dirs_exist_ok=True)
    assert quantize_command(["elsewhere/moved", *flags]) == 0
    assert f"neurogen chat {where}/moved-int8\n" in capsys.readouterr().out
    assert prune(["elsewhere/moved", "--steps", "0", *flags]) == 0
    assert f"neurogen chat {where}/moved-pruned\n" in capsys.readouterr().out
    for name in ("moved-int8", "moved-pruned"):
        assert (trained / where / name).is_dir()
        shutil.rmtree(trained / where / name)


def test_bad_requests_cost_a_sentence(trained, capsys):
    capsys.readouterr()
    before = sorted(path.name for path in (trained / "runs").iterdir())
    refused(quantize_command(["tiny-1", "--bits", "3"]), capsys, "--bits: 8 or 4, not 3")
    refused(quantize_command(["tiny-1"]), capsys, "runs/tiny-1-int8 is there already")
    refused(quantize_command(["tiny-1-int8"]), capsys, "runs/tiny-1-int8 is quantised already")
    refused(quantize_command(["tiny-1", "x", "--calibrate", "nowhere.txt"]), capsys, "nowhere.txt")
    (trained / "short.txt").write_text("12 s")
    refused(quantize_command(["tiny-1", "x", "--calibrate", "short.txt"]), capsys, "--calibrate: the text has 4 tokens")
    refused(train(["--resume", "tiny-1-int8"]), capsys, "is quantised, and is not trained further")
    refused(migrate(["tiny-1-int8", "runs/x", "--set", "brain.pfc.neurons=64"]), capsys, "is quantised, and has no weights to migrate")
    refused(generate(["tiny-1-int8", "--learn-online", "--prompt", "1 sheep"]), capsys, "a quantised model does not learn")
    assert chat(["tiny-1-int8", "--learn-online", "--prompt", "1 sheep"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "a quantised model does not learn" in output.err  # before a reply
    assert sorted(path.name for path in (trained / "runs").iterdir()) == before and not (trained / "x").exists()


@pytest.mark.parametrize(
    "bits, message", [(5, "codes of 5 bits are unknown"), (4, "weight.codes' is int8 .* instead of uint8"), ([8], "bits are unknown")]
)
def test_a_manifest_of_other_codes_is_refused(tmp_path, bits, message):
    small, _ = model_of(8)
    small.save(tmp_path / "saved")
    path = tmp_path / "saved/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["quantization"]["bits"] = bits
    path.write_text(json.dumps(manifest | {"sha256": seal(manifest)}))
    with pytest.raises(CheckpointError, match=message):
        NeuroGenModel.load(tmp_path / "saved", backend="cpu")
    del manifest["quantization"]
    path.write_text(json.dumps(manifest | {"sha256": seal(manifest)}))
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(tmp_path / "saved")
