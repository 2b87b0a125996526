"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019, "Decoupled weight decay regularization"), and bounds on the parameter.

m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
p = p (1 - rate decay) - rate (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps), clamped to [low, high]
"""

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import ONE, cpu

EPS = np.float32(1e-8)
BLOCK = 4096  # parameters a task updates


@register_jitable
def adamw_step(p, g, m, v, rate, beta1, beta2, unbias1, unbias2, decay):
    """One parameter: (p, m, v). unbias1 = 1 / (1 - beta1^step), likewise unbias2."""
    m = beta1 * m + (ONE - beta1) * g
    v = beta2 * v + (ONE - beta2) * g * g
    return p * (ONE - rate * decay) - rate * m * unbias1 / (np.sqrt(v * unbias2) + EPS), m, v


@cpu()
def adamw_cpu(p, g, m, v, g_scale, rate, beta1, beta2, unbias1, unbias2, decay, low, high):
    """Update p, m, v [K] float32 in place; g_scale multiplies the gradient (clipping)."""
    for block in numba.prange((p.size + BLOCK - 1) // BLOCK):
        own = slice(block * BLOCK, min(p.size, (block + 1) * BLOCK))
        p_own, g_own, m_own, v_own = p[own], g[own], m[own], v[own]
        for i in range(p_own.size):
            stepped, m_own[i], v_own[i] = adamw_step(
                p_own[i], g_own[i] * g_scale, m_own[i], v_own[i], rate, beta1, beta2, unbias1, unbias2, decay
            )
            p_own[i] = min(max(stepped, low), high)
