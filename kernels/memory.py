"""Hippocampal associative memory: fast weights written by the gated delta rule.

Per sequence and head, S [W, W] (rows: key, columns: value):

    q[t] = unit(silu(q_in[t])),  k[t] = q[t-1],  w = sigmoid(w_in + write_bias) write_scale[b]
    D = lambda S[t-1];  u = w (v - D^T k);  S[t] = D + k u^T;  o = S[t]^T q;  out = o / sqrt(mean(o^2) + 1e-4)
    unit(x) = x / sqrt(sum of x^2 + 1e-3 W),  lambda = sigmoid(decay)

(Schlag, Irie & Schmidhuber 2021, "Linear transformers are secretly fast weight programmers"; Yang, Kautz & Hatamizadeh 2024, "Gated delta
networks".) What comes is stored under what came before it: the key of a token is the query of the token before, so the same words heard
again recall what followed them. A write first takes back what the memory already answers to its key: a fact told again replaces the old
one.

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
from .launch import SIMULATED, WARP, block_sum, device, gpu, lanes_sum
from .vector import STRIP, WORD, make_step

KEY_FLOOR = np.float32(
    1e-3
)  # mean square of a query below which it is silent: the gradient through `unit` grows 1 / sqrt(W KEY_FLOOR) at most
OUT_FLOOR = np.float32(1e-4)  # the same of what is recalled
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
    """The factor that normalises a vector; square: the sum, or the mean, of its squares; floor: what keeps a silent one silent."""
    return ONE / math.sqrt(square + floor)


@register_jitable
def through_norm(d, n, r, dot):
    """dL/dx for an entry of n = r x, from d = dL/dn. dot: sum, or mean, of d n over the vector."""
    return r * (d - n * dot)


# CUDA. A block stands for the memory of one head and sequence. What it answers to a query, y, is both what a token reads and what the next
# one takes back when it writes, so that a token is one pass over S:
#
#     y[0] = S^T key;   u[t] = w (v - lambda y[t]),  S = lambda S + k[t] u[t]^T,  y[t+1] = S^T q[t] = o[t]
#
# and backwards, with S as a token finds it and dS the gradient of S as it leaves it:
#
#     dS += q[t] dy[t+1]^T,  du = dS^T k[t],  dv = w du,  dy[t] = do[t-1] - lambda dv,  dk[t] = S dy[t] + dS u[t],  dS *= lambda
#
# These are sums down the columns of S and dS, except for dk's. A thread holds a column in registers, and the threads need not meet while
# the tokens go by. For dk, once u and dy are known, S and dS go through the tokens again with a row to a thread. So no matrix of the tokens
# in between is kept.
#
# Loops over a line have constant bounds, with a test inside, to be unrolled: only then is it kept in registers, and do loads go out
# together.

WIDTH = 64  # threads of a block, and the rows and columns that it has room for; what a smaller memory leaves of them is zero
PADDED = WIDTH + 1  # a row of the tile: threads that go down a column each in its own row meet in no bank of shared memory
TOKENS = 16  # of a chunk that a block has room for
ROWS = TOKENS + 1
WARPS = WIDTH // WARP
TURNS = max(1, TOKENS // WARPS)  # of a warp, where warps share out the tokens
ALIGNED = None if SIMULATED else 16  # bytes: a thread reads four numbers of a row at once


@device
def product(line, x):
    """Of x and a line, a row or column that a thread holds, [WIDTH]."""
    total = ZERO
    for i in range(WIDTH):
        total += x[i] * line[i]
    return total


@device
def step(line, keep, x, a, b):
    """A line goes on by one token: line = keep line + x a. Returns its product with b."""
    total = ZERO
    for i in range(WIDTH):
        line[i] = keep * line[i] + x * a[i]
        total += b[i] * line[i]
    return total


@device
def thread():
    """The thread's number, so written that the compiler sees it is not negative: else it provides for indices that count from the end."""
    return cuda.threadIdx.x & (WIDTH - 1)


@device
def lanes_product(a, b, W):
    """Of two rows [W] in shared memory, by a warp, all of which takes part."""
    total = ZERO
    for n in range(WARPS):
        i = thread() % WARP + n * WARP
        if i < W:
            total += a[i] * b[i]
    return lanes_sum(total, WARP)


@device
def take(rows, first, x, b, h, W):
    """rows[first + t] = x[t, b], head h. A thread takes its column."""
    numbers, i = cuda.local.array(TOKENS, np.float32), thread()
    for t in range(TOKENS):
        numbers[t] = x[t, b, h * W + i] if t < x.shape[0] and i < W else ZERO
    for t in range(TOKENS):
        rows[first + t, i] = numbers[t]


