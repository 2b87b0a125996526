"""The page on learning: seven panels with measurements and samples."""

from __future__ import annotations

import math

import numpy as np

from ..learning.report import SampleReport
from .figures import DOTS, DPI, FAINT, FIRST, INK, SECOND, WIDTH, fonts, marker, no_data, over_steps, styled
from .history import History
from .live import MEMORY, MovingAverage
from .plain import duration, printable

LAST = 500  # steps in the panel on the latest ones
SAMPLES = 4  # rows of the table
LINES = 6  # of text in a row
COLUMNS = (("step", 0.0, 7), ("it was given", 0.05, 55), ("it wrote", 0.35, 62), ("the truth", 0.68, 59))  # title, left edge, cells
POINTS = 2000  # of the scatter plot, at most


@styled
def training_page(history: History, title: str = ""):
    """A matplotlib Figure with the panels loss, accuracy, throughput, learning rate, loss against accuracy, last 500 steps and samples
    (so their axes are labelled)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 13.0), dpi=DPI)
    grid = figure.add_gridspec(3, 3, height_ratios=(1, 1, 1.5), left=0.06, right=0.955, top=0.92, bottom=0.02, hspace=0.32, wspace=0.24)
    panels = {}
    for position, name in enumerate(("loss", "accuracy", "throughput", "learning rate", "loss against accuracy", f"last {LAST} steps")):
        panels[name] = figure.add_subplot(grid[position // 3, position % 3], label=name)
    panels["samples"] = figure.add_subplot(grid[2, :], label="samples")
    _headline(figure, history, title)
    _curve(panels["loss"], history, "loss", "Loss, nats per token", floor=True)
    _curve(panels["accuracy"], history, "accuracy", "Accuracy, %", 100)
    _line(panels["throughput"], history, "tokens_per_second", "Throughput, tokens/s")
    _line(panels["learning rate"], history, "learning_rate", "Learning rate")
    _cloud(figure, panels["loss against accuracy"], history)
    _lately(panels[f"last {LAST} steps"], history)
    _table(panels["samples"], history.samples[-SAMPLES:])
    return figure


def _headline(figure, history, title):
    training, validation = history.training, history.validation
    figure.text(0.06, 0.965, printable(title), fontsize=16, weight="bold", va="center")
    if not history.step:
        return
    facts = [f"step {history.step:,} of {training['steps'][-1]:,.0f}", f"{training['tokens'][-1]:,.0f} tokens"]
    facts += [f"{duration(training['seconds'][-1])} of training", f"{training['bits_per_byte'][-1]:.3f} bits per byte"]
    if len(validation["step"]):
        floor = validation["floor_bits_per_byte"][-1]
        facts.append(f"held out {validation['bits_per_byte'][-1]:.3f}" + ("" if math.isnan(floor) else f" (floor {floor:.3f})"))
    figure.text(0.955, 0.965, "  ·  ".join(facts), fontsize=11, ha="right", va="center", color=INK)


def _axis(axes, title):
    over_steps(axes, title)
    axes.yaxis.set_major_formatter("{x:,.10g}")


def _curve(axes, history, name, title, scale=1.0, floor=False):
    """Each report, their moving average, and held-out text."""
    steps, values = history.training["step"], scale * history.training[name]
    held_out = history.validation
    _axis(axes, title)
    if not len(steps):
        return no_data(axes, "nothing measured yet")
    axes.plot(steps, values, color=FIRST, alpha=0.3, linewidth=0.8, marker=marker(steps), label="reports")
    axes.plot(steps, moving_average(values), color=FIRST, linewidth=1.8, label="moving average")
    if len(held_out["step"]):
        alike = held_out["last"] != 1  # the final evaluation is on other text
        x, y = held_out["step"][alike], scale * held_out[name][alike]
        axes.plot(x, y, color=SECOND, linewidth=1.2, marker="o" if len(x) <= DOTS else "", markersize=3.5, label="held-out text")
    if floor and len(held_out["step"]) and np.isfinite(held_out["floor_bits_per_byte"][-1]):
        nats = held_out["floor_bits_per_byte"][-1] * held_out["loss"][-1] / held_out["bits_per_byte"][-1]
        axes.axhline(nats, color=INK, linewidth=1, linestyle=":", label="entropy of the text")
    axes.legend(loc="best")


def moving_average(values: np.ndarray) -> np.ndarray:
    """The moving average after each of the values [reports], over about a tenth of them, and at most as many as in the live view. Values
    that are not finite are ignored."""
    average, averages = MovingAverage(min(MEMORY, max(0.0, 1 - 10 / max(1, len(values))))), []
    for value in values:
        average.add(value)
        averages.append(average.value)
    return np.array(averages)


def _line(axes, history, name, title):
    steps, values = history.training["step"], history.training[name]
    _axis(axes, title)
    if not len(steps):
        return no_data(axes, "nothing measured yet")
    axes.plot(steps, values, color=FIRST, linewidth=1.2, marker=marker(steps), label=name)
    axes.set_ylim(0, 1.1 * np.max(values[np.isfinite(values)], initial=0) or 1)


def _cloud(figure, axes, history):
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Loss against accuracy")
    axes.set_xlabel("accuracy, %")
    axes.set_ylabel("loss, nats per token")
    every = -(-len(history.training["step"]) // POINTS) or 1
    step, loss, accuracy = (history.training[name][::every] for name in ("step", "loss", "accuracy"))
    if not len(step):
        return no_data(axes, "nothing measured yet")
    points = axes.scatter(100 * accuracy, loss, c=step, s=10 if len(step) > DOTS else 22, cmap="viridis", linewidths=0)
    bar = figure.colorbar(points, ax=axes, pad=0.02, format="{x:,.0f}", ticks=MaxNLocator(6, integer=True, min_n_ticks=1))
    bar.set_label("step")
    bar.outline.set_visible(False)


def _lately(axes, history):
    steps = history.training["step"]
    recent = steps > history.step - LAST
    x, loss, accuracy = steps[recent], history.training["loss"][recent], 100 * history.training["accuracy"][recent]
    _axis(axes, f"Last {LAST} steps")
    if not len(x):
        return no_data(axes, "nothing measured yet")
    other = axes.twinx()
    other.set_label("accuracy of the last steps")
    for side, values, color, label in ((axes, loss, FIRST, "loss, nats per token"), (other, accuracy, SECOND, "accuracy, %")):
        side.plot(x, values, color=color, linewidth=0.8, alpha=0.35, marker=marker(x), label=label)
        side.plot(x, moving_average(values), color=color, linewidth=1.8, label=f"{label}, moving average")
        side.set_ylabel(label, color=color)
        side.tick_params(axis="y", colors=color)
    other.grid(False)


def _table(axes, samples: list[SampleReport]):
    """The latest samples, newest on top."""
    from matplotlib.transforms import Bbox, TransformedBbox

    axes.set_title("What it wrote, beside what followed in the held-out text")
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    if not samples:
        return no_data(axes, "no text written yet")
    font = {"family": fonts("DejaVu Sans Mono"), "fontsize": 8.5, "va": "baseline"}
    height = 0.94 / SAMPLES
    line_height = (height - 0.015) / LINES
    for name, left, _ in COLUMNS:
        axes.text(left, 0.99, name, va="top", color=FAINT, weight="bold")
    for row, sample in enumerate(reversed(samples)):
        top = 0.935 - row * height
        axes.axhline(top, color="#dddddd", linewidth=0.8)
        truth = "(not kept)" if sample.truth is None else sample.truth
        texts = (
            f"{sample.step:,}",
            fitting(sample.prompt, COLUMNS[1][2], last=True),
            *(fitting(text, cells) for text, (_, _, cells) in zip((sample.text, truth), COLUMNS[2:], strict=True)),
        )
        for text, (name, left, _), (_, right, _) in zip(texts, COLUMNS, [*COLUMNS[1:], ("", 1.0, 0)], strict=True):
            color = FAINT if name == "it was given" else INK
            for number, line in enumerate(text.split("\n")):
                # boxes in place of a script that no font has are wider than its characters, and higher: none reaches into the next column,
                # and each line has a baseline of its own
                cell = axes.text(left, top - 0.01 - (number + 0.8) * line_height, line, color=color, gid=name, **font)
                cell.set_clip_box(TransformedBbox(Bbox([[left, 0], [right, 1]]), axes.transAxes))
                cell.set_clip_on(True)


def fitting(text: str, width: int, last: bool = False, rows: int = LINES) -> str:
    """A text in at most `rows` lines of `width` cells (a Chinese character takes two), with visible line ends; the first lines, or the
    last."""
    from rich.console import Console
    from rich.text import Text

    text = printable(text).replace("\n", "↵ ").strip()
    most = rows * width  # more characters cannot fit
    cut = len(text) > most
    text = text[-most:] if last else text[:most]
    lines = [line.plain.rstrip() for line in Text(text).wrap(Console(), width - 1)]  # the cell left over is for the ellipsis
    if cut or len(lines) > rows:
        lines = lines[-rows:] if last else lines[:rows]
        lines = ["…" + lines[0], *lines[1:]] if last else [*lines[:-1], lines[-1] + "…"]
    return "\n".join(lines)
