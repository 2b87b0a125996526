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


_ONE = np.uint64(1)


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
    """As `eligibility`, event-driven: a source that did not fire adds nothing. A task computes one bundle, one sequence after the other;
    what it reads of its targets is copied, padded with zeros, so that it stays in the cache."""
    K, C, B, N = to_current.shape
    for j in numba.prange(block.size):
        n, m, w = j // per_tile * size, block[j] * size, j * size * size
        width, word, bit, row = min(size, N - n), m // WORD, m % WORD, start[0] + first - delay[j]
        before, after = np.empty((K, size), np.float32), np.empty((K, size), np.float32)
        asked, moved, added = np.zeros((K, size), np.float32), np.zeros((K, K, size), np.float32), np.zeros((K, C, size), np.float32)
        events = np.empty(C, np.uint64)
        for b in range(B):
            for k in range(K):
                asked[k, :width] = h[k, b, n : n + width]
                for other in range(K):
                    moved[other, k, :width] = transition[other, k, b, n : n + width]
                for t in range(C):
                    added[k, t, :width] = to_current[k, t, b, n : n + width]
            for t in range(C):
                events[t] = fired[word, row + t, b] >> np.uint64(bit)
            for s in range(size):
                grad = gradient[w + s * size : w + (s + 1) * size]
                for k in range(K):
                    trace = traces[k, b, w + s * size : w + (s + 1) * size]
                    for i in range(size):
                        before[k, i] = trace[i]
                for k in range(K):
                    for i in range(size):
                        grad[i] += asked[k, i] * before[k, i]
                    for i in range(size):
                        after[k, i] = moved[0, k, i] * before[0, i]
                    for other in range(1, K):
                        for i in range(size):
                            after[k, i] += moved[other, k, i] * before[other, i]
                for t in range(C):
                    if (events[t] >> np.uint64(s)) & _ONE:
                        value = x[word, row + t, b, bit + s]
                        for k in range(K):
                            for i in range(size):
                                after[k, i] += value * added[k, t, i]
                for k in range(K):
                    trace = traces[k, b, w + s * size : w + (s + 1) * size]
                    for i in range(size):
                        trace[i] = after[k, i]
