"""Neuromodulation: dopamine, norepinephrine and serotonin follow the surprise of the tokens, and act on modules with a sensitivity to them
(kernels/neuromodulation.py).

Levels change at the end of a chunk and depend only on tokens read before, so they are the same in training, prompts and generation.
"""

from __future__ import annotations

import numpy as np

from ..config import MODULES, NEUROMODULATORS, Brain
from ..kernels.neuromodulation import GO, ROWS, TARGETS, WRITE
from ..optim.parameters import Parameter, Parameters
from .connectome import left_out

LEVELS = NEUROMODULATORS
SENSITIVITY = "neuromodulation.sensitivity"
__all__ = ["GO", "LEVELS", "SENSITIVITY", "WRITE", "Neuromodulation", "adaptation", "gain"]  # with names of the kernels


def gain(module: str) -> int:
    """Index of the target that is the gain of a module."""
    return MODULES.index(module)


def adaptation(module: str) -> int:
    """Index of the target that is the adaptation of a module."""
    return len(MODULES) + MODULES.index(module)


class Neuromodulation:
    """Sensitivities of a brain, and its operations on the levels of an activity."""

    def __init__(self, brain: Brain, backend):
        self.interval, self.backend = np.float32(brain.chunk), backend
        self.silent = [index for index, name in enumerate(LEVELS) if name in left_out(brain)]
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
        """Compute the factors of a chunk from the present levels."""
        self.backend.modulate(act.factors[chunk], act.slopes[chunk], act.modulators, self.sensitivity)

    def observe(self, act, losses, targets):
        """Add the losses [T, B] of targets [T, B]; levels change when a chunk of tokens is complete."""
        self.backend.observe(act.modulators, losses, targets, self.interval)
        for level in self.silent:
            act.modulators[level] = 0

    def backward(self, act, target: int, first: int, x, logit=None, bias=None):
        """Accumulate the gradient of a target's sensitivity from x [C, B, K], the gradient of the logits of a chunk. logit, bias: as in
        `Backend.sensitivity_backward`."""
        slope, total = act.slopes[first // act.chunk, target], self.d_sensitivity[target : target + 1]
        self.backend.sensitivity_backward(total, x, slope, *(self.nothing if logit is None else (logit, bias)))
