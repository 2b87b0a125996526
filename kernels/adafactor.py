"""Adafactor: Adam without a first moment. The second moment of a matrix is factored into one number per row and one per column (Shazeer &
Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost").

    r_i  = beta2 r_i + (1 - beta2) mean_j g_ij^2                        rows
    c_j  = beta2 c_j + (1 - beta2) sum_i g_ij^2                         columns; a common factor cancels
    u_ij = g_ij / sqrt(r_i / (1 - beta2^step) c_j / mean(c))
    p_ij = p_ij (1 - rate decay) - rate u_ij / max(1, rms of row i of u)

The gradient is first clipped to a norm, as in adamw.py; beta2 is AdamW's. Departures from the paper:

- Rows arrive in blocks, so c is that of the previous update. In the first update all c are equal.
- c is clamped below at FLOOR times its mean, so that a rarely active column does not take a huge step.
- For the same reason the update is limited per row, not for the whole matrix.
"""

import math

import numba
import numpy as np
from numba import cuda

from .adamw import BETA2, EPS, clipping
from .jit import ONE, ZERO, cpu, cpu_sums
from .launch import block_sum, device, gpu
from .memory_access import PREFETCH
from .reduce import MAX_BLOCK_DIM, add_column

u64 = np.uint64
FLOOR = np.float32(0.01)
COLUMNS = 64  # of a CPU task
_WARPS, _BETA2, _ENDLESS = 32, np.float32(BETA2), np.float32(np.inf)


@gpu
def spread_columns(spread, column):
    """spread [C] float32 = sqrt(max(FLOOR, c_j / mean(c))) from the column statistics [C]; 1 everywhere if they are all 0. Grid: one block.

    A thread handles columns thread, thread + blockDim.x, ...
    """
    partial = cuda.shared.array(_WARPS, np.float32)
    step, j, size, total = np.uint64(cuda.blockDim.x), np.uint64(cuda.threadIdx.x), np.uint64(column.size), ZERO
    while j < size:
        total += column[j]
        j += step
    mean = block_sum(total, partial) / np.float32(column.size)
    j = np.uint64(cuda.threadIdx.x)
    while j < size:
        spread[j] = math.sqrt(max(FLOOR, column[j] / mean)) if mean > ZERO else ONE
        j += step


def spread_columns_cpu(spread, column):
    """As `spread_columns`."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = column.mean()
        spread[:] = np.sqrt(np.maximum(FLOOR, column / mean)) if mean > ZERO else ONE


@gpu
def adafactor(p, g, row, spread, where, decay, norm, numbers):
    """Update rows where[k] of p [R, C] and of row [R] in place from their gradients g[k], g [P, C] float32.

    One block per row k of g. A negative where[k] is skipped; a norm that is not finite changes nothing. Three passes over the row: sum of
    g^2, sum of u^2, update.
    """
    partial = cuda.shared.array(_WARPS, np.float32)
    g_row, i = cuda.blockIdx.x, where[cuda.blockIdx.x]
    if i < 0 or not norm[0] < _ENDLESS:
        return
    rate, unbias, scale = numbers[0], numbers[2], clipping(norm[0], numbers[3])
    step, size, square = np.uint64(cuda.blockDim.x), np.uint64(g.shape[1]), ZERO
    j = np.uint64(cuda.threadIdx.x)
    while j < size:
        square += (g[g_row, j] * scale) ** 2
        j += step
    r = _BETA2 * row[i] + (ONE - _BETA2) * block_sum(square, partial) / np.float32(g.shape[1])
    root, square = math.sqrt(r * unbias), ZERO
    j = np.uint64(cuda.threadIdx.x)
    while j < size:
        square += (g[g_row, j] * scale / (root * spread[j] + EPS)) ** 2
        j += step
    rms = math.sqrt(block_sum(square, partial) / np.float32(g.shape[1]))
    rate_i = rate / max(ONE, rms)
    j = np.uint64(cuda.threadIdx.x)
    while j < size:
        p[i, j] = p[i, j] * (ONE - rate * decay) - rate_i * g[g_row, j] * scale / (root * spread[j] + EPS)
        j += step
    if cuda.threadIdx.x == 0:
        row[i] = r


@cpu_sums()
def adafactor_cpu(p, g, row, spread, where, decay, norm, numbers):
    """As `adafactor`."""
    if norm[0] < _ENDLESS:
        rate, unbias, scale = numbers[0], numbers[2], clipping(norm[0], numbers[3])
        for g_row in numba.prange(where.size):
            i = where[g_row]
            if i < 0:
                continue
            g_i, p_i, square = g[g_row], p[i], ZERO
            for j in range(g_i.size):
                square += (g_i[j] * scale) ** 2
            row[i] = _BETA2 * row[i] + (ONE - _BETA2) * square / np.float32(g_i.size)
            root, square = math.sqrt(row[i] * unbias), ZERO
            for j in range(g_i.size):
                square += (g_i[j] * scale / (root * spread[j] + EPS)) ** 2
            rate_i = rate / max(ONE, math.sqrt(square / np.float32(g_i.size)))
            for j in range(g_i.size):
                p_i[j] = p_i[j] * (ONE - rate * decay) - rate_i * g_i[j] * scale / (root * spread[j] + EPS)


@device
def _square(g, where, scale, i, j):
    return (g[i, j] * scale) ** 2 if i < np.uint64(where.size) and where[i] >= 0 else ZERO


@gpu
def column_squares(total, g, where, norm, numbers):
    """total[j] += sum over i of the clipped g[i, j]^2. Block of threads (x, y): column x, rows y, y + blockDim.y, ...

    blockDim.y is a power of two, as the tree reduction of `add_column` needs.
    """
    shared = cuda.shared.array(MAX_BLOCK_DIM, np.float32)
    if not norm[0] < _ENDLESS:
        return
    j, i, step = np.uint64(cuda.grid(1)), np.uint64(cuda.threadIdx.y), np.uint64(cuda.blockDim.y)
    scale, added, inside = clipping(norm[0], numbers[3]), ZERO, j < np.uint64(total.size)
    while inside and i < np.uint64(where.size):
        a, b = _square(g, where, scale, i, j), _square(g, where, scale, i + step, j)
        c, d = _square(g, where, scale, i + u64(2) * step, j), _square(g, where, scale, i + u64(3) * step, j)
        added += (a + b) + (c + d)
        i += PREFETCH * step
    add_column(total, j, added, shared)


@cpu()
def column_squares_cpu(total, g, where, norm, numbers):
    """As `column_squares`."""
    if norm[0] < _ENDLESS:
        scale = clipping(norm[0], numbers[3])
        for block in numba.prange((total.size + COLUMNS - 1) // COLUMNS):
            block_slice = slice(block * COLUMNS, min(total.size, (block + 1) * COLUMNS))
            total_local = total[block_slice]
            for i in range(where.size):
                if where[i] >= 0:
                    g_local = g[i, block_slice]
                    for j in range(g_local.size):
                        total_local[j] += (g_local[j] * scale) ** 2


@gpu
def column_step(column, total, norm):
    """column = beta2 column + (1 - beta2) total, and total = 0. One thread per column."""
    j = cuda.grid(1)
    if j < column.size and norm[0] < _ENDLESS:
        column[j] = _BETA2 * column[j] + (ONE - _BETA2) * total[j]
        total[j] = ZERO


def column_step_cpu(column, total, norm):
    """As `column_step`."""
    if norm[0] < _ENDLESS:
        with np.errstate(over="ignore"):
            column[:] = _BETA2 * column + (ONE - _BETA2) * total
        total[:] = ZERO
