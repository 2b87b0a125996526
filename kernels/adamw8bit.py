"""AdamW (adamw.py) with 8-bit moments (after Dettmers et al. 2022, "8-bit optimizers via block-wise quantization").

Every SHARE neighbouring parameters share two float32 scales, the largest |m| (m_top) and the largest sqrt(v) (r_top). Each parameter has
two codes c:

    m = m_top sign(c) (c / 127)^2,   c from -127 to 127
    sqrt(v) = r_top (c / 255)^2,     c from 0 to 255

Steps between codes are small for small values. Rounding is stochastic, so its mean is exact: without gradients sqrt(v) shrinks by half a
per cent per update, less than most steps, and with rounding to nearest it would never change. Only v = 0 has code 0, since the update
divides by sqrt(v).
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

SHARE = 256  # parameters that share m_top and r_top
M_CODES, R_CODES = np.float32(127), np.float32(255)
_SHARE, _SHARES, _ENDLESS = np.uint64(SHARE), np.uint64(BLOCK // SHARE), np.float32(np.inf)
_TO_UNIT, _S40, _LOW = np.float32(2.0**-24), np.uint64(40), np.uint64(2**24 - 1)


@register_jitable
def decode(code, codes, top):
    """The number, not negative, that a code from 0 to `codes` stands for."""
    share = np.float32(code) / codes
    return top * share * share


@register_jitable
def encode(x, codes, top, chance):
    """One of the two codes next to x (0 to top), the nearer the likelier. chance: uniform in [0, 1)."""
    if top == ZERO:
        return ZERO
    place = min(codes, codes * math.sqrt(x / top))
    low = np.float32(math.floor(place))
    return low + ONE if chance * (TWO * low + ONE) < place * place - low * low else low


@register_jitable
def mean_of(code, top):
    """m of its code."""
    return -decode(-code, M_CODES, top) if code < 0 else decode(code, M_CODES, top)


@register_jitable
def square_of(code, top):
    """v of its code."""
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
    """Update all parameters at once, as `adamw`. One CUDA block per SHARE parameters. first: offset of the random numbers."""
    partial = cuda.shared.array(WARPS, np.float32)
    share = np.uint64(cuda.blockIdx.x)
    if not norm[0] < _ENDLESS:
        return
    rate, unbias1, unbias2, scale = numbers[0], numbers[1], numbers[2], clipping(norm[0], numbers[3])
    own_decay, own_low, own_high = decay[share // _SHARES], low[share // _SHARES], high[share // _SHARES]
    m_was, r_was = m_top[share], r_top[share]
    begin, end = share * _SHARE + np.uint64(cuda.threadIdx.x), (share + np.uint64(1)) * _SHARE
    m_most, v_most = ZERO, ZERO
    i = begin
    while i < end:
        _, m_i, v_i = adamw_step(p[i], g[i] * scale, mean_of(m[i], m_was), square_of(v[i], r_was), rate, unbias1, unbias2, own_decay)
        m_most, v_most = max(m_most, abs(m_i)), max(v_most, v_i)
        i += np.uint64(cuda.blockDim.x)
    m_most, r_most = block_max(m_most, partial), math.sqrt(block_max(v_most, partial))
    i = begin
    while i < end:
        stepped, m_i, v_i = adamw_step(p[i], g[i] * scale, mean_of(m[i], m_was), square_of(v[i], r_was), rate, unbias1, unbias2, own_decay)
        bits = mix(key[0], first + i)
        p[i] = min(max(stepped, own_low), own_high)
        m[i], v[i] = mean_code(m_i, m_most, bits), root_code(math.sqrt(v_i), r_most, bits)
        i += np.uint64(cuda.blockDim.x)
    if cuda.threadIdx.x == 0:
        m_top[share], r_top[share] = m_most, r_most


@cpu()
def adamw8bit_cpu(p, g, m, v, m_top, r_top, decay, low, high, norm, numbers, key, first):
    """As `adamw8bit`."""
    if norm[0] < _ENDLESS:
        rate, unbias1, unbias2, scale = numbers[0], numbers[1], numbers[2], clipping(norm[0], numbers[3])
        for share in numba.prange(m_top.size):
            own = slice(share * SHARE, (share + 1) * SHARE)
            p_own, g_own, m_own, v_own = p[own], g[own], m[own], v[own]
            block = share * SHARE // BLOCK
            own_decay, own_low, own_high = decay[block], low[block], high[block]
            m_new, v_new = np.empty(SHARE, np.float32), np.empty(SHARE, np.float32)
            m_was, r_was, m_most, v_most = m_top[share], r_top[share], ZERO, ZERO
            for i in range(SHARE):
                m_i, v_i = mean_of(m_own[i], m_was), square_of(v_own[i], r_was)
                stepped, m_new[i], v_new[i] = adamw_step(p_own[i], g_own[i] * scale, m_i, v_i, rate, unbias1, unbias2, own_decay)
                p_own[i] = min(max(stepped, own_low), own_high)
            for i in range(SHARE):
                m_most, v_most = max(m_most, abs(m_new[i])), max(v_most, v_new[i])
            r_most = math.sqrt(v_most)
            for i in range(SHARE):
                bits = mix(key[0], first + np.uint64(share * SHARE + i))
                m_own[i], v_own[i] = mean_code(m_new[i], m_most, bits), root_code(math.sqrt(v_new[i]), r_most, bits)
            m_top[share], r_top[share] = m_most, r_most
