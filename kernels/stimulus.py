"""Poisson stimulus: in every tick, current += strength with probability `rate`, independently per neuron (rng.py: key and index)."""

import numba
import numpy as np
from numba import cuda

from .jit import cpu
from .launch import gpu
from .rng import uniform


@gpu
def poisson(current, rate, strength, key, ticks):
    """Add the stimulus to current [C, B, N]. ticks [1] uint64: ticks before this chunk. Grid (neuron blocks, B, C): one thread per neuron,
    sequence and tick."""
    n, b, t = cuda.grid(1), cuda.blockIdx.y, cuda.blockIdx.z
    B, N = current.shape[1], current.shape[2]
    if n < N:
        index = (ticks[0] + np.uint64(t)) * np.uint64(B * N) + np.uint64(b * N + n)
        if uniform(key, index) < rate:
            current[t, b, n] += strength


@cpu()
def poisson_cpu(current, rate, strength, key, ticks):
    """As `poisson`."""
    C, B, N = current.shape
    for t in numba.prange(C):
        for b in range(B):
            for n in range(N):
                index = (ticks[0] + np.uint64(t)) * np.uint64(B * N) + np.uint64(b * N + n)
                if uniform(key, index) < rate:
                    current[t, b, n] += strength
