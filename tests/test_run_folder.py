"""The run directory: its name, its lock, its log."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurogen_numba.errors import BackendError, CheckpointError, ConfigError
from neurogen_numba.presets import get_preset
from neurogen_numba.storage import checkpoint, run_folder

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, sys.path)])}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Names


def test_runs_are_numbered_by_preset(tmp_path):
    out = tmp_path / "not" / "there"
    assert run_folder.create(out, None, "nano") == out / "nano-1"
    assert run_folder.create(out, None, "nano") == out / "nano-2"
    assert run_folder.create(out, None, "tiny") == out / "tiny-1"
    (out / "nano-1").rmdir()
    assert run_folder.create(out, None, "nano") == out / "nano-1"
    assert names(out) == ["nano-1", "nano-2", "tiny-1"]


def test_a_named_run_is_made_once(tmp_path):
    run = run_folder.create(tmp_path, "mine", "nano")
    assert run == tmp_path / "mine"
    with run_folder.lock(run):
        pass
    assert run_folder.create(tmp_path, "mine", "nano") == run  # nothing in it but the lock: it never came to anything
    (run / "config.json.saving").write_text('{"pre')  # a kill in its first moment leaves that
    assert run_folder.create(tmp_path, "mine", "nano") == run
    run_folder.write_json(run / "config.json", {})
    with pytest.raises(ConfigError, match="mine already contains a run; continue it with --resume, or choose another --name"):
        run_folder.create(tmp_path, "mine", "nano")
    assert names(run) == ["config.json", "lock"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/a", "a\\b", "a\0b", "a\nb", "\udcff"])
def test_a_name_is_a_plain_folder_name(tmp_path, name):
    with pytest.raises(ConfigError, match="a plain folder name is needed"):
        run_folder.create(tmp_path / "out", name, "nano")
    assert not (tmp_path / "out").exists()


def test_a_run_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for out, name in [(tmp_path / "file", None), (tmp_path / "file" / "below", None), (tmp_path, "file"), (tmp_path, "x" * 1000)]:
        with pytest.raises(ConfigError, match="no run can be started under .*; choose another --out or --name"):
            run_folder.create(out, name, "nano")


@pytest.mark.parametrize(
    "out, name, output",
    [
        ("file", None, "file is a file; "),
        ("runs", "file", "file is a file; "),
        ("itself", None, "itself is a link to itself; "),
        ("itself/below", None, "below lies in a link to itself; "),
        ("runs", "itself", "itself is a link to itself; "),
        ("nowhere", None, "nowhere is a broken link; "),
    ],
)
def test_what_is_in_the_way_of_a_run_is_said(tmp_path, out, name, output):
    (tmp_path / "runs").mkdir()
    for folder in (tmp_path, tmp_path / "runs"):
        (folder / "file").write_text("")
        (folder / "itself").symlink_to("itself")
        (folder / "nowhere").symlink_to("gone")
    with pytest.raises(ConfigError, match=f"no run can be started under .*{output}"):
        run_folder.create(tmp_path / out, name, "nano")


# The latest run


def saved(run, step, seconds):
    """A checkpoint saved at a time, in seconds."""
    folder = checkpoint.step_folder(run, step)
    checkpoint.save(folder, {"brain": {"v": np.zeros(2, np.float32)}}, {})
    os.utime(folder / "manifest.json", (seconds, seconds))
    return folder


def test_the_latest_run_is_the_one_that_saved_last(tmp_path):
    saved(tmp_path / "a", 900, 100)
    saved(tmp_path / "b", 100, 300)
    saved(tmp_path / "c", 500, 200)
    damaged = saved(tmp_path / "d", 100, 400)
    (damaged / "brain.safetensors").unlink()
    run_folder.create(tmp_path, "e", "nano")
    (tmp_path / "notes.txt").write_text("")
    assert run_folder.latest_run(tmp_path) == tmp_path / "b"
    saved(tmp_path / "c", 600, 301)
    assert run_folder.latest_run(tmp_path) == tmp_path / "c"


def test_without_a_trained_run_there_is_no_latest(tmp_path):
    run_folder.create(tmp_path / "runs", None, "nano")
    for out in (tmp_path / "runs", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="no trained run under .*; train one first with `neurogen train`"):
            run_folder.latest_run(out)


def test_a_run_that_has_begun_can_be_the_latest_to_go_on_with(tmp_path):
    saved(tmp_path / "a", 900, 100)
    begun = run_folder.create(tmp_path, "b", "nano")
    run_folder.write_json(begun / "config.json", {})
    os.utime(begun / "config.json", (200, 200))
    run_folder.create(tmp_path, "c", "nano")
    assert run_folder.latest_run(tmp_path) == tmp_path / "a"
    assert run_folder.latest_run(tmp_path, begun=True) == begun
    assert run_folder.find_resumable("latest", tmp_path) == (begun, None, [])
    saved(begun, 1, 300)
    saved(tmp_path / "a", 901, 400)
    assert run_folder.find_resumable(None, tmp_path) == (tmp_path / "a", None, [])


# Which checkpoint is meant


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs: a has checkpoints 1 to 3, of which 1 is the best and 3 is damaged, b has one."""
    monkeypatch.chdir(tmp_path)
    for step, loss in ((1, 1.0), (2, 2.0), (3, None)):
        checkpoint.save(checkpoint.step_folder(Path("runs/a"), step), {"brain": {"v": np.zeros(2, np.float32)}}, {}, loss=loss)
    data = Path("runs/a/checkpoints/step-00000003/brain.safetensors").read_bytes()
    Path("runs/a/checkpoints/step-00000003/brain.safetensors").write_bytes(data[:-1] + b"!")
    saved(Path("runs/b"), 7, 100)
    checkpoint.save(Path("alone"), {}, {})
    return Path("runs")


