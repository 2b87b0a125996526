"""Online cross-entropy: loss and gradient over a vocabulary in blocks of tokens, without storing all logits of a row.

1. `softmax_part`, once per block: update each row's maximum and sum of exponentials (online softmax; Milakov & Gimelshein 2018, "Online
   normalizer calculation for softmax").
2. `softmax_end`: loss and hit of each row.
3. `softmax_gradient`, once per block, on recomputed logits: overwrite them with their gradient.

Loss, hit and gradient are those of softmax.py. Logits come without their bias. Per row: top [P] float32, largest logit so far, initially
LOWEST; best [P] int32, the first token with that logit; total [P] float32, sum of exp(logit - top); picked [P] float32, the target's logit.
"""

import math

import numba
import numpy as np
from numba import cuda

from . import exponential
from .jit import ZERO, cpu, cpu_sums
from .launch import gpu
from .softmax import NAN, WARPS, clear_row, is_finite, larger, online_softmax, store_gradient


@gpu
def softmax_part(top, best, total, picked, logits, bias, targets, first, size):
    """Update top, best, total, picked from the logits [P, W] of tokens first ... first + size - 1. One block per row.

    bias: [W] float32; targets: [P] int32.
    """
    partial = cuda.shared.array(WARPS, np.float32)
    first_index = cuda.shared.array(1, np.int32)
    i, row = cuda.blockIdx.x, logits[cuda.blockIdx.x]
    block_top, nearest, added = online_softmax(row, bias, size, partial, first_index)
    if cuda.threadIdx.x == 0:
        top_old = top[i]
        highest = larger(block_top, top_old)
        total[i] = total[i] * math.exp(top_old - highest) + added * math.exp(block_top - highest)
        if block_top > top_old:
            top[i], best[i] = block_top, first + np.int64(nearest)
        target = targets[i] - first
        if 0 <= target < size:
            picked[i] = row[target] + bias[target]


@cpu_sums()
def softmax_part_cpu(top, best, total, picked, logits, bias, targets, first, size):
    """As `softmax_part`."""
    for i in numba.prange(targets.size):
        row, top_old = logits[i], top[i]
        for j in range(size):
            if row[j] + bias[j] > top[i]:
                top[i], best[i] = row[j] + bias[j], first + j
        highest, added = top[i], ZERO
        for j in range(size):
            added += exponential.exp((row[j] + bias[j]) - highest)
        total[i] = total[i] * np.exp(top_old - highest) + added
        target = targets[i] - first
        if 0 <= target < size:
            picked[i] = row[target] + bias[target]


@gpu
def softmax_end(loss, hit, factor, top, best, total, picked, targets, weight):
    """Compute loss [P] float32 in nats, hit [P] uint8 and factor [P] float32 after all blocks. One thread per row.

    A row whose target is below 0 has loss, hit and factor 0. factor: weight / total, the factor of exp(logit - top) in the gradient; NaN if
    the loss is not finite. weight: [1] float32, as for `cross_entropy`.
    """
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
def softmax_gradient(d_logits, logits, bias, top, factor, targets, weight, first, size):
    """Compute the gradient d_logits [P, W] of a block of logits, 0 from column `size` on. One block per row.

    d_logits: of any float type (half.py), or logits itself.
    """
    i = cuda.blockIdx.x
    if targets[i] < 0:
        clear_row(d_logits[i])
    else:
        store_gradient(d_logits, logits, i, bias, top[i], factor[i], targets[i] - first, weight[0], size)


@cpu_sums()
def softmax_gradient_cpu(d_logits, logits, bias, top, factor, targets, weight, first, size):
    """As `softmax_gradient`; d_logits is float32."""
    for i in numba.prange(targets.size):
        row, d_row, target = logits[i], d_logits[i], targets[i] - first
        for j in range(size):
            d_row[j] = exponential.exp((row[j] + bias[j]) - top[i]) * factor[i] if targets[i] >= 0 else ZERO
        d_row[size:] = ZERO
        if targets[i] >= 0 and 0 <= target < size:
            d_row[target] -= weight[0]
