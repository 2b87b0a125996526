"""The live view of training in a terminal: progress, learning curve, activity of the modules, samples of text."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..learning.report import BrainReport, CheckpointReport, EvalReport, FinalReport, Notice, Report, SampleReport, StepReport
from ..system import streams, waiting
from .plain import duration, item, label, line, percent, printable, speed, wrapped

BUSIEST = 0.2  # share of neurons with an event per token at the right end of an activity bar
HEALTHY = (0.005, 0.15)  # activity outside is coloured: near silence, or too busy to be sparse
MEMORY = 0.95  # of the moving average of the loss, per report
NOTICES = 2  # the latest ones are shown
BLOCKS = " ▁▂▃▄▅▆▇█"


class LiveView:
    """Draws the latest report of each kind, four times a second, in the terminal of `console`. The last picture stays, with the summary
    below.

    Until the first step there is only a bar, of the work that takes long (`system.waiting`), and the notices. Then everything that fits is
    shown: a low terminal has shorter panels, then fewer; a narrow one has no activity.
    """

    def __init__(self, title: str, console: Console | None = None):
        self.title = title
        self.console = console or Console()
        self.step: StepReport | None = None
        self.evaluation: EvalReport | None = None
        self.best: EvalReport | None = None
        self.sample: SampleReport | None = None
        self.final: FinalReport | None = None
        self.notices: deque[str] = deque(maxlen=NOTICES)
        self.loss = MovingAverage(MEMORY)
        self.curve = Curve()
        self.work = ("", 0, None)  # what takes long now, how much is done, and of how much
        self.stopping = ""  # the answer to Ctrl-C
        self._context = contextlib.ExitStack()
        self._lock = threading.Lock()  # reports come from the training thread, pictures are drawn by Rich's
        self._live = Live(console=self.console, get_renderable=self._picture, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self._context.enter_context(waiting.shown_by(self._show_work))
        self._context.enter_context(streams.without_signal_echo())
        self._live.start(refresh=True)
        return self

    def __exit__(self, *failure) -> None:
        self.stopping = ""  # it has stopped
        self._live.stop()
        self._context.close()
        if self.final:
            self.console.print(_summary(self.final))

    def show(self, report: Report) -> None:
        with self._lock:
            match report:
                case StepReport():
                    self.step = report
                    self.loss.add(report.loss)
                    self.curve.add(report.bits_per_byte)
                case EvalReport():
                    self.evaluation = report
                    if not report.last and (self.best is None or report.bits_per_byte < self.best.bits_per_byte):
                        self.best = report
                case SampleReport():
                    self.sample = report
                case FinalReport():
                    self.final = report
                case CheckpointReport() | Notice():
                    self.notices.append(line(report))
                case BrainReport():
                    pass  # this view shows no pictures
                case _:
                    raise TypeError(f"not a report: {report!r}")

    def say(self, sentence: str) -> None:
        self.stopping = sentence  # without the lock, which the interrupted code may hold

    def _show_work(self, sentence, done, total):
        self.work = sentence, done, total

    def _picture(self) -> RenderableType:
        with self._lock:
            width, height = self.console.size
            room = height - 1  # one line less, because a picture of full height would scroll its first line out
            parts = [Rule(Text(printable(self.title), "bold"), style="cyan"), self._progress()]
            room -= 2
            if self.step:
                parts.append(self._measures(width))
                room -= 9
            if self.step and room >= 3:
                rows = max(1, min(10, (height - 24) // 2))
                parts.append(self._curve(width, rows))
                room -= rows + 2
            if self.step and room >= 3:
                rows = max(1, min(10, room - 2 - max(NOTICES, len(self._notices(width, room // 2)))))
                parts.append(self._sample(width, rows))
                room -= rows + 2
            parts += [Text(line, "dim", no_wrap=True, overflow="ellipsis") for line in self._notices(width, room)]
            return Group(*parts)

    def _notices(self, width, room):
        """At most `room` lines: the answer to Ctrl-C or the latest notice, and before it those notices that fit whole."""
        shown = []
        for text in reversed([*self.notices, *([self.stopping] if self.stopping else [])]):
            lines = [" " + line for line in wrapped(printable(text).replace("\n", " "), width - 1).split("\n")]
            if shown and len(shown) + len(lines) > room:
                break
            shown = [*lines[: max(0, room)], *shown]
        return shown

    def _progress(self):
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        work, done, total = self.work
        if work or self.step is None:
            bar = ProgressBar(total=total, completed=done, complete_style="cyan", pulse_style="cyan")
            row.add_row(bar, Text(work or "getting ready", "dim"))
        else:
            s = self.step
            known = not math.isnan(s.tokens_per_second)
            left = f"{duration(s.seconds)} gone  ", (f"{duration(s.seconds_left)} left", "bold cyan")
            steps = (f"{s.step:,}/{s.steps:,}", "bold"), f" steps  {100 * s.done:.0f} %  "
            done = Text.assemble(*steps, *(left if known else [speed(math.nan)]))
            row.add_row(ProgressBar(total=1, completed=s.done, complete_style="cyan", finished_style="green"), done)
        return Padding(row, (0, 1))

    def _measures(self, width):
        learning = Panel(self._learning(), title="learning", title_align="left", border_style="blue", height=9)
        if width < 70:
            return learning
        row = Table.grid(expand=True)
        row.add_column(ratio=12)
        row.add_column(ratio=10)
        row.add_row(learning, Panel(self._activity(), title="events per token", title_align="left", border_style="blue", height=9))
        return row

    def _learning(self):
        rows = Table.grid(padding=(0, 1), expand=True)
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(justify="right", no_wrap=True, style="bold")
        rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis", style="dim")
        s, e = self.step, self.evaluation
        if s:
            rows.add_row("loss, nats", f"{s.loss:.3f}", f"average {self.loss.value:.3f}")
            rows.add_row("bits per byte", f"{s.bits_per_byte:.3f}", Text(self._floor(), "yellow"))
            rows.add_row("accuracy", percent(s.accuracy), f"validation {percent(e.accuracy)}" if e else "")
            rows.add_row("learning rate", f"{s.learning_rate:.1e}", f"{s.tokens:,} tokens")
            rows.add_row("gradient norm", f"{s.gradient_norm:.3g}", "")
            rows.add_row(
                "tokens/s", f"{s.tokens_per_second:,.0f}" if math.isfinite(s.tokens_per_second) else "?", f"waited {percent(s.waited)}"
            )
        if e:
            remark = "final" if e.last else f"at step {e.step:,}" if self.best is e else f"best {self.best.bits_per_byte:.3f}"
            rows.add_row(Text("validation", "green"), Text(f"{e.bits_per_byte:.3f}", "bold green"), remark)
        return rows

    def _floor(self):
        if self.evaluation is None or self.evaluation.floor_bits_per_byte is None:
            return ""
        return f"floor {self.evaluation.floor_bits_per_byte:.3f}"

    def _activity(self):
        rows = Table.grid(padding=(0, 1), expand=True)
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(ratio=1)
        rows.add_column(justify="right", no_wrap=True, style="bold")
        for name, share in (self.step.activity if self.step else {}).items():
            color = "green" if HEALTHY[0] <= share <= HEALTHY[1] else "red"
            length = min(share, BUSIEST) if math.isfinite(share) else 0
            rows.add_row(Text(label(name)), Bar(BUSIEST, 0, length, color=color, bgcolor="grey15"), percent(share))
        axis = Table.grid(expand=True)
        axis.add_column()
        axis.add_column(justify="right")
        axis.add_row("0", f"{100 * BUSIEST:.0f} %")
        if self.step:
            rows.add_row("", axis, "", style="dim")
        return rows

    def _curve(self, width, rows):
        values = self.curve.points(width - 4)
        floor = self.evaluation.floor_bits_per_byte if self.evaluation else None
        title = Text("bits per byte")
        body = Text()
        if values:
            low, high = floor or min(values), max(values)
            title.append(f", from {high:.2f} down to ")
            title.append(f"the floor, {floor:.2f}" if floor else f"{low:.2f}", "yellow" if floor else "")
            body = Text("\n".join(bars(values, rows, low, high)), "cyan", no_wrap=True, overflow="crop")
        return Panel(body, title=title, title_align="left", border_style="blue", height=rows + 2)

    def _sample(self, width, rows):
        title, body = "it writes", Text()
        if self.sample:
            title = f"it writes, at step {self.sample.step:,}"
            text = Text.assemble((printable(self.sample.prompt), "dim"), (printable(self.sample.text), "bright_white"))
            inner = max(1, width - 4)
            lines = text[-rows * inner :].wrap(self.console, inner)  # at most this number of characters is visible
            body = Text("\n").join(lines[-rows:])
        return Panel(body, title=title, title_align="left", border_style="magenta", height=rows + 2)


class MovingAverage:
    """Exponential moving average with bias correction for its start at 0 (Kingma & Ba 2015, "Adam", section 3)."""

    def __init__(self, memory: float):
        self.memory = memory
        self.sum = self.weight = 0.0

    def add(self, value: float) -> None:
        """Add a value. One that is not finite is ignored, because it would never decay."""
        if not math.isfinite(value):
            return
        self.sum = self.memory * self.sum + (1 - self.memory) * value
        self.weight = self.memory * self.weight + (1 - self.memory)

    @property
    def value(self) -> float:
        return self.sum / self.weight if self.weight else math.nan


class Curve:
    """A history of any length, as at most `size` means of equally many values. When it is full, neighbours are merged."""

    def __init__(self, size: int = 1024):
        self.size = size
        self.merged = 1  # values in each mean
        self.means: list[float] = []
        self.open: list[float] = []  # values of the incomplete last mean

    def add(self, value: float) -> None:
        """Add a value; one that is not finite is ignored."""
        if not math.isfinite(value):
            return
        self.open.append(value)
        if len(self.open) == self.merged:
            self.means.append(sum(self.open) / self.merged)
            self.open = []
        if len(self.means) == self.size:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.merged *= 2

    def points(self, count: int) -> list[float]:
        """At most `count` means over the whole history."""
        n = len(self.means)
        count = min(count, n)
        edges = [i * n // count for i in range(count + 1)] if count > 0 else []
        return [sum(self.means[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]


def bars(values: list[float], rows: int, low: float, high: float) -> list[str]:
    """A bar chart of `rows` lines, top line first, in eighths of a line, on a log scale, because late progress is slow."""
    tiny = 1e-3
    bottom = math.log(max(low, tiny))
    span = math.log(max(high, tiny)) - bottom
    full = 8 * rows
    heights = [full * (math.log(max(value, tiny)) - bottom) / span if span > 0 else full for value in values]
    heights = [min(full, max(1, round(h))) for h in heights]
    return ["".join(BLOCKS[min(8, max(0, h - 8 * row))] for h in heights) for row in reversed(range(rows))]


def _summary(report):
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(style="bold", overflow="fold")
    for name, value in report.summary.items():
        rows.add_row(*(Text(printable(part)) for part in item(str(name), value)))
    return Panel(rows, title="finished", title_align="left", border_style="green", expand=False)
