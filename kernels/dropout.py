"""Dropout: x <- x keep / (1 - rate), the mask drawn from its place (rng.py), so that backward draws the same one.

(Srivastava et al. 2014, JMLR 15:1929.) x is [rows, size] float32; forward and backward are the same operation.
"""

import numba
import numpy as np

from .jit import ONE, ZERO, cpu
from .rng import uniform


@cpu()
def dropout_cpu(x, rate, key, first_place):
    """Mask x in place; key, first_place (uint64): the random numbers' key and the place of x[0, 0]."""
    scale = ONE / (ONE - rate)
    for i in numba.prange(x.shape[0]):
        place = first_place + np.uint64(i) * np.uint64(x.shape[1])
        for j in range(x.shape[1]):
            x[i, j] *= scale if uniform(key, place + np.uint64(j)) >= rate else ZERO
