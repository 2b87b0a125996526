"""Muon for bundles of synapses: the momentum of each bundle is orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers in
neural networks").

g = gradient min(1, clip / norm)
m = mu m + (1 - mu) g;  x = mu m + (1 - mu) g                                 Nesterov momentum
x = x / |x|, then for each (a, b, c) of STEPS:  x = a x + x (b G + c G^2),  G = x^T x
p = p (1 - rate decay) - rate RMS sqrt(side) x, clamped to [low, high]

A step applies the polynomial a s + b s^3 + c s^5 to the singular values s of x. These are the four best steps for s from 0.01 to 1, which
they move to within 1.3 % of 1 (Amsel et al. 2025, "The Polar Express", algorithm 1). The elements of an orthogonal matrix have mean square
1 / side; the factor RMS sqrt(side) makes updates equally large for every side (Liu et al. 2025, "Muon is scalable for LLM training").
"""

import functools
import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .adamw import BLOCK, clipping
from .jit import ONE, ZERO, cpu
from .launch import SIMULATED, device, gpu
from .mma import EDGE, outer

MOMENTUM = 0.95
RMS = 0.4  # of the elements of an update, at a learning rate of 1; AdamW's have about 0.2 (docs/decisions.md)
STEPS = tuple(
    tuple(np.float32(coefficient) for coefficient in step)
    for step in (
        (8.093369, -23.62043, 17.446152),
        (3.636586, -2.721927, 0.536546),
        (2.6613, -1.977155, 0.452616),
        (1.956172, -1.337508, 0.383853),
    )
)
THREADS = BLOCK // EDGE**2  # of a CUDA block; each multiplies a tile of EDGE x EDGE numbers
ALIGNED = None if SIMULATED else 16  # bytes of a load of a row of a tile
_MOMENTUM, _RMS, _EPS, _ENDLESS, _BLOCK = np.float32(MOMENTUM), np.float32(RMS), np.float32(1e-7), np.float32(np.inf), np.uint64(BLOCK)
u64 = np.uint64


@register_jitable
def momentum_step(g, m):
    """Nesterov momentum of one parameter: (what is orthogonalised, m)."""
    m = _MOMENTUM * m + (ONE - _MOMENTUM) * g
    return _MOMENTUM * m + (ONE - _MOMENTUM) * g, m


@register_jitable
def muon_step(p, x, rate, decay, scale):
    """One update of one parameter. x: its element of the orthogonal matrix; scale: RMS sqrt(side)."""
    return p * (ONE - rate * decay) - rate * scale * x


@register_jitable
def inverse_norm(gram, first, side):
    """1 / |x|, from the diagonal of x^T x: rows first ... first + side - 1 of gram."""
    total = ZERO
    for i in range(side):
        total += gram[first + i, i]
    return ONE / (math.sqrt(total) + _EPS)


if SIMULATED:

    def outer_rows(acc, a, b, first, k, row, column):
        acc += np.outer(a[first + row : first + row + EDGE, k], b[first + k, column : column + EDGE])

else:

    @device
    def outer_rows(acc, a, b, first, k, row, column):
        """acc [EDGE, EDGE] += column k of rows of `a` times a row of `b`, as `outer` of matrices that begin in row `first`."""
        for i in range(EDGE):
            for j in range(EDGE):
                acc[i, j] += a[first + row + i, k] * b[first + k, column + j]


@device
def clear(acc):
    """acc [EDGE, EDGE] = 0."""
    for i in range(EDGE):
        for j in range(EDGE):
            acc[i, j] = ZERO


