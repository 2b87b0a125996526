"""Distillation: soft targets, a teacher that reads along, and `neurogen train --distill` as a person uses it."""

import json
import shutil

import numpy as np
import pytest

import neurogen_numba as ng
import tiny
from neurogen_numba import presets
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.learning.distillation import SHARE, Teacher, load_teacher
from neurogen_numba.learning.report import StepReport
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.storage import checkpoint
from neurogen_numba.train import main as train
from same import assert_equal_runs
from test_commands import refused

pytestmark = pytest.mark.usefixtures("one_thread")


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_gradients_of_hard_targets_become_one_of_soft_targets(op):
    rng = np.random.default_rng(0)
    z, teacher, targets = rng.standard_normal((5, 7)), rng.standard_normal((5, 7)), rng.integers(0, 7, 5)
    hard = np.eye(7)[targets]
    soft = 0.7 * hard + 0.3 * softmax(teacher)
    d, d_teacher = ((softmax(x) - hard).astype(np.float32) for x in (z, teacher))
    op("soften", d, d_teacher, np.float32(0.3))
    np.testing.assert_allclose(d, softmax(z) - soft, rtol=1e-5, atol=1e-6)


class Tokens:
    pieces = [bytes([n]) for n in range(20)]


def test_a_model_that_learns_gets_the_teachers_predictions_as_targets():
    """The gradient of the decoder's bias is the sum over tokens of p - soft targets, of the teacher's own state, over two segments."""
    student, larger = (
        NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}, seed=seed, batch=2, segment=8), backend="cpu") for seed in (0, 1)
    )
    larger.tokenizer = Tokens
    ids = np.random.default_rng(2).integers(0, 20, (17, 2)).astype(np.int32)
    targets = ids[1:].copy()
    targets[3, 1] = -1  # a target that does not count
    act = student.activity(8, 2, learning=True)
    act.teacher = Teacher(larger, Tokens, 8, 2)
    before = [model.logits(ids[:-1].T).swapaxes(0, 1) for model in (student, larger)]  # [T, B, V]
    for first in (0, 8):
        act.teacher.read(ids[first : first + 8], targets[first : first + 8])
        student.update(act, ids[first : first + 8], targets[first : first + 8], 0.0)
        p, q = (softmax(logits[first : first + 8]) for logits in before)
        y = targets[first : first + 8]
        d = (p - (1 - SHARE) * np.eye(20)[y] - SHARE * q) * (y >= 0)[..., None] / (y >= 0).sum()
        np.testing.assert_allclose(student.brain.decoder.d_bias[:20], d.sum(axis=(0, 1)), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, patch = tmp_path_factory.mktemp("trained"), pytest.MonkeyPatch()
    small = {"checkpoint_interval": 5, "eval_interval": 5, "learning_rate": 0.02}
    patch.setitem(presets.PRESETS, "tiny", tiny.config(steps=10, **small))
    patch.setitem(presets.PRESETS, "smaller", tiny.config(steps=10, brain={"wernicke": {"neurons": 32}}, **small))
    patch.chdir(folder)
    (folder / "sheep.txt").write_text("".join(f"{number} sheep went home.\n" for number in range(300)))
    (folder / "letters.txt").write_text("abcdefghijklmnopqrstuvwxyz " * 200)
    assert train(["--preset", "tiny", "--data", "sheep.txt"]) == 0
    yield folder
    patch.undo()


def distilled(*flags):
    return train(["--preset", "smaller", "--data", "sheep.txt", "--plain", *flags])


def test_a_smaller_preset_learns_from_a_run_and_resumes_bit_for_bit(trained, capsys):
    assert distilled("--distill", "tiny-1@best", "--name", "whole") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("larger", "whole", "bytes of the weights", "held-out loss", "tokens/s"))
    assert distilled("--name", "alone") == 0
    config = json.loads((trained / "runs/whole/config.json").read_text())
    assert config["training"]["distill"].startswith(str(trained / "runs/tiny-1/checkpoints/step-"))
    shutil.copytree(trained / "runs/whole", trained / "runs/resumed")
    assert train(["--resume", "runs/resumed/checkpoints/step-00000005", "--plain"]) == 0
    assert_equal_runs(trained / "runs/whole", trained / "runs/resumed")
    whole, alone = (checkpoint.load(checkpoint.latest(trained / f"runs/{name}")).tensors for name in ("whole", "alone"))
    assert "teacher.pfc.v" in whole["state"] and not np.array_equal(whole["decoder"]["decoder.weight"], alone["decoder"]["decoder.weight"])
    assert not any(name.startswith("teacher") for name in alone["state"])


