"""Sums in a fixed order."""

import math

import numba
import numpy as np
from numba import cuda

from .half import load
from .jit import ZERO, cpu_sums
from .launch import block_sum, device, gpu
from .memory_access import AHEAD, THRICE, TWICE, read

BLOCK = 4096  # numbers per partial sum
MOST = 1024  # threads of a block
_BLOCK, _NOTHING = np.uint64(BLOCK), np.float64(0)
_WARPS = 32  # of a block, at most


@gpu
def sum_of_squares(partial, x):
    """partial[i] = sum of the squares x[k]^2 of block i, in float32. One CUDA block per block of x."""
    shared = cuda.shared.array(_WARPS, np.float32)
    step, i = np.uint64(cuda.blockDim.x), np.uint64(cuda.blockIdx.x) * _BLOCK + np.uint64(cuda.threadIdx.x)
    end = min(np.uint64(x.size), (np.uint64(cuda.blockIdx.x) + np.uint64(1)) * _BLOCK)
    total = ZERO
    while i < end:
        a, b = read(x, i, end, ZERO), read(x, i + step, end, ZERO)
        c, d = read(x, i + TWICE * step, end, ZERO), read(x, i + THRICE * step, end, ZERO)
        total += (a * a + b * b) + (c * c + d * d)
        i += AHEAD * step
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        partial[cuda.blockIdx.x] = total


@cpu_sums()
def sum_of_squares_cpu(partial, x):
    """As `sum_of_squares`."""
    for block in numba.prange(partial.size):
        own = x[block * BLOCK : min(x.size, (block + 1) * BLOCK)]
        total = np.float32(0)
        for i in range(own.size):
            total += own[i] * own[i]
        partial[block] = total


@gpu
def norm(norm, partial):
    """norm = sqrt(sum of partial), in float64. One CUDA block."""
    shared = cuda.shared.array(_WARPS, np.float64)
    step, i, end = np.uint64(cuda.blockDim.x), np.uint64(cuda.threadIdx.x), np.uint64(partial.size)
    total = _NOTHING
    while i < end:
        a, b = read(partial, i, end, _NOTHING), read(partial, i + step, end, _NOTHING)
        c, d = read(partial, i + TWICE * step, end, _NOTHING), read(partial, i + THRICE * step, end, _NOTHING)
        total += (a + b) + (c + d)
        i += AHEAD * step
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        norm[0] = math.sqrt(total)


def norm_cpu(norm, partial):
    """As `norm`."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm[0] = np.sqrt(partial.sum())


@device
def add_column(total, column, added, shared):
    """total[column] += sum of `added` over the block's threads of that column, in an order that is always the same.

    shared: float32, an entry for each thread. The block has a power of two of rows of threads, and all of them take part; a column that
    total does not have is left out.
    """
    width = np.uint64(cuda.blockDim.x)
    thread = np.uint64(cuda.threadIdx.y) * width + np.uint64(cuda.threadIdx.x)
    shared[thread] = added
    half = np.uint64(cuda.blockDim.y) * width // TWICE
    while half >= width:
        cuda.syncthreads()
        if thread < half:
            shared[thread] += shared[thread + half]
        half //= TWICE
    if thread < width and column < np.uint64(total.size):
        total[column] += shared[thread]


@device
def _entry(x, row, column):
    return load(x, row, column) if row < np.uint64(x.shape[0]) else ZERO


@gpu
def add_rows(total, x):
    """total[j] += sum of x[i, j] over i; x: any float type (half.py). Threads (x, y) of a block: column x, rows y, y + blockDim.y, ...

    blockDim.y is a power of two.
    """
    shared = cuda.shared.array(MOST, np.float32)
    column, row, step = np.uint64(cuda.grid(1)), np.uint64(cuda.threadIdx.y), np.uint64(cuda.blockDim.y)
    added, inside = ZERO, column < np.uint64(total.size)
    while inside and row < np.uint64(x.shape[0]):
        a, b = _entry(x, row, column), _entry(x, row + step, column)
        c, d = _entry(x, row + TWICE * step, column), _entry(x, row + THRICE * step, column)
        added += (a + b) + (c + d)
        row += AHEAD * step
    add_column(total, column, added, shared)


def add_rows_cpu(total, x):
    """total [N] += sum over the rows of x [R, N], both float32, one after the other."""
    with np.errstate(over="ignore", invalid="ignore"):
        total += x.sum(0)
