"""A terminal during `neurogen train`: it says at any moment what runs, how long it takes, and what Ctrl-C does."""

import importlib
import io
import math
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from rich.console import Console

import neurogen_numba as ng
import tiny
from neurogen_numba.learning.report import Notice, StepReport
from neurogen_numba.learning.stopping import STOPPING, Signals
from neurogen_numba.learning.time_budget import Mark, Throughput
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.system import streams, waiting
from neurogen_numba.ui import Unbreakable
from neurogen_numba.ui.live import LiveView
from neurogen_numba.ui.plain import PlainView, wrapped
from neurogen_numba.ui.progress import ProgressView
from test_ui import Terminal, live, without_codes

ROOT = Path(__file__).resolve().parent.parent
LONG = "warning: pfc is silent: no event in the last 3 reports, up to step 30; the modules after it get no input. Start again with --seed"


def step(step=10, steps=1000, speed=64.0, seconds=10.0, limit=math.inf):
    return StepReport(step, steps, 64 * step, 2.0, 0.1, 1.0, 1e-3, 1.0, speed, seconds, {}, 0.0, limit)


@pytest.fixture
def trainer(tmp_path):
    (tmp_path / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    (tmp_path / "run").mkdir()
    return Trainer(tiny.config({"data": str(tmp_path / "sheep.txt")}, steps=6, log_interval=3, max_minutes=5.0), tmp_path / "run")


# How long


@pytest.mark.parametrize("limit, left, done", [(math.inf, 990, 0.01), (30, 20, 1 / 3), (5000, 990, 0.01), (9, 0, 1)])
def test_what_is_left_ends_with_the_steps_or_the_time_limit(limit, left, done):
    report = step(limit=limit)
    assert report.seconds_left == pytest.approx(left) and report.done == pytest.approx(done)


def test_a_run_reports_its_time_limit(trainer):
    reports = [report for report in trainer.reports() if isinstance(report, StepReport)]
    assert [report.time_limit for report in reports] == [300.0, 300.0]


def test_one_update_is_no_speed():
    throughput = Throughput(Mark(0, 0, 0.0, 0.0))
    throughput.add(Mark(1, 100, 50.0, 0.0))  # loads the kernels
    assert math.isnan(throughput.tokens_per_second)
    throughput.add(Mark(2, 200, 51.0, 0.0))
    assert throughput.tokens_per_second == pytest.approx(100)
    _, picture = live(step(1, speed=math.nan))
    assert "measuring the speed" in picture[1] and "nan" not in "".join(picture[1:])
    output = io.StringIO()
    PlainView("t", output).show(step(1, speed=math.nan))
    assert "measuring the speed" in output.getvalue() and "nan" not in output.getvalue()


# What runs


def test_every_wait_of_a_run_has_words(trainer):
    shown = []
    with waiting.shown_by(lambda *work: shown.append(work)):
        for _ in trainer.reports():
            assert not shown or shown[-1] == ("", 0, None)  # with each report the work before it has ended
    names = list(dict.fromkeys(sentence for sentence, _, _ in shown if sentence and "compiling" not in sentence))
    assert names[0] == "measuring the speed" and ("measuring the speed", 2, 3) in shown
    assert [name.split(" ")[0] for name in names[1:]] == ["fitting", "evaluating", "saving", "evaluating", "writing"]
    assert any(done == total == 100 and sentence == "evaluating on 100 held-out tokens" for sentence, done, total in shown)


def test_work_is_shown_in_the_live_view_and_then_the_steps_again():
    _, picture = live(step())
    assert "10/1,000 steps" in picture[1]
    view = LiveView("t", console())
    with view:
        view.show(step())
        with waiting.doing("evaluating on 20,000 held-out tokens", 20_000) as show:
            show(5000)
            during = picture_of(view)
    assert "evaluating on 20,000 held-out tokens" in during and "10/1,000 steps" in picture_of(view)


def console(width=80):
    return Console(file=io.StringIO(), width=width, height=24, force_terminal=True, legacy_windows=False)


def picture_of(view):
    """The words of a picture of a live view."""
    drawn = console(view.console.width)
    drawn.print(view._picture())
    return " ".join(without_codes(drawn.file.getvalue()).split())


def test_preparations_are_named_on_a_terminal_and_silent_in_a_pipe(monkeypatch, capsys):
    with waiting.doing("getting ready: reading the text", patience=0):
        pass
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with waiting.doing("getting ready: reading the text", patience=0):
        pass
    assert "getting ready: reading the text" in terminal.getvalue()


def test_training_without_progress_shows_nothing(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    texts = ["one two three four five"] * 100
    run = ng.train(tiny.config(steps=2), texts, out=tmp_path, progress=False, backend="cpu")
    run.resume(3, progress=False, backend="cpu")
    assert terminal.getvalue() == ""


def test_training_from_python_says_how_to_go_on(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    ng.train(tiny.config(steps=9), ["one two three four five"] * 100, out=tmp_path, backend="cpu", on_step=lambda report: report.step < 4)
    assert "stopped after 4 of 9 steps; Run.resume continues" in terminal.getvalue()


def test_a_view_replaces_standard_error(monkeypatch, capsys):
    shown = []
    with waiting.shown_by(lambda *work: shown.append(work)), waiting.Waiting("reading", 9, patience=0) as work:
        work.show(4)
    assert shown == [("reading", 4, 9), ("", 0, None)] and capsys.readouterr() == ("", "")


def test_a_total_may_change_as_it_becomes_known(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "INTERVAL", 0)
    with waiting.Waiting("scoring", unit="windows", patience=0) as work:
        work.show(64)
        work.show(128, 256)
        work.show(192, 384)
        work.show(288)
    found = capsys.readouterr().err.splitlines()
    assert found == [
        f"scoring: {of}" for of in ("64 windows", "128 of 256 windows, 50 %", "192 of 384 windows, 50 %", "288 of 384 windows, 75 %")
    ]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with waiting.Waiting("scoring", unit="windows", patience=0) as work:
        work.show(64)
        work.show(128, 256)
        assert work._bar.tasks[0].total == 256


# Ctrl-C


class Stopped:
    def __init__(self):
        self.stops = 0

    def stop(self):
        self.stops += 1


def test_ctrl_c_is_answered_at_once(monkeypatch):
    answers, run = [], Stopped()
    with Signals() as signals:
        signals.hand_over(run.stop)
        signals.tell = answers.append
        signals._handle(2, None)
    assert answers == [STOPPING] and run.stops == 1


def test_the_live_view_answers_while_it_draws():
    view = LiveView("t", console(50))
    with view:
        view.show(step())
        with view._lock:  # a signal handler runs in code that holds it
            view.say(STOPPING)
        text = picture_of(view)
        assert STOPPING in text and "10/1,000 steps" in text
    assert view.stopping == ""


@pytest.mark.parametrize("make", [lambda: PlainView("t", io.StringIO()), lambda: ProgressView("t")])
def test_other_views_answer_on_the_terminal(make, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    with Unbreakable(make, streams.complain) as view:
        view.show(step())
        view.say(STOPPING)
    assert STOPPING in terminal.getvalue()


def test_a_pipe_gets_no_answer(capsys):
    streams.tell_terminal(STOPPING)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_a_helper_process_is_deaf_to_ctrl_c_from_its_start():
    """The first process starts a tracker of Python's, which unblocks Ctrl-C before Python 3.12."""
    script = (
        "import signal\n"
        "from multiprocessing import resource_tracker\n"
        "from neurogen_numba.system.processes import terminal_blocked\n"
        "with terminal_blocked():\n"
        "    resource_tracker.ensure_running()\n"
        "    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_a_person_at_a_terminal_stops_a_run(tmp_path):
    """Words before the first update, none of ^C, an answer, and the command that continues."""
    (tmp_path / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    settings = tiny.config({"data": "sheep.txt"}, steps=100_000, checkpoint_interval=100_000).to_dict() | {"preset": "nano"}
    del settings["brain"]["vocabulary"]
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(settings))
    ours, theirs = pty.openpty()

    def begin():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "neurogen_numba", "train", "--config", "tiny.toml", "--backend", "cpu", "--name", "a"]
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=begin)
    os.close(theirs)
    output, asked = "", False
    while True:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                output += os.read(ours, 4096).decode("utf-8", "replace")
            except OSError:  # closed
                break
        if not asked and "tokens/s" in output:
            asked = True
            os.write(ours, b"\x03")
    assert child.wait() == 130
    assert "getting ready: loading the program" in output.split("tokens/s")[0] and "^C" not in output
    flat = " ".join(output.split())
    assert "everything is saved in runs/a. To continue: neurogen train --resume runs/a" in flat


@pytest.mark.parametrize(
    "saved, words", [([], "nothing was saved. To begin again: "), (["step-00000012"], "step 12 was saved last. To continue: ")]
)
def test_a_second_ctrl_c_says_what_is_kept(tmp_path, monkeypatch, capsys, saved, words):
    module = importlib.import_module("neurogen_numba.train")
    (tmp_path / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))

    def watch(trainer, *more):
        for name in saved:
            (trainer.run / "checkpoints" / name).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_watch", watch)
    assert module.main(["--data", str(tmp_path / "sheep.txt"), "--tokenizer", "byte", "--out", str(tmp_path), "--name", "a"]) == 130
    errors = " ".join(capsys.readouterr().err.split())
    assert errors == f"Stopped at once; {words}neurogen train --resume {tmp_path / 'a'} neurogen train: interrupted"


# Long lines


def test_long_lines_are_wrapped_at_words_on_a_terminal_only():
    lines = wrapped(LONG, 50).split("\n")
    assert len(lines) > 2 and all(len(line) <= 50 for line in lines)
    assert " ".join(line.strip() for line in lines) == LONG
    assert all(line.startswith("  ") for line in lines[1:]) and not lines[0].startswith(" ")
    pipe, terminal = io.StringIO(), Terminal()
    PlainView("t", pipe).show(Notice(LONG))
    PlainView("t", terminal).show(Notice(LONG))
    assert pipe.getvalue() == LONG + "\n" and terminal.getvalue().count("\n") > 1


@pytest.mark.parametrize("width", [80, 50])
def test_a_long_notice_is_whole_in_the_live_view(width):
    _, picture = live(step(), Notice("short"), Notice(LONG), width=width)
    assert LONG in " ".join(" ".join(picture).split()) and len(picture) < 24
    assert all(line[0] in "╭╰" and line[-1] in "╮╯" for line in picture if line.strip()[:1] in ("╭", "╰"))