@pytest.mark.parametrize(
    "path, found, passed_over",
    [
        (None, "runs/a/checkpoints/step-00000002", 1),
        ("latest", "runs/a/checkpoints/step-00000002", 1),
        ("a", "runs/a/checkpoints/step-00000002", 1),
        ("runs/a", "runs/a/checkpoints/step-00000002", 1),
        ("a@best", "runs/a/checkpoints/step-00000001", 0),
        ("runs/b", "runs/b/checkpoints/step-00000007", 0),
        ("runs/a/checkpoints/step-00000001", "runs/a/checkpoints/step-00000001", 0),
        ("alone", "alone", 0),
    ],
)
def test_the_checkpoint_that_is_meant(runs, path, found, passed_over):
    folder, sentences = run_folder.find_checkpoint(path, runs)
    assert (folder, len(sentences)) == (Path(found), passed_over)
    assert all(sentence.startswith("step-00000003 is skipped: ") for sentence in sentences)


@pytest.mark.parametrize("path", ["new", "new@best", "runs/new", "latest"])
@pytest.mark.parametrize("folder", [False, True], ids=["", "with a folder for them"])
def test_a_run_that_has_saved_nothing_yet_is_said_to(path, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_folder.create(Path("runs"), "new", "nano")
    with run_folder.lock(run):
        run_folder.write_json(run / run_folder.CONFIG, {})
    if folder:
        (run / "checkpoints").mkdir()
    output = "no trained run under runs" if path == "latest" else "^runs/new has saved no checkpoint yet; .* --resume runs/new$"
    with pytest.raises((CheckpointError, ConfigError), match=output):
        run_folder.find_checkpoint(path, Path("runs"))


@pytest.mark.parametrize("path", ["new", "new@best", "latest", None])
@pytest.mark.parametrize("steps, first", [(2000, "500"), (300, "300")])
def test_a_run_that_trains_says_when_its_first_checkpoint_comes(path, steps, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_folder.create(Path("runs"), "new", "nano")
    with run_folder.lock(run):
        with pytest.raises(CheckpointError, match="^new is starting and has no checkpoint yet; try again when it trains$"):
            run_folder.find_checkpoint(path, Path("runs"))
        run_folder.write_json(run / run_folder.CONFIG, get_preset("nano").to_dict())
        (run / run_folder.METRICS).write_text(json.dumps({"kind": "step", "step": 290, "steps": steps}) + "\n")
        with pytest.raises(CheckpointError, match=f"^new is training and has no checkpoint yet; the first comes at step {first}$"):
            run_folder.find_checkpoint(path, Path("runs"))


@pytest.mark.parametrize("kept", [False, True])
def test_a_discarded_run_leaves_no_empty_folder_that_was_made_for_it(kept, tmp_path):
    (tmp_path / "old").mkdir()
    out = tmp_path / "old" / "a" / "b"
    made = run_folder.absent(out)
    run = run_folder.create(out, None, "nano")
    if kept:
        (out / "notes.txt").write_text("")
    run_folder.discard(run, made)
    assert not run.exists() and out.exists() == out.parent.exists() == kept and (tmp_path / "old").exists()


@pytest.mark.parametrize(
    "path, run, folder",
    [
        ("a", "runs/a", None),
        ("runs/a@best", "runs/a", "runs/a/checkpoints/step-00000001"),
        ("runs/a/checkpoints/step-00000002", "runs/a", "runs/a/checkpoints/step-00000002"),
    ],
)
def test_what_a_run_goes_on_from(runs, path, run, folder):
    found, start, passed_over = run_folder.find_resumable(path, runs)
    assert found.resolve() == Path(run).resolve() and start == (folder and Path(folder)) and passed_over == []


@pytest.mark.parametrize(
    "path, output",
    [
        ("b@best", "no checkpoint of runs/b has an evaluation on held-out text: @best needs the first one; drop @best"),
        ("b@bset", "^there is no b@bset; did you mean b@best\\?$"),
        ("nowhere", "^there is no nowhere: neither a folder, nor a run of that name under "),
        (".", "has no whole checkpoint: nothing has been saved there"),
        ("alone", "alone is a checkpoint outside a run; make it a run with `neurogen migrate alone "),
        ("runs/a/checkpoints/step-00000003", "brain.safetensors is damaged"),
    ],
)
def test_what_a_run_cannot_go_on_from(runs, path, output):
    with pytest.raises((CheckpointError, ConfigError), match=output):
        run_folder.find_resumable(path, runs)


def test_a_damaged_best_is_passed_over_and_named(runs):
    first = runs / "a/checkpoints/step-00000001/brain.safetensors"
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    _, folder, passed_over = run_folder.find_resumable("a@best", runs)
    assert folder == runs / "a/checkpoints/step-00000002" and passed_over[0].startswith("step-00000001 is skipped: ")


def test_what_cannot_be_set_aside_stays(tmp_path, monkeypatch):
    saved(tmp_path / "a", 1, 100)
    saved(tmp_path / "a", 2, 100)
    assert run_folder.set_aside(tmp_path / "a", 2) is None and names(tmp_path / "a") == ["checkpoints"]

    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(BackendError, match="checkpoints after step 1 cannot be moved: Permission denied"):
        run_folder.set_aside(tmp_path / "a", 1)
    assert checkpoint.latest(tmp_path / "a").name == "step-00000002"


# The lock

HOLD = """
import sys
from pathlib import Path
from neurogen_numba.storage import run_folder
with run_folder.lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

TRY = """
import sys
from pathlib import Path
from neurogen_numba import errors
from neurogen_numba.storage import run_folder
try:
    with run_folder.lock(Path(sys.argv[1])):
        print("taken")
except errors.ConfigError as error:
    print(error)
"""


def hold(run):
    """A process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def try_to_take(run):
    return subprocess.run([sys.executable, "-c", TRY, str(run)], env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()


def test_a_second_process_is_told_who_has_the_run(tmp_path):
    with hold(tmp_path) as process:
        expected = f"{tmp_path} is in use by process {process.pid}; wait until it ends, or choose another --name"
        assert try_to_take(tmp_path) == expected
        with pytest.raises(ConfigError) as caught, run_folder.lock(tmp_path):
            pass
        assert str(caught.value) == expected
        process.stdin.close()
        process.wait()
    assert try_to_take(tmp_path) == "taken"


def test_the_lock_goes_with_a_killed_process(tmp_path):
    with hold(tmp_path) as process:
        process.kill()
        process.wait()
    with run_folder.lock(tmp_path):
        assert f"in use by process {os.getpid()};" in try_to_take(tmp_path)
    assert try_to_take(tmp_path) == "taken"


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), run_folder.lock(tmp_path):
        raise ZeroDivisionError
    with run_folder.lock(tmp_path), pytest.raises(ConfigError, match=f"in use by process {os.getpid()};"), run_folder.lock(tmp_path):
        pass


def test_a_lock_that_is_let_go_of_in_a_moment_is_waited_for(tmp_path):
    holder = run_folder.lock(tmp_path)
    holder.__enter__()
    letting_go = threading.Timer(0.2, lambda: holder.__exit__(None, None, None))
    letting_go.start()
    with run_folder.lock(tmp_path):
        letting_go.join()


FORKED = """
import os, sys
from pathlib import Path
from neurogen_numba.storage import run_folder
with run_folder.lock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
print("released", child, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        word, child = process.stdout.readline().split()
        assert word == "released"
        os.kill(int(child), 0)  # it lives
        with run_folder.lock(tmp_path):
            pass
        os.kill(int(child), signal.SIGKILL)
        process.stdin.close()


def test_a_run_that_is_not_there_cannot_be_locked(tmp_path):
    with pytest.raises(ConfigError, match="lock cannot be opened"), run_folder.lock(tmp_path / "nowhere"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="plants the mistake in fcntl")
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch):
    import fcntl

    def flock(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BackendError, match="lock cannot be locked: .*; choose an --out on another disk"), run_folder.lock(tmp_path):
        pass


# JSON


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    run_folder.write_json(path, {"loss": 1.5, "text": "naïve"})
    assert json.loads(path.read_text()) == {"loss": 1.5, "text": "naïve"}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError, match="summary.json cannot be written: No space left on device; make room"):
        run_folder.write_json(path, {"loss": 0})
    assert json.loads(path.read_text())["loss"] == 1.5
    assert names(tmp_path) == ["summary.json"]


# The log


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_record_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with run_folder.MetricsLog(path) as log:
        for step in (1, 2, 3):
            log.write({"kind": "step", "step": step, "text": "two\nlines \u2028 \ud83d"})
            assert [record["step"] for record in records(path)] == list(range(1, step + 1))
    assert records(path)[0]["text"] == "two\nlines \u2028 \ud83d"


def test_a_resumed_log_goes_on_from_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with run_folder.MetricsLog(path) as log:
        log.write({"kind": "notice", "text": "begins"})
        for step in (10, 20, 20, 30):
            log.write({"kind": "step", "step": step})
        log.write({"kind": "notice", "text": "ends"})
    with open(path, "a") as file:
        file.write('{"kind": "step", "st')
    with run_folder.MetricsLog(path, step=20) as log:
        log.write({"kind": "step", "step": 21})
    assert [record.get("step", record.get("text")) for record in records(path)] == ["begins", 10, 20, 20, 21]
    with run_folder.MetricsLog(path):
        assert records(path) == [{"kind": "notice", "text": "begins"}]


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 400), step=st.integers(0, 12))
def test_a_log_cut_anywhere_resumes_with_whole_records(tmp_path_factory, cut, step):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = [json.dumps({"step": number, "loss": 1 / number}) + "\n" for number in range(1, 11)]
    path.write_text("".join(lines)[:cut])
    whole = [json.loads(line) for line in "".join(lines)[:cut].split("\n")[:-1]]
    with run_folder.MetricsLog(path, step) as log:
        log.write({"step": step + 1})
    found = records(path)
    assert found[-1] == {"step": step + 1}
    expected = [record for record in whole if record["step"] <= step]
    # A last record that lacks only its line end is whole too.
    assert found[:-1] in (expected, [*expected, {"step": len(whole) + 1, "loss": 1 / (len(whole) + 1)}])
    assert len(found) - 1 <= step


def test_cutting_the_log_back_fails_without_losing_it(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def refused(source, target):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(BackendError, match="metrics.jsonl cannot be written: Permission denied"):
        run_folder.MetricsLog(path, step=1)
    assert [record["step"] for record in records(path)] == [1, 2]
    assert names(tmp_path) == ["metrics.jsonl"]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_log_that_the_disk_cuts_short_says_so_once_and_waits(tmp_path):
    import resource

    limits, path = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "metrics.jsonl"

    def full(log, step):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            return log.write({"step": step, "text": "x" * 200_000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with run_folder.MetricsLog(path) as log:
        assert log.write({"step": 1}) is None
        output = full(log, 2)
        assert "metrics.jsonl cannot be written: No space left on device; make room" in output and output.endswith("stay in memory")
        assert full(log, 3) is None  # once is enough
        assert [record["step"] for record in records(path)] == [1]  # and no part of a line
        assert log.write({"step": 4}) is None
        assert [record["step"] for record in records(path)] == [1, 2, 3, 4]
        assert "cannot be written" in full(log, 5)  # full again: that is news
    assert [record["step"] for record in records(path)] == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_log_that_is_never_written_is_an_error_in_the_end(tmp_path):
    def full():
        log = run_folder.MetricsLog(tmp_path / "metrics.jsonl")
        log.close()
        log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115  closed with the log
        log.write({"step": 1})
        return log

    with pytest.raises(BackendError, match="metrics.jsonl cannot be written: No space left on device"):
        full().close()
    with pytest.raises(ZeroDivisionError), full():  # what went wrong first is what is told
        raise ZeroDivisionError


def test_what_a_user_has_in_a_folder_is_no_leftover_of_a_run(tmp_path):
    for number, name in enumerate(("encoded/book.txt", "encoded/tokens.bin", "encoded/tokens.json")):
        run = tmp_path / f"run{number}"
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text("{}")
        with pytest.raises(ConfigError, match="already contains a run"):
            run_folder.create(tmp_path, run.name, "nano")
        run_folder.discard(run)
        assert (run / name).exists()
    run = run_folder.create(tmp_path, "own", "nano")
    (run / run_folder.TOKENS).parent.mkdir()
    (run / run_folder.TOKENS).write_bytes(b"ab")
    (run / run_folder.TOKENS).with_suffix(".json").write_text('{"made_of": 1}')
    run_folder.discard(run)
    assert not run.exists()
