"""exp(x) of float32, as the physics uses it: on the CPU vector code, which the exp of a C library is not; on a GPU CUDA's own.

    x = n ln 2 + r,   |r| <= ln(2) / 2,   exp(x) = 2^n (1 + r + r^2 p(r))

n ln 2 is subtracted in two parts, the first of which is exact; p is that of Cephes' expf (Moshier). At most 1.1 units in the last place off
where the result is a normal number.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from .jit import HALF, ONE

LOWEST, HIGHEST = np.float32(-104), np.float32(89)  # beyond: 0 and infinity
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
P5, P4, P3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P2, P1, P0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_BIAS, _MANTISSA, _1 = np.int32(127), np.int32(23), np.int32(1)


def exp(x):
    """exp(x), in the simulator."""
    return math.exp(x)


@overload(exp, target="cuda")
def exp_cuda(x):
    return lambda x: math.exp(x)


@overload(exp, target="cpu")
def exp_cpu(x):
    def vector_code(x):
        inside = min(max(x, LOWEST), HIGHEST)
        n = np.floor(inside * LOG2_E + HALF)  # math.floor would make an int64
        r = inside - n * LN2_HIGH - n * LN2_LOW
        p = ((((P5 * r + P4) * r + P3) * r + P2) * r + P1) * r + P0
        whole = np.int32(n)
        half = np.int32(whole >> _1)  # 2^n is beyond float32 at both ends: two factors
        first = np.int32((half + _BIAS) << _MANTISSA).view(np.float32)
        second = np.int32((whole - half + _BIAS) << _MANTISSA).view(np.float32)
        return x if x != x else (p * r * r + r + ONE) * first * second

    return vector_code if x == types.float32 else lambda x: math.exp(x)
