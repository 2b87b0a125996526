"""Softmax and cross-entropy over the vocabulary, one row of logits at a time.

    z[j]   = logits[j] + bias[j]                              nats; the matrix product leaves out the bias, its readers add it
    loss   = log(sum_j exp(z[j])) - z[target]
    d z[j] = weight (exp(z[j]) / sum_j exp(z[j]) - [j = target])

On a GPU, one block per row and two passes:

1. The largest z and the sum of exp(z - largest) together (online softmax: Milakov & Gimelshein 2018, "Online normalizer calculation for
   softmax").
2. The gradient, in reverse order, so that the tail of the row is still in the L2 cache.

Both passes load 16 bytes at a time, so rows have a multiple of `Backend.whole_rows` numbers.
"""

import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from . import exponential
from .half import store, store_four
from .jit import ZERO, cpu_sums
from .launch import SIMULATED, WARP, block_sum, device, gpu, shuffle_xor
from .memory_access import read_quad

u64 = np.uint64
THREADS = 256  # per row of logits; 1,024 threads take 1.16 times as long
WARPS = 32  # warps of the largest block
LOWEST, MINUS_INF = np.float32(np.finfo(np.float32).min), np.float32(-np.inf)
NAN = np.float32(np.nan)
NO_TOKEN = np.int32(2**31 - 1)
QUAD = np.uint64(4)  # neighbouring numbers of a row
_WARP = np.uint64(WARP)


@register_jitable
def is_finite(x):
    """Whether x is neither NaN nor infinite."""
    return x - x == ZERO


if SIMULATED:
    exp, larger = np.exp, np.fmax
else:

    @device
    def exp(x):
        """exp(x) in two instructions; the relative error is at most 2^-21 (1 + |x|)."""
        return cuda.libdevice.fast_expf(x)

    @device
    def larger(x, y):
        """The larger of x and y; if one is NaN, the other."""
        return cuda.libdevice.fmaxf(x, y)


