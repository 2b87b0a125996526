"""Training runs: they learn, they stop and go on bit for bit, they keep to their time, and they say what they did."""

import dataclasses
import errno
import json
import math
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import Training
from neurogen_numba.errors import CheckpointError, ConfigError, DataError, TrainingError
from neurogen_numba.learning import trainer as loop
from neurogen_numba.learning import watchdog
from neurogen_numba.learning.report import BrainReport, CheckpointReport, EvalReport, FinalReport, Notice, SampleReport, StepReport
from neurogen_numba.learning.schedule import learning_rate
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.storage import checkpoint, saver
from neurogen_numba.text import batches
from neurogen_numba.text.stories import story
from neurogen_numba.ui.history import read_history
from same import assert_equal_runs, last_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

SHEEP = "".join(f"{number} sheep, " for number in range(400))


@pytest.fixture
def sheep(tmp_path):
    path = tmp_path / "sheep.txt"
    path.write_text(SHEEP)
    return {"data": str(path)}


def begin(run, text, **training):
    run.mkdir()
    return Trainer(tiny.config(text, **training), run)


def end(trainer):
    """Train to the end: all reports."""
    return list(trainer.reports())


def of(kind, reports):
    return [report for report in reports if isinstance(report, kind)]


def losses(reports):
    return [report.loss for report in of(StepReport, reports)]


# The end of a run is the same whether or not it was interrupted (and killed: test_kill.py)

LOOKS = {"eval_interval": 7, "sample_interval": 11, "checkpoint_interval": 3, "dropout": 0.1}


@pytest.mark.parametrize("step", [10, 14], ids=["between evaluations", "where an evaluation is due"])
def test_stop_saves_and_the_run_goes_on_as_if_it_had_not(tmp_path, sheep, step):
    settings = {"steps": 20, **LOOKS}
    end(begin(tmp_path / "whole", sheep, **settings))
    trainer = begin(tmp_path / "stopped", sheep, **settings)
    reports = []
    for report in trainer.reports():
        reports.append(report)
        if isinstance(report, StepReport) and report.step == step:
            trainer.stop()
    assert trainer.step == step and isinstance(reports[-1], CheckpointReport) and reports[-1].step == step
    assert not (tmp_path / "stopped" / "summary.json").exists()
    resumed = Trainer.resume(tmp_path / "stopped")
    assert (resumed.step, resumed.steps, resumed.config) == (step, 20, trainer.config)
    end(resumed)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_a_resumed_story_run_goes_on_in_its_stories(tmp_path):
    text = {"tokenizer": "byte"}
    settings = {"steps": 12, "checkpoint_interval": 5, "eval_interval": 100, "sample_interval": 100}
    for name in ("whole", "stopped"):
        trainer = begin(tmp_path / name, text, **settings)
        for report in trainer.reports():
            if isinstance(report, StepReport) and report.step == (12 if name == "whole" else 6):
                break  # before the end, which takes time and has a test of its own
        if name == "stopped":
            trainer = Trainer.resume(tmp_path / name)
            assert trainer.step == 5
            for report in trainer.reports():
                if isinstance(report, StepReport) and report.step == 12:
                    break
        trainer.save()
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_one_seed_one_run_another_seed_another(tmp_path, sheep):
    reports = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        reports[name] = end(begin(tmp_path / name, sheep, steps=8, seed=seed, **LOOKS))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert losses(reports["a"]) == losses(reports["b"])
    assert all(one != other for one, other in zip(losses(reports["a"]), losses(reports["c"]), strict=True))


def test_a_run_can_be_made_longer(tmp_path, sheep):
    run = tmp_path / "run"
    end(begin(run, sheep, steps=4, **LOOKS))
    with pytest.raises(ConfigError, match="has made 4 steps already; to continue, give a higher --steps"):
        Trainer.resume(run)
    with pytest.raises(ConfigError, match="has made 4 steps already"):
        Trainer.resume(run, 3)
    longer = Trainer.resume(run, 6)
    reports = longer.reports()
    next(reports)
    assert not (run / "summary.json").exists()  # it was that of another end
    reports = list(reports)
    assert [report.step for report in of(StepReport, reports)] == [5, 6]
    assert json.loads((run / "summary.json").read_text())["steps"] == 6
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == 6


def test_a_longer_run_learns_at_temperature_1_again_and_fits_it_at_its_new_end(tmp_path, sheep):
    ended = begin(tmp_path / "run", sheep, steps=4, **LOOKS)
    end(ended)
    first = ended.model.brain.decoder.temperature
    assert first != 1 and NeuroGenModel.load(tmp_path / "run/checkpoints/step-00000004").brain.decoder.temperature == first
    longer = Trainer.resume(tmp_path / "run", 8)
    assert longer.model.brain.decoder.temperature == 1
    (report,) = of(FinalReport, end(longer))
    assert report.summary["temperature"] == longer.model.brain.decoder.temperature not in (1, first)


def test_a_run_that_was_killed_before_its_summary_writes_it_when_resumed(tmp_path, sheep):
    run = tmp_path / "run"
    end(begin(run, sheep, steps=4, **LOOKS))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    reports = end(Trainer.resume(run))
    assert of(StepReport, reports) == []
    again = of(FinalReport, reports)[0].summary
    assert again == json.loads((run / "summary.json").read_text())
    assert {name: value for name, value in again.items() if "second" not in name} == {
        name: value for name, value in summary.items() if "second" not in name
    }


