"""Hippocampal associative memory: fast weights written by the gated delta rule.

Per sequence and head, S [W, W] (rows: key, columns: value):

    q[t] = unit(silu(q_in[t])),  k[t] = q[t-1],  w = sigmoid(w_in + write_bias) write_scale[b]
    D = lambda S[t-1];  u = w (v - D^T k);  S[t] = D + k u^T;  o = S[t]^T q;  out = o / sqrt(mean(o^2) + eps)
    unit(x) = x / sqrt(sum of x^2 + eps),  lambda = sigmoid(decay)

(Schlag, Irie & Schmidhuber 2021, "Linear transformers are secretly fast weight programmers"; Yang, Kautz & Hatamizadeh 2024, "Gated delta
networks".) What comes is stored under what came before it: the key of a token is the query of the token before, so the same words heard
again recall what followed them. A write first takes back what the memory already answers to its key: a fact told again replaces the old
one.

q_in, v, out: [C, B, heads W] float32, head h in columns h W to (h + 1) W; key [B, heads W]: the query of the token before; w_in: [C, B,
heads];
S: [B, heads, W, W].
"""

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu_sums

EPS = np.float32(1e-4)
GUARD = 128  # rows


@register_jitable
def sigmoid(x):
    return ONE / (ONE + np.exp(-x))


@register_jitable
def silu_slope(x):
    p = sigmoid(x)
    return p * (ONE + x * (ONE - p))


@register_jitable
def unit_forward(out, x):
    """out = unit(silu(x)) for one head, [W]; returns the factor 1 / norm."""
    square = ZERO
    for i in range(x.size):
        out[i] = x[i] * sigmoid(x[i])
    for i in range(x.size):
        square += out[i] * out[i]
    r = ONE / np.sqrt(square + EPS)
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
        dx[i] = r * (d_unit[i] - unit[i] * dot) * silu_slope(x[i])


@register_jitable
def write(S_next, S, u, k, v, w, keep):
    """One delta-rule write: S_next = keep S + k u^T with u = w (v - keep S^T k), which is left in u [W]. S_next may be S."""
    for j in range(u.size):
        u[j] = ZERO
    for i in range(k.size):
        for j in range(u.size):
            u[j] += k[i] * S[i, j]
    for j in range(u.size):
        u[j] = w * (v[j] - keep * u[j])
    for i in range(k.size):
        for j in range(u.size):
            S_next[i, j] = keep * S[i, j] + k[i] * u[j]


@register_jitable
def read(o, S, q):
    """o = S^T q, [W]; returns 1 / sqrt(mean(o^2) + eps)."""
    for j in range(o.size):
        o[j] = ZERO
    for i in range(q.size):
        for j in range(o.size):
            o[j] += q[i] * S[i, j]
    square = ZERO
    for j in range(o.size):
        square += o[j] * o[j]
    return ONE / np.sqrt(square / np.float32(o.size) + EPS)


@register_jitable
def scratch(rows, W):
    """An array [rows, W] with room to spare on both sides: no other array lies near it (jit.py says why)."""
    return np.empty((rows + 2 * GUARD) * W, np.float32)[GUARD * W : (GUARD + rows) * W].reshape(rows, W)


@cpu_sums()
def memory_forward_cpu(out, S, key, q_in, v, w_in, write_bias, decay, write_scale):
    """Write and read C tokens. S and key are updated in place; out is overwritten."""
    C, B, heads = w_in.shape
    W = S.shape[2]
    for task in numba.prange(B * heads):
        b, h = task // heads, task % heads
        own = slice(h * W, (h + 1) * W)
        block = scratch(3, W)
        q, u, o = block[0], block[1], block[2]
        k = key[b, own]
        keep = sigmoid(decay[h])
        for t in range(C):
            unit_forward(q, q_in[t, b, own])
            write(S[b, h], S[b, h], u, k, v[t, b, own], sigmoid(w_in[t, b, h] + write_bias[h]) * write_scale[b], keep)
            r = read(o, S[b, h], q)
            for j in range(W):
                out[t, b, h * W + j] = o[j] * r
                k[j] = q[j]


@cpu_sums()
def memory_backward_cpu(dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale):
    """Run a chunk backwards. S_before, key_before: S and key before the chunk, from which the chunk is run again to know S at every token.

    Overwrites dq_in, dv [C, B, heads W] and dw_in [C, B, heads]; adds to d_decay [B, heads]; carries dS [B, heads, W, W] and d_key [B,
    heads W].
    """
    C, B, heads = w_in.shape
    W = S_before.shape[2]
    for task in numba.prange(B * heads):
        b, h = task // heads, task % heads
        own = slice(h * W, (h + 1) * W)
        block = scratch((C + 1) * (W + 1) + C + 5, W)
        S = block[: (C + 1) * W].reshape(C + 1, W, W)
        q, u = block[(C + 1) * W : (C + 1) * (W + 1)], block[(C + 1) * (W + 1) : (C + 1) * (W + 1) + C]
        o, do, du, dp, dq = block[-5], block[-4], block[-3], block[-2], block[-1]
        norm = np.empty(C, np.float32)
        keep = sigmoid(decay[h])
        S[0] = S_before[b, h]
        q[0] = key_before[b, own]  # row t + 1 is the query of token t, row t its key
        for t in range(C):
            norm[t] = unit_forward(q[t + 1], q_in[t, b, own])
            write(S[t + 1], S[t], u[t], q[t], v[t, b, own], sigmoid(w_in[t, b, h] + write_bias[h]) * write_scale[b], keep)
        dS_t, dk = dS[b, h], d_key[b, own]
        d_keep = ZERO
        for back in range(C):
            t = C - 1 - back
            p = sigmoid(w_in[t, b, h] + write_bias[h])
            w = p * write_scale[b]
            q_t, k_t, u_t, d_out_t = q[t + 1], q[t], u[t], d_out[t, b, own]
            r = read(o, S[t + 1], q_t)
            dot = ZERO
            for j in range(W):
                dot += d_out_t[j] * o[j] * r
            for j in range(W):
                do[j] = r * (d_out_t[j] - o[j] * r * dot / np.float32(W))
                du[j] = ZERO
            for i in range(W):
                row, d_row = S[t + 1, i], dS_t[i]
                for j in range(W):
                    d_row[j] += q_t[i] * do[j]
                    du[j] += k_t[i] * d_row[j]
                to_q, to_k = dk[i], ZERO  # the token after uses this query as its key
                for j in range(W):
                    to_q += row[j] * do[j]
                    to_k += d_row[j] * u_t[j]
                dq[i], dk[i] = to_q, to_k
            dw = ZERO  # times w, since u = w (v - D^T k)
            for j in range(W):
                dw += du[j] * u_t[j]
            for j in range(W):
                dp[j] = -w * du[j]
                dv[t, b, h * W + j] = w * du[j]
            for i in range(W):
                row, d_row = S[t, i], dS_t[i]
                for j in range(W):
                    d_row[j] += k_t[i] * dp[j]
                to_k = ZERO
                for j in range(W):
                    to_k += row[j] * dp[j]
                    d_keep += d_row[j] * row[j]
                for j in range(W):
                    d_row[j] *= keep
                dk[i] += keep * to_k
            unit_backward(dq_in[t, b, own], q_in[t, b, own], q_t, norm[t], dq)
            dw_in[t, b, h] = dw * (ONE - p)  # dw/dw_in = w (1 - p)
        d_decay[b, h] += d_keep * keep * (ONE - keep)