@device
def load_four(row, bias, q, size):
    """z[4q] ... z[4q + 3] of a row, by two 16-byte loads (logits and bias); -inf from `size` on. q (uint64) may be beyond the row: the load
    is then clamped to the last quad."""
    j, V = QUAD * q, np.uint64(size)
    inside, left = min(j, (V - u64(1)) // QUAD * QUAD), np.int32(np.int64(V) - np.int64(j))
    (a, b, c, d), (e, f, g, h) = read_quad(row, inside), read_quad(bias, inside)
    return (
        a + e if left > 0 else MINUS_INF,
        b + f if left > 1 else MINUS_INF,
        c + g if left > 2 else MINUS_INF,
        d + h if left > 3 else MINUS_INF,
    )


@device
def max_of(z, x):
    """The largest of the four numbers of z and x; x is not NaN."""
    return larger(z[0], larger(z[1], larger(z[2], larger(z[3], x))))


@device
def token_of_largest(x, q, z):
    """The token (int32) of the first of z[4q] ... z[4q + 3] that equals x; one of them does."""
    return np.int32(QUAD * q) + np.int32(0 if z[0] == x else 1 if z[1] == x else 2 if z[2] == x else 3)


@device
def block_max(x, partial):
    """Block reduction: the largest x over the threads of a block, returned to each. partial: shared, one entry per warp. Every thread takes
    part."""
    lane, warps = np.uint64(cuda.threadIdx.x) % _WARP, np.uint64(cuda.blockDim.x) // _WARP
    x = warp_max(x)
    cuda.syncthreads()  # waits until all threads have read the previous content of `partial`
    if lane == 0:
        partial[np.uint64(cuda.threadIdx.x) // _WARP] = x
    cuda.syncthreads()  # waits for the maxima of all warps
    while lane < warps:
        x = larger(x, partial[lane])
        lane += _WARP
    return warp_max(x)


@device
def warp_max(x):
    """Warp reduction: the largest x over the lanes of a warp, returned to each."""
    distance = WARP >> 1
    while distance > 0:
        x = larger(x, shuffle_xor(x, distance))
        distance >>= 1
    return x


@device
def online_softmax(row, bias, size, partial, first):
    """(largest z, the first token that has it, sum of exp(z - largest)) of a row, returned to every thread of its block.

    If no z is above LOWEST: LOWEST, NO_TOKEN and the sum. partial [WARPS] float32, first [1] int32: shared. A thread reads two quads of
    neighbouring logits at a time. If they contain a new maximum, it rescales its sum to the new maximum.
    """
    step, quads = np.uint64(cuda.blockDim.x), (np.uint64(size) + u64(3)) // QUAD
    top, index_of_max, total, q = LOWEST, NO_TOKEN, ZERO, np.uint64(cuda.threadIdx.x)
    if q == 0:
        first[0] = NO_TOKEN
    while q < quads:
        y, z = load_four(row, bias, q, size), load_four(row, bias, q + step, size)
        highest = max_of(z, max_of(y, top))
        if highest > top:  # happens a few times at the start of a row, then rarely
            total *= exp(top - highest)
            index_of_max = token_of_largest(highest, q, y) if max_of(y, top) == highest else token_of_largest(highest, q + step, z)
            top = highest
        total += (exp(y[0] - top) + exp(y[1] - top)) + (exp(y[2] - top) + exp(y[3] - top))
        total += (exp(z[0] - top) + exp(z[1] - top)) + (exp(z[2] - top) + exp(z[3] - top))
        q += u64(2) * step
    of_row = block_max(top, partial)
    total = block_sum(total * exp(top - of_row), partial)
    if top == of_row:
        cuda.atomic.min(first, 0, index_of_max)
    cuda.syncthreads()  # waits for the atomic minimum over all threads
    return of_row, first[0], total


@device
def gradient_of(z, top, factor):
    """exp(z - top) factor, for the four numbers of z."""
    return exp(z[0] - top) * factor, exp(z[1] - top) * factor, exp(z[2] - top) * factor, exp(z[3] - top) * factor


@device
def store_gradient(d_logits, logits, i, bias, top, factor, target, weight, size):
    """Row i of d_logits [R, W] = exp(z - top) factor, minus `weight` at the target. d_logits: of any float type (half.py), or logits
    itself.

    A target below 0 or from `size` on is not among these tokens. A thread writes two quads at a time, from the end of the row to its start.
    """
    row, d_row, step = logits[i], d_logits[i], np.uint64(cuda.blockDim.x)
    quads = np.uint64(d_row.size) // QUAD
    inside = target >= 0 and target < size
    picked = row[target] + bias[target] if inside else ZERO
    cuda.syncthreads()  # d_logits may be logits: waits until all threads have read the target's logit, before any thread overwrites it
    tile = (quads - u64(1)) // (u64(2) * step) + u64(1)
    while tile > 0:
        tile -= u64(1)
        q = np.uint64(cuda.threadIdx.x) + tile * u64(2) * step
        r = q + step
        y, z = load_four(row, bias, q, size), load_four(row, bias, r, size)
        if q < quads:
            store_four(d_row, QUAD * q, gradient_of(y, top, factor))
        if r < quads:
            store_four(d_row, QUAD * r, gradient_of(z, top, factor))
    cuda.syncthreads()  # waits until the quad of the target has been written, before thread 0 corrects one number of it
    if inside and cuda.threadIdx.x == 0:
        store(d_logits, i, np.uint64(target), exp(picked - top) * factor - weight)


@device
def clear_row(d_row):
    """d_row = 0, by all threads of a block."""
    q = np.uint64(cuda.threadIdx.x)
    while QUAD * q < np.uint64(d_row.size):
        store_four(d_row, QUAD * q, (ZERO, ZERO, ZERO, ZERO))
        q += np.uint64(cuda.blockDim.x)


@gpu
def cross_entropy(loss, hit, d_logits, logits, bias, targets, weight, size):
    """Loss, hit and gradient of rows of logits [R, W]; the first `size` columns are tokens, the rest is padding. One block per row.

    loss [R] float32, nats. hit [R] uint8: 1 if the most probable token (the first of equals) is the target. d_logits [R, W]: float32 (it
    may be logits itself), float16 or bfloat16 (half.py); 0 in the padding. bias [W] float32. targets [R] int32; for a negative target,
    loss, hit and gradient are 0. weight [1], or [R] for one per row, float32: factor of the gradient (1 / number of targets
    for a mean).

    If the loss of a row is not finite, its whole gradient is NaN, so that the optimiser skips the update. Otherwise a target whose logit is
    -inf would have an infinite loss and a finite gradient.
    """
    partial = cuda.shared.array(WARPS, np.float32)
    first = cuda.shared.array(1, np.int32)
    i, target = cuda.blockIdx.x, targets[cuda.blockIdx.x]
    row = logits[i]
    if target < 0:
        clear_row(d_logits[i])
        if cuda.threadIdx.x == 0:
            loss[i], hit[i] = ZERO, 0
        return
    picked = row[target] + bias[target]
    top, best, total = online_softmax(row, bias, size, partial, first)
    nats = (top - picked) + math.log(total)
    weight_i = weight[i % weight.size]
    factor = weight_i / total if is_finite(nats) else NAN
    store_gradient(d_logits, logits, i, bias, top, factor, target, weight_i, size)
    if cuda.threadIdx.x == 0:
        loss[i], hit[i] = nats, 1 if best == target else 0


@cpu_sums()
def cross_entropy_cpu(loss, hit, d_logits, logits, bias, targets, weight, size):
    """As `cross_entropy`; d_logits is float32 and may be logits itself."""
    for i in numba.prange(loss.size):
        row, target = d_logits[i, :size], targets[i]
        d_logits[i, size:] = ZERO
        if target < 0:
            loss[i], hit[i] = ZERO, 0
            row[:] = ZERO
            continue
        for j in range(size):
            row[j] = logits[i, j] + bias[j]
        top, total, picked = row[0], ZERO, row[target]
        for j in range(size):
            top = max(top, row[j])
        best = picked == top
        for j in range(target if best else 0):
            best &= row[j] != top
        hit[i] = best
        for j in range(size):
            row[j] = exponential.exp(row[j] - top)
        for j in range(size):
            total += row[j]
        loss[i] = (top - picked) + np.log(total)
        weight_i = weight[i % weight.size]
        factor = weight_i / total if abs(loss[i]) < -MINUS_INF else NAN
        for j in range(size):
            row[j] *= factor
        row[target] -= weight_i
