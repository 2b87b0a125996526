"""Embedding lookup, and the gradient of the table. Token ids must be in range; the model checks them."""

import numpy as np
from numba import cuda

from .dropout import dropout_factor
from .jit import ZERO, cpu_serial
from .launch import THREADS, WARP, ballot, gpu
from .memory_access import read

COLUMNS = 4 * WARP  # of a block, four per warp lane
_WARPS, _LANES, _COLUMNS = THREADS // WARP, np.uint64(WARP), np.uint64(COLUMNS)
_FIRST, _SECOND, _THIRD = np.uint64(WARP), np.uint64(2 * WARP), np.uint64(3 * WARP)


@gpu
def embedding_forward(x, weight, tokens):
    """x[i] = weight[tokens[i]], x [P, E], tokens [P]. One block per position i."""
    position, e = cuda.blockIdx.x, np.uint64(cuda.threadIdx.x)
    token = tokens[position]
    while e < np.uint64(x.shape[1]):
        x[position, e] = weight[token, e]
        e += np.uint64(cuda.blockDim.x)


@cpu_serial()
def embedding_forward_cpu(x, weight, tokens):
    """x[t, b] = weight[tokens[t, b]]."""
    C, B = tokens.shape
    for t in range(C):
        for b in range(B):
            x[t, b] = weight[tokens[t, b]]


@gpu
def scale_words(x, tokens, scale, rate, key):
    """x[i] *= scale dropout_factor(rate, key, tokens[i]), x [P, E], tokens [P]. One block per position i.

    The mask depends on the token id alone: every occurrence of a word is dropped together (Gal & Ghahramani 2016, "A theoretically
    grounded application of dropout in recurrent neural networks").
    """
    position, e = cuda.blockIdx.x, np.uint64(cuda.threadIdx.x)
    factor = scale * dropout_factor(rate, key[0], np.uint64(tokens[position])) if rate > ZERO else scale
    while e < np.uint64(x.shape[1]):
        x[position, e] *= factor
        e += np.uint64(cuda.blockDim.x)


@cpu_serial()
def scale_words_cpu(x, tokens, scale, rate, key):
    """As `scale_words`, of x [C, B, E], tokens [C, B]."""
    C, B = tokens.shape
    for t in range(C):
        for b in range(B):
            row, factor = x[t, b], np.float32(scale)
            if rate > ZERO:
                factor *= dropout_factor(rate, key[0], np.uint64(tokens[t, b]))
            for e in range(row.size):
                row[e] *= factor


@gpu
def embedding_backward(d_weight, dx, tokens):
    """d_weight[tokens[i]] += dx[i], dx [P, E], tokens [P], in a fixed order. Grid (P, column blocks).

    1. A block returns if its token also occurs at an earlier position; the block of the first occurrence does the work.
    2. Its warps stride over the later positions, WARP at a time. Each lane compares one token id; a ballot gives the positions that match,
       and the warp adds those rows of dx, four columns per lane.
    3. The partial sums of the warps are added in order, so the result does not depend on scheduling.
    """
    sums = cuda.shared.array((_WARPS, COLUMNS), np.float32)
    first, P, E = np.uint64(cuda.blockIdx.x), np.uint64(dx.shape[0]), np.uint64(dx.shape[1])
    thread, threads = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    token, begin = tokens[first], np.uint64(0)
    while begin < first:
        i = begin + thread
        if cuda.syncthreads_or(1 if i < first and tokens[i] == token else 0):  # a barrier with a vote, so that all threads decide alike
            return
        begin += threads

    warp, lane = thread // _LANES, thread % _LANES
    e = np.uint64(cuda.blockIdx.y) * _COLUMNS + lane
    s, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
    begin = first + warp * _LANES
    while begin < P:
        i = begin + lane
        found = np.uint32(ballot(i < P and tokens[i] == token))
        while found:
            row = dx[begin + np.uint64(cuda.ffs(found)) - np.uint64(1)]  # ffs counts bits from 1
            found = np.uint32(found & (found - np.uint32(1)))  # clears the lowest set bit
            s, s1 = s + read(row, e, E, ZERO), s1 + read(row, e + _FIRST, E, ZERO)
            s2, s3 = s2 + read(row, e + _SECOND, E, ZERO), s3 + read(row, e + _THIRD, E, ZERO)
        begin += threads
    sums[warp, lane] = s
    sums[warp, lane + _FIRST] = s1
    sums[warp, lane + _SECOND] = s2
    sums[warp, lane + _THIRD] = s3
    cuda.syncthreads()  # waits for the sums of all warps
    while thread < _COLUMNS:
        e, total = np.uint64(cuda.blockIdx.y) * _COLUMNS + thread, ZERO
        for w in range(threads // _LANES):
            total += sums[w, thread]
        if e < E:
            d_weight[token, e] += total
        thread += threads


@cpu_serial()
def embedding_backward_cpu(d_weight, dx, tokens):
    """d_weight[tokens[t, b]] += dx[t, b], in order of t and b."""
    C, B = tokens.shape
    for t in range(C):
        for b in range(B):
            row, dx_tb = d_weight[tokens[t, b]], dx[t, b]
            for e in range(row.size):
                row[e] += dx_tb[e]
