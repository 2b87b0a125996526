"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019, "Decoupled weight decay regularization"). The gradient is clipped to a
norm, the parameter to bounds.

g = gradient min(1, clip / norm)
m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
p = p (1 - rate decay) - rate (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps), clamped to [low, high]
"""

import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu
from .launch import gpu

BETA1, BETA2 = 0.9, 0.99
EPS = np.float32(1e-8)
BLOCK = 4096  # parameters a task updates
_BETA1, _BETA2, _ENDLESS, _BLOCK = np.float32(BETA1), np.float32(BETA2), np.float32(np.inf), np.uint64(BLOCK)


@register_jitable
def clipping(norm, clip):
    """The factor that clips a gradient of this norm: min(1, clip / norm)."""
    return min(ONE, clip / norm) if norm > ZERO else ONE


@register_jitable
def adamw_step(p, g, m, v, rate, unbias1, unbias2, decay):
    """One update of one parameter: (p, m, v). unbias1 = 1 / (1 - beta1^step), likewise unbias2."""
    m = _BETA1 * m + (ONE - _BETA1) * g
    v = _BETA2 * v + (ONE - _BETA2) * g * g
    return p * (ONE - rate * decay) - rate * m * unbias1 / (math.sqrt(v * unbias2) + EPS), m, v


@gpu
def adamw(p, g, m, v, decay, low, high, norm, numbers):
    """Update p, m, v [K] float32 in place from the gradient g [K]; K is a multiple of BLOCK.

    decay, low, high [K / BLOCK]: weight decay and bounds. norm [1]: of the whole gradient; if it is not finite, nothing changes. numbers
    [4]: rate, unbias1, unbias2, clip. One CUDA block per BLOCK parameters; its threads stride over them.
    """
    block = cuda.blockIdx.x
    if not norm[0] < _ENDLESS:
        return
    rate, unbias1, unbias2, scale = numbers[0], numbers[1], numbers[2], clipping(norm[0], numbers[3])
    local_decay, local_low, local_high = decay[block], low[block], high[block]
    i = np.uint64(block) * _BLOCK + np.uint64(cuda.threadIdx.x)
    end = (np.uint64(block) + np.uint64(1)) * _BLOCK
    while i < end:
        stepped, m[i], v[i] = adamw_step(p[i], g[i] * scale, m[i], v[i], rate, unbias1, unbias2, local_decay)
        p[i] = min(max(stepped, local_low), local_high)
        i += np.uint64(cuda.blockDim.x)


@cpu()
def adamw_cpu(p, g, m, v, decay, low, high, norm, numbers):
    """As `adamw`."""
    if norm[0] < _ENDLESS:
        rate, unbias1, unbias2, scale = numbers[0], numbers[1], numbers[2], clipping(norm[0], numbers[3])
        for block in numba.prange(decay.size):
            block_slice = slice(block * BLOCK, (block + 1) * BLOCK)
            p_local, g_local, m_local, v_local = p[block_slice], g[block_slice], m[block_slice], v[block_slice]
            local_decay, local_low, local_high = decay[block], low[block], high[block]
            for i in range(BLOCK):
                stepped, m_local[i], v_local[i] = adamw_step(
                    p_local[i], g_local[i] * scale, m_local[i], v_local[i], rate, unbias1, unbias2, local_decay
                )
                p_local[i] = min(max(stepped, local_low), local_high)
