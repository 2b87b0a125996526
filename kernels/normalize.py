"""Divisive normalisation: a hypercolumn of neurons divides its currents by their root mean square.

    x = c r,   r = 1 / sqrt(mean of c^2 over the hypercolumn + 0.05)

It keeps activity at a few per cent whatever the fan-in (Carandini & Heeger 2012, Nature Reviews Neuroscience 13:51). Arrays are [C, B, N]
float32; a hypercolumn is `hypercolumn` consecutive neurons, the last one smaller where N is not a multiple; r is [C, B, hypercolumns].
"""

import numba
import numpy as np

from .jit import ONE, ZERO, cpu_sums

FLOOR = np.float32(0.05)  # keeps a silent hypercolumn silent


@cpu_sums()
def normalize_forward_cpu(x, r, hypercolumn):
    """Turn currents into normalised currents in place; keep r for the way back."""
    C, B, N = x.shape
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        for h in range(r.shape[2]):
            own = x[t, b, h * hypercolumn : min(N, (h + 1) * hypercolumn)]
            square = ZERO
            for n in range(own.size):
                square += own[n] * own[n]
            r[t, b, h] = ONE / np.sqrt(square / np.float32(own.size) + FLOOR)
            for n in range(own.size):
                own[n] *= r[t, b, h]


@cpu_sums()
def normalize_backward_cpu(dx, x, r, hypercolumn):
    """Turn dL/dx into dL/dc in place: dc = r (dx - x mean(dx x))."""
    C, B, N = x.shape
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        for h in range(r.shape[2]):
            first, last = h * hypercolumn, min(N, (h + 1) * hypercolumn)
            own, d_own = x[t, b, first:last], dx[t, b, first:last]
            dot = ZERO
            for n in range(own.size):
                dot += own[n] * d_own[n]
            mean = dot / np.float32(own.size)
            for n in range(own.size):
                d_own[n] = r[t, b, h] * (d_own[n] - own[n] * mean)
