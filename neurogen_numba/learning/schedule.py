"""The learning rate over a run: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from ..config import Training


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Rate of update `step` (from 0) of `steps`: rises over `warmup` updates, then falls along half a cosine to `final_rate` of the
    peak."""
    warm = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
    share = min(1.0, step / steps)
    cosine = training.final_rate + (1 - training.final_rate) * 0.5 * (1 + math.cos(math.pi * share))
    return training.learning_rate * warm * cosine
