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
TOKENS = 16  # that are in shared memory together
BLOCKS_PER_SM = 16  # of a launch, at least, for each multiprocessor: sequences are divided among blocks until there are as many


_ONE = np.uint64(1)
u32 = np.uint32


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
    def eligibility(traces, partial, x, start, first, block, delay, per_tile, to_current, transition, h):
        """Block (j, i): bundle j, the sequences of group i one after the other. partial [groups, bundles size size]: overwritten with the
        groups' parts of the gradient. x [words, rows B, WORD]; to_current [K, C, B, N], transition [K, K, B, N], h [K, B, N].

        A thread computes ROWS synapses; neighbouring threads have neighbouring targets (coalesced). A chunk adds a product to the traces;
        its factors are in shared memory: x of the sources, to_current of the targets.
        """
        xs = cuda.shared.array((TOKENS, size), np.float32)
        ps = cuda.shared.array((K, TOKENS, size), np.float32)
        trace, grad = cuda.local.array((K, ROWS), np.float32), cuda.local.array(ROWS, np.float32)
        moved, later, values = cuda.local.array((K, K), np.float32), cuda.local.array(K, np.float32), cuda.local.array(ROWS, np.float32)
        thread, j = u32(cuda.threadIdx.x), np.int64(cuda.blockIdx.x)
        C, B, N = to_current.shape[1:]
        target, source = u32(thread % u32(size)), u32(thread // u32(size))
        tile, m = np.uint64(j // per_tile * size), block[j] * size
        n, word, bit, ring_rows = tile + np.uint64(target), np.uint64(m // WORD), np.uint64(m % WORD), x.shape[1] // B
        w, row_0 = np.uint64(j * size * size + thread), start[0] + first - delay[j] + ring_rows  # row_0 >= 0
        targets = np.uint64(N)
        inside, n = n < targets, min(n, targets - _ONE)  # the last tile may extend beyond the targets: those have no trace
        for s in range(ROWS):
            grad[s] = ZERO
        group = (B + cuda.gridDim.y - 1) // cuda.gridDim.y  # sequences
        for b in range(cuda.blockIdx.y * group, min(B, (cuda.blockIdx.y + 1) * group)):
            for k in range(K):
                for s in range(ROWS):
                    trace[k, s] = traces[k, b, w + np.uint64(s * BLOCK_DIM)]
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
                i = thread
                while i < u32(TOKENS * size):  # zeros after the last token, and beyond the last target
                    t, column, value = begin + np.int64(i // u32(size)), np.uint64(i % u32(size)), ZERO
                    if t < C:
                        value = load(x[word], np.uint64(u32(row_0 + t) % u32(ring_rows) * B + b), bit + column)
                    xs[i // u32(size), i % u32(size)] = value
                    for k in range(K):
                        ps[k, i // u32(size), i % u32(size)] = (
                            to_current[k, t, b, tile + column] if t < C and tile + column < targets else ZERO
                        )
                    i = u32(i + u32(BLOCK_DIM))
                cuda.syncthreads()  # waits for the tokens
                for t in range(TOKENS):
                    for s in range(ROWS):
                        values[s] = xs[u32(t), u32(source + u32(s * STRIDE))]
                    for k in range(K):
                        p = ps[u32(k), u32(t), target]
                        for s in range(ROWS):
                            trace[k, s] += values[s] * p
            if inside:
                for k in range(K):
                    for s in range(ROWS):
                        traces[k, b, w + np.uint64(s * BLOCK_DIM)] = trace[k, s]
        for s in range(ROWS):
            partial[cuda.blockIdx.y, w + np.uint64(s * BLOCK_DIM)] = grad[s] if inside else ZERO

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
