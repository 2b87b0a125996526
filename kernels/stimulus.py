"""Noise that drives a brain with nothing to listen to: independent events, a Poisson process in ticks.

current [C, B, N] float32 += strength where a neuron is hit, with probability `rate` in every tick; ticks [1] uint64: how many there
were before this chunk.
"""

import numba
import numpy as np
from numba import cuda

from .jit import cpu
from .launch import gpu
from .rng import uniform


@gpu
def poisson(current, rate, strength, key, ticks):
    """A thread per neuron, sequence and tick."""
    n, b, t = cuda.grid(1), cuda.blockIdx.y, cuda.blockIdx.z
    B, N = current.shape[1], current.shape[2]
    if n < N:
        place = (ticks[0] + np.uint64(t)) * np.uint64(B * N) + np.uint64(b * N + n)
        if uniform(key, place) < rate:
            current[t, b, n] += strength


@cpu()
def poisson_cpu(current, rate, strength, key, ticks):
    C, B, N = current.shape
    for t in numba.prange(C):
        for b in range(B):
            for n in range(N):
                place = (ticks[0] + np.uint64(t)) * np.uint64(B * N) + np.uint64(b * N + n)
                if uniform(key, place) < rate:
                    current[t, b, n] += strength
