"""A bias on every row: x [R, N] += bias [N], float32. The rows of the array may be longer."""

import numba
from numba import cuda

from .jit import cpu
from .launch import gpu

ROWS = 16  # that a thread goes through with the bias in a register


@gpu
def add_bias(x, bias):
    """A thread per column and ROWS rows; a block per some columns and as many rows."""
    n, first = cuda.grid(1), cuda.blockIdx.y * ROWS
    if n < bias.size:
        own = bias[n]
        for r in range(first, min(first + ROWS, x.shape[0])):
            x[r, n] += own


@cpu()
def add_bias_cpu(x, bias):
    for r in numba.prange(x.shape[0]):
        for n in range(x.shape[1]):
            x[r, n] += bias[n]
