"""Dropout (Srivastava et al. 2014, JMLR 15:1929): out = scale x keep / (1 - rate).

The mask is a function of key and index only (rng.py), so the backward pass applies the same kernel and draws the same mask.

offset (`mask_offset`): where the mask begins. A process of several trains some of the sequences of a batch, and draws for each value the
number that one process draws: it skips the numbers of the other sequences after every token.
"""

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .half import store
from .jit import ONE, ZERO, cpu
from .launch import gpu
from .rng import uniform

_FIRST_ROW, _ZERO_NUMBERS = np.uint64(0), np.uint64(0)


def mask_offset(first: int, row: int = 1, elsewhere: int = 0) -> tuple[np.uint64, np.uint64, np.uint64]:
    """The offset of a mask whose first number is at index `first`. row: numbers of a token in this process; elsewhere: in all others."""
    return np.uint64(first), np.uint64(row), np.uint64(elsewhere)


@register_jitable
def mask_index(offset, i):
    """The index in the mask of the i-th number (uint64) of an array that begins at `offset`."""
    first, row, elsewhere = offset
    return first + i + (i // row) * elsewhere if elsewhere > _ZERO_NUMBERS else first + i


@register_jitable
def mask_index_32(offset, i, row):
    """As `mask_index`, with 32-bit arithmetic from the offset on, which wraps around. i, row: uint32."""
    first, _, elsewhere = offset
    return first + np.uint64(np.uint32(i + i // row * np.uint32(elsewhere)) if elsewhere > _ZERO_NUMBERS else i)


@register_jitable
def mask_index_alone(offset, i, row):
    """As `mask_index_32`, in a process that trains alone."""
    return offset[0] + np.uint64(i)


@register_jitable
def dropout_factor(rate, key, index):
    """The factor for the value at `index`: 0 if dropped, else 1 / (1 - rate)."""
    return ONE / (ONE - rate) if uniform(key, index) >= rate else ZERO


@gpu
def scaled_dropout(out, x, scale, rate, key, offset):
    """out = scale x dropout_factor for flat arrays: x [K], out [1, K] of any float type (half.py), or x itself. Grid-stride loop over K.

    A thread loads its next value before it draws for the current one, so the latency of the load overlaps with the arithmetic.
    """
    i, stride, size, key_0 = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1)), np.uint64(x.size), key[0]
    if i >= size:
        return
    x_next = x[i]
    while i < size:
        x_i = x_next
        if i + stride < size:
            x_next = x[i + stride]
        factor = scale * dropout_factor(rate, key_0, mask_index(offset, i)) if rate > ZERO else scale
        store(out, _FIRST_ROW, i, x_i * factor)
        i += stride


@cpu()
def scaled_dropout_cpu(out, x, scale, rate, key, offset):
    """As `scaled_dropout`, of out and x [R, N] float32."""
    scale_32 = np.float32(scale)
    for i in numba.prange(x.shape[0]):
        index = mask_index(offset, np.uint64(i) * np.uint64(x.shape[1]))
        for j in range(x.shape[1]):
            factor = scale_32 * dropout_factor(rate, key[0], index + np.uint64(j)) if rate > ZERO else scale_32
            out[i, j] = x[i, j] * factor