def test_a_checkpoint_of_something_else_is_refused(tmp_path, sheep):
    with pytest.raises(CheckpointError, match="has no whole checkpoint"):
        Trainer.resume(tmp_path)
    trainer = begin(tmp_path / "run", sheep, steps=2)
    trainer.model.save(checkpoint.step_folder(tmp_path / "run", 0), trainer.act.state())
    with pytest.raises(CheckpointError, match="trainer.json lacks 'position'"):
        Trainer.resume(tmp_path / "run")
    trainer.save()
    Path(sheep["data"]).write_text(SHEEP * 2)
    with pytest.raises(CheckpointError, match="saved place in the text is for tokens"):
        Trainer.resume(tmp_path / "run")


def test_a_run_that_had_saved_nothing_begins_again(tmp_path, sheep):
    settings = {"steps": 4, **LOOKS, "checkpoint_interval": 9}
    end(begin(tmp_path / "whole", sheep, **settings))
    for report in begin(tmp_path / "killed", sheep, **settings).reports():
        if isinstance(report, StepReport) and report.step == 3:
            break
    resumed = Trainer.resume(tmp_path / "killed")
    assert resumed.step == 0
    assert "no checkpoint had been saved yet: the run starts from the beginning" in [report.text for report in of(Notice, end(resumed))]
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")
    (tmp_path / "whole" / "config.json").write_text("{")
    for folder in checkpoint.saved(tmp_path / "whole"):
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="config.json cannot be read: .*; start the run again under another --name"):
        Trainer.resume(tmp_path / "whole")


# Which checkpoint a run goes on from


def kept(run):
    return sorted(checkpoint.step_of(folder) for folder in checkpoint.saved(run))


def harm(folder):
    """Change the last byte of what the optimiser saved."""
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def test_a_damaged_checkpoint_is_passed_over_and_set_aside(tmp_path, sheep):
    settings = {"steps": 12, **LOOKS}
    end(begin(tmp_path / "whole", sheep, **settings))
    run = tmp_path / "run"
    end(begin(run, sheep, **settings))
    harm(checkpoint.step_folder(run, 12))
    harm(checkpoint.step_folder(run, 9))
    resumed = Trainer.resume(run)
    assert resumed.step == 6 and kept(run) == [3, 6, 9, 12]  # until it trains, nothing is touched
    output = [report.text for report in of(Notice, end(resumed))]
    assert output[0].startswith("step-00000012 is skipped: ") and "optimizer.safetensors is damaged" in output[0]
    assert output[1].startswith("step-00000009 is skipped: ")
    assert output[2:4] == ["resuming from step 6", f"the checkpoints after step 6 were moved to {run / 'aside-1'}, with a copy of the log"]
    assert kept(run / "aside-1") == [9, 12]
    assert_equal_runs(run, tmp_path / "whole")


def test_a_run_goes_on_from_any_of_its_checkpoints_and_loses_none(tmp_path, sheep):
    run = tmp_path / "run"
    end(begin(run, sheep, steps=12, **LOOKS))
    before = (run / "metrics.jsonl").read_bytes()
    resumed = Trainer.resume(run, folder=checkpoint.step_folder(run, 6))
    assert resumed.step == 6
    for report in resumed.reports():
        if isinstance(report, StepReport) and report.step == 10:
            break
    assert kept(run) == [3, 6, 9] and kept(run / "aside-1") == [9, 12]
    assert (run / "aside-1" / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(checkpoint.step_folder(run, 9))
    (run / "aside-1" / "checkpoints" / "step-00000009").rename(checkpoint.step_folder(run, 9))
    end(Trainer.resume(run, folder=checkpoint.step_folder(run, 6)))
    assert kept(run / "aside-2") == [9]
    assert_equal_runs(run, run / "aside-1")


def test_what_may_change_in_the_middle_of_a_run(tmp_path, sheep):
    run = tmp_path / "run"
    end(begin(run, sheep, steps=4, **LOOKS))
    end(Trainer.resume(run, 8, training={"checkpoint_interval": 1, "keep_checkpoints": 2}))
    assert set(kept(run)) >= {7, 8} and len(kept(run)) <= 3
    training = Trainer.resume(run, 9).config.training
    assert (training.checkpoint_interval, training.keep_checkpoints) == (1, 2)


# Saving


def test_every_checkpoint_is_scored_and_the_best_is_kept(tmp_path, sheep, monkeypatch):
    run = tmp_path / "run"
    trainer = begin(run, sheep, steps=12, checkpoint_interval=2, eval_interval=100, keep_checkpoints=1)
    losses, score = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 0.5]), loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *text, tell: dataclasses.replace(score(*text), loss=next(losses)))
    reports = end(trainer)
    looks = [(report.step, report.loss, report.last) for report in of(EvalReport, reports)]
    assert [look[:2] for look in looks] == [(2, 3), (4, 1), (6, 2), (8, 4), (10, 5), (12, 6), (12, 0.5)]
    assert [look[2] for look in looks] == [False] * 6 + [True], "the last one is at other text, and is not what the best is chosen by"
    assert kept(run) == [4, 12] and checkpoint.best(run)[0] == checkpoint.step_folder(run, 4)
    saved = of(CheckpointReport, reports)
    assert [report.kept for report in saved] == [1, 1, 2, 2, 2, 2]
    assert saved[-1].kept_bytes == saved[1].bytes + saved[-1].bytes
    assert all(0 <= report.held <= report.seconds for report in saved)


