"""Go gate: the basal ganglia multiply the currents of another module.

    c' = c 2 sigmoid(g)          an open question (g = 0) lets everything pass unchanged

Arrays are [C, B, N] float32.
"""

import numba

from .jit import ONE, TWO, cpu
from .memory import sigmoid


@cpu()
def gate_forward_cpu(gated, c, g):
    """Overwrite `gated` (which may be c)."""
    for t in numba.prange(c.shape[0]):
        for b in range(c.shape[1]):
            for n in range(c.shape[2]):
                gated[t, b, n] = c[t, b, n] * TWO * sigmoid(g[t, b, n])


@cpu()
def gate_backward_cpu(dc, dg, d_gated, c, g):
    """Overwrite dc (which may be d_gated) and dg from dL/dc' and the currents c before the gate."""
    for t in numba.prange(c.shape[0]):
        for b in range(c.shape[1]):
            for n in range(c.shape[2]):
                d, p = d_gated[t, b, n] * TWO, sigmoid(g[t, b, n])
                dg[t, b, n] = d * c[t, b, n] * p * (ONE - p)
                dc[t, b, n] = d * p
