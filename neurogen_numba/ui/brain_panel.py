"""The brain during a reply, in the cells of a terminal: rates, rasters, neuromodulators, recall and the legend of surprise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from ..config import MODULES
from .plain import label, percent, printable
from .surprise import legend

if TYPE_CHECKING:  # it imports Numba, and the screen opens before that
    from ..brain.monitor import BrainFrame, Recalled

BUSIEST = 0.2  # share of neurons with an event per token at the right end of a bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille character: 4 neurons x 2 tokens
COLORS = dict(zip(MODULES, ("blue", "cyan", "green", "magenta", "yellow", "red"), strict=True))
MAX_MODULE_ROWS = 6  # at most, of a module's raster
FEW_RECALLS, RECALL_ROWS = 2, 12  # readings in a low panel, and rows for them in a high one
MIN_ROWS = len(MODULES) + 1  # rows: a title and a row per module


def height_for(rows: int) -> int:
    """The height of the panel below a text, in a terminal of `rows` rows; 0 if there is no room."""
    if rows < MIN_ROWS + 9:
        return 0
    return MIN_ROWS + min(1 + FEW_RECALLS, rows - MIN_ROWS - 9)


def draw(frame: BrainFrame | None, width: int, height: int, nats: float | None = None, colors: bool = True) -> list[Text]:
    """The panel, at most `height` lines of at most `width` cells. nats: mean surprise of the reply; None: unknown."""
    if height < MIN_ROWS or width < 24:
        return []
    spare = height - 1
    levels = _levels(frame, width)
    rows = max(1, min(MAX_MODULE_ROWS, (spare - len(levels) - 1 - RECALL_ROWS) // len(MODULES)))
    lines = [_title(frame, width, nats)]
    for name in MODULES:
        lines += _module(name, frame, width, rows, colors)
    spare = height - len(lines)
    lines += (levels + [_fitted(legend(colors), width)])[:spare]
    spare = height - len(lines)
    lines[1 + rows * len(MODULES) : 1 + rows * len(MODULES)] = _recalls(frame, width, spare)
    return lines


def _title(frame, width, nats):
    title = " brain" + (f", after {frame.tokens:,} tokens" if frame and width >= 40 else "")
    mean = f" {nats:.2f} nats/token " if nats is not None else ""
    line = "─" + title + " "
    return _fitted(Text(line + "─" * max(0, width - len(line) - len(mean) - 1) + mean + "─", "dim"), width)


def _module(name, frame, width, rows, colors):
    """The lines of a module: label, bar and rate beside the first line of its raster."""
    style = COLORS[name] if colors else ""
    share = frame.rates[name] if frame else 0.0
    labels = 14 if width >= 56 else 12
    bar = max(4, min(20, (width - labels - 8) // 4))
    raster = width - labels - bar - 9
    head = Text().append(f"{_short(name, labels - 1):<{labels}}", "dim")
    head.append(f"{_bar(share / BUSIEST, bar):<{bar}}", style).append(f"{percent(share):>8} ", "bold")
    events = frame.raster[name] if frame else np.zeros((0, 1), bool)
    pictures = braille(events, raster, rows)
    lines = []
    for number, picture in enumerate(pictures):
        line = head if number == 0 else Text(" " * (labels + bar + 9))
        lines.append(_fitted(line.append(picture, style), width))
    return lines


def _short(name, width):
    text = label(name)
    return text if len(text) <= width else text[: width - 1] + "…"


def _bar(share, width):
    eighths = round(8 * width * min(1.0, max(0.0, share)))
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def braille(events: np.ndarray, width: int, rows: int) -> list[str]:
    """Events [T, neurons] bool as `rows` lines of `width` Braille characters: a column per 2 tokens, the newest at the right.

    A line has 4 dots per token. A dot represents several neighbouring neurons, and is set if one of them has an event.
    """
    lines, tokens = 4 * rows, 2 * max(0, width)
    grid = np.zeros((tokens, lines), bool)
    taken = events[max(0, len(events) - tokens) :]
    if tokens and taken.size:
        firsts = np.arange(lines) * taken.shape[1] // lines
        shown = np.unique(firsts)
        grid[tokens - len(taken) :, : len(shown)] = np.logical_or.reduceat(taken, shown, axis=1)
    cells = grid.reshape(tokens // 2, 2, rows, 4)  # [column, token, row, neuron]
    codes = 0x2800 + np.einsum("ctrn,nt->rc", cells.astype(np.int64), np.array(DOTS))
    return ["".join(map(chr, row)) for row in codes.tolist()]


def _levels(frame, width):
    if not frame or not frame.levels:
        return []
    title = "  ".join(f"{name} {level:+.2f}" for name, level in frame.levels.items())
    return [_fitted(Text(title, "dim"), width)]


def _recalls(frame, width, rows):
    """The latest readings of the associative memory, newest last; if there is room for few, those at words."""
    if rows < 1:
        return []
    lines = []
    if frame:
        words = [recalled for recalled in frame.recalls if recalled.token.strip() and recalled.sources]
        letters = [recalled for recalled in words if recalled.token.strip().isalnum()]
        room = rows - (rows > FEW_RECALLS)
        lines = [_recalled(recalled, width) for recalled in (letters if rows <= FEW_RECALLS else words)[-room:]]
    if rows > FEW_RECALLS:
        lines.insert(0, _fitted(Text("a token, and the words that the memory recalls at it", "dim"), width))
    return lines + [Text("")] * (rows - len(lines))


def _recalled(recalled: Recalled, width):
    line = Text().append(f"{printable(recalled.token.strip())[:10]:>10} ", "bold").append("recalls", "dim")
    for before, word, share in recalled.sources:
        before, word, share = printable(before).replace("\n", " "), printable(word), f" {100 * share:.0f} %"
        if line.cell_len + cell_len(word + share) + 2 > width:
            break
        line.append("  ")
        if line.cell_len + cell_len(before + word + share) + 1 <= width:
            line.append(before + " ", "dim")
        line.append(word, "bold").append(share, "dim")
    return _fitted(line, width)


def _fitted(line, width):
    line.truncate(width)
    return line
