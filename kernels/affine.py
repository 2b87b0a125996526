"""The logits of a single sequence: one row times a matrix, and a bias: out [1, V] = x [1, K] @ weight [V, K].T + bias [V].

Every number of the matrix is used once, so its time is that of reading the matrix. cuBLAS reads as fast, but wants the row in 16 bits
before and the bias added after it: three launches, and 3,051 tokens/s in one stream become 2,860 (docs/performance.md).
"""

import numba
import numpy as np
from numba import cuda

from . import half
from .jit import ZERO
from .launch import SIMULATED, WARP, device, gpu, lanes_sum
from .stream import read_once

QUAD = 4  # neighbouring numbers of a row
THREADS, BLOCKS = 2 if SIMULATED else 512, 4  # of a block; blocks of a multiprocessor: all the threads that it has room for
WARPS = THREADS // WARP
ROWS = 2 * WARPS  # that a block has at a time
_LANES, _TWICE, _WARPS, _QUAD = np.uint32(WARP), np.uint32(2 * WARP), np.uint32(WARPS), np.uint32(QUAD)
_SECOND, _THIRD, _WORD = np.uint32(2), np.uint32(3), np.uint64(32)


@device
def four_times(quad, x, x1, x2, x3):
    """The sum of four bfloat16, the first in the lowest bits of a uint64, each times a number."""
    low, high = np.uint32(quad), np.uint32(quad >> _WORD)
    return (half.lower(low) * x + half.upper(low) * x1) + (half.lower(high) * x2 + half.upper(high) * x3)


@gpu(max_registers=32)
def affine_of_one(out, x, weight, bias):
    """out [1, V or more], x [1, K] and bias [V] float32; weight [V, K / 4], four bfloat16 in each uint64.

    A warp has two rows of the weight at a time, so that each number of x serves both; 4 K bytes of dynamic shared memory hold x: the first
    of all fours, then the second of all, and so on.
    """
    held = cuda.shared.array(0, numba.float32)
    thread, quads, rows = np.uint32(cuda.threadIdx.x), np.uint32(weight.shape[1]), np.uint32(weight.shape[0])
    lane, warps = np.uint32(thread % _LANES), np.uint32(np.uint32(cuda.gridDim.x) * _WARPS)
    row = np.uint32(np.uint32(cuda.blockIdx.x) * _WARPS + np.uint32(thread // _LANES))
    i = thread
    while i < quads:
        for j in range(QUAD):
            held[np.uint64(np.uint32(np.uint32(j) * quads + i))] = x[0, np.uint64(np.uint32(_QUAD * i + np.uint32(j)))]
        i = np.uint32(i + np.uint32(cuda.blockDim.x))
    cuda.syncthreads()
    while row < rows:
        other = min(np.uint32(row + warps), np.uint32(rows - np.uint32(1)))
        one, two = weight[np.uint64(row)], weight[np.uint64(other)]
        total, total2, q = ZERO, ZERO, lane
        while q < quads:
            q1 = np.uint32(q + _LANES)
            after = q1 if q1 < quads else q
            a, c = read_once(one, q), read_once(two, q)
            b, d = read_once(one, after), read_once(two, after)
            h, h1 = held[np.uint64(q)], held[np.uint64(np.uint32(q + quads))]
            h2, h3 = held[np.uint64(np.uint32(q + _SECOND * quads))], held[np.uint64(np.uint32(q + _THIRD * quads))]
            total, total2 = total + four_times(a, h, h1, h2, h3), total2 + four_times(c, h, h1, h2, h3)
            if q1 < quads:
                h, h1 = held[np.uint64(q1)], held[np.uint64(np.uint32(q1 + quads))]
                h2, h3 = held[np.uint64(np.uint32(q1 + _SECOND * quads))], held[np.uint64(np.uint32(q1 + _THIRD * quads))]
                total, total2 = total + four_times(b, h, h1, h2, h3), total2 + four_times(d, h, h1, h2, h3)
            q = np.uint32(q + _TWICE)
        total, total2 = lanes_sum(total, WARP), lanes_sum(total2, WARP)
        if lane == 0:
            out[0, np.uint64(row)] = total + bias[np.uint64(row)]
            out[0, np.uint64(other)] = total2 + bias[np.uint64(other)]  # the last row may be had twice, and is the same
        row = np.uint32(row + _SECOND * warps)
