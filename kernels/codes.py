"""Weights stored as codes: integers of 8 or 4 bits with a float32 scale per row; products that read them as they are stored.

    weight[n, k] = scale[n] code[n, k]

Codes of 8 bits are int8. A uint8 holds two codes of 4 bits, as code + 8, the first in the lower half. A row may end with padding, which is
not read as a weight. Arithmetic is float32.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from . import vector
from .half import load, store
from .jit import ZERO, cpu, cpu_serial, cpu_sums
from .launch import WARP, gpu, warp_sum
from .vector import WORD

DTYPE = {8: "int8", 4: "uint8"}  # bits of a code -> dtype of an array of codes
MAX_COLUMNS = 16  # columns of a product up to which it reads codes; more of them share the cost of expanding the codes
ROWS_PER_WARP, WARPS = 4, 4  # of `quantized_product`: rows that share the loads of x; warps of a block
_PACKED, _ONE, _FOUR, _FIFTEEN, _EIGHT = np.dtype(np.uint8), np.uint64(1), np.uint32(4), np.uint32(15), np.float32(8)
_LANES, _ROWS = np.uint64(WARP), np.uint64(ROWS_PER_WARP)
u32 = np.uint32
_dot = vector.make_dot(WORD)


class Codes(NamedTuple):
    """codes [R, columns] int8 or uint8, scale [R] float32."""

    codes: object
    scale: object


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [R, K] int8, NumPy, as they are stored: [R, K bits / 8, rounded up] of `DTYPE`."""
    if bits == 8:
        return codes
    halves = (np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))) + 8).astype(np.uint8)
    return halves[:, 0::2] | halves[:, 1::2] << 4


def unpack(stored: np.ndarray) -> np.ndarray:
    """Inverse of `pack`, int8; of 4 bits an even number of codes per row."""
    if stored.dtype == np.int8:
        return stored
    return np.stack([stored & 15, stored >> 4], axis=2).reshape(len(stored), -1).astype(np.int8) - np.int8(8)


@register_jitable
def code(codes, row, k):
    """Code k (uint64) of a row, as float32."""
    if codes.dtype == _PACKED:
        both = np.uint32(codes[row, k >> _ONE])
        return np.float32((both >> np.uint32(_FOUR * np.uint32(k & _ONE))) & _FIFTEEN) - _EIGHT
    return np.float32(codes[row, k])


@cpu_serial()
def code_rows_cpu(x, codes, tokens, scale):
    """x[t, b] = row tokens[t, b] of the weights."""
    C, B = tokens.shape
    for t in range(C):
        for b in range(B):
            row = tokens[t, b]
            for e in range(x.shape[2]):
                x[t, b, e] = scale[row] * code(codes, row, np.uint64(e))


@gpu
def code_rows(x, codes, tokens, scale):
    """x[i] = row tokens[i] of the weights, x [P, E], tokens [P]. One block per position i."""
    position, e = cuda.blockIdx.x, np.uint64(cuda.threadIdx.x)
    row = tokens[position]
    while e < np.uint64(x.shape[1]):
        x[position, e] = scale[row] * code(codes, row, e)
        e += np.uint64(cuda.blockDim.x)


@cpu()
def expand_cpu(out, codes, scale):
    """out [R, K] float32 = the weights."""
    for n in numba.prange(out.shape[0]):
        for k in range(out.shape[1]):
            out[n, k] = scale[n] * code(codes, n, np.uint64(k))


@gpu
def expand(out, codes, scale):
    """out [R, K], of any float type (half.py) = the weights. One block per row."""
    row, k = np.uint64(cuda.blockIdx.x), np.uint64(cuda.threadIdx.x)
    while k < np.uint64(out.shape[1]):
        store(out, row, k, scale[row] * code(codes, row, k))
        k += np.uint64(cuda.blockDim.x)


@cpu_sums()
def quantized_product_cpu(out, x, codes, scale):
    """out [M, R] = x [M, K] times the transposed weights, contiguous. A task computes the sums of one row of codes."""
    M, K = x.shape
    whole, per_byte = K // WORD, 2 if codes.dtype == _PACKED else 1
    for n in numba.prange(scale.size):
        for m in range(M):
            total = ZERO
            if whole > 0:
                total = _dot(x, np.uint64(m * K), codes, np.uint64(n * codes.shape[1] * per_byte), np.uint64(whole))
            for k in range(whole * WORD, K):
                total += x[m, k] * code(codes, n, np.uint64(k))
            out[m, n] = scale[n] * total


@functools.cache
def make_quantized_product(bits: int, columns: int):
    """`quantized_product` for codes of `bits` bits and up to `columns` columns of x per block."""
    CODES = 32 // bits  # of a word
    PER_WORD, MASK, BITS, TOP = np.uint64(CODES), u32(2**bits - 1), u32(bits), np.float32(2 ** (bits - 1))
    FLIPPED = u32(128 if bits == 8 else 0)  # the upper bit of an int8 changed makes code + 128 of it

    @gpu
    def quantized_product(out, x, words, scale):
        """out [M, R] = x [M, K] times the transposed weights. words: the codes as uint32, flat; x: of any float type (half.py).

        A warp computes ROWS_PER_WARP neighbouring rows for the columns of block (i, j). Its lanes stride over the rows, a word of codes at
        a time; each lane loads one word of all rows, then every x once for all of them. The partial sums of the lanes are added in a fixed
        order.
        """
        row_words = cuda.local.array(ROWS_PER_WARP, np.uint32)
        acc = cuda.local.array((ROWS_PER_WARP, columns), np.float32)
        thread = np.uint64(cuda.blockIdx.x) * np.uint64(cuda.blockDim.x) + np.uint64(cuda.threadIdx.x)
        word, row, first = thread % _LANES, thread // _LANES * _ROWS, np.int64(cuda.blockIdx.y) * columns
        R, K, M = np.uint64(scale.size), np.uint64(x.shape[1]), x.shape[0]
        width = np.uint64(words.size) // R  # words of a row, those of its padding included
        if row >= R:  # whole warps
            return
        for r in range(ROWS_PER_WARP):
            for m in range(columns):
                acc[r, m] = ZERO
        while word * PER_WORD < K:
            for r in range(ROWS_PER_WARP):  # after the last row that row again, which is not stored
                row_words[r] = words[min(row + np.uint64(r), R - _ONE) * width + word]
            for j in range(CODES):
                k = word * PER_WORD + np.uint64(j)
                for m in range(columns):
                    value = load(x, first + m, k) if k < K and first + m < M else ZERO
                    for r in range(ROWS_PER_WARP):
                        part = u32(u32(u32(row_words[r] >> u32(BITS * u32(j))) & MASK) ^ FLIPPED)
                        acc[r, m] += value * (np.float32(part) - TOP)
            word += _LANES
        for r in range(ROWS_PER_WARP):
            for m in range(columns):
                total = warp_sum(acc[r, m], WARP)
                if thread % _LANES == 0 and row + np.uint64(r) < R and first + m < M:
                    out[first + m, row + np.uint64(r)] = scale[row + np.uint64(r)] * total

    return quantized_product