def test_a_library_names_the_larger_model_as_the_command_does(trained):
    run = ng.train(presets.PRESETS["smaller"], "sheep.txt", training={"distill": "tiny-1@best", "steps": 1}, backend="cpu", progress=False)
    config = json.loads((run.folder / "config.json").read_text())
    assert config["training"]["distill"].startswith(str(trained / "runs/tiny-1/checkpoints/step-"))
    with pytest.raises(ConfigError, match="there is no nowhere"):
        ng.train(presets.PRESETS["smaller"], "sheep.txt", training={"distill": "nowhere"}, out="none")
    assert not (trained / "none").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_again(trained):
    assert distilled("--distill", "tiny-1", "--name", "killed", "--steps", "3") == 0
    shutil.rmtree(trained / "runs/killed/checkpoints")
    trainer = Trainer.resume(trained / "runs/killed", 2, "cpu")
    assert [report.step for report in trainer.reports() if isinstance(report, StepReport)] == [1, 2]


def test_a_run_keeps_the_larger_model(trained, capsys):
    """Its run removes older checkpoints, also while the smaller one still learns. A run without a copy says what is gone."""
    shutil.copytree(trained / "runs/tiny-1", trained / "runs/larger")
    assert distilled("--distill", "larger", "--name", "learns") == 0
    shutil.rmtree(trained / "runs/larger")
    shutil.copytree(trained / "runs/learns", trained / "runs/goes-on")
    assert train(["--resume", "runs/goes-on/checkpoints/step-00000005", "--plain"]) == 0
    assert_equal_runs(trained / "runs/learns", trained / "runs/goes-on")
    shutil.rmtree(trained / "runs/goes-on/teacher")
    capsys.readouterr()
    gone = str(trained / "runs/larger/checkpoints/step-00000010")
    refused(train(["--resume", "goes-on", "--steps", "12"]), capsys, f"{gone}, which runs/goes-on learns from, is gone; put it back")


def test_bad_requests_cost_a_sentence(trained, capsys):
    before = sorted(path.name for path in (trained / "runs").iterdir())
    capsys.readouterr()
    refused(distilled("--distill", "nowhere"), capsys, "nowhere")
    refused(distilled("--distill", "tiny-1", "--tokenizer", "byte"), capsys, "--distill: the larger model has another tokenizer", "char")
    refused(distilled("--distill", "tiny-1", "--data", "letters.txt"), capsys, "letters.txt")
    refused(distilled("--distill", "tiny-1", "--optimizer", "adafactor"), capsys, "--distill: adafactor", "use adamw")
    refused(distilled("--distill", "tiny-1", "--learning", "eprop"), capsys, "--distill: with --learning eprop", "use bptt")
    refused(train(["--resume", "tiny-1", "--distill", "tiny-1"]), capsys, "--resume keeps the settings of the run; drop --distill")
    (trained / "damaged").mkdir()
    with pytest.raises(CheckpointError, match="^training.distill, the larger model that is learned from: .*damaged"):
        load_teacher(tiny.config(brain={"vocabulary": 20}, distill="damaged"), "cpu", trained / "runs/none")
    refused(distilled("--distill", "damaged"), capsys, "damaged")
    assert sorted(path.name for path in (trained / "runs").iterdir()) == before
