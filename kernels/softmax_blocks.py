"""Cross-entropy over a vocabulary whose logits come in blocks, twice: never are all of them there at once.

The first time, the largest logit and the sum of the exponentials are kept per row, and corrected with every block (the online softmax:
Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"); the second time, the gradient is made. Loss, hit and gradient are
those of softmax.py. Per row: top [P] float32, largest logit so far, LOWEST at first; best [P] int32, the first token that has it; total [P]
float32, sum of exp(logit - top); picked [P] float32, the target's logit.
"""

import math

import numba
import numpy as np
from numba import cuda

from .half import store
from .jit import ZERO, cpu, cpu_sums
from .launch import block_sum, gpu
from .softmax import LOWEST, NAN, WARPS, block_max, is_finite, larger


@gpu
def softmax_part(top, best, total, picked, logits, targets, first, size):
    """Take in logits [P, size or more] of the tokens first ... first + size - 1; targets [P] int32. A block has a row."""
    partial = cuda.shared.array(WARPS, np.float32)
    i, row, V = cuda.blockIdx.x, logits[cuda.blockIdx.x], np.uint64(size)
    begin, step = np.uint64(cuda.threadIdx.x), np.uint64(cuda.blockDim.x)
    own, place = LOWEST, V
    j = begin
    while j < V:
        x = row[j]
        if x > own:
            own, place = x, j
        j += step
    of_block = block_max(own, partial)
    # the first of equals: places are whole numbers that a float32 holds
    nearest = block_max(-np.float32(place) if own == of_block else LOWEST, partial)
    was = top[i]
    highest, added = larger(of_block, was), ZERO
    j = begin
    while j < V:
        added += math.exp(row[j] - highest)
        j += step
    added = block_sum(added, partial)
    if cuda.threadIdx.x == 0:
        total[i] = total[i] * math.exp(was - highest) + added
        if of_block > was:
            top[i], best[i] = of_block, first + np.int64(-nearest)
        target = targets[i] - first
        if 0 <= target < size:
            picked[i] = row[target]


@cpu_sums()
def softmax_part_cpu(top, best, total, picked, logits, targets, first, size):
    """As `softmax_part`."""
    for i in numba.prange(targets.size):
        row, was = logits[i], top[i]
        for j in range(size):
            if row[j] > top[i]:
                top[i], best[i] = row[j], first + j
        highest, added = top[i], ZERO
        for j in range(size):
            added += np.exp(row[j] - highest)
        total[i] = total[i] * np.exp(was - highest) + added
        target = targets[i] - first
        if 0 <= target < size:
            picked[i] = row[target]


@gpu
def softmax_end(loss, hit, factor, top, best, total, picked, targets, weight):
    """After all blocks: loss [P] float32, nats, and hit [P] uint8 of every row, 0 where its target is below 0; factor [P] float32: what
    exp(logit - top) is multiplied by in the gradient, NaN where the loss is not finite. weight [1] float32: as for `cross_entropy`. A
    thread has a row."""
    i = cuda.grid(1)
    if i < loss.size:
        if targets[i] < 0:
            loss[i], hit[i], factor[i] = ZERO, 0, ZERO
            return
        nats = (top[i] - picked[i]) + math.log(total[i])
        loss[i], hit[i] = nats, 1 if best[i] == targets[i] else 0
        factor[i] = weight[0] / total[i] if is_finite(nats) else NAN


@cpu()
def softmax_end_cpu(loss, hit, factor, top, best, total, picked, targets, weight):
    """As `softmax_end`."""
    for i in numba.prange(loss.size):
        if targets[i] < 0:
            loss[i], hit[i], factor[i] = ZERO, 0, ZERO
            continue
        loss[i] = (top[i] - picked[i]) + np.log(total[i])
        hit[i] = best[i] == targets[i]
        factor[i] = weight[0] / total[i] if is_finite(loss[i]) else NAN


@gpu
def softmax_gradient(d_logits, logits, top, factor, targets, weight, first, size):
    """d_logits [P, size or more], of any kind of float (half.py) or logits itself = the gradient of the logits that come a second time, 0
    beyond `size`. A block has a row."""
    i, j, width = cuda.blockIdx.x, np.uint64(cuda.threadIdx.x), np.uint64(d_logits.shape[1])
    row, top_i, factor_i, target = logits[cuda.blockIdx.x], top[cuda.blockIdx.x], factor[cuda.blockIdx.x], targets[cuda.blockIdx.x]
    while j < width:
        gradient = ZERO
        if target >= 0 and j < np.uint64(size):
            gradient = math.exp(row[j] - top_i) * factor_i
            if np.int64(j) == target - first:
                gradient -= weight[0]
        store(d_logits, i, j, gradient)
        j += np.uint64(cuda.blockDim.x)


@cpu_sums()
def softmax_gradient_cpu(d_logits, logits, top, factor, targets, weight, first, size):
    """As `softmax_gradient`; d_logits is float32."""
    for i in numba.prange(targets.size):
        row, own, target = logits[i], d_logits[i], targets[i] - first
        for j in range(size):
            own[j] = np.exp(row[j] - top[i]) * factor[i] if targets[i] >= 0 else ZERO
        own[size:] = ZERO
        if targets[i] >= 0 and 0 <= target < size:
            own[target] -= weight[0]
