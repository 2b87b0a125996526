"""Counter-based random numbers: a number is a function of its key and its index only, and needs no generator state.

The mixing function is that of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"). The backward pass
draws a mask again instead of storing it, and a resumed run draws the same numbers as a run without interruption.
"""

import numpy as np
from numba.extending import register_jitable

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)
_TO_UNIT = np.float32(2.0**-24)


@register_jitable
def mix(key, index):
    """64 random bits for an index (uint64) under a key (uint64)."""
    x = key + (index + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@register_jitable
def uniform(key, index):
    """A float32 in [0, 1) for an index (uint64) under a key (uint64)."""
    return np.float32(mix(key, index) >> _S40) * _TO_UNIT


def key(*words: int) -> np.uint64:
    """A key from small integers, for example (seed, step, component)."""
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for word in words:
            state = mix(state, np.uint64(word))
        return state