@device
def take_keys(keys, norm, key, q_in, b, h, W):
    """keys[0] = key, keys[t + 1] = unit(silu(q_in[t])) = q[t], norm[t]: the factor 1 / norm. Ends with everyone having them."""
    i = thread()
    take(keys, 1, q_in, b, h, W)
    keys[0, i] = key[b, h * W + i] if i < W else ZERO
    for t in range(q_in.shape[0]):
        keys[t + 1, i] = silu(keys[t + 1, i])
    cuda.syncthreads()
    lane, warp = i % WARP, i // WARP
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < q_in.shape[0]:
            r = inverse_norm(lanes_product(keys[t + 1], keys[t + 1], W), KEY_FLOOR * np.float32(W))
            for n in range(WARPS):
                keys[t + 1, lane + n * WARP] *= r
            if lane == 0:
                norm[t] = r
    cuda.syncthreads()


@device
def take_shares(share, w_in, write_bias, b, h):
    """share[t] = sigmoid(w_in[t] + write_bias): how much of a value is written, before the neuromodulator's factor."""
    t = thread()
    if t < w_in.shape[0]:
        share[t] = sigmoid(w_in[t, b, h] + write_bias[h])


@device
def hold_column(line, matrix, W):
    """The thread's column of a matrix [W, W]."""
    j = thread()
    for i in range(WIDTH):
        line[i] = matrix[i, j] if i < W and j < W else ZERO


@device
def store_column(matrix, line, spare, W):
    """The way back, through spare [TOKENS, WIDTH], shared: the compiler would keep 64 addresses in registers that it has not."""
    j = thread()
    for first in range(0, WIDTH, TOKENS):
        for n in range(TOKENS):
            spare[n, j] = line[first + n]
        n, last = 0, min(TOKENS, W - first) if j < W else 0
        while n < last:
            matrix[first + n, j] = spare[n, j]
            n += 1


@device
def take_matrix(tile, matrix, W):
    """tile = matrix [W, W]. A thread takes its column, a few numbers at a time."""
    numbers, j, first = cuda.local.array(TOKENS, np.float32), thread(), 0
    while first < WIDTH:
        for n in range(TOKENS):
            numbers[n] = matrix[first + n, j] if first + n < W and j < W else ZERO
        for n in range(TOKENS):
            tile[first + n, j] = numbers[n]
        first += TOKENS


@device
def write_and_read(line, u, y, keys, share, strength, keep, C):
    """The tokens of a chunk, for the thread's column of S. u comes holding v; a thread touches its column of u and y alone."""
    j = thread()
    answer = product(line, keys[0])
    y[0, j] = answer
    for t in range(C):
        written = share[t] * strength * (u[t, j] - keep * answer)
        answer = step(line, keep, written, keys[t], keys[t + 1])
        u[t, j], y[t + 1, j] = written, answer


