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


def evaluate_windows(model, validation: Validation, length: int, tell: Callable[[int], None] = lambda done: None) -> WindowScore:
    """Score random windows of `length` targets, drawn with SEED, until the standard error of their mean loss is below SPREAD.

    A window begins at any token that `length` targets follow, with the same probability; all of them are scored. tell: called at
    intervals with the number of windows. Raises DataError if the text is shorter than a window.
    """
    ids, n = validation.tokens, len(validation.tokens) - 1
    if n < length:
        raise DataError(f"--windows {length}: the text has {n:,} tokens to score; take shorter windows, or a longer text")
    rng, losses, hits = np.random.default_rng(SEED), [], 0
    spread = math.inf
    reader = Plain(model, BATCH)
    while spread >= SPREAD:
        index = rng.integers(0, n - length, BATCH, endpoint=True) + np.arange(length + 1)[:, None]  # [T + 1, B]
        window = ids[index].astype(np.int32)
        reader.act.reset()
        nats = np.zeros(BATCH)
        for first in range(0, length, reader.tokens):
            last = min(first + reader.tokens, length)
            in_segment, right = reader.score(window[first:last], window[first + 1 : last + 1])
            nats += in_segment.sum(0, dtype=np.float64)
            hits += int(right.sum())
        losses.extend(nats / length)
        spread = float(np.std(losses, ddof=1) / math.sqrt(len(losses)))
        tell(len(losses))
    return WindowScore(float(np.mean(losses)), spread, hits / (len(losses) * length), len(losses))