def blocked(monkeypatch):
    """Let saving wait for an event."""
    write, go = checkpoint.save, threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: go.wait(60) and write(*arguments))
    return go


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, sheep, monkeypatch):
    """And what is written is the step that it is named after, whatever has been learned meanwhile."""
    run = tmp_path / "run"
    go = blocked(monkeypatch)
    trainer = begin(run, sheep, steps=9, checkpoint_interval=5)
    then = None
    for report in trainer.reports():
        if isinstance(report, StepReport) and report.step == 5:
            then = {name: value.copy() for name, value in trainer.model.brain.parameters.value.items()}, trainer.batches.position()
        if isinstance(report, StepReport) and report.step == 8:
            assert kept(run) == []
            go.set()
    saved = checkpoint.load(checkpoint.step_folder(run, 5))
    learned = {name: array for group in ("brain", "embeddings", "decoder") for name, array in saved.tensors[group].items()}
    for name, value in then[0].items():
        np.testing.assert_array_equal(learned[name], value)
        assert name.endswith("bias") or not np.array_equal(value, trainer.model.brain.parameters.value[name])
    assert (saved.documents["trainer"]["step"], saved.documents["trainer"]["position"]) == (5, then[1])
    assert kept(run) == [5, 9]


def test_one_checkpoint_is_written_at_a_time(tmp_path, sheep, monkeypatch):
    run = tmp_path / "run"
    writing, most, write = [], [], checkpoint.save

    def slow(folder, *rest):
        writing.append(folder)
        most.append(len(writing))
        time.sleep(0.05)
        writing.remove(folder)
        return write(folder, *rest)

    monkeypatch.setattr(checkpoint, "save", slow)
    reports = end(begin(run, sheep, steps=6, checkpoint_interval=1, eval_interval=100))
    assert [report.step for report in of(CheckpointReport, reports)] == [1, 2, 3, 4, 5, 6] and set(most) == {1}


def test_who_stops_a_run_waits_for_the_checkpoint_under_way(tmp_path, sheep, monkeypatch):
    run = tmp_path / "run"
    go = blocked(monkeypatch)
    trainer = begin(run, sheep, steps=9, checkpoint_interval=2)
    threading.Timer(0.3, go.set).start()
    for report in trainer.reports():
        if isinstance(report, StepReport) and report.step == 3:
            break  # as the second Ctrl-C does
    assert kept(run) == [2] and checkpoint.newest(run)[1] == []


def fill_disk(monkeypatch, *steps):
    """Let the disk be full when the checkpoints of these steps are written."""
    write = checkpoint._write

    def limited(path, data):
        if any(f"step-{step:08d}" in str(path) for step in steps):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(checkpoint, "_write", limited)


def test_a_full_disk_costs_notices_and_not_the_run(tmp_path, sheep, monkeypatch):
    settings = {"steps": 12, **LOOKS}
    end(begin(tmp_path / "whole", sheep, **settings))
    run = tmp_path / "run"
    fill_disk(monkeypatch, 6, 9)
    reports = end(begin(run, sheep, **settings))
    failed = [report.text for report in of(Notice, reports) if "was not saved" in report.text]
    assert len(failed) == 2 and all("the previous checkpoint is intact; training continues" in text for text in failed)
    assert "step-00000006 was not saved: the disk is full" in failed[0] and "step-00000009" in failed[1]
    assert kept(run) == [3, 12]
    assert_equal_runs(run, tmp_path / "whole")


def test_a_disk_that_is_full_in_the_end_is_an_error(tmp_path, sheep, monkeypatch):
    run = tmp_path / "run"
    fill_disk(monkeypatch, 5)
    with pytest.raises(CheckpointError, match="step-00000005 was not saved: the disk is full"):
        end(begin(run, sheep, steps=5, **LOOKS))
    assert Trainer.resume(run).step == 3


# Learning


def test_the_schedule_warms_up_and_follows_a_cosine_to_its_end():
    training = Training(learning_rate=2.0, warmup=10, final_rate=0.1)
    rates = [learning_rate(training, step, 1000) for step in range(1001)]
    cosine = [0.2 + 1.8 * (1 + math.cos(math.pi * step / 1000)) / 2 for step in range(1001)]
    assert rates[10:] == pytest.approx(cosine[10:])
    assert rates[:10] == pytest.approx([cosine[step] * (step + 1) / 10 for step in range(10)])
    assert rates[1000] == pytest.approx(0.2) and rates[500] == pytest.approx(1.1)
    assert learning_rate(Training(learning_rate=2.0, warmup=0), 0, 1000) == 2.0


def test_a_run_follows_the_schedule(tmp_path, sheep):
    trainer = begin(tmp_path / "run", sheep, steps=9, warmup=4)
    reports = of(StepReport, end(trainer))
    assert [report.step for report in reports] == list(range(1, 10))
    assert [report.learning_rate for report in reports] == [learning_rate(trainer.config.training, step, 9) for step in range(9)]
    assert [report.tokens for report in reports] == [64 * step for step in range(1, 10)]


