"""Hippocampal associative memory: fast weights written by the gated delta rule.

Per sequence and head, S [W, W] (rows: key, columns: value):

    q[t] = unit(silu(q_in[t])),  k[t] = q[t-1],  w = sigmoid(w_in + write_bias) write_scale[b]
    D = lambda S[t-1];  u = w (v - erase D^T k);  S[t] = D + k u^T;  o = S[t]^T q;  out = o / sqrt(mean(o^2) + 1e-4)
    unit(x) = x / sqrt(sum of x^2 + 1e-3 W),  lambda = sigmoid(decay)

(Schlag, Irie & Schmidhuber 2021, "Linear transformers are secretly fast weight programmers"; Yang, Kautz & Hatamizadeh 2024, "Gated delta
networks".) The key of a token is the query of the token before it, so a value is stored under its predecessor: when the same words occur
again, the memory recalls what followed them. erase is 1 for the delta rule, which subtracts the old answer to a key before it writes, so
that a repeated fact replaces the old one; 0 for the Hebbian rule with decay, which adds to it.

q_in, v, out: [C, B, heads W] float32, head h in columns h W to (h + 1) W; key [B, heads W]: the query of the token before; w_in: [C, B,
heads];
S: [B, heads, W, W].
"""

import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .exponential import exp
from .half import store
from .jit import ONE, ZERO, cpu_sums
from .launch import SIMULATED, WARP, block_sum, device, gpu, warp_sum
from .vector import STRIP, WORD, make_step

# Added to the mean square of a query before the division by its norm: it bounds the gradient through `unit` by 1 / sqrt(W KEY_FLOOR).
KEY_FLOOR = np.float32(1e-3)
OUT_FLOOR = np.float32(1e-4)  # the same for the value that is read
step_rows, step_dots = make_step(False), make_step(True)


@register_jitable
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@register_jitable
def silu(x):
    return x * sigmoid(x)


@register_jitable
def silu_slope(x):
    p = sigmoid(x)
    return p * (ONE + x * (ONE - p))


@register_jitable
def inverse_norm(square, floor):
    """1 / sqrt(square + floor), the factor that normalises a vector. square: sum or mean of its squares; the floor keeps a near-zero vector
    small."""
    return ONE / math.sqrt(square + floor)


@register_jitable
def through_norm(d, n, r, dot):
    """dL/dx for an entry of n = r x, from d = dL/dn. dot: sum, or mean, of d n over the vector."""
    return r * (d - n * dot)


# CUDA. A block computes the memory of one head and one sequence. Its answer to a query, y, is used twice: as the output of this token, and
# as the value that the next token subtracts before it writes. One pass over S per token is therefore enough:
#
#     y[0] = S^T key;   u[t] = w (v - erase lambda y[t]),  S = lambda S + k[t] u[t]^T,  y[t+1] = S^T q[t] = o[t]
#
# and backward, with S before the token's write and dS the gradient of S after it:
#
#     dS += q[t] dy[t+1]^T,  du = dS^T k[t],  dv = w du,  dy[t] = do[t-1] - erase lambda dv,  dk[t] = S dy[t] + dS u[t],  dS *= lambda
#
# All sums except those of dk run down the columns of S and dS. A thread holds one column in registers, so the loop over tokens needs no
# barrier. For dk, S and dS go through the tokens a second time, with one row per thread, once u and dy are known. No copy of S per token is
# stored.
#
# A `line` is a row or a column of S in the registers of a thread. Loops over it have constant bounds and a test inside, so that the
# compiler unrolls them: only then does the array stay in registers, and only then are loads issued together.

