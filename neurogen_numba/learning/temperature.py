"""Temperature: one number that the logits are divided by, fitted on held-out text (Guo et al. 2017, "On calibration of modern neural
networks", section 4.2).

The loss is convex in 1 / temperature, and close to a parabola in the temperature's logarithm. Three evaluations give the parabola, and its
lowest point the temperature; if that is further away than they are, three more are made there.
"""

from __future__ import annotations

import math

import numpy as np

from ..text.batches import Validation
from .evaluation import evaluate

LOWEST, HIGHEST = math.log(1 / 3), math.log(3)  # of the temperature's logarithm
STEP = 0.15  # in it, between evaluations
FURTHEST = 3 * STEP  # move at most
MOVES = 4


def fit(model, validation: Validation, most_streams: int | None = None) -> float:
    """Set a model's temperature to that with the lowest loss of a text, from 1/3 to 3. Returns it.

    most_streams: as in `evaluate`. It is 1 where the loss is not finite.
    """
    decoder = model.brain.decoder

    def loss(logarithm):
        decoder.set_temperature(math.exp(logarithm))
        return evaluate(model, validation, most_streams=most_streams).loss

    lowest = math.log(decoder.temperature)
    for _ in range(MOVES):
        below, middle, above = (loss(lowest + step) for step in (-STEP, 0, STEP))
        if not math.isfinite(below + middle + above):
            lowest = 0.0
            break
        curvature = below - 2 * middle + above
        move = STEP * (below - above) / (2 * curvature) if curvature > 0 else math.copysign(FURTHEST, below - above)
        before, lowest = lowest, float(np.clip(lowest + np.clip(move, -FURTHEST, FURTHEST), LOWEST, HIGHEST))
        if abs(lowest - before) <= STEP:
            break
    decoder.set_temperature(float(np.float32(math.exp(lowest))))  # as a checkpoint keeps it
    return decoder.temperature
