"""The product of one row with a matrix, for a token of a single sequence: out [1, V] = x [1, K] @ weight [V, K].T.

Every number of the matrix is used once, so its time is that of reading the matrix. cuBLAS, made for many rows, reads at 86 % of the rate
of a copy (docs/performance.md); here a warp has a row of the matrix at a time and four times eight bytes for each lane on their way, and
they push nothing out of the cache that the next token needs.
"""

import numba
import numpy as np
from numba import cuda

from . import half
from .jit import ZERO
from .launch import THREADS, WARP, device, gpu, lanes_sum
from .stream import AHEAD, THRICE, TWICE, read_once

QUAD = 4  # neighbouring numbers of a row
QUADS = np.dtype(np.uint64)  # four bfloat16, read as one number
WARPS = THREADS // WARP if WARP > 1 else 2  # of a block
_LANES, _WARPS, _QUAD = np.uint64(WARP), np.uint64(WARPS), np.uint64(QUAD)
_LOWER, _HALF_WORD, _WORD, _UPPER = np.uint64(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)


@device
def four_times(quad, x, q, quads):
    """The sum of four bfloat16 of a row times their x. x: shared, the first of all fours, then the second of all, and so on."""
    first, second = half.from_bfloat16(quad & _LOWER), half.from_bfloat16((quad >> _HALF_WORD) & _LOWER)
    third, fourth = half.from_bfloat16((quad >> _WORD) & _LOWER), half.from_bfloat16(quad >> _UPPER)
    return (first * x[q] + second * x[q + quads]) + (third * x[q + TWICE * quads] + fourth * x[q + THRICE * quads])


@gpu
def product_of_one(out, x, weight):
    """out [1, V or more] float32 = x [1, K] (bfloat16 as bits) @ the transposed weight [V, K / 4], four bfloat16 in each uint64.

    A warp per row of the weight, in turns; 4 K bytes of dynamic shared memory hold x.
    """
    held = cuda.shared.array(0, numba.float32)
    thread, warp = np.uint64(cuda.threadIdx.x), np.uint64(cuda.threadIdx.x) // _LANES
    quads, lane = np.uint64(weight.shape[1]), np.uint64(cuda.threadIdx.x) % _LANES
    i = thread
    while i < quads:
        for j in range(QUAD):
            held[np.uint64(j) * quads + i] = half.load(x, 0, _QUAD * i + np.uint64(j))
        i += np.uint64(cuda.blockDim.x)
    cuda.syncthreads()
    row = np.uint64(cuda.blockIdx.x) * _WARPS + warp
    while row < np.uint64(weight.shape[0]):
        total, q = ZERO, lane
        while q + THRICE * _LANES < quads:
            a, b = read_once(weight, row, q), read_once(weight, row, q + _LANES)
            c, d = read_once(weight, row, q + TWICE * _LANES), read_once(weight, row, q + THRICE * _LANES)
            total += four_times(a, held, q, quads) + four_times(b, held, q + _LANES, quads)
            total += four_times(c, held, q + TWICE * _LANES, quads) + four_times(d, held, q + THRICE * _LANES, quads)
            q += AHEAD * _LANES
        while q < quads:
            total += four_times(read_once(weight, row, q), held, q, quads)
            q += _LANES
        total = lanes_sum(total, WARP)
        if lane == 0:
            out[0, row] = total
        row += np.uint64(cuda.gridDim.x) * _WARPS