BLOCK_DIM = 64  # threads of a block = rows and columns of S that it holds; a smaller memory is padded with zeros
PADDED = BLOCK_DIM + 1  # row length of the shared tile: with 65, threads that each walk along a row hit different banks
MAX_TOKENS = 16  # of a chunk, per launch
ROWS = MAX_TOKENS + 1  # and the token before the chunk
WARPS = BLOCK_DIM // WARP
TURNS = max(1, MAX_TOKENS // WARPS)  # tokens of a warp, where each warp takes one token at a time
ALIGNED = None if SIMULATED else 16  # bytes: a thread reads four numbers of a row by one load


@device
def register_dot(line, x):
    """Dot product of x and a line, [BLOCK_DIM], by one thread."""
    total = ZERO
    for i in range(BLOCK_DIM):
        total += x[i] * line[i]
    return total


@device
def step(line, lam, x, a, b):
    """Update a line by one token, line = lam line + x a, and return its dot product with b."""
    total = ZERO
    for i in range(BLOCK_DIM):
        line[i] = lam * line[i] + x * a[i]
        total += b[i] * line[i]
    return total


@device
def thread():
    """threadIdx.x. The mask proves to the compiler that it is not negative; otherwise Numba adds code for negative indices."""
    return cuda.threadIdx.x & (BLOCK_DIM - 1)


@device
def warp_dot(a, b, W):
    """Dot product of two rows [W] in shared memory, by a warp. Every lane takes part."""
    total = ZERO
    for n in range(WARPS):
        i = thread() % WARP + n * WARP
        if i < W:
            total += a[i] * b[i]
    return warp_sum(total, WARP)


@device
def load_rows(rows, first, x, b, h, W):
    """rows[first + t] = x[t, b] of head h, for all tokens. One thread per column: it issues all its loads before it stores the first."""
    values, i = cuda.local.array(MAX_TOKENS, np.float32), thread()
    for t in range(MAX_TOKENS):
        values[t] = x[t, b, h * W + i] if t < x.shape[0] and i < W else ZERO
    for t in range(MAX_TOKENS):
        rows[first + t, i] = values[t]


@device
def load_keys(keys, norm, key, q_in, b, h, W):
    """keys[0] = key, keys[t + 1] = unit(silu(q_in[t])) = q[t], norm[t] = the factor 1 / norm. Ends with a barrier.

    1. A thread per column loads and applies silu. 2. A warp per token normalises.
    """
    i = thread()
    load_rows(keys, 1, q_in, b, h, W)
    keys[0, i] = key[b, h * W + i] if i < W else ZERO
    for t in range(q_in.shape[0]):
        keys[t + 1, i] = silu(keys[t + 1, i])
    cuda.syncthreads()  # waits for the columns of all threads
    lane, warp = i % WARP, i // WARP
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < q_in.shape[0]:
            r = inverse_norm(warp_dot(keys[t + 1], keys[t + 1], W), KEY_FLOOR * np.float32(W))
            for n in range(WARPS):
                keys[t + 1, lane + n * WARP] *= r
            if lane == 0:
                norm[t] = r
    cuda.syncthreads()


@device
def load_write_gates(write_gate, w_in, write_bias, b, h):
    """write_gate[t] = sigmoid(w_in[t] + write_bias): the write strength before the neuromodulator's factor. One thread per token."""
    t = thread()
    if t < w_in.shape[0]:
        write_gate[t] = sigmoid(w_in[t, b, h] + write_bias[h])


@device
def load_column(line, matrix, W):
    """line = the thread's column of a matrix [W, W] in global memory, padded with zeros."""
    j = thread()
    for i in range(BLOCK_DIM):
        line[i] = matrix[i, j] if i < W and j < W else ZERO


@device
def store_column(matrix, line, staging, W):
    """matrix[:, thread] = line, through staging [MAX_TOKENS, BLOCK_DIM] in shared memory.

    A direct unrolled store would keep 64 addresses in registers, and spill.
    """
    j = thread()
    for first in range(0, BLOCK_DIM, MAX_TOKENS):
        for n in range(MAX_TOKENS):
            staging[n, j] = line[first + n]
        n, last = 0, min(MAX_TOKENS, W - first) if j < W else 0
        while n < last:
            matrix[first + n, j] = staging[n, j]
            n += 1


@device
def load_matrix(tile, matrix, W):
    """tile = matrix [W, W], padded with zeros. One thread per column, MAX_TOKENS numbers at a time."""
    values, j, first = cuda.local.array(MAX_TOKENS, np.float32), thread(), 0
    while first < BLOCK_DIM:
        for n in range(MAX_TOKENS):
            values[n] = matrix[first + n, j] if first + n < W and j < W else ZERO
        for n in range(MAX_TOKENS):
            tile[first + n, j] = values[n]
        first += MAX_TOKENS


@device
def write_and_read(line, u, y, keys, write_gate, strength, lam, erased, C):
    """Run all tokens of a chunk on the thread's column of S: on entry u holds v, on return u and y hold u[t] and y[t]. erased:
    erase lambda.

    A thread reads and writes only its own column of u and y, so no barrier is needed.
    """
    j = thread()
    recalled = register_dot(line, keys[0])
    y[0, j] = recalled
    for t in range(C):
        w = write_gate[t] * strength * (u[t, j] - erased * recalled)
        recalled = step(line, lam, w, keys[t], keys[t + 1])
        u[t, j], y[t + 1, j] = w, recalled


@gpu(launch_bounds=(BLOCK_DIM, 8))
def memory_forward(out, S, key, q_in, v, w_in, write_bias, decay, write_scale, ring, start, first, erase):
    """Write and read C <= MAX_TOKENS tokens, W <= BLOCK_DIM. Grid (heads, B), BLOCK_DIM threads: one thread per column of S.

    Overwrites out; updates S and key in place. Also writes out into ring [words, rows B, WORD], unless its size is 0: the first token into
    row start[0] + first.
    """
    keys = cuda.shared.array((ROWS, BLOCK_DIM), np.float32, ALIGNED)
    u = cuda.shared.array((MAX_TOKENS, BLOCK_DIM), np.float32, ALIGNED)
    y = cuda.shared.array((ROWS, BLOCK_DIM), np.float32, ALIGNED)
    write_gate = cuda.shared.array(MAX_TOKENS, np.float32)  # one array per source line: the simulator identifies shared arrays by line
    norm = cuda.shared.array(MAX_TOKENS, np.float32)
    line = cuda.local.array(BLOCK_DIM, np.float32)
    h, b, j = cuda.blockIdx.x, cuda.blockIdx.y, thread()
    lane, warp = j % WARP, j // WARP
    C, W = w_in.shape[0], S.shape[2]
    load_rows(u, 0, v, b, h, W)
    load_write_gates(write_gate, w_in, write_bias, b, h)
    load_keys(keys, norm, key, q_in, b, h, W)
    load_column(line, S[b, h], W)
    if j < W:
        lam = sigmoid(decay[h])
        write_and_read(line, u, y, keys, write_gate, write_scale[b], lam, erase * lam, C)
    store_column(S[b, h], line, u, W)
    if j < W:
        key[b, h * W + j] = keys[C, j]
    cuda.syncthreads()
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < C:
            r = inverse_norm(warp_dot(y[t + 1], y[t + 1], W) / np.float32(W), OUT_FLOOR)
            for n in range(WARPS):
                i = lane + n * WARP
                if i < W:
                    out[t, b, h * W + i] = y[t + 1, i] * r
                    if ring.shape[1]:
                        n, row = h * W + i, (start[0] + first + t) * S.shape[0] % ring.shape[1] + b
                        store(ring[n // WORD], row, n % WORD, y[t + 1, i] * r)


@gpu(launch_bounds=(BLOCK_DIM, 6))
def memory_backward(
    dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale, erase
):
    """Backward pass of `memory_forward` over the same chunk. Grid (heads, B), BLOCK_DIM threads: one per column of S and dS, then one per
    row.

    Overwrites dq_in, dv, dw_in; accumulates d_decay; dS and d_key come from the token after the chunk and return for the token before it.
    """
    keys = cuda.shared.array((ROWS, BLOCK_DIM), np.float32, ALIGNED)
    u = cuda.shared.array((MAX_TOKENS, BLOCK_DIM), np.float32, ALIGNED)
    y = cuda.shared.array((ROWS, BLOCK_DIM), np.float32, ALIGNED)
    dy = cuda.shared.array((ROWS, BLOCK_DIM), np.float32, ALIGNED)
    tile = cuda.shared.array((BLOCK_DIM, PADDED), np.float32)
    write_gate = cuda.shared.array(MAX_TOKENS, np.float32)
    norm = cuda.shared.array(MAX_TOKENS, np.float32)
    partial = cuda.shared.array(BLOCK_DIM, np.float32)
    line = cuda.local.array(BLOCK_DIM, np.float32)
    h, b, j = cuda.blockIdx.x, cuda.blockIdx.y, thread()
    lane, warp = j % WARP, j // WARP
    C, W = w_in.shape[0], S_before.shape[2]
    lam, strength = sigmoid(decay[h]), write_scale[b]
    erased = erase * lam

    # 1. Recompute the chunk from S_before: u and y.
    load_rows(u, 0, v, b, h, W)
    load_rows(dy, 1, d_out, b, h, W)
    dy[0, j] = ZERO
    load_write_gates(write_gate, w_in, write_bias, b, h)
    load_keys(keys, norm, key_before, q_in, b, h, W)
    load_matrix(tile, S_before[b, h], W)
    for i in range(BLOCK_DIM):
        line[i] = tile[i, j]
    if j < W:
        write_and_read(line, u, y, keys, write_gate, strength, lam, erased, C)
    cuda.syncthreads()  # waits for y of all columns

    # 2. The gradient do[t] through the normalisation of the output, into dy[t + 1]. One warp per token.
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < C:
            r = inverse_norm(warp_dot(y[t + 1], y[t + 1], W) / np.float32(W), OUT_FLOOR)
            mean = warp_dot(y[t + 1], dy[t + 1], W) * r / np.float32(W)
            for n in range(WARPS):
                i = lane + n * WARP
                if i < W:
                    dy[t + 1, i] = through_norm(dy[t + 1, i], y[t + 1, i] * r, r, mean)
    cuda.syncthreads()

    # 3. Tokens in reverse, one thread per column: dv, dy, and the products du u for dw. These overwrite y after its last use.
    # lambda dL/dlambda = sum over tokens of (<dS, lambda S> - erase lambda dv y). The inner product <dS, S> is updated from token to
    # token: a write contributes <dS, k u^T> = du u, a read y dy. `inner` is a thread's part of it; only the sum over threads is <dS, S>.
    # Step 5 adds its value at the end of the chunk, once for each token.
    load_column(line, dS[b, h], W)
    inner, d_lam = ZERO, ZERO
    if j < W:
        lam_t, d_recalled = ONE, dy[C, j]
        inner += y[C, j] * d_recalled
        for back in range(C):
            t = C - 1 - back
            du = step(line, lam_t, d_recalled, keys[t + 1], keys[t])
            lam_t = lam
            dv_tj = write_gate[t] * strength * du
            dv[t, b, h * W + j] = dv_tj
            y[t + 1, j] = du * u[t, j]
            inner -= y[t + 1, j]
            d_lam += inner - erased * dv_tj * y[t, j]
            d_recalled = dy[t, j] - erased * dv_tj
            dy[t, j] = d_recalled
            inner += y[t, j] * d_recalled
    cuda.syncthreads()  # waits for the products of all columns

    # 4. dw: the sum of the products over the columns. One warp per token.
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < C:
            dw = ZERO  # w dL/dw, since u = w (v - erase D^T k)
            for n in range(WARPS):
                i = lane + n * WARP
                if i < W:
                    dw += y[t + 1, i]
            dw = warp_sum(dw, WARP)
            if lane == 0:
                dw_in[t, b, h] = dw * (ONE - write_gate[t])  # dw/dw_in = w (1 - p)

    # 5. One thread per row: first S forward, then dS in reverse, for dk (into y) and the final dS.
    for n in range(BLOCK_DIM):
        line[n] = tile[j, n]
    cuda.syncthreads()
    if j < W:
        y[0, j] = register_dot(line, dy[0])
        for t in range(C):
            y[t + 1, j] = step(line, lam, keys[t, j], u[t], dy[t + 1])
    load_matrix(tile, dS[b, h], W)
    cuda.syncthreads()
    inner = ZERO
    for n in range(BLOCK_DIM):
        inner += line[n] * tile[j, n]
        line[n] = tile[j, n]
    d_lam += np.float32(C) * inner
    if j < W:
        lam_t = ONE
        for back in range(C):
            t = C - 1 - back
            y[t, j] += step(line, lam_t, keys[t + 1, j], dy[t + 1], u[t])
            lam_t = lam
        step(line, lam, keys[0, j], dy[0], dy[0])
        y[C, j] += d_key[b, h * W + j]  # the token after the chunk uses the last query as its key
        d_key[b, h * W + j] = y[0, j]
    for n in range(BLOCK_DIM):
        tile[j, n] = line[n]
    d_lam = block_sum(d_lam, partial)  # its barriers also complete dk and the tile
    if j == 0:
        d_decay[b, h] += d_lam * (ONE - lam)
    i, last = 0, W if j < W else 0  # one thread per column again: neighbouring threads write neighbouring numbers (coalesced)
    while i < last:
        dS[b, h, i, j] = tile[i, j]
        i += 1
    for turn in range(TURNS):  # 6. dq_in, through the normalisation of the query. One warp per token.
        t = warp + turn * WARPS
        if t < C:
            dot = warp_dot(keys[t + 1], y[t + 1], W)
            for n in range(WARPS):
                i = lane + n * WARP
                if i < W:
                    x = q_in[t, b, h * W + i]
                    dq_in[t, b, h * W + i] = through_norm(y[t + 1, i], keys[t + 1, i], norm[t], dot) * silu_slope(x)


@register_jitable
def unit_forward(out, x):
    """out = unit(silu(x)) for one head, [W]; returns the factor 1 / norm."""
    square = ZERO
    for i in range(x.size):
        out[i] = silu(x[i])
    for i in range(x.size):
        square += out[i] * out[i]
    r = inverse_norm(square, KEY_FLOOR * np.float32(x.size))
    for i in range(x.size):
        out[i] *= r
    return r


@register_jitable
def unit_backward(dx, x, unit, r, d_unit):
    """dx = dL/dx from d_unit = dL/d unit, [W]. Adjoint of `unit_forward`."""
    dot = ZERO
    for i in range(x.size):
        dot += unit[i] * d_unit[i]
    for i in range(x.size):
        dx[i] = through_norm(d_unit[i], unit[i], r, dot) * silu_slope(x[i])


# The CPU. A task computes the memory of one head and sequence, as a block of the GPU does. `step` (vector.py) is the pass of one token over
# S; with dots, the same pass also sums along the rows, for dk. One scratch array holds all matrices and rows; its rows are padded with
# zeros to a multiple of STRIP.


@register_jitable
def dot(x, y):
    """Sum of x y over two rows."""
    total = ZERO
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@register_jitable
def copy_rows(out, x, size):
    """out[:size, :size] = x[:size, :size]. Written as loops, because Numba does not vectorise the assignment of 2-D slices."""
    for i in range(size):
        out_i, x_i = out[i], x[i]
        for j in range(size):
            out_i[j] = x_i[j]


@register_jitable
def pass_over(block, matrix, size, width, lam, x, a, b, y):
    """`step` (vector.py) for all columns of a matrix, strip by strip. All arguments after `lam` are row numbers in `block`."""
    for strip in range(0, width, STRIP):
        begin, columns, row = np.uint64(matrix * width + strip), np.uint64(strip), np.uint64(width)
        x_offset, a_offset, b_offset, y_offset = (
            np.uint64(x) * row,
            np.uint64(a) * row + columns,
            np.uint64(b) * row,
            np.uint64(y) * row + columns,
        )
        step_rows(block, begin, np.uint64(size), row, lam, x_offset, a_offset, b_offset, y_offset)


@register_jitable
def pass_over_with_dots(block, matrix, size, width, lam, x, a, b, y, c, dots):
    """As `pass_over`, with dots: c is a row number, too; the results are added to row `dots`."""
    for strip in range(0, width, STRIP):
        begin, columns, row = np.uint64(matrix * width + strip), np.uint64(strip), np.uint64(width)
        x_offset, a_offset, b_offset, y_offset = (
            np.uint64(x) * row,
            np.uint64(a) * row + columns,
            np.uint64(b) * row,
            np.uint64(y) * row + columns,
        )
        step_dots(
            block,
            begin,
            np.uint64(size),
            row,
            lam,
            x_offset,
            a_offset,
            b_offset,
            y_offset,
            np.uint64(c) * row + columns,
            np.uint64(dots) * row,
        )


@register_jitable
def write_and_read_rows(scratch, norm, w, S, key, q_in, v, lam, erase):
    """Run all tokens of a chunk: fill the rows of S, keys, u and y in scratch, and norm [C]. w [C]: the write strengths."""
    C, W = v.shape
    width, flat = scratch.shape[1], scratch.reshape(-1)
    keys, u, y = W, W + C + 1, W + 2 * C + 1
    copy_rows(scratch, S, W)
    scratch[keys, :W] = key
    for t in range(C):
        norm[t] = unit_forward(scratch[keys + t + 1, :W], q_in[t])
    pass_over(flat, 0, W, width, ONE, keys, u, keys, y)  # u is still 0: this pass only reads
    for t in range(C):
        u_t, y_t, v_t = scratch[u + t], scratch[y + t], v[t]
        for j in range(W):
            u_t[j] = w[t] * (v_t[j] - erase * lam * y_t[j])
        pass_over(flat, 0, W, width, lam, keys + t, u + t, keys + t + 1, y + t + 1)


@cpu_sums()
def memory_forward_cpu(out, S, key, q_in, v, w_in, write_bias, decay, write_scale, erase):
    """Write and read C tokens. S and key are updated in place; out is overwritten."""
    C, B, heads = w_in.shape
    W = S.shape[2]
    for task in numba.prange(B * heads):
        b, h = task // heads, task % heads
        head_slice = slice(h * W, (h + 1) * W)
        scratch = np.zeros((W + 3 * C + 2, -(-W // STRIP) * STRIP), np.float32)
        norm, w = np.empty(C, np.float32), np.empty(C, np.float32)
        for t in range(C):
            w[t] = sigmoid(w_in[t, b, h] + write_bias[h]) * write_scale[b]
        lam, q_h, v_h = sigmoid(decay[h]), q_in[:, b, head_slice], v[:, b, head_slice]
        write_and_read_rows(scratch, norm, w, S[b, h], key[b, head_slice], q_h, v_h, lam, erase)
        copy_rows(S[b, h], scratch, W)
        key[b, head_slice] = scratch[W + C, :W]
        for t in range(C):
            o, out_t = scratch[W + 2 * C + 2 + t, :W], out[t, b, head_slice]
            r = inverse_norm(dot(o, o) / np.float32(W), OUT_FLOOR)
            for j in range(W):
                out_t[j] = o[j] * r


@cpu_sums()
def memory_backward_cpu(
    dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale, erase
):
    """Backward pass over a chunk. S_before, key_before: S and key before the chunk, from which its states are recomputed.

    Overwrites dq_in, dv [C, B, heads W] and dw_in [C, B, heads]; accumulates d_decay [B, heads]; dS [B, heads, W, W] and d_key [B,
    heads W] come from the token after the chunk and return for the token before it.
    """
    C, B, heads = w_in.shape
    W = S_before.shape[2]
    keys, u, y = W, W + C + 1, W + 2 * C + 1
    dy = W + 3 * C + 2
    dk = dy + C + 1
    du, zero, matrix = dk + C + 1, dk + C + 2, dk + C + 3
    for task in numba.prange(B * heads):
        b, h = task // heads, task % heads
        head_slice = slice(h * W, (h + 1) * W)
        scratch = np.zeros((matrix + W, -(-W // STRIP) * STRIP), np.float32)
        width, flat, lam = scratch.shape[1], scratch.reshape(-1), sigmoid(decay[h])
        norm, w, write_gate = np.empty(C, np.float32), np.empty(C, np.float32), np.empty(C, np.float32)
        for t in range(C):
            write_gate[t] = sigmoid(w_in[t, b, h] + write_bias[h])
            w[t] = write_gate[t] * write_scale[b]
        q_h, v_h = q_in[:, b, head_slice], v[:, b, head_slice]
        write_and_read_rows(scratch, norm, w, S_before[b, h], key_before[b, head_slice], q_h, v_h, lam, erase)
        for t in range(C):
            o, do, d_out_t = scratch[y + t + 1, :W], scratch[dy + t + 1], d_out[t, b, head_slice]
            r = inverse_norm(dot(o, o) / np.float32(W), OUT_FLOOR)
            mean = dot(o, d_out_t) * r / np.float32(W)
            for j in range(W):
                do[j] = through_norm(d_out_t[j], o[j] * r, r, mean)
        copy_rows(scratch[matrix:], dS[b, h], W)

        # dL/dlambda: see `memory_backward`.
        d_lam = np.float32(C) * dot(flat[: W * width], flat[matrix * width :])
        inner, lam_t = dot(scratch[y + C], scratch[dy + C]), ONE
        for back in range(C):
            t = C - 1 - back
            pass_over_with_dots(flat, matrix, W, width, lam_t, keys + t + 1, dy + t + 1, keys + t, du, u + t, dk + t)
            lam_t = lam
            du_t, dy_t, dv_t = scratch[du], scratch[dy + t], dv[t, b, head_slice]
            for j in range(W):
                dv_t[j] = w[t] * du_t[j]
            for j in range(W):
                dy_t[j] -= erase * lam * w[t] * du_t[j]
            dw = dot(du_t, scratch[u + t])  # w dL/dw, since u = w (v - erase D^T k)
            dw_in[t, b, h] = dw * (ONE - write_gate[t])  # dw/dw_in = w (1 - p)
            inner -= dw
            d_lam += inner - erase * lam * w[t] * dot(du_t, scratch[y + t])
            inner += dot(scratch[y + t], dy_t)
        pass_over(flat, matrix, W, width, lam, keys, dy, keys, du)
        copy_rows(dS[b, h], scratch[matrix:], W)
        d_decay[b, h] += d_lam * (ONE - lam)

        copy_rows(scratch, S_before[b, h], W)
        pass_over_with_dots(flat, 0, W, width, ONE, zero, zero, zero, du, dy, dk)
        for t in range(C):
            pass_over_with_dots(flat, 0, W, width, lam, keys + t, u + t, zero, du, dy + t + 1, dk + t + 1)
        d_last, carried = scratch[dk + C], d_key[b, head_slice]
        for j in range(W):
            d_last[j] += carried[j]  # the token after the chunk uses the last query as its key
        d_key[b, head_slice] = scratch[dk, :W]
        for t in range(C):
            unit_backward(dq_in[t, b, head_slice], q_in[t, b, head_slice], scratch[keys + t + 1, :W], norm[t], scratch[dk + t + 1, :W])
