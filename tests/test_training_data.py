"""Training runs on text of every kind: they go on bit for bit wherever they stopped, also where the network did."""

import json
import threading
import time

import numpy as np
import pytest

import tiny
from dropping_server import DroppingServer
from neurogen_numba.errors import DataError
from neurogen_numba.learning.report import CheckpointReport, FinalReport, StepReport
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.storage import checkpoint
from neurogen_numba.text import prefetch, remote
from neurogen_numba.tokenize import main as tokenize
from same import assert_equal_runs
from test_trainer import Clock, begin, end, of

pytestmark = pytest.mark.usefixtures("one_thread")

SHEEP = [f"{number} sheep went over {number % 7} hills. " * (1 + number % 5) for number in range(150)]


@pytest.fixture
def data(tmp_path):
    """What to set in config.Text, by kind."""
    path = tmp_path / "sheep.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SHEEP))
    assert tokenize([str(path), "--out", str(tmp_path / "sheep.bin"), "--tokenizer", "char", "--workers", "0"]) == 0
    return {"stream": {"data": str(path), "chunk_tokens": 700}, "tokens": {"data": str(tmp_path / "sheep.bin")}}


def stop_at(trainer, step):
    for report in trainer.reports():
        if isinstance(report, StepReport) and report.step == step:
            trainer.stop()
    assert trainer.step == step


@pytest.mark.parametrize(
    "kind, more", [("stream", {}), ("stream", {"workers": 1}), ("stream", {"reset_at_documents": True}), ("tokens", {})]
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, data, kind, more):
    settings = {"steps": 40, "eval_interval": 15, "checkpoint_interval": 100}
    end(begin(tmp_path / "whole", data[kind] | more, **settings))
    stopped = begin(tmp_path / "stopped", data[kind] | more, **settings)
    stop_at(stopped, 13)
    stop_at(Trainer.resume(tmp_path / "stopped"), 29)
    end(Trainer.resume(tmp_path / "stopped"))
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_a_document_begins_with_a_reset(tmp_path, data):
    trainer = begin(tmp_path / "run", data["stream"] | {"reset_at_documents": True}, steps=60, reset_prob=0.1, checkpoint_interval=100)
    seen, learn = [], trainer.model.update
    trainer.model.update = lambda act, inputs, targets, rate, reset, *rest: (
        seen.append((inputs, reset)) or learn(act, inputs, targets, rate, reset)
    )
    end(trainer)
    ends = trainer.model.tokenizer.end_of_text
    begins = np.array([inputs[0] == ends for inputs, _ in seen])
    reset = np.array([mask for _, mask in seen])
    drawn = np.array([np.random.default_rng([0, step]).random(4) < 0.1 for step in range(60)])
    assert begins.sum() > 20 and np.array_equal(reset, begins | drawn)
    without = begin(tmp_path / "other", data["stream"] | {"reset_at_documents": True}, steps=1, reset_prob=0.0)
    assert without._reset_mask(np.full((16, 4), ends)).all() and not without._reset_mask(np.zeros((16, 4), int)).any()


def test_what_is_left_behind_a_document_counts_for_no_speed(tmp_path, data, monkeypatch):
    Clock(monkeypatch, pace=0.1)
    trainer = begin(tmp_path / "run", data["stream"] | {"reset_at_documents": True}, steps=30, checkpoint_interval=100)
    learn, predicted = trainer.model.update, []
    trainer.model.update = lambda act, inputs, targets, *rest: (
        predicted.append(int((targets >= 0).sum())) or learn(act, inputs, targets, *rest)
    )
    reports = end(trainer)
    assert sum(predicted) < 30 * 64 - 100
    assert [report.tokens for report in of(StepReport, reports)] == np.cumsum(predicted).tolist()
    assert of(StepReport, reports)[-1].tokens_per_second == pytest.approx(sum(predicted[-10:]) / (10 * 0.1))
    summary = of(FinalReport, reports)[0].summary
    assert summary["tokens"] == sum(predicted) and summary["tokens_per_second"] == pytest.approx(sum(predicted) / (30 * 0.1), rel=0.02)


def test_a_network_that_fails_for_good_costs_nothing(tmp_path, data, monkeypatch):
    """The message comes after a checkpoint; when the server is back, the run ends as one that never lost it."""
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(prefetch, "PREFETCH", 3)
    content = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in SHEEP)
    settings = {"steps": 120, "eval_interval": 1000, "sample_interval": 1000, "checkpoint_interval": 1000}
    failing = []
    with DroppingServer({"/a.jsonl": content}, lambda request: 0 if failing else 2500) as server:
        text = {"data": f"{server.url}/a.jsonl", "tokenizer": "byte", "chunk_tokens": 700}
        end(begin(tmp_path / "whole", text, **settings))
        trainer = begin(tmp_path / "run", text, **settings)
        reports = []
        with pytest.raises(DataError, match=r"the connection failed 7 times .*; a checkpoint is in .*run; continue with --resume") as error:
            for report in trainer.reports():
                reports.append(report)
                if isinstance(report, StepReport) and report.step == 20:
                    failing.append(True)
        assert "\n" not in str(error.value) and 20 < trainer.step < 120
        assert isinstance(reports[-1], CheckpointReport) and checkpoint.latest(tmp_path / "run").name == f"step-{trainer.step:08d}"
        failing.clear()
        end(Trainer.resume(tmp_path / "run"))
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_waits_for_text_can_be_stopped(tmp_path, data):
    trainer = begin(tmp_path / "run", data["stream"], steps=40)
    gate, read = threading.Event(), trainer.batches._batches.next
    served = []

    def held_up():
        if len(served) == 5:
            gate.wait(60)
        served.append(0)
        return read()

    trainer.batches._batches.next = held_up
    threading.Timer(1.0, trainer.stop).start()
    began = time.monotonic()
    try:
        reports = end(trainer)
    finally:
        gate.set()
    assert time.monotonic() - began < 50 and trainer.step == 5
    assert isinstance(reports[-1], CheckpointReport) and reports[-1].step == 5


def test_waiting_shows(tmp_path, data):
    trainer = begin(tmp_path / "run", data["stream"], steps=12, checkpoint_interval=100)
    read = trainer.batches._batches.next
    trainer.batches._batches.next = lambda: time.sleep(0.2) or read()
    slow = of(StepReport, end(trainer))
    assert all(0 < report.waited <= 1 for report in slow) and slow[-1].waited > 0.5


def test_a_run_ends_after_its_number_of_chunks(tmp_path, data):
    def steps(**text):
        return Trainer(tiny.config(data["tokens"] | text, steps=50), tmp_path).steps

    assert [steps(max_chunks=3, chunk_tokens=tokens) for tokens in (640, 639, 1, 10**9)] == [30, 29, 1, 50]
    assert steps(max_chunks=0, chunk_tokens=64) == 50
    run = begin(tmp_path / "run", data["tokens"] | {"max_chunks": 2, "chunk_tokens": 320}, steps=50)
    stop_at(run, 4)
    resumed = Trainer.resume(tmp_path / "run")
    end(resumed)
    assert resumed.step == 10
    assert Trainer.resume(tmp_path / "run", 12).steps == 12
    begun = begin(tmp_path / "begun", data["tokens"] | {"max_chunks": 2, "chunk_tokens": 320}, steps=50)
    next(begun.reports())  # nothing is saved yet
    assert [Trainer.resume(tmp_path / "begun", steps).steps for steps in (None, 12)] == [10, 12]
