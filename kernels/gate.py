"""Go gate: the basal ganglia multiply the currents of another module.

    c' = c 2 sigmoid(g)          g = 0 passes the current unchanged

population.py has the loops.
"""

from numba.extending import register_jitable

from .jit import ONE, TWO
from .memory import sigmoid


@register_jitable
def gate_step(c, g):
    """The gated current c' for a current c and a gate current g."""
    return c * TWO * sigmoid(g)


@register_jitable
def gate_step_backward(d_gated, c, g):
    """Adjoint of `gate_step`: (dc, dg)."""
    d, p = d_gated * TWO, sigmoid(g)
    return d * p, d * c * p * (ONE - p)
