"""Progress of training from Python: a bar, the loss and evaluations. In a notebook one output that is updated, else standard error."""

from __future__ import annotations

import contextlib
import html
import math
import sys
import time

from ..learning.report import EvalReport, FinalReport, Notice, Report, StepReport
from ..system import waiting
from .plain import duration, printable, speed

EVERY = 0.25  # seconds between two updates
POINTS = 240  # of the curve
WIDTH, HEIGHT = 480, 90  # pixels of the curve
TRAINED, HELD_OUT = "#0072b2", "#d55e00"


class ProgressView:
    """A view (ui.View) for a notebook or a script."""

    def __init__(self, title: str):
        self._title, self._screen = title, _Notebook() if in_notebook() else _Terminal()
        self._losses, self._evaluations, self._notice, self._stopping = [], [], "", ""
        self._latest: StepReport | None = None
        self._shown_at = 0.0
        self._work = waiting.shown_by(self._show_work) if self._screen.changes else contextlib.nullcontext()

    def __enter__(self) -> ProgressView:
        self._work.__enter__()
        self._screen.begin(self._title)
        return self

    def __exit__(self, *failure) -> None:
        self._work.__exit__(*failure)
        self._draw()
        self._screen.end()

    def _show_work(self, sentence, done, total):
        now = time.monotonic()
        if sentence and (now - self._shown_at > EVERY or not done):
            self._shown_at = now
            self._screen.draw("", done, total, self._stopping or sentence, self._losses, self._evaluations)

    def say(self, sentence: str) -> None:
        """Show a sentence at once, and to the end."""
        self._stopping = sentence
        self._draw()

    def show(self, report: Report) -> None:
        if isinstance(report, StepReport):
            self._latest = report
            self._losses.append((report.step, report.loss))
        elif isinstance(report, EvalReport):
            self._evaluations.append((report.step, report.loss))
        elif isinstance(report, (Notice, FinalReport)):
            self._notice = report.text if isinstance(report, Notice) else "done"
        else:
            return
        if time.monotonic() - self._shown_at > EVERY:
            self._draw()

    def _draw(self):
        self._shown_at = time.monotonic()
        if self._latest is None:
            self._screen.draw("", 0, None, printable(self._stopping or self._notice), [], [])
            return
        step = self._latest
        facts = [f"loss {step.loss:.4f}"] + [f"held out {loss:.4f}" for _, loss in self._evaluations[-1:]]
        facts += [speed(step.tokens_per_second)]
        if self._stopping:
            facts.append(self._stopping)
        elif step.step < step.steps and math.isfinite(step.seconds_left):
            facts.append(f"{duration(step.seconds_left)} left")
        self._screen.draw("step", step.step, step.steps, "  ·  ".join(facts), self._losses, self._evaluations)


def in_notebook() -> bool:
    """Whether this process runs in a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class _Terminal:
    def __init__(self):
        from rich.console import Console

        self._console = Console(stderr=True)
        self.changes = self._console.is_terminal  # else it shows the end alone

    def begin(self, title):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}")
        self._progress = Progress(*columns, console=self._console)
        self._task = self._progress.add_task(title, total=None, facts="")
        self._progress.start()

    def draw(self, what, done, total, facts, losses, evaluations):
        self._progress.update(self._task, completed=done, total=total, facts=facts)

    def end(self):
        self._progress.stop()


class _Notebook:
    changes = True

    def begin(self, title):
        from IPython.display import HTML, display

        self._title, self._html = html.escape(printable(title)), HTML
        self._handle = display(HTML(f"<b>{self._title}</b> begins"), display_id=True)

    def draw(self, what, done, total, facts, losses, evaluations):
        """what: the name of what is counted, or "" where the facts say it."""
        bar = f'<progress value="{done}" max="{total or 1}" style="width: {WIDTH}px"></progress>'
        head = f"<b>{self._title}</b> {what} {done:,} of {total:,}" if what else f"<b>{self._title}</b>"
        self._handle.update(self._html(f"<div>{head}<br>{bar}<br>{html.escape(facts)}<br>{curve(losses, evaluations)}</div>"))

    def end(self):
        pass


def curve(losses, evaluations) -> str:
    """An SVG of the loss by steps, blue, and of the held-out loss, orange dots; "" with fewer than two points."""
    losses = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(losses) < 2:
        return ""
    losses = losses[:: -(-len(losses) // POINTS)]
    evaluations = [(step, loss) for step, loss in evaluations if math.isfinite(loss)]
    values = [loss for _, loss in losses + evaluations]
    low, high, last = min(values), max(values), max(step for step, _ in losses + evaluations)
    first = losses[0][0]

    def position(step, loss):
        x = (WIDTH - 60) * (step - first) / max(1, last - first)
        return f"{x:.1f},{4 + (HEIGHT - 8) * (high - loss) / max(1e-9, high - low):.1f}"

    line = " ".join(position(*point) for point in losses)
    dots = "".join('<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*position(*point).split(","), HELD_OUT) for point in evaluations)
    labels = f'<text x="{WIDTH - 56}" y="12">{high:.3f}</text><text x="{WIDTH - 56}" y="{HEIGHT - 2}">{low:.3f}</text>'
    path = f'<polyline points="{line}" fill="none" stroke="{TRAINED}" stroke-width="1.5"/>'
    return f'<svg width="{WIDTH}" height="{HEIGHT}" font-size="11" role="img" aria-label="loss by steps">{path}{dots}{labels}</svg>'
