"""Pruning: which bundles go, what the rest computes, and `neurogen prune` as a person uses it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from neurogen_numba import presets
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.brain.prune import PLAIN, choose, gradients, pruned, restarted
from neurogen_numba.brain.quantize import quantized
from neurogen_numba.chat import main as chat
from neurogen_numba.distributed.communicator import Solo
from neurogen_numba.distributed.team import assemble
from neurogen_numba.errors import CheckpointError, ConfigError, DataError
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.generate import main as generate
from neurogen_numba.learning.first_checkpoint import new_run
from neurogen_numba.learning.pruning import bundles_at
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.migrate import main as migrate
from neurogen_numba.prune import further_training
from neurogen_numba.prune import main as prune
from neurogen_numba.quantize import main as quantize
from neurogen_numba.runs import main as runs
from neurogen_numba.storage import checkpoint
from neurogen_numba.train import main as train
from same import assert_equal_runs
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
    assert {name: left.tolist() for name, left in choose(4, score).items()} == {"a": [1], "b": [0, 1], "c": [1]}
    assert {name: left.tolist() for name, left in choose(1, score).items()} == {"a": [1], "b": [0], "c": [1]}
    assert sum(map(len, choose(7, score).values())) == 7


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
    count = max(len(score), round(keep * sum(map(len, score.values()))))
    small, same = pruned(model, count, score), silenced(model, choose(count, score))
    np.testing.assert_allclose(small.logits(IDS), same.logits(IDS), rtol=1e-4, atol=1e-5)
    assert sum(len(p.weight) for p in small.brain.projections) == count
    losses = [each.train_step(IDS, np.roll(IDS, -1, 1)) for each in (small, same)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    rows, other = ({p.arc.name: p for p in each.brain.projections} for each in (small, same))
    for name, chosen in choose(count, score).items():  # the gradients, too
        np.testing.assert_allclose(rows[name].d_weight, other[name].d_weight[chosen], rtol=1e-3, atol=1e-6)
    assert "synapses" in repr(small.connectome)


def test_a_pruned_model_is_saved_quantised_and_drawn(model, tmp_path):
    small = pruned(model, 1, random_scores(model))
    small.save(tmp_path / "saved")
    loaded = NeuroGenModel.load(tmp_path / "saved", backend="cpu")
    np.testing.assert_array_equal(loaded.logits(IDS), small.logits(IDS))
    codes = quantized(small, 8)
    assert np.abs(codes.logits(IDS) - small.logits(IDS)).mean() < 0.2 * np.abs(small.logits(IDS)).mean()
    drawn = NeuroGenModel.from_config(small.config, backend="cpu")
    assert np.isfinite(drawn.logits(IDS)).all()
    small.config = small.config.replace(training={"learning": "eprop"})
    with pytest.raises(ConfigError, match="a pruned brain learns with bptt, not with eprop"):
        small.train_step(IDS, IDS)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw8bit", "adafactor"])
def test_a_bundle_keeps_its_moments_and_its_average(optimizer):
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}, optimizer=optimizer, average=5), backend="cpu")
    for name, array in model.optimizer.tensors().items():
        array[...] = np.arange(array.size).reshape(array.shape) % 100 if name.split(".")[-1] == "weight" else 0
    model.optimizer.steps, score = 7, random_scores(model)
    small, chosen = pruned(model, 40, score), choose(40, score)
    before, after = (each.optimizer.tensors() for each in (model, small))
    for p in small.brain.projections:
        for key in (key for key in before if key.endswith(f".{p.arc.name}.weight")):
            rows = before[key].reshape(len(score[p.arc.name]), -1)[chosen[p.arc.name]]
            np.testing.assert_array_equal(after[key].reshape(rows.shape), rows)
    assert before.keys() == after.keys() and small.optimizer.steps == 7


def test_wiring_of_a_damaged_file_is_refused(model, tmp_path):
    small = pruned(model, 1, random_scores(model))
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


# Stages


def test_stages_follow_the_cubic_schedule_and_end_at_the_share():
    """Of 100 updates, stages come before updates 0, 10, ... 50; few updates have fewer stages, and the last one always comes."""
    config = presets.get_preset("nano").replace(training={"prune_keep": 0.25})
    whole = bundles_at(config.replace(training={"prune_keep": 1.0}), 0, 100)
    left = [bundles_at(config, step, 100) for step in range(100)]
    stages = [left[0]] + [now for before, now in zip(left, left[1:], strict=False) if now < before]
    assert stages == [round((0.25 + 0.75 * (1 - s / 6) ** 3) * whole) for s in range(1, 7)]
    assert [step for step in range(1, 100) if left[step] < left[step - 1]] == [10, 20, 30, 40, 50] and left[-1] == round(0.25 * whole)
    for steps in (1, 2, 3, 5):
        assert bundles_at(config, steps - 1, steps) == round(0.25 * whole)


@pytest.mark.parametrize("training", [{"rewire_interval": 3}, {"learning": "eprop"}])
def test_pruning_during_a_run_goes_with_no_other_change_of_wiring(training):
    with pytest.raises(ConfigError, match="training.prune_keep: a pruned brain learns with bptt, and its wiring stays"):
        tiny.config(prune_keep=0.5, **training)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, float("nan")])
def test_the_share_that_is_left_is_checked(keep):
    with pytest.raises(ConfigError, match="training.prune_keep: a share above 0 and at most 1"):
        tiny.config(prune_keep=keep)


def test_pruning_during_a_run_needs_one_process(model):
    class Two(Solo):
        size = 2

    copy = restarted(model, {"prune_keep": 0.5})
    with pytest.raises(ConfigError, match="training.prune_keep: bundles are removed by one process"):
        assemble(Two(), lambda: copy)


# The command


def test_a_pruned_run_of_any_rule_goes_on_by_backpropagation_on_the_text():
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 12}), backend="cpu")
    model.config = model.config.replace(training={"distill": "teacher", "rewire_interval": 9})
    training = restarted(model, PLAIN).config.training
    assert (training.learning, training.learning_signal, training.distill, training.rewire_interval) == ("bptt", "symmetric", "", 0)


@pytest.mark.parametrize(("optimizer", "teacher"), [("adamw", "/runs/old"), ("muon", "/runs/old"), ("adafactor", ""), ("adamw8bit", "")])
def test_the_teacher_is_left_out_where_no_optimizer_takes_one(model, optimizer, teacher):
    copy = model.__copy__()
    copy.config = copy.config.replace(training={"optimizer": optimizer})
    assert further_training(copy, Path("/runs/old"), 0.5, 3)["distill"] == teacher


def test_a_new_run_that_nothing_was_written_to_is_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_run(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
        raise KeyboardInterrupt
    assert not (tmp_path / "run").exists()
    with new_run(tmp_path / "run"):
        (tmp_path / "run" / "something").touch()
    assert (tmp_path / "run" / "something").exists()


RATES = {"learning_rate": 0.02, "dropout": 0.1, "axon_dropout": 0.1, "weight_drop": 0.1, "word_dropout": 0.1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, patch = tmp_path_factory.mktemp("trained"), pytest.MonkeyPatch()
    patch.setitem(presets.PRESETS, "tiny", tiny.config(steps=60, checkpoint_interval=8, eval_interval=20, **RATES))
    patch.chdir(folder)
    (folder / "sheep.txt").write_text("".join(f"{number} sheep went home.\n" for number in range(300)))
    assert train(["--preset", "tiny", "--data", "sheep.txt"]) == 0
    yield folder
    patch.undo()


def test_a_pruned_run_is_trained_and_used_like_any_other(trained, capsys, monkeypatch):
    name = "small"
    assert prune(["tiny-1", f"runs/{name}", "--keep", "0.7", "--steps", "20", "--plain"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("before", "trained", "held-out loss", "tokens/s", "step 20/20"))
    model = NeuroGenModel.load(checkpoint.latest(trained / f"runs/{name}"), backend="cpu")
    whole = sum(arc.weight_shape[0] for arc in NeuroGenModel.load(checkpoint.latest(trained / "runs/tiny-1"), backend="cpu").brain.arcs)
    assert sum(len(p.weight) for p in model.brain.projections) == round(0.7 * whole) and f"of {whole} bundles" in shown
    losses = [float(word) for word in next(line for line in shown.splitlines() if line.startswith("held-out")).split()[3:5]]
    assert losses[1] < losses[0]
    assert json.loads((trained / f"runs/{name}/summary.json").read_text())["steps"] == 20
    assert train(["--resume", name, "--steps", "25"]) == 0
    assert evaluate([name]) == generate([name, "--length", "5"]) == quantize([name]) == 0
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError))
    assert chat([name, "--plain"]) == 0
    assert migrate([name, f"runs/{name}-larger", "--set", "brain.pfc.neurons=64"]) == 0
    larger = checkpoint.latest(trained / f"runs/{name}-larger")
    assert NeuroGenModel.load(larger, backend="cpu").config.training.prune_keep == 1  # or its training would prune it again


def test_half_of_the_updates_follow_with_a_teacher_and_resume_bit_for_bit(trained, capsys):
    """The pruned model learns from the one that it was made from, and nothing is dropped."""
    assert prune(["tiny-1", "runs/half", "--keep", "0.6", "--plain"]) == 0
    training = json.loads((trained / "runs/half/config.json").read_text())["training"]
    dropouts = [training[name] for name in ("dropout", "axon_dropout", "weight_drop", "word_dropout")]
    assert (training["steps"], training["warmup"], training["learning_rate"], dropouts) == (30, 3, 0.02, [0.0] * 4)
    assert training["distill"] == str(trained / "runs/tiny-1/checkpoints/step-00000060")
    assert "teacher.pfc.v" in checkpoint.load(checkpoint.latest(trained / "runs/half")).tensors["state"]
    for step in (0, 8, 16):  # where a kill may have left it: before the stages, between them, and after
        again = trained / f"runs/again{step}"
        shutil.copytree(trained / "runs/half", again)
        assert train(["--resume", f"runs/again{step}/checkpoints/step-000000{step:02}", "--plain"]) == 0
        assert_equal_runs(trained / "runs/half", again)
    trainer = Trainer.resume(again, backend="cpu", folder=trained / "runs/half/checkpoints/step-00000008")
    before, teacher, trainer.step = trainer.act.state(), trainer.act.teacher, 9  # the last stage
    read, batches = [], trainer.corpus.batches
    trainer.corpus.batches = lambda position=None: read.append(position) or batches(position)
    (notice,) = trainer._prune(None)
    assert "31 bundles" in notice.text
    assert read == [trainer.batches.position()]  # scores are of the text that comes next
    assert trainer.act.teacher is teacher and trainer.team.model is trainer.model and trainer.config is trainer.model.config
    for name, array in trainer.act.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_text_that_fails_before_a_stage_loses_no_update(trained):
    shutil.copytree(trained / "runs/tiny-1", trained / "runs/old")
    assert prune(["old", "runs/fails", "--keep", "0.6", "--plain"]) == 0
    trainer = Trainer.resume(trained / "runs/fails", backend="cpu", folder=trained / "runs/fails/checkpoints/step-00000008")
    trainer.corpus.batches = lambda position: SimpleNamespace(next=lambda: (_ for _ in ()).throw(DataError("the text is gone")))
    with pytest.raises(DataError, match="the text is gone; a checkpoint is in .*fails; continue with --resume"):
        list(trainer.reports())
    assert trainer.step == 9 and (trained / "runs/fails/checkpoints/step-00000009").is_dir()


def test_without_updates_the_rest_is_as_it_was(trained, capsys):
    assert prune(["tiny-1@best", "--keep", "1", "--steps", "0"]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("held-out"))
    assert shown.split()[3] == shown.split()[4] and (trained / "runs/tiny-1-pruned/checkpoints/step-00000000").is_dir()


def test_a_run_without_updates_is_finished_and_may_be_trained(trained, capsys):
    assert prune(["tiny-1", "runs/none", "--keep", "0.7", "--steps", "0"]) == 0
    shown, bundles = (
        capsys.readouterr().out,
        sum(len(p.tile) for p in NeuroGenModel.load("runs/none/checkpoints/step-00000000").brain.projections),
    )
    summary = json.loads((trained / "runs/none/summary.json").read_text())
    assert summary["steps"] == 0 and f"{summary['val_loss']:.4f}" in shown
    assert runs(["--json"]) == 0
    (row,) = [run for run in json.loads(capsys.readouterr().out)["runs"] if run["name"] == "none"]
    assert (row["state"], row["steps"], row["steps_planned"]) == ("finished", 0, 0)
    refused(train(["--resume", "none"]), capsys, "has made 0 steps already; to continue, give a higher --steps")
    assert row["commands"]["resume"].endswith("train --resume runs/none --steps 30")
    assert train(["--resume", "none", "--steps", "12", "--plain"]) == 0  # past the stages of a run that prunes
    assert sum(len(p.tile) for p in NeuroGenModel.load(checkpoint.latest(trained / "runs/none")).brain.projections) == bundles


def test_bad_requests_cost_a_sentence(trained, capsys):
    assert prune(["tiny-1", "runs/there", "--steps", "0"]) == 0
    capsys.readouterr()
    before = sorted(path.name for path in (trained / "runs").iterdir())
    for keep in ("0", "-1", "1.5", "nan"):
        refused(prune(["tiny-1", "runs/x", "--keep", keep]), capsys, "--keep: a share above 0 and at most 1")
    refused(prune(["tiny-1", "runs/x", "--keep", "half"]), capsys, "--keep")
    refused(prune(["tiny-1", "runs/x", "--steps", "-1"]), capsys, "--steps: at least 0")
    refused(prune(["tiny-1", "runs/there"]), capsys, "runs/there is not empty")
    refused(prune(["there", "runs/x"]), capsys, "is quantised or pruned already")
    refused(prune(["nowhere", "runs/x"]), capsys, "nowhere")
    assert sorted(path.name for path in (trained / "runs").iterdir()) == before
