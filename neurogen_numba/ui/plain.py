"""The plain view: training as lines of text, for pipes, log files and terminals that cannot draw; and formatting for all views."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys

from rich.filesize import decimal
from rich.style import Style

from ..learning.report import BrainReport, CheckpointReport, EvalReport, FinalReport, Notice, Report, SampleReport, StepReport
from ..system.streams import tell_terminal
from .word_wrap import WordWrap

INDENT = "  "  # of the second line of a long one, and of those that follow

# Characters that a terminal would interpret instead of displaying: C0 and C1 controls except newline and tab, line separators,
# writing-direction overrides, and lone surrogates, which cannot be encoded.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class PlainView:
    """One line per report, except those for figures, flushed at once, without escape codes. On a terminal, long lines are wrapped at words.

    stream: standard output if None.
    """

    def __init__(self, title: str, stream=None):
        self.title = title
        self.stream = forgiving(stream or sys.stdout)

    def __enter__(self) -> PlainView:
        self._line(self.title)
        return self

    def __exit__(self, *failure) -> None:
        self.stream.flush()

    def show(self, report: Report) -> None:
        if not isinstance(report, BrainReport):
            self._line(line(report))

    def say(self, sentence: str) -> None:
        tell_terminal(sentence)

    def _line(self, text):
        text = printable(text).replace("\n", " ")
        if self.stream.isatty():
            text = wrapped(text, shutil.get_terminal_size().columns)
        print(text, file=self.stream, flush=True)


def line(report: Report) -> str:
    """A report in one line."""
    match report:
        case StepReport():
            return (
                f"step {report.step}/{report.steps}  loss {report.loss:.4f}  bits/byte {report.bits_per_byte:.3f}"
                f"  accuracy {percent(report.accuracy)}  rate {report.learning_rate:.2e}  gradient {report.gradient_norm:.3g}"
                f"  events {_span(report.activity)}  {speed(report.tokens_per_second)}  waited {percent(report.waited)}"
                f"  {duration(report.seconds)} gone, {duration(report.seconds_left)} left"
            )
        case EvalReport():
            floor = "" if report.floor_bits_per_byte is None else f" (floor {report.floor_bits_per_byte:.3f})"
            kind = "final evaluation" if report.last else "validation"
            return (
                f"{kind} at step {report.step}  loss {report.loss:.4f}  bits/byte {report.bits_per_byte:.3f}{floor}"
                f"  accuracy {percent(report.accuracy)}  {report.tokens:,} tokens"
            )
        case SampleReport():
            prompt, text = (json.dumps(part, ensure_ascii=False) for part in (report.prompt, report.text))
            return f"sample at step {report.step}  {prompt} -> {text}"
        case CheckpointReport():
            return (
                f"saved {report.path}  {decimal(report.bytes)} in {report.seconds:.2f} s, training held up {report.held:.2f} s"
                f"  {report.kept} kept, {decimal(report.kept_bytes)} in all"
            )
        case Notice():
            return report.text
        case FinalReport():
            return "  ".join(["finished", *(" ".join(item(name, value)) for name, value in report.summary.items())])
    raise TypeError(f"not a report: {report!r}")


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` cells, wrapped at words; all but the first are indented."""
    wrap = WordWrap(width - len(INDENT))
    wrap.feed(text, Style.null())
    return f"\n{INDENT}".join("".join(part for _, part in line) for line in wrap.lines())


def printable(text: str) -> str:
    """Text from any source, made safe to print: control characters become a replacement character."""
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n")).expandtabs(4)


def forgiving(stream):
    """The same stream, set to replace characters that its encoding lacks instead of raising."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream


def words(name: str) -> str:
    """The display name of a field."""
    return name.replace("_", " ")


def label(name: str) -> str:
    """The display name of a module or a projection."""
    return words(name).replace("pfc", "PFC")


def item(name: str, value) -> tuple[str, str]:
    """A named result for display: fractions in percent, losses with their unit."""
    if isinstance(value, float) and (name.endswith("accuracy") or name == "unknown_words"):
        return words(name), percent(value)
    unit = " nats/token" if name == "loss" or name.endswith("_loss") else ""
    return words(name), figure(value) + unit


def figure(value) -> str:
    """A number for display, four digits for a fraction; text unchanged; a question mark for None."""
    if value is None:
        return "?"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or 10_000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.4g}"


def speed(tokens_per_second: float) -> str:
    """Throughput for display; the first update of a run has none."""
    return "measuring the speed" if math.isnan(tokens_per_second) else f"{tokens_per_second:,.0f} tokens/s"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss; a question mark if unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _span(activity):
    """The range from the quietest module to the busiest: it reveals a silent or saturated module, which a mean would hide."""
    if not activity:
        return "?"
    return f"{100 * min(activity.values()):.1f}-{percent(max(activity.values()))}"
