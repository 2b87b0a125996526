"""Neuromodulation: dopamine, norepinephrine and serotonin follow the surprise of the tokens, and act where a module has become sensitive
to them (kernels/neuromodulation.py).

Levels change at the end of a chunk, by what was read up to there: so they are the same while training, reading a prompt and writing.
"""

from __future__ import annotations

import numpy as np

from ..config import MODULES, Brain
from ..kernels.neuromodulation import GO, ROWS, TARGETS, WRITE
from ..optim.parameters import Parameter, Parameters

LEVELS = ROWS[:3]
SENSITIVITY = "neuromodulation.sensitivity"
__all__ = ["GO", "LEVELS", "SENSITIVITY", "WRITE", "Neuromodulation", "adaptation", "gain"]  # also what is the kernels'


def gain(module: str) -> int:
    """The target that is a module's gain."""
    return MODULES.index(module)


def adaptation(module: str) -> int:
    """The target that is a module's adaptation."""
    return len(MODULES) + MODULES.index(module)


class Neuromodulation:
    """The levels of the sequences of a brain, and what they do to its targets."""

    def __init__(self, brain: Brain, backend):
        self.interval, self.backend = np.float32(brain.chunk), backend
        self.nothing = backend.zeros((1, 1, 1))[:0], backend.zeros(1)[:0]

    def parameters(self):
        meaning = "sensitivity of the gain of each module, of the adaptation of each, of memory write strength, of Go"
        yield Parameter(SENSITIVITY, (TARGETS,), meaning, low=-1.0, high=1.0)

    def initialise(self, parameters: Parameters, seed: int):
        """Nothing: sensitivities begin at 0."""

    def bind(self, parameters: Parameters):
        self.sensitivity, self.d_sensitivity = parameters.value[SENSITIVITY], parameters.gradient[SENSITIVITY]

    def allocate(self, act):
        """Allocate levels [B], and for each chunk of a segment factors and slopes [targets, B]."""
        chunks = -(-act.tokens // act.chunk)
        act.modulators = self.backend.zeros((len(ROWS), act.batch))
        act.factors, act.slopes = (self.backend.zeros((chunks, TARGETS, act.batch)) for _ in range(2))

    def begin(self, act, chunk: int = 0):
        """Before a chunk of a segment: what the levels do in it."""
        self.backend.modulate(act.factors[chunk], act.slopes[chunk], act.modulators, self.sensitivity)

    def observe(self, act, losses, targets):
        """Take note of the losses [T, B] of tokens, targets [T, B]; levels change where a chunk is full."""
        self.backend.observe(act.modulators, losses, targets, self.interval)

    def backward(self, act, target: int, first: int, x, logit=None, bias=None):
        """Accumulate the gradient of a sensitivity from that of the logits [C, B, K] of a chunk. logit, bias: as in the backend."""
        slope, total = act.slopes[first // act.chunk, target], self.d_sensitivity[target : target + 1]
        self.backend.sensitivity_backward(total, x, slope, *(self.nothing if logit is None else (logit, bias)))
