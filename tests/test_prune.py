"""Pruning: which bundles go, what the rest computes, and `neurogen prune` as a person uses it."""

import json

import numpy as np
import pytest

import tiny
from neurogen_numba import presets
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.brain.prune import PLAIN, choose, gradients, magnitudes, pruned
from neurogen_numba.brain.quantize import quantized
from neurogen_numba.chat import main as chat
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.generate import main as generate
from neurogen_numba.learning.first_checkpoint import new_run
from neurogen_numba.migrate import main as migrate
from neurogen_numba.prune import main as prune
from neurogen_numba.quantize import main as quantize
from neurogen_numba.storage import checkpoint
from neurogen_numba.train import main as train
from test_commands import refused

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = np.random.default_rng(0).integers(0, 20, (2, 24))


@pytest.fixture(scope="module")
def model():
    return NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}), backend="cpu")


def random_scores(model, seed=1):
    rng = np.random.default_rng(seed)
    return {p.arc.name: rng.random(len(p.weight)) for p in model.brain.projections}


def silenced(model, chosen):
    """A copy of a model whose other bundles are 0."""
    copy = model.__copy__()
    for p in copy.brain.projections:
        p.weight[~np.isin(np.arange(len(p.weight)), chosen[p.arc.name])] = 0
    copy.brain.refresh()
    return copy


# Which bundles go


def test_the_best_bundles_are_left_and_one_of_each_projection():
    score = {"a": np.array([1, 9, 2.0]), "b": np.array([8, 7.0]), "c": np.array([0.1, 0.2])}
    assert {name: left.tolist() for name, left in choose(0.5, score).items()} == {"a": [1], "b": [0, 1], "c": [1]}
    assert {name: left.tolist() for name, left in choose(0.01, score).items()} == {"a": [1], "b": [0], "c": [1]}
    assert sum(map(len, choose(1.0, score).values())) == 7


def test_magnitudes_are_relative_to_their_projection(model):
    copy = model.__copy__()
    for p in copy.brain.projections:
        p.weight[...] *= 3
        p.weight[0] *= 5
    for p in copy.brain.projections:
        each = magnitudes(copy)[p.arc.name]
        np.testing.assert_allclose(np.square(each).mean(), 1, rtol=1e-5)
        assert len(each) == 1 or each[0] == max(each)


def test_gradients_are_those_of_the_loss(model):
    """The sum of |w dL/dw| of each bundle over two segments, with the weights as they were."""
    copy, expected = model.__copy__(), {}
    ids, targets = IDS.T.astype(np.int32), np.roll(IDS, -1, 1).T.astype(np.int32)
    segments = [(ids[first : first + 12], targets[first : first + 12]) for first in (0, 12)]
    act = copy.activity(12, 2, learning=True)
    for segment in segments:
        copy.update(act, *segment, 0.0)
        for p in copy.brain.projections:
            expected[p.arc.name] = expected.get(p.arc.name, 0) + np.abs(p.weight * p.d_weight).sum(axis=(1, 2))
    for name, found in gradients(model.__copy__(), iter(segments)).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-9)
    assert sum(map(np.sum, expected.values())) > 0


# Pruned models


@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_a_pruned_model_is_one_whose_other_bundles_are_0(model, keep):
    score = random_scores(model)
    small, same = pruned(model, keep, score, {}), silenced(model, choose(keep, score))
    np.testing.assert_allclose(small.logits(IDS), same.logits(IDS), rtol=1e-4, atol=1e-5)
    left = sum(len(p.weight) for p in small.brain.projections)
    assert left == max(len(score), round(keep * sum(map(len, score.values()))))
    losses = [each.train_step(IDS, np.roll(IDS, -1, 1)) for each in (small, same)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    rows, other = ({p.arc.name: p for p in each.brain.projections} for each in (small, same))
    for name, chosen in choose(keep, score).items():  # the gradients, too
        np.testing.assert_allclose(rows[name].d_weight, other[name].d_weight[chosen], rtol=1e-3, atol=1e-6)
    assert "synapses" in repr(small.connectome)


def test_a_pruned_model_is_saved_quantised_and_drawn(model, tmp_path):
    small = pruned(model, 0.4, random_scores(model), {"steps": 3})
    small.save(tmp_path / "saved")
    loaded = NeuroGenModel.load(tmp_path / "saved", backend="cpu")
    np.testing.assert_array_equal(loaded.logits(IDS), small.logits(IDS))
    assert loaded.config.training.steps == 3
    codes = quantized(small, 8)
    assert np.abs(codes.logits(IDS) - small.logits(IDS)).mean() < 0.2 * np.abs(small.logits(IDS)).mean()
    drawn = NeuroGenModel.from_config(small.config, backend="cpu")
    assert np.isfinite(drawn.logits(IDS)).all()
    other = pruned(model, 0.4, random_scores(model), {"learning": "eprop"})
    with pytest.raises(ConfigError, match="a pruned brain learns with bptt, not with eprop"):
        other.train_step(IDS, IDS)
    with pytest.raises(ConfigError, match="a quantised or pruned model is not pruned"):
        pruned(small, 0.5, random_scores(small), {})


def test_wiring_of_a_damaged_file_is_refused(model, tmp_path):
    small = pruned(model, 0.4, random_scores(model), {})
    for value in (-1, 99):
        tensors, documents = small.snapshot()
        tensors["brain"]["lateral_pfc.tile"] = np.full_like(tensors["brain"]["lateral_pfc.tile"], value)
        checkpoint.save(tmp_path / f"saved{value}", tensors, documents)
        with pytest.raises(CheckpointError, match="lateral_pfc: its bundles lead out of the brain"):
            NeuroGenModel.load(tmp_path / f"saved{value}", backend="cpu")


@pytest.mark.parametrize("text", ["nowhere=3", "lateral_pfc", "lateral_pfc=0", "lateral_pfc=999", "lateral_pfc=x"])
def test_a_setting_of_what_is_pruned_is_checked(text):
    with pytest.raises(ConfigError, match="brain.pruned"):
        NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20, "pruned": text}), backend="cpu")


