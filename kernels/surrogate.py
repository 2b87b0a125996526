"""The event function, its surrogate slope, and the smooth function that the slope differentiates.

    event(v)  = 1 where v > 1, else 0                         the threshold is 1
    slope(v)  = max(0, 1 - |v - 1|) / 2                       stands in for d event / dv (triangular: Esser et al. 2016, PNAS 113:11441)
    smooth(v) = the integral of slope, from 0 at v <= 0 to 1/2 at v >= 2

The slope is exactly zero away from the threshold: only neurons that fired or sit near it need a gradient. In the smooth test mode the event
function is `smooth`, forward and backward, so that hand-written gradients must agree with finite differences.
"""

from numba.extending import register_jitable

from .jit import HALF, ONE, ZERO


@register_jitable
def event(v, smooth):
    """z for a membrane potential v (float32); `smooth` (bool) chooses the test mode."""
    if smooth:
        u = min(max(v - ONE, -ONE), ONE)
        return HALF * (HALF + u - HALF * u * abs(u))
    return ONE if v > ONE else ZERO


@register_jitable
def slope(v):
    """Surrogate dz/dv at a membrane potential v (float32)."""
    return HALF * max(ZERO, ONE - abs(v - ONE))


@register_jitable
def carried(v, z, graded):
    """What the axon carries for an event z: the membrane potential with it (graded), or the bare event (binary)."""
    return z * v if graded else z