@functools.cache
def make_muon(side: int):
    """`muon` for bundles [side, side]."""
    ROWS, ACROSS = BLOCK // side, side // EDGE  # of the bundles of a block; tiles in a row of a bundle
    SCALE = np.float32(RMS * math.sqrt(side))

    @gpu
    def muon(p, g, m, decay, low, high, norm, numbers):
        """Update p, m [K] float32 in place from the gradient g [K], as `adamw`; K is a multiple of BLOCK, p holds bundles [side, side].

        One CUDA block of THREADS threads per BLOCK parameters, which are whole bundles. They lie in shared memory, one below the other; a
        thread computes a tile of EDGE x EDGE numbers of each product.
        """
        x = cuda.shared.array((ROWS, side), np.float32, ALIGNED)
        gram = cuda.shared.array((ROWS, side), np.float32, ALIGNED)  # x^T x, then b x^T x + c (x^T x)^2
        acc = cuda.local.array((EDGE, EDGE), np.float32)
        block, thread = cuda.blockIdx.x, cuda.threadIdx.x
        if not norm[0] < _ENDLESS:
            return
        rate, clip = numbers[0], clipping(norm[0], numbers[3])
        begin = u64(block) * _BLOCK
        # 1. Momentum
        for i in range(thread, BLOCK, THREADS):
            k = begin + u64(i)
            x[i // side, i % side], m[k] = momentum_step(g[k] * clip, m[k])
        # 2. Orthogonalise. `first`: row of this thread's bundle; row, column: of its tile in the bundle
        first, tile = thread // ACROSS**2 * side, thread % ACROSS**2
        row, column = tile // ACROSS * EDGE, tile % ACROSS * EDGE
        scale = ZERO
        for a, b, c in STEPS:
            cuda.syncthreads()  # waits for x
            clear(acc)
            for k in range(first, first + side):
                outer(acc, x, x, k, row, column)
            for i in range(EDGE):
                for j in range(EDGE):
                    gram[first + row + i, column + j] = acc[i, j]
            cuda.syncthreads()  # waits for x^T x
            scale = inverse_norm(gram, first, side) if scale == ZERO else ONE  # x is divided by its norm in the first step
            square = scale * scale
            clear(acc)
            for k in range(first, first + side):
                outer(acc, gram, gram, k, row, column)
            for i in range(EDGE):
                for j in range(EDGE):
                    acc[i, j] = square * (b * gram[first + row + i, column + j] + c * square * acc[i, j])
            cuda.syncthreads()  # waits until all threads have read x^T x
            for i in range(EDGE):
                for j in range(EDGE):
                    gram[first + row + i, column + j] = acc[i, j]
            cuda.syncthreads()  # waits for the polynomial
            clear(acc)
            for k in range(side):
                outer_rows(acc, x, gram, first, k, row, column)
            for i in range(EDGE):
                for j in range(EDGE):
                    acc[i, j] = scale * (a * x[first + row + i, column + j] + acc[i, j])
            cuda.syncthreads()  # waits until all threads have read x
            for i in range(EDGE):
                for j in range(EDGE):
                    x[first + row + i, column + j] = acc[i, j]
        cuda.syncthreads()  # waits for x
        # 3. Update
        local_decay, local_low, local_high = decay[block], low[block], high[block]
        for i in range(thread, BLOCK, THREADS):
            k = begin + u64(i)
            stepped = muon_step(p[k], x[i // side, i % side], rate, local_decay, SCALE)
            p[k] = min(max(stepped, local_low), local_high)

    return muon


@register_jitable
def multiply(out, a, b):
    """out = a b, all [side, side]. The innermost loop is over neighbours, so it is vectorised."""
    for i in range(len(a)):
        out[i] = ZERO
        for k in range(len(a)):
            for j in range(len(a)):
                out[i, j] += a[i, k] * b[k, j]


@register_jitable
def orthogonalize(x, gram, power, product):
    """Overwrite x [side, side] by STEPS, which bring its singular values near 1. gram, power, product: scratch of the same shape."""
    side, scale = len(x), ZERO
    for a, b, c in STEPS:
        gram[:] = ZERO
        for k in range(side):
            for i in range(side):
                for j in range(side):
                    gram[i, j] += x[k, i] * x[k, j]
        scale = inverse_norm(gram, 0, side) if scale == ZERO else ONE  # x is divided by its norm in the first step
        square = scale * scale
        multiply(power, gram, gram)
        for i in range(side):
            for j in range(side):
                power[i, j] = square * (b * gram[i, j] + c * square * power[i, j])
        multiply(product, x, power)
        for i in range(side):
            for j in range(side):
                x[i, j] = scale * (a * x[i, j] + product[i, j])


@cpu()
def muon_cpu(p, g, m, decay, low, high, norm, numbers, side):
    """As `muon`, for bundles [side, side]."""
    if norm[0] < _ENDLESS:
        rate, clip, scale, size = numbers[0], clipping(norm[0], numbers[3]), _RMS * np.float32(math.sqrt(side)), side * side
        for block in numba.prange(decay.size):
            local_decay, local_low, local_high = decay[block], low[block], high[block]
            scratch = np.empty((4, side, side), np.float32)
            x = scratch[0]
            for begin in range(block * BLOCK, (block + 1) * BLOCK, size):
                p_local, g_local, m_local = p[begin : begin + size], g[begin : begin + size], m[begin : begin + size]
                x_local = x.reshape(-1)
                for i in range(size):
                    x_local[i], m_local[i] = momentum_step(g_local[i] * clip, m_local[i])
                orthogonalize(x, scratch[1], scratch[2], scratch[3])
                for i in range(size):
                    stepped = muon_step(p_local[i], x_local[i], rate, local_decay, scale)
                    p_local[i] = min(max(stepped, local_low), local_high)
