"""Figures of a recording (inference/recording.py): rasters, surprise, rates, and what the associative memory recalls, over the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .figures import COLORS, DPI, FAINT, FIRST, INK, SECOND, styled
from .plain import label, percent, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..inference.recording import Raster, Rates, Recall, Recording, Surprise

WORDS = 72  # tokens of a text at most that are written below an axis; more are numbered
INCHES = (6.5, 16.0)  # width of a figure, at least and at most
LEGIBLE = 24  # letters of a token at most
SPREAD = 0.19  # inches for a token


@styled
def raster_page(raster: Raster) -> Figure:
    """A matplotlib Figure with the panel raster."""
    figure = _figure(raster.tokens, 4.5)
    axes = figure.add_subplot(label="raster")
    _raster(axes, raster)
    axes.set_title(f"{label(raster.module)}: events of {len(raster.neurons):,} of {raster.size:,} neurons")
    axes.set_ylabel("neuron")
    _over_tokens(axes, raster.tokens)
    return figure


@styled
def surprise_page(surprise: Surprise) -> Figure:
    """A matplotlib Figure with the panel surprise."""
    figure = _figure(surprise.tokens, 3.5)
    axes = figure.add_subplot(label="surprise")
    _surprise(axes, surprise)
    _over_tokens(axes, surprise.tokens)
    return figure


@styled
def rates_page(rates: Rates) -> Figure:
    """A matplotlib Figure with the panel rates."""
    figure = _figure(rates.tokens, 4.0)
    axes = figure.add_subplot(label="rates")
    for name, rate in rates.modules.items():
        axes.plot(100 * rate, color=COLORS[name], linewidth=1.4, marker=".", label=f"{label(name)} {percent(float(rate.mean()))}")
    axes.set_title("Neurons with an event, %")
    axes.set_ylim(0, None)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _over_tokens(axes, rates.tokens)
    return figure


@styled
def recall_page(recall: Recall, head: int | None = None) -> Figure:
    """A matplotlib Figure with the panel recall: a row for each reading, mean over heads or one head; or for each head of one reading."""
    heads = recall.shares.shape[1]
    single = len(recall.shares) == 1 and head is None
    shares = recall.shares[0] if single else recall.mean if head is None else recall.shares[:, head]
    rows = [f"head {h}" for h in range(heads)] if single else recall.tokens[recall.first : recall.first + len(shares)]
    figure = _figure(recall.tokens, 1.8 + SPREAD * min(len(rows), WORDS))
    axes = figure.add_subplot(label="recall")
    largest = max(0.05, float(np.abs(shares).max()))
    colors = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    picture = axes.imshow(shares, aspect="auto", interpolation="nearest", **colors)
    where = f"at {_clean(recall.tokens[recall.first])}" if single else "mean over heads" if head is None else f"head {head}"
    axes.set_title(f"What the associative memory recalls, {where}: share of the reading")
    axes.grid(False)
    axes.set_ylabel("" if single else "read at")
    if len(rows) <= WORDS:
        axes.set_yticks(range(len(rows)), [_clean(row) for row in rows], fontsize=8)
    axes.set_xlabel("written by")
    _over_tokens(axes, recall.tokens)
    figure.colorbar(picture, ax=axes, pad=0.01, shrink=min(1.0, 3.5 / figure.get_figheight())).outline.set_visible(False)
    return figure


@styled
def recording_page(recording: Recording) -> Figure:
    """A matplotlib Figure with the panels surprise and one for the raster of each module, over the text."""
    rasters = [recording.raster(name) for name in recording.rates.modules]
    heights = [3, *(max(1.5, len(raster.neurons) / 64) for raster in rasters)]
    figure = _figure(recording.tokens, 2 + 0.45 * sum(heights))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    top = figure.add_subplot(grid[0], label="surprise")
    _surprise(top, recording.surprise)
    _over_tokens(top, recording.tokens, written=False)
    for row, raster in enumerate(rasters, 1):
        axes = figure.add_subplot(grid[row], label=raster.module)
        _raster(axes, raster)
        axes.set_yticks([])
        rate = percent(float(recording.rates[raster.module].mean()))
        axes.set_ylabel(f"{label(raster.module)}\n{rate}", rotation=0, ha="right", va="center", color=COLORS[raster.module])
        _over_tokens(axes, recording.tokens, written=row == len(rasters))
    return figure


def _figure(tokens, height):
    from matplotlib.figure import Figure

    width = float(np.clip(2 + SPREAD * len(tokens), *INCHES))
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _raster(axes, raster):
    token, row = np.nonzero(raster.events)
    neuron = raster.neurons[row]
    axes.hlines(neuron, token - 0.36, token + 0.36, color=COLORS[raster.module], linewidth=1.8)
    axes.set_ylim(raster.size, -1)
    axes.grid(False)


def _surprise(axes, surprise):
    from matplotlib.patches import Patch

    axes.set_title("Surprise, nats")
    axes.grid(False, axis="x")
    if np.isnan(surprise.nats).all():
        axes.text(0.5, 0.5, "unknown: nothing came before the first token", color=INK, ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    nats = np.nan_to_num(surprise.nats)
    axes.bar(range(len(nats)), nats, width=0.8, color=[SECOND if n > surprise.mean else FIRST for n in nats])
    axes.axhline(surprise.mean, color=FAINT, linewidth=0.8)
    axes.text(len(nats) - 0.4, surprise.mean, f" mean {surprise.mean:.2f}", color=INK, fontsize=8, va="center")
    colors = [Patch(color=SECOND, label="above the mean"), Patch(color=FIRST, label="at most the mean")]
    axes.legend(handles=colors, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)


def _over_tokens(axes, tokens, written=True):
    """The horizontal axis is that of the tokens."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.6, len(tokens) - 0.4)
    if len(tokens) > WORDS:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.tick_params(axis="x", labelbottom=written)
        axes.set_xlabel("token" if written else "")
    else:
        axes.set_xticks(range(len(tokens)), [_clean(token) for token in tokens] if written else [], rotation=90, fontsize=8)
        axes.tick_params(axis="x", length=0)


def _clean(token):
    """A token as a label: white space that is all of it is named."""
    text = printable(token.replace("\n", "\u21b5")).strip() or "\u2423"
    return text if len(text) <= LEGIBLE else f"{text[: LEGIBLE - 1]}\u2026"