@gpu(launch_bounds=(WIDTH, 8))
def memory_forward(out, S, key, q_in, v, w_in, write_bias, decay, write_scale, ring, start, first):
    """A block of WIDTH threads per head and sequence, a thread per column of S. At most TOKENS tokens, W at most WIDTH.

    What is recalled also goes into ring [words, rows B, WORD], unless that is empty; the first token into row start[0] + first.
    """
    keys = cuda.shared.array((ROWS, WIDTH), np.float32, ALIGNED)
    u = cuda.shared.array((TOKENS, WIDTH), np.float32, ALIGNED)
    y = cuda.shared.array((ROWS, WIDTH), np.float32, ALIGNED)
    share = cuda.shared.array(TOKENS, np.float32)  # a line each: the simulator knows shared arrays by their lines
    norm = cuda.shared.array(TOKENS, np.float32)
    line = cuda.local.array(WIDTH, np.float32)
    h, b, j = cuda.blockIdx.x, cuda.blockIdx.y, thread()
    lane, warp = j % WARP, j // WARP
    C, W = w_in.shape[0], S.shape[2]
    take(u, 0, v, b, h, W)
    take_shares(share, w_in, write_bias, b, h)
    take_keys(keys, norm, key, q_in, b, h, W)
    hold_column(line, S[b, h], W)
    if j < W:
        write_and_read(line, u, y, keys, share, write_scale[b], sigmoid(decay[h]), C)
    store_column(S[b, h], line, u, W)
    if j < W:
        key[b, h * W + j] = keys[C, j]
    cuda.syncthreads()
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < C:
            r = inverse_norm(lanes_product(y[t + 1], y[t + 1], W) / np.float32(W), OUT_FLOOR)
            for n in range(WARPS):
                i = lane + n * WARP
                if i < W:
                    out[t, b, h * W + i] = y[t + 1, i] * r
                    if ring.shape[1]:
                        n, row = h * W + i, (start[0] + first + t) * S.shape[0] % ring.shape[1] + b
                        store(ring[n // WORD], row, n % WORD, y[t + 1, i] * r)


@gpu(launch_bounds=(WIDTH, 6))
def memory_backward(dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale):
    """A block of WIDTH threads per head and sequence, a thread per column of S and of dS, then per row. At most TOKENS tokens, W at most
    WIDTH."""
    keys = cuda.shared.array((ROWS, WIDTH), np.float32, ALIGNED)
    u = cuda.shared.array((TOKENS, WIDTH), np.float32, ALIGNED)
    y = cuda.shared.array((ROWS, WIDTH), np.float32, ALIGNED)
    dy = cuda.shared.array((ROWS, WIDTH), np.float32, ALIGNED)
    tile = cuda.shared.array((WIDTH, PADDED), np.float32)
    share = cuda.shared.array(TOKENS, np.float32)
    norm = cuda.shared.array(TOKENS, np.float32)
    partial = cuda.shared.array(WIDTH, np.float32)
    line = cuda.local.array(WIDTH, np.float32)
    h, b, j = cuda.blockIdx.x, cuda.blockIdx.y, thread()
    lane, warp = j % WARP, j // WARP
    C, W = w_in.shape[0], S_before.shape[2]
    keep, strength = sigmoid(decay[h]), write_scale[b]

    # The chunk again: u and y.
    take(u, 0, v, b, h, W)
    take(dy, 1, d_out, b, h, W)
    dy[0, j] = ZERO
    take_shares(share, w_in, write_bias, b, h)
    take_keys(keys, norm, key_before, q_in, b, h, W)
    take_matrix(tile, S_before[b, h], W)
    for i in range(WIDTH):
        line[i] = tile[i, j]
    if j < W:
        write_and_read(line, u, y, keys, share, strength, keep, C)
    cuda.syncthreads()

    # do[t], in dy[t + 1].
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < C:
            r = inverse_norm(lanes_product(y[t + 1], y[t + 1], W) / np.float32(W), OUT_FLOOR)
            mean = lanes_product(y[t + 1], dy[t + 1], W) * r / np.float32(W)
            for n in range(WARPS):
                i = lane + n * WARP
                if i < W:
                    dy[t + 1, i] = through_norm(dy[t + 1, i], y[t + 1, i] * r, r, mean)
    cuda.syncthreads()

    # Back by columns: dv, dy, and du u for dw, which takes y's place after y's last use.
    # lambda dL/dlambda is the sum over the tokens of <dS, lambda S> - lambda dv y. <dS, S> is followed from token to token: a write adds
    # <dS, k u^T> = du u to it, a read y dy. The threads' parts mean nothing, their sum does. What it starts from, at the end of the chunk,
    # is added further down, for each token.
    hold_column(line, dS[b, h], W)
    common, d_keep = ZERO, ZERO
    if j < W:
        kept, d_answer = ONE, dy[C, j]
        common += y[C, j] * d_answer
        for back in range(C):
            t = C - 1 - back
            du = step(line, kept, d_answer, keys[t + 1], keys[t])
            kept = keep
            d_value = share[t] * strength * du
            dv[t, b, h * W + j] = d_value
            y[t + 1, j] = du * u[t, j]
            common -= y[t + 1, j]
            d_keep += common - keep * d_value * y[t, j]
            d_answer = dy[t, j] - keep * d_value
            dy[t, j] = d_answer
            common += y[t, j] * d_answer
    cuda.syncthreads()
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < C:
            dw = ZERO  # times w, since u = w (v - D^T k)
            for n in range(WARPS):
                i = lane + n * WARP
                if i < W:
                    dw += y[t + 1, i]
            dw = lanes_sum(dw, WARP)
            if lane == 0:
                dw_in[t, b, h] = dw * (ONE - share[t])  # dw/dw_in = w (1 - p)

    # By rows: dk, in y, and dS.
    for n in range(WIDTH):
        line[n] = tile[j, n]
    cuda.syncthreads()
    if j < W:
        y[0, j] = product(line, dy[0])
        for t in range(C):
            y[t + 1, j] = step(line, keep, keys[t, j], u[t], dy[t + 1])
    take_matrix(tile, dS[b, h], W)
    cuda.syncthreads()
    common = ZERO
    for n in range(WIDTH):
        common += line[n] * tile[j, n]
        line[n] = tile[j, n]
    d_keep += np.float32(C) * common
    if j < W:
        kept = ONE
        for back in range(C):
            t = C - 1 - back
            y[t, j] += step(line, kept, keys[t + 1, j], dy[t + 1], u[t])
            kept = keep
        step(line, keep, keys[0, j], dy[0], dy[0])
        y[C, j] += d_key[b, h * W + j]  # the token after the chunk uses the last query as its key
        d_key[b, h * W + j] = y[0, j]
    for n in range(WIDTH):
        tile[j, n] = line[n]
    d_keep = block_sum(d_keep, partial)  # and everyone has dk and the tile
    if j == 0:
        d_decay[b, h] += d_keep * (ONE - keep)
    i, last = 0, W if j < W else 0
    while i < last:
        dS[b, h, i, j] = tile[i, j]
        i += 1
    for turn in range(TURNS):
        t = warp + turn * WARPS
        if t < C:
            dot = lanes_product(keys[t + 1], y[t + 1], W)
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
    """dx = dL/dx from dL/d unit, [W]."""
    dot = ZERO
    for i in range(x.size):
        dot += unit[i] * d_unit[i]
    for i in range(x.size):
        dx[i] = through_norm(d_unit[i], unit[i], r, dot) * silu_slope(x[i])


# The CPU. A task has the memory of one head and sequence and computes what a block of the GPU does: `step` (vector.py) is the pass of a
# token over S. The sums over rows, those of dk, are made in the same passes. All of it lies in one array, whose rows are padded with zeros
# to whole strips.


@register_jitable
def dot(x, y):
    """Sum of x y over two rows."""
    total = ZERO
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@register_jitable
def copy_rows(out, x, size):
    """The first numbers of the first rows of out = those of x, `size` of each: Numba would copy slices of two dimensions one by one."""
    for i in range(size):
        out_i, x_i = out[i], x[i]
        for j in range(size):
            out_i[j] = x_i[j]


@register_jitable
def pass_over(block, matrix, size, width, keep, x, a, b, y):
    """`step` for a whole matrix; here places in the block are rows."""
    for strip in range(0, width, STRIP):
        begin, columns, row = np.uint64(matrix * width + strip), np.uint64(strip), np.uint64(width)
        x_at, a_at, b_at, y_at = np.uint64(x) * row, np.uint64(a) * row + columns, np.uint64(b) * row, np.uint64(y) * row + columns
        step_rows(block, begin, np.uint64(size), row, keep, x_at, a_at, b_at, y_at)


@register_jitable
def pass_over_with_dots(block, matrix, size, width, keep, x, a, b, y, c, dots):
    """`step` with dots, as `pass_over`."""
    for strip in range(0, width, STRIP):
        begin, columns, row = np.uint64(matrix * width + strip), np.uint64(strip), np.uint64(width)
        x_at, a_at, b_at, y_at = np.uint64(x) * row, np.uint64(a) * row + columns, np.uint64(b) * row, np.uint64(y) * row + columns
        step_dots(block, begin, np.uint64(size), row, keep, x_at, a_at, b_at, y_at, np.uint64(c) * row + columns, np.uint64(dots) * row)


@register_jitable
def write_and_read_rows(lines, norm, written, S, key, q_in, v, keep):
    """The tokens of a chunk: fills the rows of S, keys, u and y in lines, and norm; written [C]: w."""
    C, W = v.shape
    width, flat = lines.shape[1], lines.reshape(-1)
    keys, u, y = W, W + C + 1, W + 2 * C + 1
    copy_rows(lines, S, W)
    lines[keys, :W] = key
    for t in range(C):
        norm[t] = unit_forward(lines[keys + t + 1, :W], q_in[t])
    pass_over(flat, 0, W, width, ONE, keys, u, keys, y)  # u is 0 still
    for t in range(C):
        u_t, y_t, v_t = lines[u + t], lines[y + t], v[t]
        for j in range(W):
            u_t[j] = written[t] * (v_t[j] - keep * y_t[j])
        pass_over(flat, 0, W, width, keep, keys + t, u + t, keys + t + 1, y + t + 1)


@cpu_sums()
def memory_forward_cpu(out, S, key, q_in, v, w_in, write_bias, decay, write_scale):
    """Write and read C tokens. S and key are updated in place; out is overwritten."""
    C, B, heads = w_in.shape
    W = S.shape[2]
    for task in numba.prange(B * heads):
        b, h = task // heads, task % heads
        own = slice(h * W, (h + 1) * W)
        lines = np.zeros((W + 3 * C + 2, -(-W // STRIP) * STRIP), np.float32)
        norm, written = np.empty(C, np.float32), np.empty(C, np.float32)
        for t in range(C):
            written[t] = sigmoid(w_in[t, b, h] + write_bias[h]) * write_scale[b]
        write_and_read_rows(lines, norm, written, S[b, h], key[b, own], q_in[:, b, own], v[:, b, own], sigmoid(decay[h]))
        copy_rows(S[b, h], lines, W)
        key[b, own] = lines[W + C, :W]
        for t in range(C):
            o, out_t = lines[W + 2 * C + 2 + t, :W], out[t, b, own]
            r = inverse_norm(dot(o, o) / np.float32(W), OUT_FLOOR)
            for j in range(W):
                out_t[j] = o[j] * r


@cpu_sums()
def memory_backward_cpu(dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale):
    """Run a chunk backwards. S_before, key_before: S and key before the chunk, from which the chunk is run again.

    Overwrites dq_in, dv [C, B, heads W] and dw_in [C, B, heads]; adds to d_decay [B, heads]; carries dS [B, heads, W, W] and d_key [B,
    heads W].
    """
    C, B, heads = w_in.shape
    W = S_before.shape[2]
    keys, u, y = W, W + C + 1, W + 2 * C + 1
    dy = W + 3 * C + 2
    dk = dy + C + 1
    du, zero, matrix = dk + C + 1, dk + C + 2, dk + C + 3
    for task in numba.prange(B * heads):
        b, h = task // heads, task % heads
        own = slice(h * W, (h + 1) * W)
        lines = np.zeros((matrix + W, -(-W // STRIP) * STRIP), np.float32)
        width, flat, keep = lines.shape[1], lines.reshape(-1), sigmoid(decay[h])
        norm, written, share = np.empty(C, np.float32), np.empty(C, np.float32), np.empty(C, np.float32)
        for t in range(C):
            share[t] = sigmoid(w_in[t, b, h] + write_bias[h])
            written[t] = share[t] * write_scale[b]
        write_and_read_rows(lines, norm, written, S_before[b, h], key_before[b, own], q_in[:, b, own], v[:, b, own], keep)
        for t in range(C):
            o, do, d_out_t = lines[y + t + 1, :W], lines[dy + t + 1], d_out[t, b, own]
            r = inverse_norm(dot(o, o) / np.float32(W), OUT_FLOOR)
            mean = dot(o, d_out_t) * r / np.float32(W)
            for j in range(W):
                do[j] = through_norm(d_out_t[j], o[j] * r, r, mean)
        copy_rows(lines[matrix:], dS[b, h], W)

        # dL/dlambda: as on a GPU, where it is told.
        d_keep = np.float32(C) * dot(flat[: W * width], flat[matrix * width :])
        common, kept = dot(lines[y + C], lines[dy + C]), ONE
        for back in range(C):
            t = C - 1 - back
            pass_over_with_dots(flat, matrix, W, width, kept, keys + t + 1, dy + t + 1, keys + t, du, u + t, dk + t)
            kept = keep
            du_t, dy_t, dv_t = lines[du], lines[dy + t], dv[t, b, own]
            for j in range(W):
                dv_t[j] = written[t] * du_t[j]
            for j in range(W):
                dy_t[j] -= keep * written[t] * du_t[j]
            dw = dot(du_t, lines[u + t])  # times w, since u = w (v - D^T k)
            dw_in[t, b, h] = dw * (ONE - share[t])  # dw/dw_in = w (1 - p)
            common -= dw
            d_keep += common - keep * written[t] * dot(du_t, lines[y + t])
            common += dot(lines[y + t], dy_t)
        pass_over(flat, matrix, W, width, keep, keys, dy, keys, du)
        copy_rows(dS[b, h], lines[matrix:], W)
        d_decay[b, h] += d_keep * (ONE - keep)

        copy_rows(lines, S_before[b, h], W)
        pass_over_with_dots(flat, 0, W, width, ONE, zero, zero, zero, du, dy, dk)
        for t in range(C):
            pass_over_with_dots(flat, 0, W, width, keep, keys + t, u + t, zero, du, dy + t + 1, dk + t + 1)
        d_last, carried = lines[dk + C], d_key[b, own]
        for j in range(W):
            d_last[j] += carried[j]  # the token after the chunk uses the last query as its key
        d_key[b, own] = lines[dk, :W]
        for t in range(C):
            unit_backward(dq_in[t, b, own], q_in[t, b, own], lines[keys + t + 1, :W], norm[t], lines[dk + t + 1, :W])
