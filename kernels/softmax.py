"""Softmax and cross-entropy over the vocabulary, one row of logits at a time.

    z[j]   = logits[j] + bias[j]                              nats; the product that makes logits leaves the bias to whoever reads them
    loss   = log(sum_j exp(z[j])) - z[target]
    d z[j] = weight (exp(z[j]) / sum_j exp(z[j]) - [j = target])

On a GPU one block has a row. A first pass finds the largest z and the sum of exp(z - largest) together (online softmax: Milakov &
Gimelshein 2018, "Online normalizer calculation for softmax"). A second pass writes the gradient; it runs in reverse, so that the tail of
the row is still in the L2 cache. Both passes load 16 bytes at a time: rows have a multiple of `Backend.whole_rows` numbers.
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
from .memory_access import ONCE, THRICE, TWICE, read_quad

THREADS, WARPS = 256, 32  # of a block that has a row of logits: with 1,024 it takes 1.16 times as long; warps of the largest block
LOWEST, NOTHING = np.float32(np.finfo(np.float32).min), np.float32(-np.inf)
NAN = np.float32(np.nan)
NOBODY = np.int32(2**31 - 1)  # no token
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
        """exp(x) in two instructions, 2^-21 (1 + |x|) of it off at most."""
        return cuda.libdevice.fast_expf(x)

    @device
    def larger(x, y):
        """The larger of the two; the other one where one is NaN."""
        return cuda.libdevice.fmaxf(x, y)


@device
def load_four(row, bias, q, size):
    """z[4q] ... z[4q + 3] of a row with its bias, by two loads of 16 bytes; -inf from `size` on. q (uint64) may lie beyond the row."""
    j, V = QUAD * q, np.uint64(size)
    inside, left = min(j, (V - ONCE) // QUAD * QUAD), np.int32(np.int64(V) - np.int64(j))
    (a, b, c, d), (e, f, g, h) = read_quad(row, inside), read_quad(bias, inside)
    return (
        a + e if left > 0 else NOTHING,
        b + f if left > 1 else NOTHING,
        c + g if left > 2 else NOTHING,
        d + h if left > 3 else NOTHING,
    )


@device
def max_of(z, x):
    """The largest of four numbers and x, which is not NaN."""
    return larger(z[0], larger(z[1], larger(z[2], larger(z[3], x))))


@device
def place_of(x, q, z):
    """The token (int32) of the first of z[4q] ... z[4q + 3] that equals x, as one of them does."""
    return np.int32(QUAD * q) + np.int32(0 if z[0] == x else 1 if z[1] == x else 2 if z[2] == x else 3)


@device
def block_max(x, partial):
    """The largest x of the threads of a block, for each of them. partial: shared, an entry for each warp. Every thread takes part."""
    lane, warps = np.uint64(cuda.threadIdx.x) % _WARP, np.uint64(cuda.blockDim.x) // _WARP
    x = lanes_max(x)
    cuda.syncthreads()  # the last use of `partial` is over
    if lane == 0:
        partial[np.uint64(cuda.threadIdx.x) // _WARP] = x
    cuda.syncthreads()
    while lane < warps:
        x = larger(x, partial[lane])
        lane += _WARP
    return lanes_max(x)


@device
def lanes_max(x):
    """The largest x of the lanes of a warp, for each of them."""
    distance = WARP >> 1
    while distance > 0:
        x = larger(x, shuffle_xor(x, distance))
        distance >>= 1
    return x


@device
def online_softmax(row, bias, size, partial, first):
    """(largest z, the first token that has it, sum of exp(z - largest)) of a row, for every thread of its block.

    No z above LOWEST: LOWEST, NOBODY and the sum. partial [WARPS] float32, first [1] int32: shared. A thread has two quads of neighbours at
    a time; where they hold a new largest, the sum so far is scaled down to it.
    """
    step, quads = np.uint64(cuda.blockDim.x), (np.uint64(size) + THRICE) // QUAD
    top, place, total, q = LOWEST, NOBODY, ZERO, np.uint64(cuda.threadIdx.x)
    if q == 0:
        first[0] = NOBODY
    while q < quads:
        y, z = load_four(row, bias, q, size), load_four(row, bias, q + step, size)
        highest = max_of(z, max_of(y, top))
        if highest > top:  # a few times at first, then hardly ever
            total *= exp(top - highest)
            place = place_of(highest, q, y) if max_of(y, top) == highest else place_of(highest, q + step, z)
            top = highest
        total += (exp(y[0] - top) + exp(y[1] - top)) + (exp(y[2] - top) + exp(y[3] - top))
        total += (exp(z[0] - top) + exp(z[1] - top)) + (exp(z[2] - top) + exp(z[3] - top))
        q += TWICE * step
    of_row = block_max(top, partial)
    total = block_sum(total * exp(top - of_row), partial)
    if top == of_row:
        cuda.atomic.min(first, 0, place)
    cuda.syncthreads()
    return of_row, first[0], total


@device
def gradient_of(z, top, factor):
    """Four times exp(z - top) factor."""
    return exp(z[0] - top) * factor, exp(z[1] - top) * factor, exp(z[2] - top) * factor, exp(z[3] - top) * factor


@device
def store_gradient(d_logits, logits, i, bias, top, factor, target, weight, size):
    """Row i of d_logits [R, W], of any kind of float (half.py) or logits itself, = exp(z - top) factor, less the weight at the target.

    target: below 0 or from `size` on where it is none of these tokens. A thread has two quads at a time; the last ones come first.
    """
    row, d_row, step = logits[i], d_logits[i], np.uint64(cuda.blockDim.x)
    quads = np.uint64(d_row.size) // QUAD
    inside = target >= 0 and target < size
    picked = row[target] + bias[target] if inside else ZERO
    cuda.syncthreads()  # d_logits may be logits: all have read the target's before anybody writes
    tile = (quads - ONCE) // (TWICE * step) + ONCE
    while tile > 0:
        tile -= ONCE
        q = np.uint64(cuda.threadIdx.x) + tile * TWICE * step
        r = q + step
        y, z = load_four(row, bias, q, size), load_four(row, bias, r, size)
        if q < quads:
            store_four(d_row, QUAD * q, gradient_of(y, top, factor))
        if r < quads:
            store_four(d_row, QUAD * r, gradient_of(z, top, factor))
    cuda.syncthreads()  # the target's quad is there
    if inside and cuda.threadIdx.x == 0:
        store(d_logits, i, np.uint64(target), exp(picked - top) * factor - weight)


@device
def clear_row(d_row):
    """d_row = 0, by the threads of a block."""
    q = np.uint64(cuda.threadIdx.x)
    while QUAD * q < np.uint64(d_row.size):
        store_four(d_row, QUAD * q, (ZERO, ZERO, ZERO, ZERO))
        q += np.uint64(cuda.blockDim.x)


@gpu
def cross_entropy(loss, hit, d_logits, logits, bias, targets, weight, size):
    """Loss, hit and gradient of rows of logits [R, W]: `size` of them are tokens, the rest fills the rows up to whole tiles.

    loss [R] float32, nats; hit [R] uint8: 1 where the most probable token (the first of equals) is the target. d_logits [R, W]: float32,
    which may be logits itself, float16 or bfloat16 (half.py); what fills it up is 0. bias [W] float32. targets [R] int32; a negative one
    counts for nothing: loss, hit and gradient are 0. weight [1] float32: factor of the gradient (1 / number of targets for a mean). Where
    the loss of a row is not finite, all of its gradient is NaN, so that no update is made of it: a target at -inf alone would leave a
    gradient that looks sound. A block has a row.
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
    factor = weight[0] / total if is_finite(nats) else NAN
    store_gradient(d_logits, logits, i, bias, top, factor, target, weight[0], size)
    if cuda.threadIdx.x == 0:
        loss[i], hit[i] = nats, 1 if best == target else 0


@cpu_sums()
def cross_entropy_cpu(loss, hit, d_logits, logits, bias, targets, weight, size):
    """As `cross_entropy`; d_logits is float32, of its own or logits itself."""
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
        factor = weight[0] / total if abs(loss[i]) < -NOTHING else NAN
        for j in range(size):
            row[j] *= factor
        row[target] -= weight[0]
