"""Go gate: the basal ganglia multiply the currents of another module.

    c' = c 2 sigmoid(g)          an open question (g = 0) lets everything pass unchanged

Arrays are [C, B, N] float32.
"""

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, TWO, cpu
from .launch import gpu
from .memory import sigmoid


@register_jitable
def gate_step(c, g):
    """What a gate current g lets through of a current c."""
    return c * TWO * sigmoid(g)


@register_jitable
def gate_step_backward(d_gated, c, g):
    """Adjoint of `gate_step`: (dc, dg)."""
    d, p = d_gated * TWO, sigmoid(g)
    return d * p, d * c * p * (ONE - p)


@gpu
def gate_forward(gated, c, g):
    """A thread is a number of the arrays, which come flat."""
    i = np.uint64(cuda.grid(1))
    if i < np.uint64(c.size):
        gated[i] = gate_step(c[i], g[i])


@gpu
def gate_backward(dc, dg, d_gated, c, g):
    """A thread is a number of the arrays, which come flat."""
    i = np.uint64(cuda.grid(1))
    if i < np.uint64(c.size):
        dc[i], dg[i] = gate_step_backward(d_gated[i], c[i], g[i])


@cpu()
def gate_forward_cpu(gated, c, g):
    """Overwrite `gated` (which may be c)."""
    for t in numba.prange(c.shape[0]):
        for b in range(c.shape[1]):
            for n in range(c.shape[2]):
                gated[t, b, n] = gate_step(c[t, b, n], g[t, b, n])


@cpu()
def gate_backward_cpu(dc, dg, d_gated, c, g):
    """Overwrite dc (which may be d_gated) and dg from dL/dc' and the currents c before the gate."""
    for t in numba.prange(c.shape[0]):
        for b in range(c.shape[1]):
            for n in range(c.shape[2]):
                dc[t, b, n], dg[t, b, n] = gate_step_backward(d_gated[t, b, n], c[t, b, n], g[t, b, n])
