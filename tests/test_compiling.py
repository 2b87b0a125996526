"""Kernels are compiled before they are launched; the progress has the right total, and says nothing where there is nothing to do."""

import io
import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import tiny
from neurogen_numba import backends
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.inference.generation import Sampling, Session
from neurogen_numba.kernels import cache
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.system import compiling, waiting
from neurogen_numba.ui import live, progress

CPU = backends.get("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where kernels are kept in this test."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def step():
    """A step of three launches of two kernels, which nobody has compiled yet in this process."""

    def double(x):
        x += x

    def triple(x):
        x += 2 * x

    first, second = (cache.cached(numba.njit(loop)) for loop in (double, triple))
    x, y = np.ones(3, np.float32), np.ones(3)

    def run():
        for loop, array in ((first, x), (second, x), (first, x), (second, y)):
            CPU.launch(loop, array)

    return run, x


def shown(run):
    """The progress shown while something runs: [(done, total)]."""
    notices = []
    with waiting.shown_by(lambda sentence, *numbers: sentence and notices.append(numbers)):
        run()
    return notices


def test_a_cold_cache_is_counted_to_its_end_and_a_warm_one_says_nothing(folder):
    run, x = step()
    assert shown(CPU.record(run)) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert x.tolist() == [12] * 3  # the step itself ran once
    assert shown(CPU.record(run)) == []  # in memory
    assert shown(CPU.record(step()[0])) == []  # on disk


def test_what_is_on_disk_is_not_counted(folder):
    def run():
        CPU.launch(first, np.ones(2))
        CPU.launch(second, np.ones(2))

    def half(x):
        x *= 0.5

    def third(x):
        x /= 3

    first = cache.cached(numba.njit(half))
    first(np.ones(2))
    first, second = (cache.cached(numba.njit(loop)) for loop in (half, third))
    assert shown(CPU.record(run)) == [(0, 1), (1, 1)]


def test_where_nothing_can_be_kept_everything_is_counted(folder, monkeypatch):
    monkeypatch.setattr(cache, "_fingerprint", lambda dispatcher: None)
    assert shown(CPU.record(step()[0]))[-1] == (3, 3)


def test_through_a_pipe_it_is_lines(folder, capsys):
    CPU.record(step()[0])()
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == ["compiling kernels 0 of 3 (once)", "compiling kernels 3 of 3 (once)"]


def test_on_a_terminal_it_is_a_bar(folder, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)  # colorama, which Numba uses, resets at exit what it sees here
    monkeypatch.setenv("TERM", "xterm-256color")
    CPU.record(step()[0])()
    text = terminal.getvalue()
    assert "compiling kernels" in text and "3 of 3 (once)" in text and "━" in text


def test_the_live_view_shows_it():
    view = live.LiveView("a run")
    view.console = SimpleNamespace(size=(80, 24))
    with waiting.shown_by(view._show_work):
        with compiling.progress(41) as work:
            work.show(17)
            first = next(part for part in view._picture().renderables if not hasattr(part, "characters"))
            assert "compiling kernels 17 of 41 (once)" in text_of(first)
        assert "getting ready" in text_of(next(part for part in view._picture().renderables if not hasattr(part, "characters")))


def text_of(renderable):
    from rich.console import Console

    console = Console(width=80, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_training_from_python_shows_it(capsys, monkeypatch):
    with progress.ProgressView("through a pipe"), compiling.progress(41) as work:
        work.show(41)
    assert "compiling kernels 41 of 41 (once)\n" in capsys.readouterr().err
    drawn = []
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress._Notebook, "begin", lambda view, title: None)
    monkeypatch.setattr(progress._Notebook, "draw", lambda view, *what: drawn.append(what))
    with progress.ProgressView("in a notebook"), compiling.progress(41) as work:
        work.show(17)
    assert drawn[0][1:4] == (17, 41, "compiling kernels 17 of 41 (once)")
    assert capsys.readouterr().err == ""


def overloads():
    """(kernel, types) of all that this process has loaded or compiled."""
    return {(id(known), signature) for known in cache._compiled.values() for signature in known.overloads}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("how", [{}, {"average": 5}, {"activation_memory": "half"}, {"optimizer": "adafactor"}], ids=str)
def test_a_run_knows_all_its_kernels_before_the_first_update(how, tmp_path):
    text = tmp_path / "sheep.txt"
    text.write_text("the sheep sleep near the shore. " * 200)
    times = {"eval_interval": 2, "sample_interval": 2, "checkpoint_interval": 4}
    trainer = Trainer(tiny.config({"data": str(text)}, steps=4, **times, **how), tmp_path / "run", "cpu")
    trainer._compile_kernels()
    known = overloads()
    for _ in trainer.reports():
        pass
    new = {cache._compiled[number].py_func.__name__ for number, _ in overloads() - known}
    assert new <= {"exchange_cpu"}, new  # of the average, between updates


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("memory", ["full", "half", "recompute"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw8bit", "adafactor"])
def test_looking_for_kernels_changes_nothing(memory, optimizer):
    config = tiny.config(brain={"vocabulary": 30}, activation_memory=memory, optimizer=optimizer, average=3)
    ids = np.random.default_rng(0).integers(0, 30, (4, 21, 3)).astype(np.int32)

    def trained(look):
        model = NeuroGenModel.from_config(config, backend="cpu")
        act = model.activity(20, 3, learning=True)
        for segment in ids:
            if look:
                CPU.compile_kernels(lambda: model.learning_step(act, True))
            model.update(act, segment[:-1], segment[1:], 0.01)
        return model.snapshot(act.state())[0]

    plain, looked = trained(False), trained(True)
    for group, tensors in plain.items():
        for name, array in tensors.items():
            np.testing.assert_array_equal(looked[group][name], array, err_msg=f"{group} {name}")


@pytest.mark.usefixtures("one_thread")
def test_looking_for_the_kernels_of_a_reply_draws_nothing():
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend="cpu")

    def written(look):
        session = Session(model, Sampling(seed=1))
        session.feed(np.arange(5, dtype=np.int32)[:, None])
        if look:
            CPU.compile_kernels(lambda: session.write(40))
            session.written = 0
        return session.write(40).tolist()

    assert written(True) == written(False)
