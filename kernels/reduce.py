"""Sums in a fixed order."""

import numba
import numpy as np

from .jit import cpu_sums

BLOCK = 4096  # numbers a task adds up


@cpu_sums()
def sum_of_squares_cpu(partial, x):
    """partial[i] (float64) = sum of squares of block i of x [K] float32; partial has ceil(K / BLOCK) entries."""
    for block in numba.prange(partial.size):
        own = x[block * BLOCK : min(x.size, (block + 1) * BLOCK)]
        total = np.float32(0)
        for i in range(own.size):
            total += own[i] * own[i]
        partial[block] = total
