"""Adafactor: Adam without a first moment, for matrices whose second moment is the product of a number per row and one per column (Shazeer &
Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost").

    r_i  = beta2 r_i + (1 - beta2) mean_j g_ij^2                        rows
    c_j  = beta2 c_j + (1 - beta2) sum_i g_ij^2                         columns; only their proportions matter
    u_ij = g_ij / sqrt(r_i / (1 - beta2^step) c_j / mean(c))
    p_ij = p_ij (1 - rate decay) - rate u_ij / max(1, rms of row i of u)

with the gradient clipped to a norm first, as in adamw.py. beta2 is AdamW's. Departures from the paper: rows come a few at a time, so c is
that of the previous update (all equal in the first one). c is clamped below at FLOOR of its mean, so that a rarely active column does not
take a huge step; for the same reason the update is limited per row, not in the whole matrix.
"""

import math

import numba
import numpy as np
from numba import cuda

from .adamw import BETA2, EPS, clipping
from .jit import ONE, ZERO, cpu, cpu_sums
from .launch import block_sum, device, gpu
from .memory_access import AHEAD, THRICE, TWICE
from .reduce import MOST, add_column

FLOOR = np.float32(0.01)
COLUMNS = 64  # that a CPU task owns
_WARPS, _BETA2, _ENDLESS = 32, np.float32(BETA2), np.float32(np.inf)


@gpu
def spread_columns(spread, column):
    """spread [C] float32 = sqrt(c_j / mean(c)), at least sqrt(FLOOR), of column [C]; 1 where all of it is 0. One block."""
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
    """Update the rows where[i] of p [R, C] and row [R] from their gradients g[i], g [P, C]. One block per row of g."""
    partial = cuda.shared.array(_WARPS, np.float32)
    own, i = cuda.blockIdx.x, where[cuda.blockIdx.x]
    if i < 0 or not norm[0] < _ENDLESS:
        return
    rate, unbias, scale = numbers[0], numbers[2], clipping(norm[0], numbers[3])
    step, size, square = np.uint64(cuda.blockDim.x), np.uint64(g.shape[1]), ZERO
    j = np.uint64(cuda.threadIdx.x)
    while j < size:
        square += (g[own, j] * scale) ** 2
        j += step
    r = _BETA2 * row[i] + (ONE - _BETA2) * block_sum(square, partial) / np.float32(g.shape[1])
    root, square = math.sqrt(r * unbias), ZERO
    j = np.uint64(cuda.threadIdx.x)
    while j < size:
        square += (g[own, j] * scale / (root * spread[j] + EPS)) ** 2
        j += step
    rms = math.sqrt(block_sum(square, partial) / np.float32(g.shape[1]))
    rate_i = rate / max(ONE, rms)
    j = np.uint64(cuda.threadIdx.x)
    while j < size:
        p[i, j] = p[i, j] * (ONE - rate * decay) - rate_i * g[own, j] * scale / (root * spread[j] + EPS)
        j += step
    if cuda.threadIdx.x == 0:
        row[i] = r


@cpu_sums()
def adafactor_cpu(p, g, row, spread, where, decay, norm, numbers):
    """As `adafactor`."""
    if norm[0] < _ENDLESS:
        rate, unbias, scale = numbers[0], numbers[2], clipping(norm[0], numbers[3])
        for own in numba.prange(where.size):
            i = where[own]
            if i < 0:
                continue
            g_own, p_i, square = g[own], p[i], ZERO
            for j in range(g_own.size):
                square += (g_own[j] * scale) ** 2
            row[i] = _BETA2 * row[i] + (ONE - _BETA2) * square / np.float32(g_own.size)
            root, square = math.sqrt(row[i] * unbias), ZERO
            for j in range(g_own.size):
                square += (g_own[j] * scale / (root * spread[j] + EPS)) ** 2
            rate_i = rate / max(ONE, math.sqrt(square / np.float32(g_own.size)))
            for j in range(g_own.size):
                p_i[j] = p_i[j] * (ONE - rate * decay) - rate_i * g_own[j] * scale / (root * spread[j] + EPS)


@device
def _square(g, where, scale, i, j):
    return (g[i, j] * scale) ** 2 if i < np.uint64(where.size) and where[i] >= 0 else ZERO


@gpu
def column_squares(total, g, where, norm, numbers):
    """total[j] += sum of the clipped g[i, j]^2 over i. Threads (x, y) of a block: column x, rows y, y + blockDim.y, ...

    blockDim.y is a power of two.
    """
    shared = cuda.shared.array(MOST, np.float32)
    if not norm[0] < _ENDLESS:
        return
    j, i, step = np.uint64(cuda.grid(1)), np.uint64(cuda.threadIdx.y), np.uint64(cuda.blockDim.y)
    scale, added, inside = clipping(norm[0], numbers[3]), ZERO, j < np.uint64(total.size)
    while inside and i < np.uint64(where.size):
        a, b = _square(g, where, scale, i, j), _square(g, where, scale, i + step, j)
        c, d = _square(g, where, scale, i + TWICE * step, j), _square(g, where, scale, i + THRICE * step, j)
        added += (a + b) + (c + d)
        i += AHEAD * step
    add_column(total, j, added, shared)


@cpu()
def column_squares_cpu(total, g, where, norm, numbers):
    """As `column_squares`."""
    if norm[0] < _ENDLESS:
        scale = clipping(norm[0], numbers[3])
        for block in numba.prange((total.size + COLUMNS - 1) // COLUMNS):
            own = slice(block * COLUMNS, min(total.size, (block + 1) * COLUMNS))
            total_own = total[own]
            for i in range(where.size):
                if where[i] >= 0:
                    g_own = g[i, own]
                    for j in range(g_own.size):
                        total_own[j] += (g_own[j] * scale) ** 2


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
