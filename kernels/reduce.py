"""Reductions in a fixed order: sum of squares, norm, column sums."""

import math

import numba
import numpy as np
from numba import cuda

from .half import load
from .jit import ZERO, cpu_sums
from .launch import block_sum, device, gpu
from .memory_access import PREFETCH, read

u64 = np.uint64
BLOCK = 4096  # numbers per partial sum
MAX_BLOCK_DIM = 1024  # threads per block, CUDA's limit
_BLOCK, _ZERO64 = np.uint64(BLOCK), np.float64(0)
_WARPS = 32  # warps of the largest block


@gpu
def sum_of_squares(partial, x):
    """partial[i] = sum of x[k]^2 over the i-th BLOCK numbers, in float32. One CUDA block per partial sum; a thread keeps PREFETCH loads in
    flight."""
    shared = cuda.shared.array(_WARPS, np.float32)
    step, i = np.uint64(cuda.blockDim.x), np.uint64(cuda.blockIdx.x) * _BLOCK + np.uint64(cuda.threadIdx.x)
    end = min(np.uint64(x.size), (np.uint64(cuda.blockIdx.x) + np.uint64(1)) * _BLOCK)
    total = ZERO
    while i < end:
        a, b = read(x, i, end, ZERO), read(x, i + step, end, ZERO)
        c, d = read(x, i + u64(2) * step, end, ZERO), read(x, i + u64(3) * step, end, ZERO)
        total += (a * a + b * b) + (c * c + d * d)
        i += PREFETCH * step
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        partial[cuda.blockIdx.x] = total


@cpu_sums()
def sum_of_squares_cpu(partial, x):
    """As `sum_of_squares`."""
    for block in numba.prange(partial.size):
        x_block = x[block * BLOCK : min(x.size, (block + 1) * BLOCK)]
        total = np.float32(0)
        for i in range(x_block.size):
            total += x_block[i] * x_block[i]
        partial[block] = total


@gpu
def norm(norm, partial):
    """norm = sqrt(sum of partial), in float64. One CUDA block."""
    shared = cuda.shared.array(_WARPS, np.float64)
    step, i, end = np.uint64(cuda.blockDim.x), np.uint64(cuda.threadIdx.x), np.uint64(partial.size)
    total = _ZERO64
    while i < end:
        a, b = read(partial, i, end, _ZERO64), read(partial, i + step, end, _ZERO64)
        c, d = read(partial, i + u64(2) * step, end, _ZERO64), read(partial, i + u64(3) * step, end, _ZERO64)
        total += (a + b) + (c + d)
        i += PREFETCH * step
    total = block_sum(total, shared)
    if cuda.threadIdx.x == 0:
        norm[0] = math.sqrt(total)


def norm_cpu(norm, partial):
    """As `norm`."""
    with np.errstate(over="ignore", invalid="ignore"):
        norm[0] = np.sqrt(partial.sum())


@device
def add_column(total, column, added, shared):
    """total[column] += sum of `added` over the block's threads with that column: a tree reduction in shared memory, in a fixed order.

    shared: float32, one entry per thread. blockDim.y is a power of two; every thread takes part. Columns beyond the end of total are
    ignored.
    """
    width = np.uint64(cuda.blockDim.x)
    thread = np.uint64(cuda.threadIdx.y) * width + np.uint64(cuda.threadIdx.x)
    shared[thread] = added
    half = np.uint64(cuda.blockDim.y) * width // u64(2)
    while half >= width:
        cuda.syncthreads()  # waits for the previous round of additions
        if thread < half:
            shared[thread] += shared[thread + half]
        half //= u64(2)
    if thread < width and column < np.uint64(total.size):
        total[column] += shared[thread]


@device
def _entry(x, row, column):
    return load(x, row, column) if row < np.uint64(x.shape[0]) else ZERO


@gpu
def add_rows(total, x):
    """total[j] += sum over i of x[i, j]; x: any float type (half.py). Block of threads (x, y): column x, rows y, y + blockDim.y, ...

    blockDim.y is a power of two.
    """
    shared = cuda.shared.array(MAX_BLOCK_DIM, np.float32)
    column, row, step = np.uint64(cuda.grid(1)), np.uint64(cuda.threadIdx.y), np.uint64(cuda.blockDim.y)
    added, inside = ZERO, column < np.uint64(total.size)
    while inside and row < np.uint64(x.shape[0]):
        a, b = _entry(x, row, column), _entry(x, row + step, column)
        c, d = _entry(x, row + u64(2) * step, column), _entry(x, row + u64(3) * step, column)
        added += (a + b) + (c + d)
        row += PREFETCH * step
    add_column(total, column, added, shared)


def add_rows_cpu(total, x):
    """total [N] += sum over the rows of x [R, N], both float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        total += x.sum(0)
