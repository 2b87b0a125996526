"""exp(x) of float32. On the CPU a polynomial that LLVM vectorises, since it cannot vectorise a C library's exp; on a GPU CUDA's exp.

    x = n ln 2 + r,   |r| <= ln(2) / 2,   exp(x) = 2^n (1 + r + r^2 p(r))

n ln 2 is subtracted in two parts, the first of which is exact. p is the polynomial of Cephes' expf (Moshier). The error is at most 1.1 ulp
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
        clamped = min(max(x, LOWEST), HIGHEST)
        n = np.floor(clamped * LOG2_E + HALF)  # math.floor would return int64, which does not vectorise with float32
        r = clamped - n * LN2_HIGH - n * LN2_LOW
        p = ((((P5 * r + P4) * r + P3) * r + P2) * r + P1) * r + P0
        exponent = np.int32(n)
        half = np.int32(exponent >> _1)  # 2^n itself may overflow or underflow float32, so it is applied as two factors
        first = np.int32((half + _BIAS) << _MANTISSA).view(np.float32)  # 2^half, from its bits
        second = np.int32((exponent - half + _BIAS) << _MANTISSA).view(np.float32)
        return x if x != x else (p * r * r + r + ONE) * first * second

    return vector_code if x == types.float32 else lambda x: math.exp(x)
