"""Figures of a run during training, drawn by a separate process.

RUN/training_viz/
    training_step_000100.png training_latest.png    learning: training_page
    brain_step_000100.png brain_latest.png          the brain: brain_page
    metrics_history.json                            the measurements, as columns
    text_samples.json                               the samples, with the true continuations

All of them cover the whole run, from metrics.jsonl, and each file is written atomically.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
from pathlib import Path

from ..errors import ConfigError, NeuroGenError
from ..learning.report import BrainReport, EvalReport, Notice, Report, SampleReport, StepReport
from ..storage.run_folder import write_whole
from ..system.processes import Context, ignore_terminal, terminal_blocked
from ..system.waiting import doing

FOLDER = "training_viz"
PATIENCE = 120.0  # seconds that the end of a run waits for its last figures
GOODBYE = 20.0  # seconds that an idle process gets to exit; normally a fraction of one


def draw(run: Path, brain: BrainReport | None = None, step: int | None = None) -> list[Path]:
    """Draw the figures of a run at `step`, or at its end, and write its tables, from metrics.jsonl. brain: draw the brain, too.

    Returns the files. Raises ConfigError if there is no metrics.jsonl, or if a foreign file would be replaced; OSError if a file cannot be
    written.
    """
    from .brain_page import brain_page
    from .figures import png
    from .history import read_history
    from .training_page import training_page

    folder, history = Path(run) / FOLDER, read_history(run, math.inf if step is None else step)
    folder.mkdir(exist_ok=True)
    files = {"metrics_history.json": _json(history.columns()), "text_samples.json": _json(history.texts())}
    pages = {"training": (history.step if step is None else step, png(training_page(history, run.name)))}
    if brain:
        pages["brain"] = brain.step, png(brain_page(brain, history, run.name))
    for name, (step, content) in pages.items():
        files |= {f"{name}_step_{step:06d}.png": content, f"{name}_latest.png": content}
    for name in files:
        if not _ours(folder / name):
            raise ConfigError(f"{folder / name} would be replaced, and is not a figure or table of a run; move it away")
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


def _ours(path):
    """Whether `draw` may replace a file: it does not exist, is a picture by Matplotlib, or one of the tables, possibly damaged."""
    try:
        found = path.read_bytes()
        table = path.suffix != ".png" and json.loads(found)
    except FileNotFoundError:
        return True
    except (ValueError, RecursionError):
        return not found.strip() or found.lstrip()[:1] in b"[{"
    if path.suffix == ".png":
        return b"Matplotlib" in found[:1024]
    return isinstance(table, list) or (isinstance(table, dict) and "validation" in table)


def _json(values):
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")


class Pictures:
    """A view that draws the figures at each BrainReport, and at the end: `with Pictures(run, tell) as view: view.show(report)`.

    Drawing takes seconds, so a separate process does it in the background. While it is busy, a new request replaces a waiting one. On an
    error there are no figures, and `tell` gets a Notice, once per cause.
    """

    def __init__(self, run: Path, tell):
        self.run, self.tell = Path(run), tell
        self._brain, self._step = None, 0  # the last ones shown
        self._has_news = False  # whether something has been reported since the last request
        self._problems, self._reported = queue.SimpleQueue(), set()
        self._waiting, self._closing = None, False  # the newest request; guarded by the condition
        self._changed = threading.Condition()
        self._artist = _Artist()
        self._thread = threading.Thread(target=self._serve, name="pictures", daemon=True)

    def __enter__(self) -> Pictures:
        self._thread.start()
        return self

    def show(self, report: Report) -> None:
        """Receive a report; a BrainReport is a request for figures."""
        if isinstance(report, (StepReport, EvalReport, SampleReport, BrainReport)):
            self._step, self._has_news = report.step, True
        if isinstance(report, BrainReport):
            self._brain = report
            self._request()
        self._tell()

    def __exit__(self, *failure) -> None:
        if self._has_news:
            self._request()
        with self._changed:
            self._closing = True
            self._changed.notify()
        with doing("drawing the last figures"):
            self._thread.join(PATIENCE)
        if self._thread.is_alive():  # the process ends with this one
            self._problems.put(f"the last figures were not drawn within {PATIENCE:.0f} seconds")
        else:
            self._artist.dismiss()
        self._tell()

    def _request(self):
        with self._changed:
            self._waiting = (self.run, self._brain, self._step)
            self._changed.notify()
        self._has_news = False

    def _tell(self):
        while not self._problems.empty():
            problem = self._problems.get()
            if problem not in self._reported:
                self._reported.add(problem)
                self.tell(Notice(f"warning: {problem}; training continues without them, `neurogen figures {self.run}` draws them later"))

    def _serve(self):
        """Pass requests to the artist, newest first, until closing; runs in a thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._waiting is None:
                    return
                request, self._waiting = self._waiting, None
            if problem := self._artist.draw(request):
                self._problems.put(problem)


class _Artist:
    """The process that draws. It is started at the first request, and again if it has died."""

    def __init__(self):
        self._process = self._pipe = None

    def draw(self, request) -> str:
        """Draw and wait. Returns the error as a sentence, "" without one."""
        for _ in range(2):  # a process that died while idle is replaced
            idle = self._process is not None
            try:
                if not idle:
                    self._start()
                self._pipe.send(request)
                return self._pipe.recv()
            except (OSError, EOFError) as error:
                code = self.dismiss()
                why = f"exit code {code}" if code else error
                problem = f"there is no process that draws figures ({why})"
            if not idle:
                break
        return problem

    def _start(self):
        context = Context()
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), name="figures", daemon=True)
        with terminal_blocked(), theirs:
            process.start()
        self._pipe, self._process = ours, process

    def dismiss(self):
        """End the process, if there is one. Returns its exit code if it had ended before, else None."""
        if self._process is None:
            return None
        self._pipe.close()  # an idle process then exits
        self._process.join(GOODBYE)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        self._process = None
        return code


def _work(pipe):
    """Main function of the process: draw each request, until the pipe is closed."""
    ignore_terminal()
    if hasattr(os, "nice"):
        os.nice(10)  # training has priority
    while True:
        try:
            pipe.send(_attempt(*pipe.recv()))
        except (EOFError, OSError):  # the training process has ended
            return


def _attempt(run, brain, step) -> str:
    try:
        draw(run, brain, step)
        return ""
    except OSError as error:
        return f"figures cannot be written to {Path(run) / FOLDER}: {error.strerror or error}"
    except NeuroGenError as error:
        return f"no figures: {error}"
    except ImportError as error:
        return f"no figures: {error}; pip install matplotlib"
    except Exception as error:  # an error in a figure must not end a run
        return f"no figures: {type(error).__name__}: {error}"
