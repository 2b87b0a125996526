"""AdamW (adamw.py) with 8-bit moments (after Dettmers et al. 2022, "8-bit optimizers via block-wise quantization").

GROUP_SIZE neighbouring parameters share two float32 scales: the largest |m| (m_top) and the largest sqrt(v) (r_top). Each parameter
has two codes c:

    m = m_top sign(c) (c / 127)^2,   c from -127 to 127
    sqrt(v) = r_top (c / 255)^2,     c from 0 to 255

Steps between codes are small for small values. Rounding is stochastic, so its mean is exact. Rounding to nearest would fail: without
gradients sqrt(v) shrinks by half a per cent per update, less than most steps between codes, and would never change. Only v = 0 has code 0,
because the update divides by sqrt(v).
"""

import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .adamw import BLOCK, adamw_step, clipping
from .jit import ONE, TWO, ZERO, cpu
from .launch import gpu
from .rng import mix
from .softmax import WARPS, block_max

GROUP_SIZE = 256  # parameters that share m_top and r_top
M_CODES, R_CODES = np.float32(127), np.float32(255)
_GROUP_SIZE, _GROUPS_PER_BLOCK, _ENDLESS = np.uint64(GROUP_SIZE), np.uint64(BLOCK // GROUP_SIZE), np.float32(np.inf)
_TO_UNIT, _S40, _LOW = np.float32(2.0**-24), np.uint64(40), np.uint64(2**24 - 1)


@register_jitable
def decode(code, codes, top):
    """The value, not negative, of a code from 0 to `codes`; `codes` decodes to `top`."""
    fraction = np.float32(code) / codes
    return top * fraction * fraction


@register_jitable
def encode(x, codes, top, chance):
    """Stochastic rounding of x (0 to top) to one of the two nearest codes. chance: uniform in [0, 1)."""
    if top == ZERO:
        return ZERO
    position = min(codes, codes * math.sqrt(x / top))
    low = np.float32(math.floor(position))
    return low + ONE if chance * (TWO * low + ONE) < position * position - low * low else low


@register_jitable
def mean_of(code, top):
    """The first moment m from its code."""
    return -decode(-code, M_CODES, top) if code < 0 else decode(code, M_CODES, top)


@register_jitable
def square_of(code, top):
    """The second moment v from the code of its square root."""
    root = decode(code, R_CODES, top)
    return root * root


@register_jitable
def mean_code(m, top, bits):
    """The code of m; bits: 64 random ones."""
    code = encode(abs(m), M_CODES, top, np.float32(bits >> _S40) * _TO_UNIT)
    return -code if m < ZERO else code


@register_jitable
def root_code(r, top, bits):
    """The code of r = sqrt(v); bits: 64 random ones."""
    code = encode(r, R_CODES, top, np.float32(bits & _LOW) * _TO_UNIT)
    return max(code, ONE) if r > ZERO else code


@gpu
def adamw8bit(p, g, m, v, m_top, r_top, decay, low, high, norm, numbers, key, first):
    """Update all parameters in place, as `adamw`. first: offset of the random numbers.

    One CUDA block per GROUP_SIZE parameters: it computes the new moments, reduces them to the new scales, then computes them again and
    encodes them.
    """
    partial = cuda.shared.array(WARPS, np.float32)
    group = np.uint64(cuda.blockIdx.x)
    if not norm[0] < _ENDLESS:
        return
    rate, unbias1, unbias2, scale = numbers[0], numbers[1], numbers[2], clipping(norm[0], numbers[3])
    local_decay, local_low, local_high = (
        decay[group // _GROUPS_PER_BLOCK],
        low[group // _GROUPS_PER_BLOCK],
        high[group // _GROUPS_PER_BLOCK],
    )
    m_top_old, r_top_old = m_top[group], r_top[group]
    begin, end = group * _GROUP_SIZE + np.uint64(cuda.threadIdx.x), (group + np.uint64(1)) * _GROUP_SIZE
    m_max, v_max = ZERO, ZERO
    i = begin
    while i < end:
        _, m_i, v_i = adamw_step(
            p[i], g[i] * scale, mean_of(m[i], m_top_old), square_of(v[i], r_top_old), rate, unbias1, unbias2, local_decay
        )
        m_max, v_max = max(m_max, abs(m_i)), max(v_max, v_i)
        i += np.uint64(cuda.blockDim.x)
    m_max, r_max = block_max(m_max, partial), math.sqrt(block_max(v_max, partial))
    i = begin
    while i < end:
        stepped, m_i, v_i = adamw_step(
            p[i], g[i] * scale, mean_of(m[i], m_top_old), square_of(v[i], r_top_old), rate, unbias1, unbias2, local_decay
        )
        bits = mix(key[0], first + i)
        p[i] = min(max(stepped, local_low), local_high)
        m[i], v[i] = mean_code(m_i, m_max, bits), root_code(math.sqrt(v_i), r_max, bits)
        i += np.uint64(cuda.blockDim.x)
    if cuda.threadIdx.x == 0:
        m_top[group], r_top[group] = m_max, r_max


@cpu()
def adamw8bit_cpu(p, g, m, v, m_top, r_top, decay, low, high, norm, numbers, key, first):
    """As `adamw8bit`."""
    if norm[0] < _ENDLESS:
        rate, unbias1, unbias2, scale = numbers[0], numbers[1], numbers[2], clipping(norm[0], numbers[3])
        for group in numba.prange(m_top.size):
            group_slice = slice(group * GROUP_SIZE, (group + 1) * GROUP_SIZE)
            p_local, g_local, m_local, v_local = p[group_slice], g[group_slice], m[group_slice], v[group_slice]
            block = group * GROUP_SIZE // BLOCK
            local_decay, local_low, local_high = decay[block], low[block], high[block]
            m_new, v_new = np.empty(GROUP_SIZE, np.float32), np.empty(GROUP_SIZE, np.float32)
            m_top_old, r_top_old, m_max, v_max = m_top[group], r_top[group], ZERO, ZERO
            for i in range(GROUP_SIZE):
                m_i, v_i = mean_of(m_local[i], m_top_old), square_of(v_local[i], r_top_old)
                stepped, m_new[i], v_new[i] = adamw_step(p_local[i], g_local[i] * scale, m_i, v_i, rate, unbias1, unbias2, local_decay)
                p_local[i] = min(max(stepped, local_low), local_high)
            for i in range(GROUP_SIZE):
                m_max, v_max = max(m_max, abs(m_new[i])), max(v_max, v_new[i])
            r_max = math.sqrt(v_max)
            for i in range(GROUP_SIZE):
                bits = mix(key[0], first + np.uint64(group * GROUP_SIZE + i))
                m_local[i], v_local[i] = mean_code(m_new[i], m_max, bits), root_code(math.sqrt(v_new[i]), r_max, bits)
            m_top[group], r_top[group] = m_max, r_max
