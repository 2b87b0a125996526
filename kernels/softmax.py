"""Softmax and cross-entropy over the vocabulary, one row of logits [V] float32 at a time."""

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu_sums


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


@cpu_sums()
def cross_entropy_cpu(loss, hit, logits, targets, weight):
    """Turn logits [R, V] into their gradient, in place.

    loss [R] float32: nats of each row; hit [R] uint8: 1 where the most probable token (the first of equals) is the target. targets [R]
    int32; a negative one counts for nothing: loss, hit and gradient are 0. weight: factor of the gradient (1 / number of targets for a
    mean).
    """
    for i in numba.prange(logits.shape[0]):
        row, target = logits[i], targets[i]
        if target < 0:
            loss[i], hit[i] = ZERO, 0
            row[:] = ZERO
            continue
        best = 0
        for j in range(row.size):
            if row[j] > row[best]:
                best = j
        hit[i] = best == target
        picked = row[target]
        loss[i] = softmax_row(row, row, ONE) - picked
        row[target] -= ONE
        for j in range(row.size):
            row[j] *= weight
