"""What an axon carries: the event of its neuron, graded or binary, after dropout."""

from numba.extending import register_jitable

from .jit import ONE, ZERO
from .rng import uniform
from .surrogate import carried, event, slope


@register_jitable
def heard_as(v, drop, key, place, graded, smooth):
    """(s, fired, near) of a membrane potential v: what the axon carries, scaled up for what dropout silences; whether it carries anything;
    whether it carries nothing but sits near the threshold, where the surrogate slope is above 0. What is dropped is neither."""
    s = carried(v, event(v, smooth), graded)
    fired = s != ZERO
    near = not fired and slope(v) > ZERO
    if drop > ZERO and (fired or near) and uniform(key, place) < drop:
        fired = near = False
    return s * (ONE / (ONE - drop)) if fired else ZERO, fired, near
