"""Working memory: a gated buffer in front of PFC.

    f = sigmoid(f_in + retain),   m[t] = f m[t-1] + (1 - f) u_in

(the minimal gated unit; O'Reilly & Frank 2006, Neural Computation 18:283, for gating by the basal ganglia). Arrays are [C, B, M] float32,
retain [M]; m is [C+1, B, M] with row 0 the token before the chunk.
"""

import numba

from .jit import ONE, cpu
from .memory import sigmoid


@cpu()
def working_memory_forward_cpu(m, f_in, u_in, retain):
    """Fill m[1:]."""
    C, B, M = f_in.shape
    for b in numba.prange(B):
        for t in range(C):
            for i in range(M):
                f = sigmoid(f_in[t, b, i] + retain[i])
                m[t + 1, b, i] = f * m[t, b, i] + (ONE - f) * u_in[t, b, i]


@cpu()
def working_memory_backward_cpu(df_in, du_in, dm_carry, dm, m, f_in, u_in, retain):
    """Overwrites df_in and du_in [C, B, M]; carries dm_carry [B, M]. The gradient of `retain` is the sum of df_in over tokens and
    sequences."""
    C, B, M = f_in.shape
    for b in numba.prange(B):
        for back in range(C):
            t = C - 1 - back
            for i in range(M):
                f = sigmoid(f_in[t, b, i] + retain[i])
                d = dm_carry[b, i] + dm[t, b, i]
                df_in[t, b, i] = d * (m[t, b, i] - u_in[t, b, i]) * f * (ONE - f)
                du_in[t, b, i] = d * (ONE - f)
                dm_carry[b, i] = d * f
