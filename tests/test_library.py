"""The package as a library: what NumPy, threads, notebooks and scripts without a main guard hand it."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import Config
from neurogen_numba.errors import ConfigError
from neurogen_numba.inference.generation import Sampling
from neurogen_numba.train import main as train

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
IDS = np.random.default_rng(0).integers(0, 40, (4, 17))


def model_of(**training):
    return NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 40}, **training), backend="cpu")


def learned(model):
    return model.train_step(IDS[:, :-1], IDS[:, 1:])


def test_numbers_of_numpy_train_and_save(tmp_path):
    training = {"steps": np.int32(5), "seed": np.uint64(2**63), "learning_rate": np.float32(0.01), "dropout": np.float16(0.25)}
    config = tiny.config(brain={"vocabulary": np.int64(40), "tied": np.bool_(False)}, **training)
    model = NeuroGenModel.from_config(config, backend="cpu")
    learned(model)
    model.save(tmp_path / "brain", trainer={"step": np.int64(1)})
    loaded = NeuroGenModel.load(tmp_path / "brain", backend="cpu")
    assert loaded.config == model.config == Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert NeuroGenModel.from_preset("nano", vocab_size=np.int16(50), backend="cpu").config.brain.vocabulary == 50


@pytest.mark.parametrize("size", [0, -1, 1.5, np.float64(50), "50", True, [50], 2**31, 2**70])
def test_an_invalid_size_of_the_vocabulary_is_refused(size):
    with pytest.raises(ConfigError, match="brain.vocabulary"):
        NeuroGenModel.from_preset("nano", vocab_size=size, backend="cpu")


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -1e-3, 1e39, "fast", 1j, [1, 2], 10**400], ids=str)
def test_a_learning_rate_that_is_none_changes_nothing(rate):
    model = model_of()
    before = model.brain.parameters.flat_value.copy()
    with pytest.raises(ConfigError, match="learning_rate"):
        model.train_step(IDS[:, :-1], IDS[:, 1:], learning_rate=rate)
    np.testing.assert_equal(model.brain.parameters.flat_value, before)
    assert model.optimizer.steps == 0


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "final_rate", "clip", "dropout", "max_minutes", "reset_prob"])
@pytest.mark.parametrize("value", [math.nan, "1", None, 10**400], ids=str)
def test_settings_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"training.{name}"):
        tiny.config(**{name: value})


@pytest.mark.parametrize("settings", [{"temperature": math.nan}, {"temperature": 1e39}, {"top_k": 2**70}, {"seed": 1.5}, {"top_p": "all"}])
def test_ways_to_draw_that_are_none_are_refused(settings):
    with pytest.raises(ConfigError):
        Sampling(**settings)


@pytest.mark.parametrize("ids", [[[1, 2], [3]], None, "abc", [True], [[1.0]], [2**40]], ids=str)
def test_ids_that_are_none_are_refused(ids):
    with pytest.raises(ConfigError, match="input_ids"):
        model_of().logits(ids)


def test_a_length_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="max_length"):
        model_of().generate([1, 2], 3.5)
    with pytest.raises(ConfigError, match="max_length"):
        model_of().generate([1, 2], 10**30)
    assert len(model_of().generate([1, 2], np.int64(5))) == 5


def test_a_mask_is_not_passed_over():
    targets = np.ma.masked_array([1, 2], mask=[True, False])
    with pytest.raises(ConfigError, match="target_ids: an array without a mask"):
        model_of().train_step([1, 2], targets)


@pytest.mark.parametrize("path", [None, 3, "a\0b"], ids=repr)
def test_a_path_that_is_none_is_refused(path):
    for use in (model_of().save, NeuroGenModel.load):
        with pytest.raises(ConfigError):
            use(path)


def test_a_model_at_work_is_not_for_another_thread(monkeypatch):
    model, output, columns = model_of(), [], NeuroGenModel._columns

    def meanwhile(*_):
        monkeypatch.undo()  # the other thread's call is an ordinary one
        other = threading.Thread(target=lambda: output.append(pytest.raises(ConfigError, model.logits, [1, 2])))
        other.start()
        other.join()

    monkeypatch.setattr(model, "_columns", lambda ids, *_: meanwhile() or columns(model, ids, "input_ids"))
    assert model.logits([1, 2]).shape[0] == 2
    assert "at work in another thread" in str(output[0].value)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "deep", "pickle"])
def test_a_copy_learns_as_the_model_does_and_apart_from_it(way):
    model, undisturbed = model_of(dropout=0.1), model_of(dropout=0.1)
    for each in (model, undisturbed):
        learned(each)
    other = way(model)
    first = learned(other)  # does not change the model
    assert learned(model) == first == learned(undisturbed)
    assert learned(model) == learned(other)


# Commands called from Python


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    (folder / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    settings = tiny.config({"data": str(folder / "sheep.txt")}, steps=4, viz_interval=4).to_dict() | {"preset": "nano"}
    del settings["brain"]["vocabulary"]
    (folder / "tiny.toml").write_text(tomli_w.dumps(settings))
    return folder


SCRIPT = """
print("script")
from neurogen_numba.cli import main
print("code", main(["train", "--config", "tiny.toml", "--backend", "cpu", "--plain", "--name", {name!r}]))
print("code", main(["tokenize", "sheep.txt", "--out", {name!r} + ".bin", "--tokenizer", "byte", "--workers", "1"]))
"""


@pytest.mark.parametrize("way", ["a file", "standard input", "-c"])
def test_a_script_without_a_main_guard_runs_once(location, way):
    name = way.strip("-").replace(" ", "-")
    script = location / f"{name}.py"
    script.write_text(SCRIPT.format(name=name))
    words = {"a file": [str(script)], "standard input": ["-"], "-c": ["-c", script.read_text()]}[way]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"}
    with script.open() as file:
        done = subprocess.run([sys.executable, *words], cwd=location, env=environment, stdin=file, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.count("script") == 1 and done.stdout.count("code 0") == 2, done.stdout + done.stderr
    assert "no figures" not in done.stdout and (location / "runs" / name / "training_viz/training_latest.png").exists()
    assert [path.name for path in (location / "runs").iterdir() if path.name.startswith("nano")] == []


def test_a_run_in_a_thread(location, monkeypatch, capsys):
    monkeypatch.chdir(location)
    codes = []
    words = ["--config", "tiny.toml", "--backend", "cpu", "--plain", "--name", "thread"]
    thread = threading.Thread(target=lambda: codes.append(train(words)))
    thread.start()
    thread.join()
    assert codes == [0], capsys.readouterr().err
