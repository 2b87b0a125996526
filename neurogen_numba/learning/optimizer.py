"""AdamW over all parameters, with the gradient clipped to a global norm (kernels/adamw.py)."""

from __future__ import annotations

import math

import numpy as np

from ..brain.buffers import Parameters

BETA1, BETA2 = 0.9, 0.99


class AdamW:
    """Holds the number of updates made; Adam's moments are kept with the parameters."""

    def __init__(self, parameters: Parameters, backend, weight_decay: float = 0.1, clip: float = 1.0):
        self.parameters, self.backend, self.weight_decay, self.clip = parameters, backend, weight_decay, clip
        self.steps = 0

    def update(self, rate: float) -> float:
        """One update from the gradients at hand. Returns their norm before clipping; where it is not finite, nothing is changed."""
        parameters = self.parameters
        norm = self.backend.norm(parameters.flat_gradient)
        if not math.isfinite(norm):
            return norm
        self.steps += 1
        scale = min(1.0, self.clip / norm) if norm else 1.0
        unbias1, unbias2 = 1 / (1 - BETA1**self.steps), 1 / (1 - BETA2**self.steps)
        for name, parameter in parameters.table.items():
            decay = self.weight_decay if parameter.decays else 0.0
            numbers = (scale, rate, BETA1, BETA2, unbias1, unbias2, decay, parameter.low, parameter.high)
            arrays = (table[name].reshape(-1) for table in (parameters.value, parameters.gradient, parameters.m, parameters.v))
            self.backend.adamw(*arrays, *map(np.float32, numbers))
        return norm
