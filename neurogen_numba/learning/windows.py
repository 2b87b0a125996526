"""Scoring random windows of a text, each from a zero state, as nanoGPT's `estimate_loss` does (nanoGPT/train.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..text.batches import Validation
from .evaluation import Plain

BATCH = 64  # windows side by side
SPREAD = 0.002  # of the mean loss, nats
SEED = 0


@dataclass(frozen=True)
class WindowScore:
    """loss: mean nats per token over all windows; spread: the standard error of it; accuracy: 0 to 1; windows: their number."""

    loss: float
    spread: float
    accuracy: float
    windows: int


def evaluate_windows(
    model, validation: Validation, length: int, tell: Callable[[int, int], None] = lambda done, total: None
) -> WindowScore:
    """Score random windows of `length` targets, drawn with SEED, until the standard error of their mean loss is below SPREAD.

    A window begins at any token that `length` targets follow, with the same probability; all of them are scored. No window is drawn twice,
    so the standard error has the factor sqrt(1 - drawn / windows of the text), and is 0 after the last one. tell: called at intervals with
    the number of windows, and how many it takes as far as is known. Raises DataError if the text is shorter than a window.
    """
    ids, n = validation.tokens, len(validation.tokens) - 1
    if n < length:
        raise DataError(f"--windows {length}: the text has {n:,} tokens to score; take shorter windows, or a longer text")
    starts, losses, hits = np.random.default_rng(SEED).permutation(n - length + 1), [], 0
    reader = Plain(model, BATCH)
    for begin in range(0, len(starts), BATCH):
        drawn = starts[begin : begin + BATCH]
        window = ids[np.resize(drawn, BATCH) + np.arange(length + 1)[:, None]].astype(np.int32)  # [T + 1, B]; the last batch repeats some
        reader.act.reset()
        nats = np.zeros(BATCH)
        for first in range(0, length, reader.tokens):
            last = min(first + reader.tokens, length)
            in_segment, right = reader.score(window[first:last], window[first + 1 : last + 1])
            nats += in_segment.sum(0, dtype=np.float64)
            hits += int(right[:, : len(drawn)].sum())
        losses.extend(nats[: len(drawn)] / length)
        left = 1 - len(losses) / len(starts)
        spread = float(np.std(losses, ddof=1) * math.sqrt(left / len(losses))) if left else 0.0
        enough = not spread >= SPREAD  # NaN, too
        tell(len(losses), len(losses) if enough else _needed(float(np.var(losses, ddof=1)), len(starts)))
        if enough:
            break
    return WindowScore(float(np.mean(losses)), spread, hits / (len(losses) * length), len(losses))


def _needed(variance: float, windows: int) -> int:
    """The number of windows, of those of the text, after which the standard error of their mean is below SPREAD: whole batches."""
    return min(windows, -(-math.ceil(variance / (SPREAD**2 + variance / windows)) // BATCH) * BATCH)
