"""Eligibility traces of synapses, for e-prop (Bellec et al. 2020, Nature Communications 11:3625), a chunk of tokens at a time.

A synapse with weight w, from source i with delay D to target j, has a trace [K] in each sequence: what its past inputs still do to the
target's state. With the arrays of population_eligibility.py, for the K entries of the vector h of target j:

    gradient of w += sum over k  h[k] trace[k]                                             what the chunk asks of the tokens before it
    trace[k] <- sum over l  transition[l, k] trace[l]  +  sum over tokens t  x[t - D, i] to_current[k, t]

The second sum is a product of [sources, C] and [C, targets], so a chunk reads and writes a trace once.

Bundles [size, size] as in bundles.py: bundle j of a projection has the sources of block[j] and the targets of tile j // per_tile. Arrays:
traces [K, B, bundles size size], gradient [bundles size size], x a ring [words, rows, B, WORD] (population.Axon), to_current [K, C, B, N],
transition [K, K, B, N], h [K, B, N]. Sums have a fixed order.
"""

import functools

import numba
import numpy as np
from numba import cuda

from .half import load
from .jit import ZERO, cpu
from .launch import SIMULATED, gpu
from .vector import WORD

THREADS = 16 if SIMULATED else 256
TOKENS = 16  # whose sources are in shared memory together


_ALL_BITS, _ONE = np.uint64(2**64 - 1), np.uint64(1)


def threads_of(size: int) -> int:
    """Block size of `eligibility` for bundles [size, size]."""
    return max(THREADS, size)


@functools.cache
def make_eligibility(size: int, K: int):
    """A specialised `eligibility`. size: of a bundle; K: entries of a trace."""
    BLOCK_DIM = threads_of(size)
    ROWS = size * size // BLOCK_DIM  # synapses of a thread: all with the same target
    STRIDE = BLOCK_DIM // size  # sources between two of them

    @gpu
    def eligibility(traces, gradient, x, start, first, block, delay, per_tile, to_current, transition, h):
        """Block j: bundle j, one sequence after the other. x [words, rows B, WORD]; to_current [K, C, B, N], transition [K, K, B, N],
        h [K, B, N]. A thread computes ROWS synapses; neighbouring threads have neighbouring targets (coalesced)."""
        xs = cuda.shared.array((TOKENS, size), np.float32)
        trace, grad = cuda.local.array((K, ROWS), np.float32), cuda.local.array(ROWS, np.float32)
        moved, later = cuda.local.array((K, K), np.float32), cuda.local.array(K, np.float32)
        thread, j = cuda.threadIdx.x, cuda.blockIdx.x
        C, B, N = to_current.shape[1:]
        target, source = thread % size, thread // size
        n, m = j // per_tile * size + target, block[j] * size
        word, bit, rows = m // WORD, m % WORD, x.shape[1] // B
        w = j * size * size + thread
        inside, n = n < N, min(n, N - 1)  # the last tile may extend beyond the targets: those have no trace
        for s in range(ROWS):
            grad[s] = ZERO
        for b in range(B):
            for k in range(K):
                for s in range(ROWS):
                    trace[k, s] = traces[k, b, w + s * BLOCK_DIM]
                    grad[s] += h[k, b, n] * trace[k, s]
            for k in range(K):
                for other in range(K):
                    moved[other, k] = transition[other, k, b, n]
            for s in range(ROWS):
                for k in range(K):
                    later[k] = ZERO
                    for other in range(K):
                        later[k] += moved[other, k] * trace[other, s]
                for k in range(K):
                    trace[k, s] = later[k]
            for begin in range(0, C, TOKENS):
                cuda.syncthreads()  # waits until all threads have read the tokens before
                for i in range(thread, TOKENS * size, BLOCK_DIM):
                    t, value = begin + i // size, ZERO
                    if t < C:
                        row = (start[0] + first + t - delay[j] + rows) % rows
                        value = load(x[word], row * B + b, bit + i % size)
                    xs[i // size, i % size] = value
                cuda.syncthreads()  # waits for the tokens
                for t in range(min(TOKENS, C - begin)):
                    for k in range(K):
                        p = to_current[k, begin + t, b, n]
                        for s in range(ROWS):
                            trace[k, s] += xs[t, source + s * STRIDE] * p
            if inside:
                for k in range(K):
                    for s in range(ROWS):
                        traces[k, b, w + s * BLOCK_DIM] = trace[k, s]
        if inside:
            for s in range(ROWS):
                gradient[w + s * BLOCK_DIM] += grad[s]

    return eligibility


@cpu()
def eligibility_cpu(traces, gradient, x, fired, start, first, block, delay, per_tile, size, to_current, transition, h):
    """As `eligibility`, event-driven: a source that did not fire adds nothing. A task computes one bundle."""
    K, C, B, N = to_current.shape
    for j in numba.prange(block.size):
        n, m, w = j // per_tile * size, block[j] * size, j * size * size
        targets, word, bit, row = slice(n, min(N, n + size)), m // WORD, m % WORD, start[0] + first - delay[j]
        width, later = min(N, n + size) - n, np.empty((K, size), np.float32)
        for b in range(B):
            for s in range(size):
                begin = w + s * size
                grad = gradient[begin : begin + width]
                later[:] = ZERO
                for k in range(K):
                    trace, h_k = traces[k, b, begin : begin + width], h[k, b, targets]
                    for i in range(width):
                        grad[i] += h_k[i] * trace[i]
                    for other in range(K):
                        total, factor = later[other], transition[k, other, b, targets]
                        for i in range(width):
                            total[i] += factor[i] * trace[i]
                for k in range(K):
                    traces[k, b, begin : begin + width] = later[k, :width]
            for t in range(C):
                events = (fired[word, row + t, b] >> np.uint64(bit)) & (_ALL_BITS >> np.uint64(WORD - size))
                for s in range(size):
                    if (events >> np.uint64(s)) & _ONE:
                        value, begin = x[word, row + t, b, bit + s], w + s * size
                        for k in range(K):
                            trace, p = traces[k, b, begin : begin + width], to_current[k, t, b, targets]
                            for i in range(width):
                                trace[i] += value * p[i]
