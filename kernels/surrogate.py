"""The event function, its surrogate gradients, and the smooth functions whose derivatives they are.

    event(v)  = 1 where v > 1, else 0                         the threshold is 1
    slope(v)  replaces d event / dv; u = (v - 1) / width

    triangle      max(0, 1 - |u|) / 2        zero for |v - 1| >= width      (Esser et al. 2016, PNAS 113:11441)
    fast_sigmoid  1 / (1 + |u|)^2 / 2        nowhere zero                   (Zenke & Ganguli 2018, Neural Computation 30:1514)
    arctan        1 / (1 + u^2) / 2          nowhere zero                   (Fang et al. 2021, ICCV)

    smooth(v) = the integral of slope

Only neurons that fired, or whose slope is not zero, need a gradient. In the smooth test mode the event function is `smooth` in both passes,
so that gradients can be checked against finite differences.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from .jit import HALF, ONE, ZERO, made


@register_jitable
def event(v):
    """z for a membrane potential v (float32)."""
    return ONE if v > ONE else ZERO


@register_jitable
def carried(v, z, graded):
    """The value s on the axon for an event z: the membrane potential (graded), or the event itself (binary)."""
    return z * v if graded else z


class Surrogate(NamedTuple):
    """event: float32 v -> z, the step function or, in the test mode, the smooth one. slope: v -> the replacement for dz/dv."""

    event: Callable
    slope: Callable


def make_surrogate(kind: str = "triangle", width: float = 1.0, smooth: bool = False) -> Surrogate:
    """The event function with a slope of this kind and width; smooth: the test mode."""
    integral, slope = _made(kind, float(width))
    return Surrogate(integral if smooth else event, slope)


@functools.cache
def _made(kind, width):
    name = "".join(letter if letter.isalnum() else "_" for letter in f"{kind} {width!r}")
    return tuple(made(function, f"{function.__name__}_{name}") for function in SURROGATES[kind](np.float32(width)))


def _triangle(width):
    per_width, height = ONE / width, HALF * width

    def smooth(v):
        u = min(max((v - ONE) * per_width, -ONE), ONE)
        return height * (HALF + u - HALF * u * abs(u))

    def slope(v):
        return HALF * max(ZERO, ONE - abs(v - ONE) * per_width)

    return smooth, slope


def _fast_sigmoid(width):
    per_width, height = ONE / width, HALF * width

    def smooth(v):
        u = (v - ONE) * per_width
        return height * (ONE + u / (ONE + abs(u)))

    def slope(v):
        d = ONE + abs(v - ONE) * per_width
        return HALF / (d * d)

    return smooth, slope


def _arctan(width):
    per_width, height, quarter = ONE / width, HALF * width, type(width)(math.pi / 2)

    def smooth(v):
        return height * (quarter + math.atan((v - ONE) * per_width))

    def slope(v):
        u = (v - ONE) * per_width
        return HALF / (ONE + u * u)

    return smooth, slope


# kind -> the functions (smooth, slope) of a width; they compute in the type of the width
SURROGATES = {"triangle": _triangle, "fast_sigmoid": _fast_sigmoid, "arctan": _arctan}
