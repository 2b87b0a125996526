"""kill -9 at any moment, and a damaged checkpoint: the run that is resumed ends with the bits of one that was left alone.

`pytest tests/test_kill.py --kills 200` tries 200 moments where a plain run tries 5; docs/logs/kills.txt is the log of one.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

import tiny
from neurogen_numba import checkpoint
from neurogen_numba.errors import CheckpointError
from neurogen_numba.train import main as train
from same import assert_equal_runs

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
TRAINING = {"steps": 100, "eval_interval": 25, "sample_interval": 50, "checkpoint_interval": 10, "dropout": 0.1, "axon_dropout": 0.1}


def pytest_generate_tests(metafunc):
    if "kill" in metafunc.fixturenames:
        metafunc.parametrize("kill", range(metafunc.config.getoption("kills")))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, and the settings of a run that takes a second or two."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    settings = tiny.config({"data": str(folder / "sheep.txt")}, **TRAINING).to_dict() | {"preset": "nano"}
    del settings["brain"]["vocabulary"]
    (folder / "tiny.toml").write_text(tomli_w.dumps(settings))
    return folder


def start(place, run):
    """A process that trains."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"}
    words = ["-m", "neurogen_numba", "train", *flags(place, run)]
    return subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def flags(place, run):
    return ["--backend", "cpu", "--plain", "--out", str(run.parent), "--name", run.name, "--config", str(place / "tiny.toml")]


@pytest.fixture(scope="module")
def whole(place):
    """A run that nobody disturbs, and the seconds from its process's begin to its end."""
    for run in (place / "warm", place / "whole"):  # the first one may have to compile
        began = time.monotonic()
        with start(place, run) as process:
            said = process.communicate()[0]
        assert process.returncode == 0, said
    return run, time.monotonic() - began


def flip(path, draw):
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    path.write_bytes(data)


def cut(path, draw):
    """Cut off the tail of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def damage(run, harm, draw):
    """Harm one file of the newest checkpoint, where there is another to fall back to. Returns whether it is damaged now."""
    checkpoint.prune(run, 5)  # what a killed save left behind is no checkpoint
    saved = checkpoint.saved(run)
    if len(saved) < 2:
        return False
    harm(draw.choice([path for path in sorted(saved[-1].rglob("*")) if path.is_file()]), draw)
    try:
        checkpoint.verify(saved[-1])
    except CheckpointError:
        return True
    return False  # one space became another


def go_on(place, run, capsys):
    """Resume a run to its end; one that was killed before it had begun is begun. Returns what it said."""
    begun = (run / "config.json").exists()
    code = train(["--backend", "cpu", "--plain", "--resume", str(run)] if begun else flags(place, run))
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


@pytest.mark.parametrize("harm", [None, flip, cut], ids=["killed", "killed, then a byte flipped", "killed, then a tail cut off"])
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(place, whole, kill, harm, request, capsys):
    kills, (undisturbed, life) = request.config.getoption("kills"), whole
    name = getattr(harm, "__name__", "killed")
    draw, run = random.Random(f"{name} {kill}"), place / f"{name}-{kill}"
    with start(place, run) as process:
        try:
            process.wait((kill + draw.random()) / kills * life)  # each kill has a part of a run's life of its own
        except subprocess.TimeoutExpired:
            process.kill()
    damaged = harm is not None and damage(run, harm, draw)
    if damaged or not (run / "summary.json").exists():
        said = go_on(place, run, capsys)
        assert ("is passed over" in said) == damaged
    assert_equal_runs(run, undisturbed)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_a_run_that_is_told_to_end_ends_with_a_checkpoint(place, whole, capsys):
    run = place / "terminated"
    with start(place, run) as process:
        while "step 15/" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
    assert process.returncode == 130
    step = int(re.search(r"Stopped after (\d+) of 100 steps; everything is kept", said)[1])
    assert checkpoint.newest(run) == (checkpoint.step_folder(run, step), [])
    assert f"going on from step {step}\n" in go_on(place, run, capsys)
    assert_equal_runs(run, whole[0])
