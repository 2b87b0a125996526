"""kill -9 or another signal at any moment, and a damaged checkpoint: the run that is resumed ends with the bits of one that was left alone.

`pytest tests/test_kill.py --kills 200` tries 200 moments where a plain run tries 5; docs/logs/kills.txt is the log of one.
"""

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time

import numba
import pytest
import tomli_w

import tiny
from neurogen_numba.errors import CheckpointError
from neurogen_numba.storage import checkpoint
from neurogen_numba.train import main as train
from same import assert_equal_runs

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING = {"steps": 50, "eval_interval": 15, "sample_interval": 25, "checkpoint_interval": 5, "dropout": 0.1, "axon_dropout": 0.1}


def pytest_generate_tests(metafunc):
    if "kill" in metafunc.fixturenames:
        metafunc.parametrize("kill", range(metafunc.config.getoption("kills")))


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A folder with a text, and the settings of a run that takes a second or two."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    settings = tiny.config({"data": str(folder / "sheep.txt")}, **TRAINING).to_dict() | {"preset": "nano"}
    del settings["brain"]["vocabulary"]
    (folder / "tiny.toml").write_text(tomli_w.dumps(settings))
    return folder


PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
# Its processes are copies of one that has imported all this, and launched no kernel: a run begins at once, and is killed while it trains.
PROCESSES.set_forkserver_preload(["neurogen_numba.train", "neurogen_numba.learning.trainer", "neurogen_numba.backends.cpu"])


class Said:
    """Standard output of a run, into a file. It waits for a signal after a line that has `pause` in it."""

    def __init__(self, file, pause):
        self.file, self.pause = file, pause

    def write(self, text):
        self.file.write(text)
        self.file.flush()
        if self.pause and self.pause in text:
            self.pause = None
            signal.pause()

    def __getattr__(self, name):
        return getattr(self.file, name)


def run_to_its_end(words, output, pause):
    """Run a process, and return its behaviour."""
    with open(output, "w", encoding="utf-8") as file:
        sys.stdout = sys.stderr = Said(file, pause)
        numba.set_num_threads(1)
        sys.exit(train(words))


def start(location, run, pause=None):
    """(a process that trains, the file with what it says)."""
    output = run.with_suffix(".said")
    process = PROCESSES.Process(target=run_to_its_end, args=(flags(location, run), output, pause))
    process.start()
    return process, output


def flags(location, run):
    return ["--backend", "cpu", "--plain", "--out", str(run.parent), "--name", run.name, "--config", str(location / "tiny.toml")]


@pytest.fixture(scope="module")
def whole(location):
    """A run that nobody disturbs, and the seconds from its process's begin to its end."""
    for run in (location / "warm", location / "whole"):  # the first one may have to compile
        began = time.monotonic()
        process, output = start(location, run)
        process.join()
        assert process.exitcode == 0, output.read_text()
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


def go_on(location, run, capsys):
    """Resume a run to its end; one that was killed before it had begun is begun. Returns what it said."""
    begun = (run / "config.json").exists()
    code = train(["--backend", "cpu", "--plain", "--resume", str(run)] if begun else flags(location, run))
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


@pytest.mark.parametrize("harm", [None, flip, cut], ids=["killed", "killed, then a byte flipped", "killed, then a tail cut off"])
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(location, whole, kill, harm, request, capsys):
    kills, (undisturbed, life) = request.config.getoption("kills"), whole
    name = getattr(harm, "__name__", "killed")
    draw, run = random.Random(f"{name} {kill}"), location / f"{name}-{kill}"
    process, _ = start(location, run)
    process.join((kill + draw.random()) / kills * life)  # each kill has a part of a run's life of its own
    process.kill()
    process.join()
    damaged = harm is not None and damage(run, harm, draw)
    if damaged or not (run / "summary.json").exists():
        output = go_on(location, run, capsys)
        assert ("is skipped" in output) == damaged
    assert_equal_runs(run, undisturbed)


SIGNALS = ("SIGHUP", "SIGTERM", "SIGPIPE")  # the last one is ignored by Python: the run goes on


@pytest.mark.skipif(os.name != "posix", reason="sends SIGHUP")
def test_a_run_that_is_told_to_end_at_any_moment_loses_no_step(location, whole, kill, request, capsys):
    kills, (undisturbed, life) = request.config.getoption("kills"), whole
    name = SIGNALS[kill % len(SIGNALS)]
    draw, run = random.Random(f"{name} {kill}"), location / f"{name}-{kill}"
    process, output = start(location, run)
    process.join((kill + draw.random()) / kills * life)
    if process.is_alive():
        os.kill(process.pid, getattr(signal, name))
    process.join()
    output = output.read_text() if output.exists() else ""
    early = process.exitcode == -getattr(signal, name)  # the run was not there yet, or was leaving
    assert early or process.exitcode in ((0,) if name == "SIGPIPE" else (0, 130)), output
    assert "Traceback" not in output
    saved = checkpoint.saved(run)
    assert (checkpoint.step_of(saved[-1]) if saved else 0) == last_step(run)
    if stopped := re.search(r"Stopped after (\d+) of 50 steps; everything is saved", output):
        assert int(stopped[1]) == last_step(run)
    if not (run / "summary.json").exists():
        go_on(location, run, capsys)
    assert_equal_runs(run, undisturbed)


def last_step(run):
    """The last update that a run has recorded; 0 where there is none."""
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((record["step"] for record in map(json.loads, lines) if record["kind"] == "step"), default=0)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGHUP")
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_run_that_is_told_to_end_twice_ends_with_a_checkpoint(location, whole, capsys, number):
    run = location / f"terminated-{number}"
    process, output = start(location, run, pause="step 15/")
    while not output.exists() or "step 15/" not in output.read_text():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, number)
    time.sleep(0.002)
    os.kill(process.pid, number)  # as `timeout` and systemd do
    process.join()
    output = output.read_text()
    assert process.exitcode == 130, output
    step = int(re.search(r"Stopped after (\d+) of 50 steps; everything is saved", output)[1])
    assert checkpoint.newest(run) == (checkpoint.step_folder(run, step), [])
    assert f"resuming from step {step}\n" in go_on(location, run, capsys)
    assert_equal_runs(run, whole[0])
