"""Standard streams that are closed, full, broken or ASCII: no command fails in another way than by a sentence, and a run goes on."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

import tiny
from neurogen_numba.storage import checkpoint
from neurogen_numba.system import streams
from neurogen_numba.train import main as train
from neurogen_numba.ui import Unbreakable

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(os.name != "posix", reason="a shell and its redirections")]

ROOT = Path(__file__).resolve().parent.parent
NEUROGEN = f"{sys.executable} -m neurogen_numba"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1"}


def shell(line, location, **variables):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=location, env=ENVIRONMENT | variables, capture_output=True, encoding="utf-8"
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A folder with a text, the settings of a run of 30 steps, and such a run."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    settings = tiny.config({"data": str(folder / "sheep.txt")}, steps=30).to_dict() | {"preset": "nano"}
    del settings["brain"]["vocabulary"]
    (folder / "tiny.toml").write_text(tomli_w.dumps(settings))
    assert train([*flags(folder), "--out", str(folder / "runs"), "--name", "done"]) == 0
    return folder


def flags(folder):
    return ["--config", str(folder / "tiny.toml"), "--backend", "cpu"]


COMMANDS = {
    "config nano": "",
    "plan --backend cpu": "",
    "doctor": "",
    "generate done --backend cpu --length 3": "",
    "evaluate done --backend cpu --max-tokens 50": "",
    "chat done --backend cpu --max-tokens 3": "1 sheep",
    "tokenize sheep.txt --tokenizer byte --workers 0 --out sheep.bin": "",
    "train --help": "",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_output_costs_a_sentence(location, words):
    done = shell(f"echo '{COMMANDS[words]}' | {NEUROGEN} {words} > /dev/full", location)
    assert done.returncode == 2 and "the output cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("words", ["config nano", "train --help", "plan --backend cpu"])
def test_a_reader_that_has_gone_ends_a_command_quietly(location, words):
    done = shell(f"{{ sleep 0.2; {NEUROGEN} {words}; echo $? >&2; }} | true", location)
    assert done.stderr == "141\n"


@pytest.mark.parametrize("words", COMMANDS)
def test_closed_streams_are_empty(location, words):
    done = shell(f"{NEUROGEN} {words} <&- >&- 2>&-", location)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_one_closed_stream_leaves_the_others_alone(location, closed):
    done = shell(f"{NEUROGEN} config nano {closed}", location)
    assert (done.returncode, done.stderr) == (0, "") and ("[brain" in done.stdout) == (closed != ">&-")


def test_a_mistake_is_one_even_where_nobody_can_be_told(location):
    for closed in ("2>&-", "2> /dev/full", "> /dev/full 2>&1", ">&- 2>&-"):
        assert shell(f"{NEUROGEN} bogus {closed}", location).returncode == 2


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_name_with_an_accent_where_the_encoding_is_ascii(location, encoding):
    done = shell(f"cp sheep.txt schäfchen.txt; {NEUROGEN} config --set text.data=schäfchen.txt", location, **encoding)
    assert done.returncode == 0 and 'data = "schäfchen.txt"' in done.stdout
    words = " ".join(flags(location))
    name = f"é-{encoding.get('LC_ALL', 'io')}"
    assert shell(f"{NEUROGEN} train {words} --name {name} --data schäfchen.txt --steps 2", location, **encoding).returncode == 0
    refused = shell(f"{NEUROGEN} generate {name} --prompt é --backend cpu", location, **encoding)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1  # the text has no such letter
    for line in (f"train --resume runs/{name} --steps 3", f"figures {name}"):
        assert shell(f"{NEUROGEN} {line} --backend cpu", location, **encoding).returncode == 0


@pytest.mark.parametrize("end", ["| head -1", "> /dev/full", "> /dev/full 2>&1", ">&- 2>&- <&-", "2>&1 | true"])
def test_a_run_whose_output_goes_away_goes_on(location, end):
    name = re.sub(r"\W+", "-", end)
    done = shell(f"{NEUROGEN} train {' '.join(flags(location))} --name run{name} {end}", location)
    assert done.returncode == 0
    assert checkpoint.newest(location / f"runs/run{name}")[0].name == "step-00000030"
    if "2>" not in end:
        assert "the output cannot be written: " in done.stderr and "metrics.jsonl" in done.stderr


@pytest.mark.parametrize("plain", [True, False])
def test_a_run_whose_terminal_closes_saves(location, plain):
    ours, theirs = pty.openpty()
    name = f"terminal-{plain}"
    words = [*flags(location), "--steps", "100000", "--name", name, *(["--plain"] if plain else [])]

    def begin():  # the terminal is this process's own, as after a login
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    environment = ENVIRONMENT | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    child = subprocess.Popen(
        [sys.executable, "-m", "neurogen_numba", "train", *words],
        cwd=location,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=begin,
    )
    os.close(theirs)
    output = b""
    while b"tokens/s" not in output or b"loss" not in output:
        output += os.read(ours, 4096)
    os.close(ours)  # the kernel sends SIGHUP, and every write fails from now on
    assert child.wait() == 130
    run = location / "runs" / name
    steps = max(int(step) for step in re.findall(r'"kind": "step", "step": (\d+)', (run / "metrics.jsonl").read_text()))
    assert checkpoint.newest(run)[0] == checkpoint.step_folder(run, steps)


def test_ctrl_c_that_also_ends_the_reader_saves(location):
    words = f"{NEUROGEN} train {' '.join(flags(location))} --steps 100000 --name tee"
    pipes = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    child = subprocess.Popen(["bash", "-c", f"set -m; {words} | tee log.txt"], cwd=location, env=ENVIRONMENT, **pipes)
    while "step 5/" not in child.stdout.readline():
        pass
    tee = subprocess.run(["pgrep", "-s", str(child.pid), "-x", "tee"], capture_output=True, text=True)
    if tee.returncode:
        pytest.skip("no pgrep")
    group = os.getpgid(int(tee.stdout))
    os.killpg(group, signal.SIGINT)
    child.wait()
    run = location / "runs/tee"
    for _ in range(600):  # bash waits for tee only
        if checkpoint.saved(run):
            break
        time.sleep(0.05)
    assert checkpoint.step_of(checkpoint.newest(run)[0]) >= 5


def test_under_nohup_the_end_of_the_terminal_changes_nothing(location):
    words = " ".join([*flags(location), "--name", "nohup"])
    wait = "p=$!; while ! grep -q 'step 1/' nohup.txt; do sleep 0.05; done; kill -HUP $p; wait $p"
    assert shell(f"nohup {NEUROGEN} train {words} > nohup.txt 2>&1 & {wait}", location).returncode == 0
    assert checkpoint.newest(location / "runs/nohup")[0].name == "step-00000030"


def test_a_view_that_fails_costs_itself_and_not_the_run():
    class Failing:
        shown = 0

        def __enter__(self):
            return self

        def __exit__(self, *failure):
            raise RuntimeError("at the end")

        def show(self, report):
            self.shown += 1
            raise ZeroDivisionError("in a picture")

    view, reports = Failing(), []
    with Unbreakable(lambda: view, reports.append) as guarded:
        guarded.show(None)
        guarded.show(None)
    assert view.shown == 1 and len(reports) == 1 and "ZeroDivisionError: in a picture" in reports[0]
    with Unbreakable(lambda: 1 / 0, reports.append) as guarded:
        guarded.show(None)
    assert len(reports) == 2


def test_what_a_stream_refuses_is_told_once():
    class Full:
        encoding = "ascii"

        def write(self, text):
            raise OSError(28, "No space left on device")

        flush = isatty = lambda self: (_ for _ in ()).throw(ValueError("closed"))

    reports = []
    stream = streams.Unfailing(Full(), reports.append)
    assert stream.write("ab") == 2 and stream.encoding == "ascii"
    stream.writelines(["c", "d"])
    stream.flush()
    assert len(reports) == 1
