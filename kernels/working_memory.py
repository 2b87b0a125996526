"""Working memory: a gated buffer in front of PFC.

    f = sigmoid(f_in + retain),   m[t] = f m[t-1] + (1 - f) u_in

(the minimal gated unit; O'Reilly & Frank 2006, Neural Computation 18:283, for gating by the basal ganglia). CUDA kernels take flat arrays.
A thread computes one slot of one sequence and loops over the tokens. It loads the next token before it computes the current one, so the
latency of the load overlaps with arithmetic.
"""

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .half import store
from .jit import ONE, cpu
from .launch import gpu
from .memory import sigmoid
from .vector import WORD

_WORD = np.uint64(WORD)


@register_jitable
def working_memory_step(m, f_in, u_in, retain):
    """m[t] of one slot from m[t-1]."""
    f = sigmoid(f_in + retain)
    return f * m + (ONE - f) * u_in


@register_jitable
def working_memory_step_backward(d, m_prev, f_in, u_in, retain):
    """Adjoint of `working_memory_step`: (df_in, du_in, dm_prev) from d = dL/dm[t]."""
    f = sigmoid(f_in + retain)
    return d * (m_prev - u_in) * f * (ONE - f), d * (ONE - f), d * f


@gpu
def working_memory_forward(m, f_in, u_in, retain, ring, start, first):
    """Overwrite rows 1 ... C of m [C+1, B, M]. Grid (slot blocks, B): one thread per slot and sequence.

    Also writes m into ring [words, rows B, WORD], unless it has size 0: the first token into row start[0] + first.
    """
    M, row, size = np.uint64(retain.size), np.uint64(cuda.gridDim.y * retain.size), np.uint64(f_in.size)
    k, b = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y)
    if k >= M:
        return
    retain_k, i = retain[k], b * M + k
    m_t, f_next, u_next, token = m[i], f_in[i], u_in[i], np.uint64(start[0] + first)
    while i < size:
        f_t, u_t = f_next, u_next
        i += row
        if i < size:
            f_next, u_next = f_in[i], u_in[i]
        m_t = working_memory_step(m_t, f_t, u_t, retain_k)
        m[i] = m_t
        if ring.shape[1]:
            store(ring[k // _WORD], (token * np.uint64(cuda.gridDim.y) + b) % np.uint64(ring.shape[1]), k % _WORD, m_t)
            token += np.uint64(1)


@gpu
def working_memory_backward(df_in, du_in, dm_carry, dm, m, f_in, u_in, retain):
    """Backward pass of `working_memory_forward`: overwrite df_in, du_in; dm_carry comes from the token after the chunk and returns for the
    token before it. Grid (slot blocks, B): one thread per slot and sequence."""
    M, row, size = np.uint64(retain.size), np.uint64(dm_carry.size), np.uint64(dm.size)
    k, b = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y)
    if k >= M:
        return
    retain_k, first = retain[k], b * M + k
    carry, i = dm_carry[first], first + size  # of the token after the chunk
    dm_next, m_next, f_next, u_next = dm[i - row], m[i - row], f_in[i - row], u_in[i - row]
    while i > first:
        dm_t, m_prev, f_t, u_t = dm_next, m_next, f_next, u_next
        i -= row
        if i > first:
            dm_next, m_next, f_next, u_next = dm[i - row], m[i - row], f_in[i - row], u_in[i - row]
        df_in[i], du_in[i], carry = working_memory_step_backward(carry + dm_t, m_prev, f_t, u_t, retain_k)
    dm_carry[first] = carry


@gpu
def working_memory_eligibility(to_retain, to_store, transition, traces, partial, h, m, f_in, u_in, retain):
    """As `population_eligibility` (population_eligibility.py) for slots, whose h is dL/dm of the token after: K is 1, and `retain` is the
    parameter. to_retain, to_store [C B M], transition, traces, h [B M], partial [B, M]; one thread per slot and sequence."""
    M, row, size = np.uint64(retain.size), np.uint64(h.size), np.uint64(f_in.size)
    k, b = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y)
    if k >= M:
        return
    first, d, total = b * M + k, ONE, ONE - ONE
    partial[b, k] = h[first] * traces[first]
    i = first + size
    while i > first:
        i -= row
        to_retain[i], to_store[i], d = working_memory_step_backward(d, m[i], f_in[i], u_in[i], retain[k])
        total += to_retain[i]
    transition[first] = d
    traces[first] = d * traces[first] + total


@cpu()
def working_memory_forward_cpu(m, f_in, u_in, retain):
    """Overwrite m[1:]."""
    C, B, M = f_in.shape
    for b in numba.prange(B):
        for t in range(C):
            for i in range(M):
                m[t + 1, b, i] = working_memory_step(m[t, b, i], f_in[t, b, i], u_in[t, b, i], retain[i])


@cpu()
def working_memory_backward_cpu(df_in, du_in, dm_carry, dm, m, f_in, u_in, retain):
    """Overwrite df_in and du_in [C, B, M]; dm_carry [B, M] comes from the token after the chunk and returns for the token before it. The
    gradient of `retain` is the sum of df_in over tokens and sequences."""
    C, B, M = f_in.shape
    for b in numba.prange(B):
        for back in range(C):
            t = C - 1 - back
            for i in range(M):
                d = dm_carry[b, i] + dm[t, b, i]
                df_in[t, b, i], du_in[t, b, i], dm_carry[b, i] = working_memory_step_backward(
                    d, m[t, b, i], f_in[t, b, i], u_in[t, b, i], retain[i]
                )


@cpu()
def working_memory_eligibility_cpu(to_retain, to_store, transition, traces, d_retain, h, m, f_in, u_in, retain):
    """Overwrite to_retain, to_store [C, B, M] and transition [B, M]; update traces [B, M]; accumulate d_retain [M]. h [B, M]."""
    C, B, M = f_in.shape
    for i in numba.prange(M):
        for b in range(B):
            d_retain[i] += h[b, i] * traces[b, i]
            d, total = ONE, ONE - ONE
            for back in range(C):
                t = C - 1 - back
                df, du, d = working_memory_step_backward(d, m[t, b, i], f_in[t, b, i], u_in[t, b, i], retain[i])
                to_retain[t, b, i], to_store[t, b, i] = df, du
                total += df
            transition[b, i] = d
            traces[b, i] = d * traces[b, i] + total