def test_it_learns(tmp_path):
    sentence = "the cat sat on the mat. "
    (tmp_path / "cat.txt").write_text(sentence * 200)
    share = np.array([sentence.count(letter) for letter in set(sentence)]) / len(sentence)
    unigram = -(share * np.log(share)).sum()  # nats: as well as one can do without a memory
    settings = {"steps": 150, "learning_rate": 0.02, "checkpoint_interval": 1000}
    reports = end(begin(tmp_path / "run", {"data": str(tmp_path / "cat.txt")}, **settings))
    assert losses(reports)[0] > 0.9 * unigram
    assert max(losses(reports)[-10:]) < 0.3 * unigram
    final = of(EvalReport, reports)[-1]
    assert final.loss < 0.3 * unigram and final.accuracy > 0.9
    assert final.tokens == 480 - 1


def test_held_out_text_is_never_trained_on(tmp_path):
    (tmp_path / "a.txt").write_text("abcd " * 360 + "xyz? " * 40)
    trainer = begin(tmp_path / "run", {"data": str(tmp_path / "a.txt")}, steps=40, eval_interval=10, checkpoint_interval=1000)
    assert trained_on(trainer) == set("abcd ")
    known = trainer.model.tokenizer.encode("xyz?")
    assert np.all(trainer.model.optimizer.tensors()["m.embedding.weight"][known] == 0)


def test_held_out_stories_are_never_trained_on(tmp_path):
    trainer = begin(tmp_path / "run", {"tokenizer": "byte"}, steps=60, segment=64)
    heard, learn = [], trainer.model.update
    trainer.model.update = lambda act, inputs, *rest: heard.append(inputs) or learn(act, inputs, *rest)
    for report in trainer.reports():
        if isinstance(report, StepReport) and report.step == 60:
            break
    text = "".join(map(trainer.model.tokenizer.decode, np.concatenate(heard).T))
    held_out = [story(batches.HELD_OUT_SEED, index, "held-out").text for index in range(300)]
    assert len(text) > 60 * 64 * 4 * 0.9 and held_out[0] in trainer.model.tokenizer.decode(trainer.corpus.validation(500).tokens)
    assert not any(notices[:60] in text for notices in held_out)


def trained_on(trainer):
    """Every character that a run learns from, as input or target."""
    heard, learn = set(), trainer.model.update

    def listening(act, inputs, targets, *rest):
        heard.update(trainer.model.tokenizer.decode(np.union1d(inputs, targets)))
        return learn(act, inputs, targets, *rest)

    trainer.model.update = listening
    end(trainer)
    return heard


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_sequences_is_reset(tmp_path, sheep, share):
    """Seed and step determine which ones: a resumed run resets the same sequences."""
    trainer = begin(tmp_path / "run", sheep, steps=40, reset_prob=share, seed=3, checkpoint_interval=1000)
    masks, learn = [], trainer.model.update
    trainer.model.update = lambda act, inputs, targets, rate, reset, *rest: masks.append(reset) or learn(act, inputs, targets, rate, reset)
    end(trainer)
    assert len(masks) == 40
    if share == 0:
        assert masks == [None] * 40
        return
    masks = np.array(masks)
    assert (masks.shape, masks.dtype) == ((40, 4), bool)
    assert masks.mean() == pytest.approx(share, abs=0.12)
    for step in (0, 1, 39):
        np.testing.assert_array_equal(masks[step], np.random.default_rng([3, step]).random(4) < share)


def break_it(brain, what):
    """Let the weights be no numbers, or one number of every gradient to come."""
    if what == "weights":
        brain.parameters.flat_value[:] = np.nan
        return
    backward = brain.backward

    def poisoned(act, *how):
        backward(act, *how)
        brain.parameters.gradient["pfc.bias"][3] = np.nan

    brain.backward = poisoned


def test_a_rising_validation_loss_is_reported(tmp_path, sheep, monkeypatch):
    rising, score = iter([3.0, 4.0, 5.0, 6.0, 6.0, 6.0, 6.0]), loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *text, tell: dataclasses.replace(score(*text), loss=next(rising)))
    output = [notice.text for notice in of(Notice, end(begin(tmp_path / "run", sheep, steps=5, eval_interval=1)))]
    assert any(text.startswith("warning: the loss of held-out text rises: 5.00 nats at step 3, 3.00 before") for text in output)


