"""Training runs: they learn, they stop and go on bit for bit, they keep to their time, and they say what they did."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from neurogen_numba import checkpoint
from neurogen_numba.config import Training
from neurogen_numba.errors import CheckpointError, ConfigError, DataError, TrainingError
from neurogen_numba.learning import trainer as loop
from neurogen_numba.learning.report import CheckpointReport, EvalReport, FinalReport, Notice, SampleReport, StepReport
from neurogen_numba.learning.schedule import learning_rate
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.text import batches
from neurogen_numba.text.stories import story

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
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


def last_checkpoint(run):
    """Every array and document of the last checkpoint, and its name; the times, which differ from run to run, are taken out."""
    saved = checkpoint.load(checkpoint.latest(run))
    for name in ("seconds", "looking"):
        saved.documents["trainer"].pop(name)
    return saved.tensors, saved.documents, saved.folder.name


def assert_equal_runs(run, other):
    """Weights, moments, state of the neurons, place in the text, and what was measured on the way: the same bits."""
    (tensors, documents, name), (other_tensors, other_documents, other_name) = last_checkpoint(run), last_checkpoint(other)
    assert name == other_name and documents == other_documents
    assert set(tensors) == set(other_tensors) == {"brain", "embeddings", "decoder", "optimizer", "state"}
    for group in tensors:
        assert tensors[group].keys() == other_tensors[group].keys()
        for key, array in tensors[group].items():
            assert array.dtype == other_tensors[group][key].dtype and array.tobytes() == other_tensors[group][key].tobytes(), (group, key)
    assert measured(run) == measured(other)


def measured(run):
    """What metrics.jsonl says of each step, without times."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["kind"] in ("step", "evaluation", "sample")]
    return [{name: value for name, value in record.items() if name not in ("seconds", "tokens_per_second")} for record in kept]


# The end of a run is the same whether or not it was interrupted

LOOKS = {"eval_interval": 7, "sample_interval": 11, "checkpoint_interval": 3, "dropout": 0.1}

CHILD = """
import sys
from pathlib import Path
import tiny
from neurogen_numba.learning.trainer import Trainer

run, text, training = Path(sys.argv[1]), *map(eval, sys.argv[2:])
for report in (Trainer.resume(run) if (run / "checkpoints").exists() else Trainer(tiny.config(text, **training), run)).reports():
    print(report.kind, flush=True)
"""


def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tmp_path, sheep):
    settings = {"steps": 60, **LOOKS}
    end(begin(tmp_path / "whole", sheep, **settings))
    (tmp_path / "killed").mkdir()
    moments = random.Random(1)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "killed"), repr(sheep), repr(settings)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "NUMBA_NUM_THREADS": "1"}
    for kill in range(3):
        lines = 15 if kill == 0 else moments.randrange(1, 15)  # at least one checkpoint must be there
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            said = [child.stdout.readline() for _ in range(lines)]
            assert all(said), said
            child.kill()
        assert child.returncode != 0
    resumed = Trainer.resume(tmp_path / "killed")
    assert 3 <= resumed.step < 60
    end(resumed)
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_stop_saves_and_the_run_goes_on_as_if_it_had_not(tmp_path, sheep):
    settings = {"steps": 20, **LOOKS}
    end(begin(tmp_path / "whole", sheep, **settings))
    trainer = begin(tmp_path / "stopped", sheep, **settings)
    reports = []
    for report in trainer.reports():
        reports.append(report)
        if isinstance(report, StepReport) and report.step == 10:
            trainer.stop()
    assert trainer.step == 10 and isinstance(reports[-1], CheckpointReport) and reports[-1].step == 10
    assert not (tmp_path / "stopped" / "summary.json").exists()
    resumed = Trainer.resume(tmp_path / "stopped")
    assert (resumed.step, resumed.steps, resumed.config) == (10, 20, trainer.config)
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
    with pytest.raises(ConfigError, match="has made 4 steps already; to go on, give a higher --steps"):
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
    heard, learn = [], trainer.model.learn
    trainer.model.learn = lambda act, inputs, *rest: heard.append(inputs) or learn(act, inputs, *rest)
    for report in trainer.reports():
        if isinstance(report, StepReport) and report.step == 60:
            break
    text = "".join(map(trainer.model.tokenizer.decode, np.concatenate(heard).T))
    held_out = [story(batches.HELD_OUT_SEED, index, "held-out").text for index in range(300)]
    assert len(text) > 60 * 64 * 4 * 0.9 and held_out[0] in trainer.model.tokenizer.decode(trainer.corpus.validation(500).tokens)
    assert not any(told[:60] in text for told in held_out)


