"""Divisive normalisation: the currents of a hypercolumn are divided by their root mean square.

    x = c r,   r = 1 / sqrt(mean of c^2 over the hypercolumn + 0.05)

It keeps activity at a few per cent for any fan-in (Carandini & Heeger 2012, Nature Reviews Neuroscience 13:51). A hypercolumn consists of
`hypercolumn` consecutive neurons; the last one is smaller if N is not a multiple. Without normalisation, for experiments, r = 1.
population.py has the loops.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from .jit import ONE

FLOOR = np.float32(0.05)  # so that a hypercolumn with weak input is not amplified to full activity


@register_jitable
def normalizer(square, size):
    """r of a hypercolumn of `size` neurons (int) from its sum of squares."""
    return ONE / math.sqrt(square / np.float32(size) + FLOOR)


@register_jitable
def normalize_step_backward(dx, x, mean):
    """Adjoint of the normalisation, one neuron: dL/dc. dx: r dL/dx; mean: the mean of dx x over the hypercolumn."""
    return dx - x * mean


@register_jitable
def one(square, size):
    """r without normalisation."""
    return ONE


@register_jitable
def one_backward(dx, x, mean):
    """Adjoint of the product with `one`."""
    return dx


class Normalization(NamedTuple):
    """r from the sum of squares of a hypercolumn and its size, and the adjoint of x = c r for one neuron."""

    normalizer: Callable
    backward: Callable


DIVISIVE, NONE = Normalization(normalizer, normalize_step_backward), Normalization(one, one_backward)
