"""Figures drawn beside the training: which are drawn, that training does not wait for them, and that nothing there can end a run."""

import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest

import histories
from neurogen_numba.errors import ConfigError
from neurogen_numba.learning.report import Notice
from neurogen_numba.storage import run_folder
from neurogen_numba.ui import pictures
from neurogen_numba.ui.pictures import Pictures, draw


@pytest.fixture
def run(tmp_path):
    return histories.write(tmp_path / "nano-1", histories.life())


@pytest.fixture
def no_pixels(monkeypatch):
    """Pages are laid out and not painted, which takes most of the time."""
    monkeypatch.setattr("neurogen_numba.ui.figures.png", lambda page: b"PNG by Matplotlib")


def names(run):
    return sorted(path.name for path in (run / "training_viz").iterdir())


def die(pipe):
    """A process that ends as soon as it is asked for something."""
    pipe.recv()
    os._exit(7)


class Hand:
    """Stands in for the process that draws: takes note of the requests, and waits at each until it is let go."""

    def __init__(self, *answers):
        self.drawn, self.answers = [], list(answers)
        self.begun, self.let_go = threading.Semaphore(0), threading.Semaphore(0)

    def draw(self, request):
        self.begun.release()
        self.let_go.acquire()
        self.drawn.append(request)
        return self.answers.pop(0) if self.answers else ""

    def dismiss(self):
        pass


def with_hand(run, hand, tell=None):
    view = Pictures(run, tell or (lambda notice: pytest.fail(notice.text)))
    view._artist = hand
    return view


# Files


@pytest.mark.parametrize("name", ["training_latest.png", "metrics_history.json"])
def test_a_file_of_somebody_else_is_not_replaced(run, name, no_pixels):
    draw(run)
    draw(run)  # its own files are
    file = run / "training_viz" / name
    file.write_text('{"my": "notes"}')
    with pytest.raises(ConfigError, match=f"{name} would be replaced, and is not a figure or table of a run; move it away"):
        draw(run)
    assert file.read_text() == '{"my": "notes"}'


def test_draw_writes_each_figure_twice_and_the_tables(run):
    files = draw(run, histories.brain(40))
    assert sorted(path.name for path in files) == names(run)
    assert names(run) == [
        "brain_latest.png",
        "brain_step_000040.png",
        "metrics_history.json",
        "text_samples.json",
        "training_latest.png",
        "training_step_000040.png",
    ]
    folder = run / "training_viz"
    for name in ("brain", "training"):
        assert (folder / f"{name}_latest.png").read_bytes() == (folder / f"{name}_step_000040.png").read_bytes()
    columns = json.loads((folder / "metrics_history.json").read_text())
    assert columns["step"] == list(range(1, 41)) and columns["validation"]["step"] == [10, 20, 30, 40]
    samples = json.loads((folder / "text_samples.json").read_text(encoding="utf-8"))
    assert samples[0] == {"step": 10, "prompt": "given 10", "continuation": "wrote 10", "truth": "truth 10"} and len(samples) == 3


def test_draw_goes_back_to_a_step(run):
    draw(run, step=25)
    assert names(run) == ["metrics_history.json", "text_samples.json", "training_latest.png", "training_step_000025.png"]
    assert json.loads((run / "training_viz" / "metrics_history.json").read_text())["step"][-1] == 25


