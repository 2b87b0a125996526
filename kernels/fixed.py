"""Fixed-point numbers: what many threads add up at once.

A float sum depends on the order of its terms, and threads come in no order. A sum of whole numbers does not: the same run gives the same
bits. So what is added atomically is first multiplied by a power of two and rounded. Currents are int32 with CURRENT units to 1, gradients
int64 with a scale that the caller chooses.

Whole numbers have no NaN and wrap around, so whoever takes a sum makes NaN of one that is out of bounds. That alone would miss what wraps
around more than once, and what is no number; therefore whoever adds to a current looks whether the addend is `fair`.
"""

import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .launch import SIMULATED, device, gpu

CURRENT = np.float32(2.0**20)  # resolution 1e-6
TOO_LARGE = np.int32(2**30)  # a current of 1,024: no brain that learns has one, and from 2,048 to 3,072 it has wrapped around to here
UNFAIR = np.float32(2.0**27)  # 128 from a single synapse: it takes 24 that bring almost as much to wrap around beyond what is TOO_LARGE
FAR = np.int64(2**62)  # half of what int64 can hold
NAN = np.float32(np.nan)

if SIMULATED:

    def to_int32(x):
        return np.int32(np.rint(np.clip(np.nan_to_num(np.float64(x)), -(2.0**31), 2.0**31 - 1)))

    def to_int64(x):
        return np.int64(np.clip(np.rint(np.nan_to_num(np.float64(x), nan=-np.inf)), -(2.0**63), 2.0**63 - 2**10))

else:

    @device
    def to_int32(x):
        """x (float32) rounded to the nearest whole number, within int32; NaN is 0."""
        return cuda.libdevice.float2int_rn(x)

    @device
    def to_int64(x):
        """x (float32) rounded to the nearest whole number, within int64; NaN is the lowest."""
        return cuda.libdevice.float2ll_rn(x)


@register_jitable
def fair(units):
    """Whether so many units (float32) of a current may come from a single synapse. NaN may not."""
    return abs(units) < UNFAIR


@register_jitable
def current_of(sum_of_units):
    """The current, float32, of a fixed-point sum; NaN where it is out of bounds, so that it is noticed."""
    if sum_of_units >= TOO_LARGE or sum_of_units <= -TOO_LARGE:
        return NAN
    return np.float32(sum_of_units) / CURRENT


@register_jitable
def gradient_of(total, unit):
    """The gradient, float32, of a fixed-point sum (int64); NaN where it is out of bounds, as a term is that is no finite number."""
    if total >= FAR or total <= -FAR:
        return NAN
    return np.float32(total) * unit


@gpu
def take_fixed(x, total, unit):
    """x [K] float32 += unit times total [K], int64, which is cleared. A thread per number, or for every so many of them."""
    i = cuda.grid(1)
    while i < x.size:
        x[i] += gradient_of(total[i], unit)
        total[i] = 0
        i += cuda.gridsize(1)