def trained_on(trainer):
    """Every character that a run learns from, as input or target."""
    heard, learn = set(), trainer.model.learn

    def listening(act, inputs, targets, *rest):
        heard.update(trainer.model.tokenizer.decode(np.union1d(inputs, targets)))
        return learn(act, inputs, targets, *rest)

    trainer.model.learn = listening
    end(trainer)
    return heard


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_sequences_begins_afresh(tmp_path, sheep, share):
    """Which ones is a matter of seed and step: a resumed run forgets what the whole one does."""
    trainer = begin(tmp_path / "run", sheep, steps=40, fresh=share, seed=3, checkpoint_interval=1000)
    heard, learn = [], trainer.model.learn
    trainer.model.learn = lambda act, inputs, targets, rate, fresh=None: heard.append(fresh) or learn(act, inputs, targets, rate, fresh)
    end(trainer)
    assert len(heard) == 40
    if share == 0:
        assert heard == [None] * 40
        return
    masks = np.array(heard)
    assert (masks.shape, masks.dtype) == ((40, 4), bool)
    assert masks.mean() == pytest.approx(share, abs=0.12)
    for step in (0, 1, 39):
        np.testing.assert_array_equal(masks[step], np.random.default_rng([3, step]).random(4) < share)


def break_it(brain, what):
    """Let the weights be no numbers, or one number of every gradient to come."""
    if what == "weights":
        brain.parameters.flat_value[:] = np.nan
        return
    think_back = brain.think_back

    def poisoned(act):
        think_back(act)
        brain.parameters.gradient["pfc.bias"][3] = np.nan

    brain.think_back = poisoned


@pytest.mark.parametrize("broken", ["weights", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_checkpoint(tmp_path, sheep, broken):
    run = tmp_path / "run"
    trainer = begin(run, sheep, steps=9, checkpoint_interval=4)
    where = r" \(first in the membranes of thalamus\)" if broken == "weights" else ""
    with pytest.raises(TrainingError, match=rf"step 6: loss .*nan{where}; start again with a lower --learning-rate") as error:
        for report in trainer.reports():
            if isinstance(report, StepReport) and report.step == 5:
                break_it(trainer.model.brain, broken)
    assert str(run) in str(error.value)
    assert broken == "weights" or np.isfinite(trainer.model.brain.parameters.flat_value).all(), "what is no number spreads"
    resumed = Trainer.resume(run)
    assert resumed.step == 4 and np.isfinite(resumed.model.brain.parameters.flat_value).all()
    assert np.isfinite(losses(end(resumed))).all() and resumed.step == 9


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
        learn, score = model.learn, model.score
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now))

        def learning(*arguments):
            self.now += self.pace
            return learn(*arguments)

        def scoring(model, act, inputs, targets):
            self.now += 0.4 * self.pace * inputs.size / 64  # forward only
            return score(model, act, inputs, targets)

        monkeypatch.setattr(model, "learn", learning)
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
    assert len(of(EvalReport, reports)) == (trainer.steps - 1) // 20 + 1
    assert steps[-1].tokens_per_second == pytest.approx(640)  # looks at held-out text do not count as slowness
    assert of(FinalReport, reports)[0].summary["tokens_per_second"] == pytest.approx(640, rel=0.02)


def test_time_to_spare_makes_a_run_no_longer(tmp_path, sheep, monkeypatch):
    Clock(monkeypatch, pace=0.1)
    reports = end(begin(tmp_path / "run", sheep, max_minutes=0.25, **{**TIMED, "steps": 70}))
    assert of(Notice, reports)[1].text.endswith("fit into 0.25 minutes; 70 will be made")
    assert of(StepReport, reports)[-1].step == 70


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
    assert len(of(Notice, reports)) == 1  # no second plan


def test_a_run_that_turns_slow_ends_with_its_time(tmp_path, sheep, monkeypatch):
    clock = Clock(monkeypatch, pace=0.1)
    trainer = begin(tmp_path / "run", sheep, max_minutes=0.25, **TIMED)
    for report in trainer.reports():
        if isinstance(report, StepReport) and report.step == 55:
            clock.pace = 1.0
    assert 15 < trainer.seconds < 17 and trainer.step == trainer.steps < 80
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == trainer.step
    clock.pace = 0.1
    longer = Trainer.resume(tmp_path / "run", trainer.step + 30)  # asked for in so many words: the time is lifted
    assert of(StepReport, end(longer))[-1].step == trainer.step + 30


# What a run says of itself


def test_reports_come_in_order_and_are_all_in_the_log(tmp_path, sheep):
    run = tmp_path / "run"
    reports = end(begin(run, sheep, steps=7, log_interval=2, eval_interval=4, sample_interval=6, checkpoint_interval=3))
    assert [(report.kind, getattr(report, "step", None)) for report in reports] == [
        ("notice", None),
        ("step", 2),
        ("checkpoint", 3),
        ("step", 4),
        ("evaluation", 4),
        ("step", 6),
        ("sample", 6),
        ("checkpoint", 6),
        ("step", 7),
        ("checkpoint", 7),
        ("evaluation", 7),
        ("sample", 7),
        ("final", None),
    ]
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [report.to_record() for report in reports]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000006", "step-00000007"]
    step, sample = of(StepReport, reports)[0], of(SampleReport, reports)[0]
    assert step.bits_per_byte == pytest.approx(step.loss / math.log(2))  # a character of this text is a byte
    assert 0 < step.activity["wernicke"] < 0.5
    assert sample.prompt == "" and len(sample.text) == loop.SAMPLE_TOKENS


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
    assert of(SampleReport, reports)[0].prompt == "You: Tell me a story.\nNeo:"
