"""Temperature: one number that the logits are divided by, fitted on held-out text (Guo et al. 2017, "On calibration of modern neural
networks", section 4.2).

    L(b) = mean over the targets y of  log Σ_w exp(b z_w) − b z_y          z: logits, b = 1 / temperature
    L'   = mean of  E[z] − z_y                                             E: under p_w ∝ exp(b z_w)
    L''  = mean of  E[z²] − E[z]²

L is convex; `fit` finds its minimum by Newton's method. The logits are read by the host, so a GPU waits for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ..text.batches import Validation
from .evaluation import Plain, evaluate, streams_for

LOWEST, HIGHEST = 0.1, 10.0  # 1 / temperature
STEPS = 10
PRECISION = 1e-3  # of 1 / temperature; a hundredth more or less costs 1e-4 nats


class Tempered(Plain):
    """Scores as `Plain`, with the logits times `inverse`. slope, curvature: sums of L' and L'' over the targets scored."""

    def __init__(self, model, streams: int, inverse: float):
        super().__init__(model, streams)
        self.inverse, self.slope, self.curvature = inverse, 0.0, 0.0

    def score(self, inputs, targets):
        _, hits = super().score(inputs, targets)
        z = self._logits(len(inputs)).reshape(*targets.shape, -1)
        scaled = self.inverse * z
        top = scaled.max(2, keepdims=True)
        p = np.exp(scaled - top)
        total = p.sum(2, keepdims=True)
        p /= total
        target = np.take_along_axis(z, np.maximum(targets, 0)[:, :, None], 2)[:, :, 0]
        mean, counted = (p * z).sum(2), targets >= 0
        self.slope += float((mean - target)[counted].sum())
        self.curvature += float((p * (z - mean[:, :, None]) ** 2).sum(2)[counted].sum())
        return np.where(counted, (top + np.log(total))[:, :, 0] - self.inverse * target, 0), hits

    def _logits(self, tokens):
        """Logits of the last `tokens` tokens [tokens * B, V], float64, computed once more."""
        decoder, numpy = self.model.brain.decoder, self.model.backend.to_numpy
        blocks = [numpy(decoder.logits(self.act, first, last)) for first, last in decoder.blocks(self.act, 0, tokens)]
        return np.concatenate(blocks).astype(np.float64)


def tempered(temperature: float):
    """The scorer for `evaluate` at a temperature."""
    return functools.partial(Tempered, inverse=1 / temperature)


def fit(model, validation: Validation, most_streams: int, tell: Callable[[int], None] = lambda done: None) -> float:
    """The temperature with the lowest loss of the text, from 0.1 to 10. most_streams, tell: as in `evaluate`."""
    inverse, streams = 1.0, streams_for(len(validation.tokens) - 1, most_streams)
    for _ in range(STEPS):
        reader = Tempered(model, streams, inverse)
        evaluate(model, validation, most_streams=streams, tell=tell, scorer=lambda *_, reader=reader: reader)
        before, step = inverse, reader.slope / max(reader.curvature, np.finfo(np.float64).tiny)
        inverse = float(np.clip(before - step, max(LOWEST, before / 2), min(HIGHEST, 2 * before)))
        if abs(inverse - before) < PRECISION:
            break
    return 1 / inverse
