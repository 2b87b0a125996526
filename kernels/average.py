"""The exponential moving average of the weights, and its exchange with them.

mean += share (p - mean). With share 1 / t at update t it is the mean of all weights so far, with a constant share it forgets (Polyak &
Juditsky 1992, "Acceleration of stochastic approximation by averaging").
"""

import numba
import numpy as np
from numba import cuda

from .jit import cpu
from .launch import gpu


@gpu
def average(mean, p, share):
    """mean [K] += share[0] (p - mean). Grid-stride loop."""
    i, step, own = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1)), share[0]
    while i < np.uint64(mean.size):
        mean[i] += own * (p[i] - mean[i])
        i += step


@gpu
def exchange(x, y):
    """x, y [K] = y, x. Grid-stride loop."""
    i, step = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1))
    while i < np.uint64(x.size):
        x[i], y[i] = y[i], x[i]
        i += step


@cpu()
def average_cpu(mean, p, share):
    """As `average`."""
    for i in numba.prange(mean.size):
        mean[i] += share[0] * (p[i] - mean[i])


@cpu()
def exchange_cpu(x, y):
    """As `exchange`."""
    for i in numba.prange(x.size):
        x[i], y[i] = y[i], x[i]
