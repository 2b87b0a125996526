"""16-bit floats in memory; arithmetic is always float32.

Numba supports float16 but not bfloat16. A bfloat16 is the upper half of a float32; kernels take an array of bfloat16 as a view of uint16.
"""

import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .launch import device, gpu
from .memory_access import read_quad, write_quad

BFLOAT16 = np.dtype(np.uint16)  # dtype of the bits of a bfloat16
_BF16_BITS, _LESS, _ODD, _NAN = np.uint32(16), np.uint32(0x7FFF), np.uint32(1), np.uint16(0x7FC0)
_UPPER, _QUAD = np.uint32(0xFFFF0000), np.uint64(4)


@register_jitable
def to_bfloat16(x):
    """The bits of x (float32) rounded to bfloat16, ties to even."""
    if x != x:
        return _NAN
    bits = np.float32(x).view(np.uint32)
    return np.uint16(np.uint32(bits + _LESS + ((bits >> _BF16_BITS) & _ODD)) >> _BF16_BITS)


@register_jitable
def from_bfloat16(bits):
    return lower(np.uint32(bits))


@register_jitable
def lower(word):
    """The bfloat16 in the lower half of a word (uint32), as float32."""
    return np.uint32(word << _BF16_BITS).view(np.float32)


@register_jitable
def upper(word):
    """The bfloat16 in the upper half of a word (uint32), as float32."""
    return np.uint32(word & _UPPER).view(np.float32)


@register_jitable
def load(x, i, j):
    """x[i, j] as float32, x [rows, columns] of any float type."""
    return from_bfloat16(x[i, j]) if x.dtype == BFLOAT16 else np.float32(x[i, j])


@register_jitable
def store(x, i, j, value):
    """x[i, j] = value (float32), rounded to the float type of x."""
    if x.dtype == BFLOAT16:
        x[i, j] = to_bfloat16(value)
    else:
        x[i, j] = value


@device
def store_four(row, j, values):
    """row[j : j + 4] = four float32, rounded to the float type of row; j uint64, a multiple of 4. One store of 16 or 8 bytes."""
    a, b, c, d = values
    if row.dtype == BFLOAT16:
        write_quad(row, j, to_bfloat16(a), to_bfloat16(b), to_bfloat16(c), to_bfloat16(d))
    else:
        write_quad(row, j, a, b, c, d)


@gpu
def assign(out, x):
    """out [1, K] of any float type = x [K] float32, rounded. Both are aligned to 16 bytes. Grid-stride loop, four numbers per thread."""
    q, step, size = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1)), np.uint64(x.size)
    n = size // _QUAD * _QUAD + q
    while q < size // _QUAD:
        store_four(out[0], q * _QUAD, read_quad(x, q * _QUAD))
        q += step
    while n < size:
        store(out, 0, n, x[n])
        n += step