@pytest.mark.parametrize("broken", ["weights", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(tmp_path, sheep, broken):
    run = tmp_path / "run"
    trainer = begin(run, sheep, steps=9, checkpoint_interval=4)
    where = {"weights": "first in the membranes of thalamus", "gradient": "in the backward pass first in the gradient of pfc"}[broken]
    with pytest.raises(TrainingError, match=rf"step 6: loss .*nan \({where}\); start again with a lower --learning-rate") as error:
        for report in trainer.reports():
            if isinstance(report, StepReport) and report.step == 5:
                break_it(trainer.model.brain, broken)
    kept = f"what was saved last is kept: {run / 'checkpoints' / 'step-00000004'}; the best of them by held-out text is step-00000004"
    assert str(error.value).endswith(kept)
    assert broken == "weights" or np.isfinite(trainer.model.brain.parameters.flat_value).all(), "NaN spreads"
    resumed = Trainer.resume(run)
    assert resumed.step == 4 and np.isfinite(resumed.model.brain.parameters.flat_value).all()
    assert np.isfinite(losses(end(resumed))).all() and resumed.step == 9


def test_a_loss_of_nan_before_the_first_checkpoint_is_reported(tmp_path, sheep):
    trainer = begin(tmp_path / "run", sheep, steps=9)
    break_it(trainer.model.brain, "weights")
    with pytest.raises(TrainingError, match="step 1: .*; no checkpoint had been saved yet$"):
        end(trainer)


def test_text_that_is_too_short_is_refused_before_the_brain_is_drawn(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("too short")
    monkeypatch.setattr(loop.NeuroGenModel, "from_config", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(DataError, match="8 tokens to train on"):
        begin(tmp_path / "run", {"data": str(tmp_path / "a.txt")})


# Keeping to a time


class Clock:
    """Time that passes while the model learns and scores, as `pace` says, in seconds per update; nothing waits."""

    def __init__(self, monkeypatch, pace):
        self.now, self.pace = 1000.0, pace
        model = loop.NeuroGenModel
        learn, score = model.update, model.score
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now))

        def learning(*arguments):
            self.now += self.pace
            return learn(*arguments)

        def scoring(model, act, inputs, targets):
            self.now += 0.4 * self.pace * inputs.size / 64  # forward only
            return score(model, act, inputs, targets)

        monkeypatch.setattr(model, "update", learning)
        monkeypatch.setattr(model, "score", scoring)


TIMED = {"steps": 1000, "eval_interval": 20, "eval_tokens": 400, "sample_interval": 1000, "checkpoint_interval": 1000}


def test_max_minutes_are_filled_and_kept(tmp_path, sheep, monkeypatch):
    clock = Clock(monkeypatch, pace=0.1)
    trainer = begin(tmp_path / "run", sheep, max_minutes=0.25, **TIMED)
    reports = end(trainer)
    assert [report.text for report in of(Notice, reports)][1:] == [
        f"{trainer.steps} steps fit into 0.25 minutes; {trainer.steps} will be made"
    ]
    steps = of(StepReport, reports)
    assert steps[-1].step == steps[-1].steps == trainer.steps
    assert 0.85 * 15 < steps[-1].seconds <= 15
    assert steps[-1].learning_rate == pytest.approx(0.05 * 4e-3, rel=0.05)  # the schedule ends with the run
    assert clock.now - 1000 < 1.3 * 15
    assert len(of(EvalReport, reports)) == (trainer.steps - 1) // 20 + 2
    assert steps[-1].tokens_per_second == pytest.approx(640)  # looks at held-out text do not count as slowness
    assert of(FinalReport, reports)[0].summary["tokens_per_second"] == pytest.approx(640, rel=0.02)


def test_bits_per_byte_of_a_step_count_the_bytes_of_its_own_targets(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("".join("aé€"[number * number % 7 % 3] for number in range(3000)), encoding="utf-8")
    trainer, targets = begin(tmp_path / "run", {"data": str(tmp_path / "a.txt")}, steps=3), []
    learn = trainer.model.update
    monkeypatch.setattr(trainer.model, "update", lambda act, x, y, *more: targets.append(y.copy()) or learn(act, x, y, *more))
    for report, target_bytes in zip(of(StepReport, end(trainer)), targets, strict=True):
        size = len(trainer.model.tokenizer.decode(target_bytes.T.ravel()).encode())
        assert report.bits_per_byte == pytest.approx(report.loss / math.log(2) / (size / target_bytes.size)) and size > target_bytes.size


def test_the_update_that_compiles_is_no_measure_of_the_speed(tmp_path, sheep, monkeypatch):
    clock, speeds = Clock(monkeypatch, pace=100.0), []
    for report in begin(tmp_path / "run", sheep, steps=6, eval_interval=2).reports():
        if isinstance(report, StepReport):
            clock.pace = 0.1
            speeds.append(report.tokens_per_second)
    assert math.isnan(speeds[0]) and speeds[1:] == pytest.approx([640] * 5)


def test_time_to_spare_makes_a_run_no_longer(tmp_path, sheep, monkeypatch):
    Clock(monkeypatch, pace=0.1)
    reports = end(begin(tmp_path / "run", sheep, max_minutes=0.25, **{**TIMED, "steps": 70}))
    assert any(notice.text.endswith("fit into 0.25 minutes; 70 will be made") for notice in of(Notice, reports))
    assert of(StepReport, reports)[-1].step == 70


def test_a_slow_beginning_does_not_shorten_a_run(tmp_path, sheep, monkeypatch):
    clock = Clock(monkeypatch, pace=0.2)
    trainer = begin(tmp_path / "run", sheep, max_minutes=5.0, **{**TIMED, "steps": 10000})
    for report in trainer.reports():
        if isinstance(report, StepReport):
            clock.pace = 0.2 if report.step < 60 else 0.1
            if report.step == 120:
                trainer.stop()
    assert 0.85 * 300 < trainer.steps * 0.1 * 1.125 < 300  # evaluations take an eighth of an update's time


def test_the_plan_is_kept_over_a_resume(tmp_path, sheep, monkeypatch):
    clock = Clock(monkeypatch, pace=0.1)
    trainer = begin(tmp_path / "run", sheep, max_minutes=0.25, **TIMED)
    for report in trainer.reports():
        if isinstance(report, StepReport) and report.step == 60:
            trainer.stop()
    planned = trainer.steps
    assert 100 < planned < 150
    clock.now, clock.pace = 0.0, 0.01  # another day, another machine
    resumed = Trainer.resume(tmp_path / "run")
    assert resumed.steps == planned and resumed.seconds == pytest.approx(trainer.seconds)
    reports = end(resumed)
    assert of(StepReport, reports)[-1].step == planned
    assert [report.text for report in of(Notice, reports)][0] == "resuming from step 60" and len(of(Notice, reports)) == 2  # no second plan


@pytest.mark.parametrize("slow_from, pace", [(55, 0.3), (80, 0.2), (55, 1.0)])
def test_a_run_that_turns_slow_plans_again_and_its_rate_falls_to_the_end(tmp_path, sheep, monkeypatch, slow_from, pace):
    clock = Clock(monkeypatch, pace=0.1)
    trainer, reports, planned = begin(tmp_path / "run", sheep, max_minutes=0.5, **TIMED), [], []
    for report in trainer.reports():
        reports.append(report)
        if isinstance(report, StepReport):
            planned.append(report.steps)
            if report.step == slow_from:
                clock.pace = pace
    assert planned == sorted(planned, reverse=True)  # never raised
    assert 0.9 * 30 < trainer.seconds <= 30
    steps = of(StepReport, reports)
    assert steps[-1].learning_rate < 0.1 * 4e-3 and steps[-1].step == steps[-1].steps == trainer.steps
    notices = [notice.text for notice in of(Notice, reports) if notice.text.startswith("training is slower than planned: ")]
    assert 1 <= len(notices) <= 6 and notices[-1].endswith(" steps fit into 0.5 minutes")
    assert not any("stopped at the limit" in notice.text for notice in of(Notice, reports))


def test_one_slow_moment_does_not_shorten_a_run_much(tmp_path, sheep, monkeypatch):
    clock = Clock(monkeypatch, pace=0.1)
    trainer = begin(tmp_path / "run", sheep, max_minutes=0.5, **TIMED)
    for report in trainer.reports():
        if isinstance(report, StepReport):
            clock.pace = 3.0 if report.step == 99 else 0.1
    assert 0.8 * 30 < trainer.seconds <= 30


def test_some_slow_seconds_do_not_shorten_a_run_for_good(tmp_path, sheep, monkeypatch):
    clock, planned = Clock(monkeypatch, pace=0.1), []
    trainer = begin(tmp_path / "run", sheep, max_minutes=0.5, **TIMED)
    for report in trainer.reports():
        if isinstance(report, StepReport):
            planned.append(report.steps)
            clock.pace = 0.3 if 60 <= report.step < 80 else 0.1
    assert min(planned[:100]) < 0.6 * planned[55] and 0.9 * 30 < trainer.seconds <= 30
    assert trainer.steps < planned[55]  # the slow seconds are gone


def test_a_run_without_time_limit_is_never_planned_again(tmp_path, sheep, monkeypatch):
    clock = Clock(monkeypatch, pace=0.1)
    trainer = begin(tmp_path / "run", sheep, **{**TIMED, "steps": 70})
    for report in trainer.reports():
        if isinstance(report, StepReport):
            assert report.steps == 70
            clock.pace *= 1.1


def test_a_run_that_the_limit_ends_early_says_how_to_make_the_other_steps(tmp_path, sheep, monkeypatch):
    clock = Clock(monkeypatch, pace=0.1)
    trainer, reports = begin(tmp_path / "run", sheep, max_minutes=0.25, **TIMED), []
    for report in trainer.reports():
        reports.append(report)
        if isinstance(report, StepReport) and report.step == 59:
            clock.pace, planned = 20.0, report.steps  # a single update is longer than what is left
    assert trainer.step == trainer.steps == 60 < planned
    assert of(Notice, reports)[-1].text == (
        f"stopped at the limit of 0.25 minutes after 60 of {planned} planned steps; `--resume --steps {planned}` continues"
    )
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 60
    clock.pace = 0.1
    longer = Trainer.resume(tmp_path / "run", planned)  # asked for explicitly: the time limit is lifted
    assert of(StepReport, end(longer))[-1].step == planned


# Reports of a run


def test_reports_come_in_order_and_are_all_in_the_log(tmp_path, sheep):
    run = tmp_path / "run"
    settings = {"log_interval": 2, "eval_interval": 4, "sample_interval": 6, "checkpoint_interval": 3, "eval_tokens": 300}
    reports = end(begin(run, sheep, steps=7, **settings))
    written = [report.step for report in of(CheckpointReport, reports)]
    assert written == [3, 6, 7]  # when those beside training are told is a matter of the disk
    assert [(report.kind, getattr(report, "step", None)) for report in reports if getattr(report, "path", None) is None] == [
        ("notice", None),
        ("step", 2),
        ("evaluation", 3),
        ("step", 4),
        ("evaluation", 4),
        ("step", 6),
        ("evaluation", 6),
        ("sample", 6),
        ("step", 7),
        ("evaluation", 7),
        ("evaluation", 7),
        ("sample", 7),
        ("final", None),
    ]
    kinds = [(report.kind, getattr(report, "last", None)) for report in reports if getattr(report, "step", 0) == 7]
    assert kinds == [("step", None), ("evaluation", False), ("checkpoint", None), ("evaluation", True), ("sample", None)]
    small, last = of(EvalReport, reports)[-2:]
    assert small.tokens == 300 < last.tokens == len(SHEEP) - int(0.9 * len(SHEEP)) - 1
    assert checkpoint.best(run)[0] and json.loads((checkpoint.latest(run) / "manifest.json").read_text())["validation_loss"] == small.loss
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [report.to_record() for report in reports]
    assert kept(run) == [3, 6, 7]
    step, sample = of(StepReport, reports)[0], of(SampleReport, reports)[0]
    assert step.bits_per_byte == pytest.approx(step.loss / math.log(2))  # a character of this text is a byte
    assert 0 < step.activity["wernicke"] < 0.5
    assert len(sample.text) == loop.SAMPLE_TOKENS
    assert sample.prompt + sample.truth in SHEEP[int(0.9 * len(SHEEP)) :], "held-out text: what is given, and how it goes on"


def test_bits_per_byte_are_of_the_bytes_that_were_predicted(tmp_path):
    """Of the text that is trained on each character has two bytes, of the held-out text one."""
    (tmp_path / "a.txt").write_text("äöü" * 300 + "abc" * 33)
    reports = end(begin(tmp_path / "run", {"data": str(tmp_path / "a.txt")}, steps=2))
    assert [report.bits_per_byte for report in of(StepReport, reports)] == pytest.approx([x / math.log(2) / 2 for x in losses(reports)])
    assert all(look.bits_per_byte == pytest.approx(look.loss / math.log(2)) for look in of(EvalReport, reports))


def test_unknown_words_are_reported_and_their_bytes_counted_in_the_text(tmp_path):
    (tmp_path / "a.txt").write_text(" a hippopotamus \n" * 300)
    text = {"data": str(tmp_path / "a.txt"), "tokenizer": "word", "vocabulary": 3}
    reports = end(begin(tmp_path / "run", text, steps=2))
    assert "of the held-out words 33.3 % are <unk>; bits per byte count those of the text itself" in [n.text for n in of(Notice, reports)]
    for report in of(StepReport, reports) + of(EvalReport, reports):
        assert report.bits_per_byte == pytest.approx(report.loss / math.log(2) / (17 / 3), rel=0.05)


def test_one_evaluation_at_the_end_if_validation_uses_all_held_out_text(tmp_path, sheep):
    run = tmp_path / "run"
    reports = end(begin(run, sheep, steps=3, eval_tokens=100_000))
    (look,) = of(EvalReport, reports)
    assert not look.last and of(FinalReport, reports)[0].summary["val_loss"] == look.loss
    assert [report.kind for report in reports][-4:] == ["evaluation", "checkpoint", "sample", "final"]


PROMISED = {"preset", "parameters", "tokens", "seconds", "tokens_per_second", "val_loss", "val_bits_per_byte"}
PROMISED_FOR_STORIES = {"entropy_floor_bits_per_byte", "question_accuracy", "chance_accuracy"}


def test_the_summary_of_a_text(tmp_path, sheep):
    run = tmp_path / "run"
    reports = end(begin(run, sheep, steps=3))
    summary = json.loads((run / "summary.json").read_text())
    assert summary == of(FinalReport, reports)[0].summary
    assert summary.keys() >= PROMISED and not summary.keys() & PROMISED_FOR_STORIES
    assert (summary["preset"], summary["steps"], summary["tokens"]) == ("tiny", 3, 3 * 64)
    assert summary["val_loss"] == of(EvalReport, reports)[-1].loss
    assert summary["val_bits_per_byte"] == pytest.approx(summary["val_loss"] / math.log(2))
    saved = checkpoint.load(checkpoint.latest(run)).tensors
    learned = [array.size for name, array in saved["optimizer"].items() if name.startswith("m.")]
    assert summary["parameters"] == sum(learned)


def test_the_summary_of_stories(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "HELD_OUT_TOKENS", 3000)
    monkeypatch.setattr(loop, "QUESTIONS", 20)
    reports = end(begin(tmp_path / "run", {"tokenizer": "byte"}, steps=2))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.keys() >= PROMISED | PROMISED_FOR_STORIES
    assert 0.3 < summary["entropy_floor_bits_per_byte"] < 0.5 < summary["val_bits_per_byte"]
    assert summary["question_accuracy"] == 0 < summary["chance_accuracy"] < 0.1
    assert of(EvalReport, reports)[-1].tokens >= 3000
    (sample,) = of(SampleReport, reports)
    notices = [story(batches.HELD_OUT_SEED, index, "held-out").text for index in range(30)]
    assert any(sample.prompt and text.startswith(sample.prompt + sample.truth) for text in notices)


def test_the_final_evaluation_may_be_short(tmp_path, sheep):
    assert of(EvalReport, end(begin(tmp_path / "run", sheep, steps=2, final_eval_tokens=50)))[-1].tokens == 50


def test_a_short_final_evaluation_of_stories_asks_about_these(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "answer_questions", lambda model, questions, tell: asked.append(questions) or (0.0, 0.0))
    trainer = begin(tmp_path / "run", {"tokenizer": "byte"}, steps=2, final_eval_tokens=1500)
    final, seen = of(EvalReport, end(trainer))[-1], trainer.corpus.validation(1500)
    assert final.tokens == len(seen.tokens) - 1 < 2500 and asked == [seen.questions]


# Figures and warnings


def test_a_portrait_comes_at_each_interval_and_with_the_last_step(tmp_path, sheep):
    reports = end(begin(tmp_path / "run", sheep, steps=7, viz_interval=3))
    assert [report.step for report in of(BrainReport, reports)] == [3, 6, 7]
    assert [report.kind for report in reports if getattr(report, "step", 0) == 7][:4] == ["step", "brain", "evaluation", "checkpoint"]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record for record in records if record["kind"] == "brain"] == [report.to_record() for report in of(BrainReport, reports)]
    assert not of(BrainReport, end(begin(tmp_path / "other", sheep, steps=7, viz_interval=0)))


def test_a_run_that_is_stopped_has_a_portrait_and_goes_on_with_them(tmp_path, sheep):
    trainer, reports = begin(tmp_path / "run", sheep, steps=9, viz_interval=4), []
    for report in trainer.reports():
        reports.append(report)
        if isinstance(report, StepReport) and report.step == 5:
            trainer.stop()
    assert [report.step for report in of(BrainReport, reports)] == [4, 5]
    assert [report.step for report in of(BrainReport, end(Trainer.resume(tmp_path / "run")))] == [8, 9]
    history = read_history(tmp_path / "run")
    assert history.training["step"].tolist() == list(range(1, 10)) and history.levels["step"].tolist() == [4, 5, 8, 9]


def test_evaluation_changes_nothing(tmp_path, sheep):
    for name, interval in (("seen", 2), ("unseen", 0)):
        end(begin(tmp_path / name, sheep, steps=9, viz_interval=interval))
    (seen, *_), (unseen, *_) = last_checkpoint(tmp_path / "seen"), last_checkpoint(tmp_path / "unseen")
    for group in seen:
        assert all(array.tobytes() == unseen[group][key].tobytes() for key, array in seen[group].items())


def test_samples_take_turns_over_the_held_out_text(tmp_path, sheep):
    reports = end(begin(tmp_path / "run", sheep, steps=12, sample_interval=2, segment=16, eval_tokens=400))
    prompts = [report.prompt for report in of(SampleReport, reports)]
    assert len(set(prompts)) == 3 and prompts[3:] == prompts[:3]


def test_the_watchdog_is_handed_what_it_judges(tmp_path, sheep, monkeypatch):
    """A module that is silent, a loader that waits, a disk that is slow: by a clock that only these move."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(saver, "time", loop.time)
    trainer = begin(tmp_path / "run", sheep, steps=8, checkpoint_interval=4)
    monkeypatch.setattr(trainer.act, "rates", lambda length: {"pfc": 0.0, "broca": 0.1})
    batches_next, save, begin_saving = trainer.batches.next, checkpoint.save, loop.Saver.begin

    def slow_next(stopping):
        now[0] += 20.0
        trainer.batches.waited += 20.0
        return batches_next(stopping)

    def slow_save(*arguments):
        now[0] += 30.0
        return save(*arguments)

    def begin_and_wait(self, take):
        reports = begin_saving(self, take)
        self._writing.exception()
        return reports

    monkeypatch.setattr(trainer.batches, "next", slow_next)
    monkeypatch.setattr(checkpoint, "save", slow_save)
    monkeypatch.setattr(loop.Saver, "begin", begin_and_wait)
    reports = end(trainer)
    notices = [(number, report.text) for number, report in enumerate(reports) if isinstance(report, Notice)]
    warnings = [(number, text.split(":")[1]) for number, text in notices if text.startswith("warning:")]
    assert [text for _, text in warnings] == [" the text comes too slowly", " pfc is silent", " the disk is slow"]
    texts = [report.text for report in of(Notice, reports)]
    assert "40 seconds waited for it, 100 % of the time" in texts[1] and "took 30 seconds, after 100 seconds of training" in texts[3]


def test_a_stalled_text_source_is_reported_while_training_waits(tmp_path, sheep, monkeypatch):
    trainer, looks = begin(tmp_path / "run", sheep, steps=3), []
    wait = trainer.batches.wait
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(watchdog, "STALLED", 0.0)
    monkeypatch.setattr(trainer.batches, "wait", lambda seconds, stopping: wait(20) if len(looks) == 3 else bool(looks.append(seconds)))
    reports = end(trainer)
    (stalled,) = [number for number, report in enumerate(reports) if isinstance(report, Notice) and "no text for" in report.text]
    (first, *_) = [number for number, report in enumerate(reports) if isinstance(report, StepReport)]
    assert stalled < first


def test_stop_interrupts_the_final_evaluation(tmp_path, sheep, monkeypatch):
    trainer = begin(tmp_path / "run", sheep, steps=4)
    validation = trainer.corpus.validation
    monkeypatch.setattr(trainer.corpus, "validation", lambda wanted: trainer.stop() or validation(wanted))
    reports = end(trainer)
    assert isinstance(reports[-1], Notice) and "--resume" in reports[-1].text
    assert not (tmp_path / "run" / "summary.json").exists()
    assert isinstance(end(Trainer.resume(tmp_path / "run", backend="cpu"))[-1], FinalReport)
