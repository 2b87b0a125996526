"""The exponential moving average of the weights, and the exchange of both.

    mean += share (p - mean)

With a constant share it decays exponentially (Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"). With
share = 8 / (t + 7) at update t, it reaches back over an eighth of the updates so far (Karras et al. 2024, "Analyzing and improving the
training dynamics of diffusion models", section 3.1).
"""

import numba
import numpy as np
from numba import cuda

from .jit import cpu
from .launch import gpu


@gpu
def average(mean, p, share):
    """mean [K] += share[0] (p - mean). Grid-stride loop."""
    i, step, rate = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1)), share[0]
    while i < np.uint64(mean.size):
        mean[i] += rate * (p[i] - mean[i])
        i += step


@gpu
def exchange(x, y):
    """Exchange the contents of x and y [K]. Grid-stride loop."""
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
