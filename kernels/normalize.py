"""Divisive normalisation: a hypercolumn of neurons divides its currents by their root mean square.

    x = c r,   r = 1 / sqrt(mean of c^2 over the hypercolumn + 0.05)

It keeps activity at a few per cent whatever the fan-in (Carandini & Heeger 2012, Nature Reviews Neuroscience 13:51). A hypercolumn is
`hypercolumn` consecutive neurons, the last one smaller where N is not a multiple. population.py has the loops.
"""

import math

import numpy as np
from numba.extending import register_jitable

from .jit import ONE

FLOOR = np.float32(0.05)  # keeps a silent hypercolumn silent


@register_jitable
def normalizer(square, size):
    """r of a hypercolumn of `size` neurons (int) from its sum of squares."""
    return ONE / math.sqrt(square / np.float32(size) + FLOOR)


@register_jitable
def normalize_step_backward(dx, x, mean):
    """One neuron's dc from r times its dL/dx, dx; mean: of dx x over the hypercolumn."""
    return dx - x * mean