# The command


def test_a_pruned_run_of_any_rule_goes_on_by_backpropagation_on_the_text():
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 12}), backend="cpu")
    model.config = model.config.replace(training={"distill": "teacher", "rewire_interval": 9})
    training = pruned(model, 0.5, magnitudes(model), PLAIN).config.training
    assert (training.learning, training.learning_signal, training.distill, training.rewire_interval) == ("bptt", "symmetric", "", 0)


def test_a_new_run_that_nothing_was_written_to_is_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_run(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
        raise KeyboardInterrupt
    assert not (tmp_path / "run").exists()
    with new_run(tmp_path / "run"):
        (tmp_path / "run" / "something").touch()
    assert (tmp_path / "run" / "something").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, patch = tmp_path_factory.mktemp("trained"), pytest.MonkeyPatch()
    patch.setitem(presets.PRESETS, "tiny", tiny.config(steps=60, checkpoint_interval=30, eval_interval=30, learning_rate=0.02))
    patch.chdir(folder)
    (folder / "sheep.txt").write_text("".join(f"{number} sheep went home.\n" for number in range(300)))
    assert train(["--preset", "tiny", "--data", "sheep.txt"]) == 0
    yield folder
    patch.undo()


@pytest.mark.parametrize("by", ["gradient", "magnitude"])
def test_a_pruned_run_is_trained_and_used_like_any_other(trained, capsys, monkeypatch, by):
    name = f"by-{by}"
    assert prune(["tiny-1", f"runs/{name}", "--keep", "0.5", "--by", by, "--steps", "20", "--plain"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("before", "pruned", "trained", "held-out loss", "tokens/s", f"by {by}", "step 20/20"))
    losses = [float(word) for word in next(line for line in shown.splitlines() if line.startswith("held-out")).split()[3:6]]
    assert losses[2] < losses[1]
    assert json.loads((trained / f"runs/{name}/summary.json").read_text())["steps"] == 20
    assert train(["--resume", name, "--steps", "25"]) == 0
    assert evaluate([name]) == generate([name, "--length", "5"]) == quantize([name]) == 0
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError))
    assert chat([name, "--plain"]) == 0
    assert migrate([name, f"runs/{name}-larger", "--set", "brain.pfc.neurons=64"]) == 0


def test_without_updates_the_rest_is_as_it_was(trained, capsys):
    assert prune(["tiny-1@best", "--keep", "1", "--steps", "0"]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("held-out"))
    assert shown.split()[3] == shown.split()[4] and (trained / "runs/tiny-1-pruned/checkpoints/step-00000000").is_dir()


def test_bad_requests_cost_a_sentence(trained, capsys):
    assert prune(["tiny-1", "runs/there", "--steps", "0"]) == 0
    capsys.readouterr()
    before = sorted(path.name for path in (trained / "runs").iterdir())
    for keep in ("0", "-1", "1.5", "nan"):
        refused(prune(["tiny-1", "runs/x", "--keep", keep]), capsys, "--keep: a share above 0 and at most 1")
    refused(prune(["tiny-1", "runs/x", "--keep", "half"]), capsys, "--keep")
    refused(prune(["tiny-1", "runs/x", "--by", "luck"]), capsys, "--by", "gradient")
    refused(prune(["tiny-1", "runs/x", "--steps", "-1"]), capsys, "--steps: at least 0")
    refused(prune(["tiny-1", "runs/there"]), capsys, "runs/there is not empty")
    refused(prune(["there", "runs/x"]), capsys, "is quantised or pruned already")
    refused(prune(["nowhere", "runs/x"]), capsys, "nowhere")
    assert sorted(path.name for path in (trained / "runs").iterdir()) == before
