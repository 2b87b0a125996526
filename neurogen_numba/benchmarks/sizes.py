"""Models compared by size, loss on held-out text, and speed of one stream."""

from __future__ import annotations

import numpy as np

from ..inference.generation import Sampling, Session
from ..learning.evaluation import evaluate
from .speed import times_in_turn

WRITTEN = 64  # tokens of a measurement of the speed
MEASUREMENTS = 7
LABELS = {"bytes": "bytes of the weights", "loss": "held-out loss, nats", "tokens_per_second": "tokens/s, one stream"}


def compare(models: list, validation) -> dict[str, list[float]]:
    """Figure -> its value for each model: bytes of the weights; loss in nats per token; tokens per second of one stream, the median of
    measurements that alternate between the models."""
    losses = [evaluate(model, validation).loss for model in models]
    sessions = [Session(model, Sampling(0.8)) for model in models]
    for session in sessions:
        session.feed(validation.tokens[:1, None].astype(np.int32))
    times = times_in_turn(models[0].backend, [lambda s=session: s.write(WRITTEN) for session in sessions], MEASUREMENTS)
    rates = [WRITTEN / float(np.median(each)) for each in times]
    return {"bytes": [model.brain.parameters.nbytes for model in models], "loss": losses, "tokens_per_second": rates}


def show(names: list[str], figures: dict[str, list[float]]):
    """Print a table with a column per model, and the ratio of the last model to the first."""
    width = max(14, *(len(name) + 2 for name in names))
    print(" " * 24 + "".join(f"{name:>{width}}" for name in names) + f"{'ratio':>9}")
    for figure, values in figures.items():
        cells = "".join(f"{value:>{width},.{4 if figure == 'loss' else 0}f}" for value in values)
        print(f"{LABELS[figure]:24}{cells}{values[-1] / values[0]:9.3f}")
