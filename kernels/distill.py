"""Distillation: the gradient of soft targets from two gradients of hard ones.

With target token y, predictions p of the model and q of its teacher, the target distribution is (1 - share) [y] + share q:

    d(cross-entropy)/d(logits) = p - (1 - share) [y] - share q = (p - [y]) - share (q - [y])

The two brackets are what `cross_entropy` (softmax.py) computes of either model (Hinton et al. 2015, "Distilling the knowledge in a neural
network", at temperature 1).
"""

import numba
import numpy as np
from numba import cuda

from .half import load, store
from .jit import cpu
from .launch import gpu

_FIRST_ROW = np.uint64(0)


@gpu
def soften(d_logits, d_teacher, share):
    """d_logits [1, K], of any float type (half.py), minus share times d_teacher [K], in place. Grid-stride loop."""
    i, step, size = np.uint64(cuda.grid(1)), np.uint64(cuda.gridsize(1)), np.uint64(d_teacher.size)
    while i < size:
        store(d_logits, _FIRST_ROW, i, load(d_logits, _FIRST_ROW, i) - share * d_teacher[i])
        i += step


@cpu()
def soften_cpu(d_logits, d_teacher, share):
    """As `soften`, of d_logits and d_teacher [R, W] float32."""
    for r in numba.prange(d_logits.shape[0]):
        for w in range(d_logits.shape[1]):
            d_logits[r, w] -= share * d_teacher[r, w]