def test_files_are_whole_or_not_there(run, monkeypatch, no_pixels):
    draw(run, histories.brain(20), 20)
    before = {path: path.read_bytes() for path in (run / "training_viz").iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        draw(run, histories.brain(40))
    assert {path: path.read_bytes() for path in (run / "training_viz").iterdir()} == before
    assert pictures._attempt(run, None, None) == f"figures cannot be written to {run / 'training_viz'}: No space left on device"


def test_what_goes_wrong_while_drawing_is_a_sentence(run, tmp_path, monkeypatch):
    assert pictures._attempt(tmp_path, None, None).startswith(f"no figures: {tmp_path / 'metrics.jsonl'} cannot be read")
    with pytest.raises(ConfigError):
        draw(tmp_path)
    monkeypatch.setattr(pictures, "draw", lambda *_: 1 / 0)
    assert pictures._attempt(run, None, None) == "no figures: ZeroDivisionError: division by zero"


# Which are drawn, and when


def test_while_one_is_drawn_the_newest_request_waits_and_the_trainer_does_not(run):
    hand, brains = Hand(), [histories.brain(number) for number in (10, 20, 30)]
    with with_hand(run, hand) as view:
        view.show(brains[0])
        hand.begun.acquire()
        for brain in brains[1:]:
            view.show(brain)  # returns, though nothing has been let go yet
        assert hand.drawn == []
        hand.let_go.release(2)
    assert hand.drawn == [(run, brains[0], 10), (run, brains[2], 30)]


def test_the_end_is_always_drawn_once(run):
    hand, brain = Hand(), histories.brain(20)
    hand.let_go.release(9)
    with with_hand(run, hand) as view:
        view.show(brain)
        hand.begun.acquire()
        view.show(Notice("all is well"))
    assert hand.drawn == [(run, brain, 20)], "nothing has been measured since"
    hand.drawn.clear()
    with with_hand(run, hand) as view:
        view.show(brain)
        hand.begun.acquire()
        view.show(histories.step(23))
        view.show(histories.evaluation(23))
    assert hand.drawn == [(run, brain, 20), (run, brain, 23)]


def test_a_run_that_ends_before_its_first_figure_has_one_of_what_it_measured(run):
    hand = Hand()
    hand.let_go.release(9)
    with pytest.raises(KeyboardInterrupt), with_hand(run, hand) as view:
        view.show(histories.step(3))
        raise KeyboardInterrupt
    assert hand.drawn == [(run, None, 3)]
    with with_hand(run, hand):
        pass
    assert len(hand.drawn) == 1, "and none where there is nothing"


def test_each_cause_is_told_once(run):
    hand, reports = Hand("the disk is full", "the disk is full", "something else"), []
    with with_hand(run, hand, reports.append) as view:
        for number in (1, 2, 3):
            view.show(histories.brain(number))
            hand.begun.acquire()
            hand.let_go.release()
    assert [notice.text.split(";")[0] for notice in reports] == ["warning: the disk is full", "warning: something else"]
    assert f"`neurogen figures {run}` draws them later" in reports[0].text


def test_the_end_of_a_run_does_not_wait_for_ever(run, monkeypatch):
    monkeypatch.setattr(pictures, "PATIENCE", 0.0)
    hand, reports = Hand(), []
    with with_hand(run, hand, reports.append) as view:
        view.show(histories.brain(1))
    assert "the last figures were not drawn within" in reports[0].text
    hand.let_go.release(2)


# The process


def test_a_process_of_its_own_draws(run):
    with Pictures(run, lambda notice: pytest.fail(notice.text)) as view:
        view.show(histories.brain(20))
        view.show(histories.step(40))
    assert {"brain_step_000020.png", "training_step_000040.png", "training_latest.png", "text_samples.json"} <= set(names(run))
    assert view._artist._process is None


def test_a_process_outlives_ctrl_c_and_one_that_dies_is_replaced(run):
    artist = pictures._Artist()
    artist._start()
    process = artist._process
    os.kill(process.pid, signal.SIGINT)  # a terminal sends it to all; here before it has even begun
    assert artist.draw((run, None, 10)) == "" and artist._process is process
    os.kill(process.pid, signal.SIGINT)
    assert artist.draw((run, None, 11)) == "" and artist._process is process
    process.kill()
    process.join()
    assert artist.draw((run, None, 12)) == "" and artist._process is not process
    assert {f"training_step_0000{number}.png" for number in (10, 11, 12)} <= set(names(run))
    artist.dismiss()
    assert artist._process is None


def test_a_process_that_dies_at_every_figure_costs_a_warning(run, monkeypatch):
    monkeypatch.setattr(pictures, "_work", die)
    reports = []
    with Pictures(run, reports.append) as view:
        view.show(histories.brain(1))
    (notice,) = reports
    assert notice.text.startswith("warning: there is no process that draws figures (exit code 7); training continues")


def test_a_process_that_cannot_be_started_costs_a_warning(run, monkeypatch):
    def refuse():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(pictures, "Context", refuse)
    reports = []
    with Pictures(run, reports.append) as view:
        view.show(histories.brain(1))
    (notice,) = reports
    assert "Resource temporarily unavailable" in notice.text


def test_a_folder_that_cannot_be_written_costs_a_warning(run):
    (run / "training_viz").write_text("in the way")
    reports = []
    with Pictures(run, reports.append) as view:
        for number in (1, 2):
            view.show(histories.brain(number))
    (notice,) = reports
    assert notice.text.startswith(f"warning: figures cannot be written to {Path(run) / 'training_viz'}: File exists; training continues")
