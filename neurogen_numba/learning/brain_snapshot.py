"""Snapshot of a brain for figures: a sample of the neurons of each module, and of the weights of each projection."""

from __future__ import annotations

import numpy as np

from ..config import MODULES
from .report import BrainReport

NEURONS = 96  # of each module in the raster
SAMPLE = 4096  # time constants of a module, weights of a projection; neuromodulators are means over all sequences


def brain_snapshot(model, act, step: int) -> BrainReport:
    """The brain after an update on the segment of `act`; the activity is that of the first sequence."""
    value, numpy = model.brain.parameters.value, model.backend.to_numpy
    length = min(act.length, act.chunk) if act.checkpointing else act.length  # with checkpointing, the backward pass leaves the first chunk
    ids = numpy(act.ids[:length, 0])

    def some(array, most):
        return numpy(array[:: -(-len(array) // most)])

    def time_constants(what):
        """None of a module whose neuron learns none of this name."""
        logs = {name: value.get(f"{name}.log_{what}") for name in MODULES}
        return {name: np.zeros(0, np.float32) if log is None else some(log, SAMPLE) for name, log in logs.items()}

    return BrainReport(
        step=step,
        levels={name: float(numpy(level).mean()) for name, level in act.levels.items()},
        text=model.tokenizer.decode(ids) if model.tokenizer else "",
        events={name: some(act.v[name][1 : length + 1, 0].T, NEURONS).T > 1 for name in MODULES},
        membrane=time_constants("tau_v"),
        adaptation=time_constants("tau_a"),
        weights={arc.name: some(value[f"{arc.name}.weight"].reshape(-1), SAMPLE) for arc in model.brain.arcs},
        memory=numpy(act.signals["memory.out"].x[:length, 0]),
        memory_heads=model.config.brain.memory_heads,
        working_memory=numpy(act.m[1 : length + 1, 0]),
    )
