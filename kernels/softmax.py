"""Softmax and cross-entropy over the vocabulary, one row of logits [V] float32 at a time."""

import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .half import store
from .jit import ONE, ZERO, cpu_sums
from .launch import WARP, block_sum, device, gpu, shuffle_xor
from .stream import AHEAD, ONCE, THRICE, TWICE, read

THREADS, WARPS = 512, 32  # of a block, at most
LOWEST, NOTHING = np.float32(np.finfo(np.float32).min), np.float32(-np.inf)
NAN = np.float32(np.nan)


@register_jitable
def softmax_row(p, logits, scale):
    """p = softmax(scale logits), [V]; p may be logits. Returns log of the sum of exponentials of scale logits."""
    top = logits[0]
    for i in range(logits.size):
        top = max(top, logits[i])
    for i in range(logits.size):
        p[i] = np.exp((logits[i] - top) * scale)
    total = ZERO
    for i in range(logits.size):
        total += p[i]
    for i in range(logits.size):
        p[i] /= total
    return top * scale + np.log(total)


@register_jitable
def is_finite(x):
    """Whether x is neither NaN nor infinite."""
    return x - x == ZERO


@device
def block_max(x, partial):
    """Largest x of the threads of a block, for each of them. partial: shared, an entry for each warp. Every thread takes part."""
    distance = WARP >> 1
    while distance > 0:
        x = max(x, shuffle_xor(x, distance))
        distance >>= 1
    cuda.syncthreads()  # whoever still reads the last one
    if cuda.threadIdx.x % WARP == 0:
        partial[cuda.threadIdx.x // WARP] = x
    cuda.syncthreads()
    for warp in range((cuda.blockDim.x + WARP - 1) // WARP):
        x = max(x, partial[warp])
    return x


@device
def larger(x, y):
    """The larger of the two, y if x is NaN."""
    return x if x > y else y


@device
def beats(x, j, picked, target):
    """Whether x at place j comes before `picked` at place `target`: the larger first, of equals the first."""
    return x > picked or (x == picked and j < target)


@gpu
def cross_entropy(loss, hit, d_logits, logits, targets, weight, size):
    """Loss, hit and gradient of rows of logits, [R, V]; the rows of an array may be longer than `size`, which is V.

    loss [R] float32: nats of each row; hit [R] uint8: 1 where the most probable token (the first of equals) is the target. d_logits [R, V]:
    float32, which may be logits itself, float16 or bfloat16 (half.py). targets [R] int32; a negative one counts for nothing: loss, hit and
    gradient are 0. weight [1] float32: factor of the gradient (1 / number of targets for a mean). Where the loss of a row is not finite,
    its gradient is NaN, all of it, so that no update is made of it: a target at -inf alone would leave a gradient that looks sound.

    A block has a row, which it reads twice, the second time backwards: what was read last is still at hand.
    """
    partial = cuda.shared.array(WARPS, np.float32)
    i, target = cuda.blockIdx.x, targets[cuda.blockIdx.x]
    row, V = logits[i], np.uint64(size)
    thread, step = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    if target < 0:
        for j in range(thread, V, step):
            store(d_logits, i, j, ZERO)
        if thread == 0:
            loss[i], hit[i] = ZERO, 0
        return
    place, picked = np.uint64(target), row[target]
    top, total, beaten = LOWEST, ZERO, 0
    j = thread
    while j < V:
        j1, j2, j3 = j + step, j + TWICE * step, j + THRICE * step
        x, x1, x2, x3 = read(row, j, V, NOTHING), read(row, j1, V, NOTHING), read(row, j2, V, NOTHING), read(row, j3, V, NOTHING)
        highest = larger(x, larger(x1, larger(x2, larger(x3, top))))
        if beaten == 0 and highest >= picked:
            first = beats(x, j, picked, place) or beats(x1, j1, picked, place)
            beaten = 1 if first or beats(x2, j2, picked, place) or beats(x3, j3, picked, place) else 0
        if highest > top:
            total *= math.exp(top - highest)
            top = highest
        total += (math.exp(x - top) + math.exp(x1 - top)) + (math.exp(x2 - top) + math.exp(x3 - top))
        j += AHEAD * step
    of_row = block_max(top, partial)
    total = block_sum(total * math.exp(top - of_row), partial)
    top, beaten = of_row, cuda.syncthreads_or(beaten)
    nats = (top - picked) + math.log(total)
    factor = weight[0] / total if is_finite(nats) else NAN
    tile = (V - ONCE) // (AHEAD * step) + ONCE
    while tile > 0:
        tile -= ONCE
        j = thread + tile * (AHEAD * step)
        j1, j2, j3 = j + step, j + TWICE * step, j + THRICE * step
        x, x1, x2, x3 = read(row, j, V, NOTHING), read(row, j1, V, NOTHING), read(row, j2, V, NOTHING), read(row, j3, V, NOTHING)
        if j < V:
            store(d_logits, i, j, math.exp(x - top) * factor)
        if j1 < V:
            store(d_logits, i, j1, math.exp(x1 - top) * factor)
        if j2 < V:
            store(d_logits, i, j2, math.exp(x2 - top) * factor)
        if j3 < V:
            store(d_logits, i, j3, math.exp(x3 - top) * factor)
    cuda.syncthreads()
    if thread == 0:
        loss[i], hit[i] = nats, 0 if beaten else 1
        store(d_logits, i, target, math.exp(picked - top) * factor - weight[0])


@cpu_sums()
def cross_entropy_cpu(loss, hit, d_logits, logits, targets, weight):
    """As `cross_entropy`; d_logits is float32, of its own or logits itself."""
    for i in numba.prange(logits.shape[0]):
        row, target = d_logits[i], targets[i]
        if target < 0:
            loss[i], hit[i] = ZERO, 0
            row[:] = ZERO
            continue
        best = 0
        for j in range(row.size):
            if logits[i, j] > logits[i, best]:
                best = j
        hit[i] = best == target
        picked = logits[i, target]
        loss[i] = softmax_row(row, logits[i], ONE) - picked
        row[target] -= ONE
        factor = weight[0] if is_finite(loss[i]) else NAN
        for j in range(row.size):
            row[j] *= factor
