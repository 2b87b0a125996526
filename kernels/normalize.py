"""Divisive normalisation: a hypercolumn of neurons divides its currents by their root mean square.

    x = c r,   r = 1 / sqrt(mean of c^2 over the hypercolumn + 0.05)

It keeps activity at a few per cent whatever the fan-in (Carandini & Heeger 2012, Nature Reviews Neuroscience 13:51). Arrays are [C, B, N]
float32; a hypercolumn is `hypercolumn` consecutive neurons, the last one smaller where N is not a multiple; r is [C, B, hypercolumns].
"""

import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu_sums
from .launch import WARP, gpu, lanes_sum

FLOOR = np.float32(0.05)  # keeps a silent hypercolumn silent


@register_jitable
def normalizer(square, size):
    """r of a hypercolumn of `size` neurons (int) from its sum of squares."""
    return ONE / math.sqrt(square / np.float32(size) + FLOOR)


@register_jitable
def normalize_step_backward(dx, x, r, mean):
    """One neuron's dc from its dx; mean: of dx x over the hypercolumn."""
    return r * (dx - x * mean)


@gpu
def normalize_forward(x, r, hypercolumn):
    """A warp is a hypercolumn of a token and sequence, so that no warp waits for another: block (i, j) has the j-th blockDim.x / WARP
    hypercolumns of row i of x [C B, N] and r [C B, hypercolumns]."""
    row, warps = np.uint64(cuda.blockIdx.x), cuda.blockDim.x // WARP
    h, lane = cuda.blockIdx.y * warps + cuda.threadIdx.x // WARP, cuda.threadIdx.x % WARP
    if h >= r.shape[1]:
        return
    first = h * hypercolumn
    last = min(first + hypercolumn, x.shape[1])
    square = ZERO
    for n in range(first + lane, last, WARP):
        c = x[row, np.uint64(n)]
        square += c * c
    r_h = normalizer(lanes_sum(square, WARP), last - first)
    for n in range(first + lane, last, WARP):
        x[row, np.uint64(n)] *= r_h
    if lane == 0:
        r[row, h] = r_h


@gpu
def normalize_backward(dx, x, r, hypercolumn):
    """A warp is a hypercolumn of a token and sequence, as in `normalize_forward`."""
    row, warps = np.uint64(cuda.blockIdx.x), cuda.blockDim.x // WARP
    h, lane = cuda.blockIdx.y * warps + cuda.threadIdx.x // WARP, cuda.threadIdx.x % WARP
    if h >= r.shape[1]:
        return
    first = h * hypercolumn
    last = min(first + hypercolumn, x.shape[1])
    dot = ZERO
    for n in range(first + lane, last, WARP):
        dot += x[row, np.uint64(n)] * dx[row, np.uint64(n)]
    mean, r_h = lanes_sum(dot, WARP) / np.float32(last - first), r[row, h]
    for n in range(first + lane, last, WARP):
        i = np.uint64(n)
        dx[row, i] = normalize_step_backward(dx[row, i], x[row, i], r_h, mean)


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
            r[t, b, h] = normalizer(square, own.size)
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
                d_own[n] = normalize_step_backward(d_own[n], own[n], r[t, b, h], mean)
