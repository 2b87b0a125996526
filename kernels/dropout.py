"""Dropout: out = scale x keep / (1 - rate), the mask drawn from its place (rng.py), so that backward draws the same one.

(Srivastava et al. 2014, JMLR 15:1929.) x is [rows, size] float32; forward and backward are the same operation. key [1] and first_place
(uint64): the random numbers' key and the place of x[0, 0].
"""

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .half import store
from .jit import ONE, ZERO, cpu
from .launch import SIMULATED, gpu
from .rng import uniform

_FIRST_ROW = np.uint64(0)
BLOCKS = 1 if SIMULATED else 4096  # of a launch at most: several times what the largest card runs at once


@register_jitable
def kept(rate, key, place):
    """What a number is multiplied with: 0 if it is dropped, otherwise what makes up for the dropped ones."""
    return ONE / (ONE - rate) if uniform(key, place) >= rate else ZERO


@gpu
def scaled_dropout(out, x, scale, rate, key, first_place):
    """out [1, K], of any kind of float (half.py) or x itself, = scale x keep / (1 - rate); x [K] float32 comes flat, and so does out.

    A thread has every gridDim.x blockDim.x-th number, and fetches the next one while it draws for one.
    """
    i, stride, size, key_0 = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1)), np.uint64(x.size), key[0]
    if i >= size:
        return
    x_next = x[i]
    while i < size:
        x_i = x_next
        if i + stride < size:
            x_next = x[i + stride]
        factor = scale * kept(rate, key_0, first_place + i) if rate > ZERO else scale
        store(out, _FIRST_ROW, i, x_i * factor)
        i += stride


@cpu()
def scaled_dropout_cpu(out, x, scale, rate, key, first_place):
    """As `scaled_dropout`, of out and x [R, N] float32."""
    own_scale = np.float32(scale)
    for i in numba.prange(x.shape[0]):
        place = first_place + np.uint64(i) * np.uint64(x.shape[1])
        for j in range(x.shape[1]):
            factor = own_scale * kept(rate, key[0], place + np.uint64(j)) if rate > ZERO else own_scale
            out[i, j] = x[i, j] * factor
