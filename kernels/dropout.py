"""Dropout: x <- x keep / (1 - rate), the mask drawn from its place (rng.py), so that backward draws the same one.

(Srivastava et al. 2014, JMLR 15:1929.) x is [rows, size] float32; forward and backward are the same operation. key [1] and first_place
(uint64): the random numbers' key and the place of x[0, 0].
"""

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu
from .launch import SIMULATED, gpu
from .rng import uniform

BLOCKS = 1 if SIMULATED else 4096  # of a launch at most: several times what the largest card runs at once


@register_jitable
def kept(rate, key, place):
    """What a number is multiplied with: 0 if it is dropped, otherwise what makes up for the dropped ones."""
    return ONE / (ONE - rate) if uniform(key, place) >= rate else ZERO


@gpu
def dropout(x, rate, key, first_place):
    """A thread has every gridDim.x blockDim.x-th number of x, which comes flat, and fetches the next one while it draws for one."""
    i, stride, size, key_0 = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1)), np.uint64(x.size), key[0]
    if i >= size:
        return
    x_next = x[i]
    while i < size:
        x_i = x_next
        if i + stride < size:
            x_next = x[i + stride]
        x[i] = x_i * kept(rate, key_0, first_place + i)
        i += stride


@cpu()
def dropout_cpu(x, rate, key, first_place):
    """Mask x in place."""
    for i in numba.prange(x.shape[0]):
        place = first_place + np.uint64(i) * np.uint64(x.shape[1])
        for j in range(x.shape[1]):
            x[i, j] *= kept(rate, key[0], place + np.uint64(j))
