"""Replay: which episodes are kept, that they are learned once more, and that a run with it resumes."""

import json

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.learning.replay import Replay
from neurogen_numba.learning.trainer import Trainer
from same import assert_equal_runs

pytestmark = pytest.mark.usefixtures("one_thread")

T, B, VOCABULARY = 16, 4, 11


def made(interval):
    return NeuroGenModel.from_config(tiny.config(brain={"vocabulary": VOCABULARY}, replay=interval, batch=B, segment=T), backend="cpu")


def test_the_most_surprising_episodes_since_the_last_replay_are_learned_once_more(monkeypatch):
    model = made(3)
    replay, act, rng = Replay(model), model.activity(T, B, learning=True), np.random.default_rng(3)
    learned, surprises, episodes = [], [], []
    monkeypatch.setattr(model, "update", lambda act, inputs, targets, rate: learned.append((inputs.copy(), targets.copy(), rate)))
    for step in range(1, 4):
        inputs, targets = rng.integers(0, VOCABULARY, (2, T, B)).astype(np.int32)
        act.surprise = rng.random(B)
        surprises += list(act.surprise)
        episodes += list(zip(inputs.T, targets.T, strict=True))
        assert not learned
        replay.after(step, act, inputs, targets, 0.5)
    ((inputs, targets, rate),) = learned
    worst = sorted(np.argsort(surprises)[-B:])
    np.testing.assert_array_equal(inputs.T, [episodes[i][0] for i in worst])
    np.testing.assert_array_equal(targets.T, [episodes[i][1] for i in worst])
    assert rate == 0.5 and (replay.surprise == -1).all() and (replay.targets == -1).all()


def test_an_update_tells_how_surprising_each_sequence_was():
    model = made(0)
    act, rng = model.activity(T, B, learning=True), np.random.default_rng(3)
    inputs, targets = rng.integers(0, VOCABULARY, (2, T, B)).astype(np.int32)
    targets[:5, 1] = -1
    loss, *_ = model.update(act, inputs, targets, 0.0)
    counted = (targets >= 0).sum(0)
    assert (act.surprise * counted).sum() / counted.sum() == pytest.approx(loss)
    alone = model.activity(T, 1, learning=True)
    assert model.update(alone, inputs[:, 1:2], targets[:, 1:2], 0.0)[0] == pytest.approx(act.surprise[1], rel=1e-5)


def test_a_run_with_replay_resumes_bit_for_bit_and_is_another_than_without(tmp_path):
    data = tmp_path / "sheep.txt"
    data.write_text("The sheep counts the other sheep. " * 100)
    runs = {"whole": 3, "stopped": 3, "without": 0}
    for name, interval in runs.items():
        settings = {"steps": 12, "replay": interval, "checkpoint_interval": 4, "eval_interval": 100, "sample_interval": 100}
        (tmp_path / name).mkdir()
        trainer = Trainer(tiny.config(text={"data": str(data)}, **settings), tmp_path / name, "cpu")
        for report in trainer.reports():
            if name == "stopped" and getattr(report, "step", 0) == 5:  # episodes have been kept since the last replay
                break
        if name == "stopped":
            list(Trainer.resume(tmp_path / name, backend="cpu").reports())
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")
    loss = {name: json.loads((tmp_path / name / "summary.json").read_text())["val_loss"] for name in runs}
    assert loss["whole"] == loss["stopped"] != loss["without"]
