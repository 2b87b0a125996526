"""LIF-A: leaky integrate-and-fire neuron with soft reset and adaptation.

    I[t] = x[t] gain + bias                                              x: normalised current
    v[t] = alpha v[t-1] - z[t-1] + I[t] - beta a[t-1]                    membrane potential; the threshold is 1
    z[t] = event(v[t])                                                   event (surrogate.py)
    a[t] = rho a[t-1] + (1 - rho) z[t]                                   adaptation

alpha and rho are exp(-1 / tau), tau = exp(log_tau) in tokens. Training replaces dz/dv by the surrogate slope; the reset passes gradient
(Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of spiking neurons", for the adaptation).

A scan runs over the C tokens of a chunk. v and a are [C+1, B, N] float32: row 0 is the token before the chunk. Per-neuron parameters are
[N] float32; `gain_scale` and `beta_scale` are the neuromodulators' factors, [B] float32, 1 when neutral.

To the CUDA kernels, arrays of [C, B, N] and [B, N] come flat: the place i of a token's number serves all of them, and that of the next
token is a row [B, N] further. Places are uint64, because Numba looks at each signed one whether it counts from the end. A thread fetches
the numbers of the next token while it computes one, or it would mostly wait for memory.
"""

import math

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu
from .launch import device, gpu
from .surrogate import carried, event, slope

BLOCK = 64  # neurons that one CPU task owns: no two tasks add to the same parameter's gradient
SUMMING = 512  # threads that a CUDA block of the backward kernels has at most


@register_jitable
def decay(log_tau):
    """exp(-1 / tau), per token."""
    return math.exp(-math.exp(-log_tau))


@register_jitable
def decay_slope(log_tau):
    """d decay / d log_tau."""
    return decay(log_tau) * math.exp(-log_tau)


@register_jitable
def drive(x, gain, gain_scale, bias):
    """What drives a neuron: its normalised current x, amplified."""
    return x * gain * gain_scale + bias


@register_jitable
def lif_step(v, a, i, alpha, rho, beta, smooth):
    """One neuron, one token: (v, a) after it, from (v, a) before it and the drive i."""
    v = alpha * v - event(v, smooth) + i - beta * a
    return v, rho * a + (ONE - rho) * event(v, smooth)


@register_jitable
def lif_step_backward(ds, dv_next, da, v, v_prev, a_prev, alpha, rho, beta, graded, smooth):
    """Adjoint of `lif_step` and of the axon's `carried`: (dv, da_prev, d_alpha, d_rho, d_beta).

    ds: dL/ds[t]; dv_next: dL/dv[t+1]; da: dL/da[t]. dv = dL/dv[t] is also the gradient of the drive.
    """
    z = event(v, smooth)
    dz = (ONE - rho) * da - dv_next + (ds * v if graded else ds)
    dv = alpha * dv_next + slope(v) * dz + (z * ds if graded else ZERO)
    return dv, rho * da - beta * dv, dv * v_prev, da * (a_prev - z), -dv * a_prev


@register_jitable
def trace_step(y, v, gamma, graded, smooth):
    """The output trace of one neuron after a token, from the one before it and the membrane potential v."""
    return gamma * y + (ONE - gamma) * carried(v, event(v, smooth), graded)


@register_jitable
def trace_step_backward(dy_next, dy, y_prev, v, gamma, graded, smooth):
    """Adjoint of `trace_step`: (dL/dy[t] with what comes from later, its share of ds, d_gamma). dy_next: the first of them, of t + 1."""
    dy += gamma * dy_next
    return dy, (ONE - gamma) * dy, dy * (y_prev - carried(v, event(v, smooth), graded))


@gpu
def lif_forward(v, a, x, gain, bias, alpha, rho, beta, gain_scale, beta_scale, smooth):
    """A thread is a neuron of a sequence: block (i, b) has the i-th blockDim.x neurons of sequence b."""
    N, row, size = np.uint64(gain.size), np.uint64(gain_scale.size * gain.size), np.uint64(x.size)
    n, b = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y)
    if n >= N:
        return
    gain_n, bias_n, alpha_n, rho_n, beta_n, gain_b = gain[n], bias[n], alpha[n], rho[n], beta[n] * beta_scale[b], gain_scale[b]
    i = b * N + n
    v_t, a_t, x_next = v[i], a[i], x[i]
    while i < size:
        x_t = x_next
        i += row
        if i < size:
            x_next = x[i]
        v_t, a_t = lif_step(v_t, a_t, drive(x_t, gain_n, gain_b, bias_n), alpha_n, rho_n, beta_n, smooth)
        v[i], a[i] = v_t, a_t


@gpu
def lif_backward(
    dx, dv, da, d_gain, d_bias, d_alpha, d_rho, d_beta, ds, v, a, x, gain, alpha, rho, beta, gain_scale, beta_scale, graded, smooth
):
    """A block owns blockDim.x neurons, a column of threads each: thread y of a column has every blockDim.y-th sequence."""
    partial = cuda.shared.array(0, numba.float32)
    N, row, size = np.uint64(gain.size), np.uint64(gain_scale.size * gain.size), np.uint64(x.size)
    n = np.uint64(cuda.grid(1))
    to_gain = to_bias = to_alpha = to_rho = to_beta = ZERO
    if n < N:
        gain_n, alpha_n, rho_n, beta_n = gain[n], alpha[n], rho[n], beta[n]
        for b in range(cuda.threadIdx.y, gain_scale.size, cuda.blockDim.y):
            gain_b, beta_b = gain_scale[b], beta_scale[b]
            first = np.uint64(b) * N + n
            i = first + size  # of the token after the chunk
            dv_t, da_t, v_t = dv[first], da[first], v[i]
            ds_next, v_next, a_next, x_next = ds[i - row], v[i - row], a[i - row], x[i - row]
            while i > first:
                ds_t, v_prev, a_prev, x_t = ds_next, v_next, a_next, x_next
                i -= row
                if i > first:
                    ds_next, v_next, a_next, x_next = ds[i - row], v[i - row], a[i - row], x[i - row]
                dv_t, da_t, alpha_t, rho_t, beta_t = lif_step_backward(
                    ds_t, dv_t, da_t, v_t, v_prev, a_prev, alpha_n, rho_n, beta_n * beta_b, graded, smooth
                )
                dx[i] = dv_t * gain_n * gain_b
                to_gain += dv_t * x_t * gain_b
                to_bias += dv_t
                to_alpha += alpha_t
                to_rho += rho_t
                to_beta += beta_t * beta_b
                v_t = v_prev
            dv[first], da[first] = dv_t, da_t
    hand_in(partial, 0, to_gain)
    hand_in(partial, 1, to_bias)
    hand_in(partial, 2, to_alpha)
    hand_in(partial, 3, to_rho)
    hand_in(partial, 4, to_beta)
    cuda.syncthreads()
    if n < N and cuda.threadIdx.y == 0:
        d_gain[n] += column_sum(partial, 0)
        d_bias[n] += column_sum(partial, 1)
        d_alpha[n] += column_sum(partial, 2)
        d_rho[n] += column_sum(partial, 3)
        d_beta[n] += column_sum(partial, 4)


@device
def hand_in(partial, which, x):
    """A thread's part of sum number `which`. partial: shared, a number of every thread for every sum."""
    partial[(which * cuda.blockDim.y + cuda.threadIdx.y) * cuda.blockDim.x + cuda.threadIdx.x] = x


@device
def column_sum(partial, which):
    """Sum number `which` over a column of the block's threads, row after row."""
    total = ZERO
    for y in range(cuda.blockDim.y):
        total += partial[(which * cuda.blockDim.y + y) * cuda.blockDim.x + cuda.threadIdx.x]
    return total


@gpu
def trace_forward(y, v, gamma, graded, smooth):
    """A thread is a neuron of a sequence: block (i, b) has the i-th blockDim.x neurons of sequence b."""
    N, row, size = np.uint64(gamma.size), np.uint64(cuda.gridDim.y * gamma.size), np.uint64(y.size)
    n, b = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y)
    if n >= N:
        return
    gamma_n, i = gamma[n], b * N + n
    y_t, v_next = y[i], v[i + row]
    i += row
    while i < size:
        v_t = v_next
        if i + row < size:
            v_next = v[i + row]
        y_t = trace_step(y_t, v_t, gamma_n, graded, smooth)
        y[i] = y_t
        i += row


@gpu
def trace_backward(ds, dy_carry, d_gamma, dy, y, v, gamma, graded, smooth):
    """A block owns blockDim.x neurons, a column of threads each: thread y of a column has every blockDim.y-th sequence."""
    partial = cuda.shared.array(0, numba.float32)
    N, row, size = np.uint64(gamma.size), np.uint64(dy_carry.size), np.uint64(dy.size)
    n = np.uint64(cuda.grid(1))
    to_gamma = ZERO
    if n < N:
        gamma_n, first = gamma[n], np.uint64(cuda.threadIdx.y) * N + n
        while first < row:
            carry, i = dy_carry[first], first + size
            dy_next, y_next, v_next, ds_next = dy[i - row], y[i - row], v[i], ds[i - row]
            while i > first:
                dy_t, y_prev, v_t, ds_t = dy_next, y_next, v_next, ds_next
                i -= row
                if i > first:
                    dy_next, y_next, v_next, ds_next = dy[i - row], y[i - row], v[i], ds[i - row]
                carry, to_s, gamma_t = trace_step_backward(carry, dy_t, y_prev, v_t, gamma_n, graded, smooth)
                ds[i] = ds_t + to_s
                to_gamma += gamma_t
            dy_carry[first] = carry
            first += np.uint64(cuda.blockDim.y) * N
    hand_in(partial, 0, to_gamma)
    cuda.syncthreads()
    if n < N and cuda.threadIdx.y == 0:
        d_gamma[n] += column_sum(partial, 0)


@gpu
def decay_forward(decayed, log_tau):
    """A thread is a neuron."""
    n = cuda.grid(1)
    if n < log_tau.size:
        decayed[n] = decay(log_tau[n])


@gpu
def decay_backward(d_log_tau, d_decay, log_tau):
    """A thread is a neuron."""
    n = cuda.grid(1)
    if n < log_tau.size:
        d_log_tau[n] += d_decay[n] * decay_slope(log_tau[n])
        d_decay[n] = ZERO


@cpu()
def lif_forward_cpu(v, a, x, gain, bias, alpha, rho, beta, gain_scale, beta_scale, smooth):
    """Fill v[1:] and a[1:], [C+1, B, N], from x [C, B, N]."""
    C, B, N = x.shape
    blocks = (N + BLOCK - 1) // BLOCK
    for task in numba.prange(B * blocks):
        b = task // blocks
        first = (task % blocks) * BLOCK
        own = slice(first, min(N, first + BLOCK))
        gain_n, bias_n, alpha_n, rho_n, beta_n = gain[own], bias[own], alpha[own], rho[own], beta[own]
        for t in range(C):
            x_t, v_prev, v_t, a_prev, a_t = x[t, b, own], v[t, b, own], v[t + 1, b, own], a[t, b, own], a[t + 1, b, own]
            for n in range(x_t.size):
                i = drive(x_t[n], gain_n[n], gain_scale[b], bias_n[n])
                v_t[n], a_t[n] = lif_step(v_prev[n], a_prev[n], i, alpha_n[n], rho_n[n], beta_n[n] * beta_scale[b], smooth)


@cpu()
def lif_backward_cpu(
    dx, dv, da, d_gain, d_bias, d_alpha, d_rho, d_beta, ds, v, a, x, gain, alpha, rho, beta, gain_scale, beta_scale, graded, smooth
):
    """Run a chunk backwards. Overwrites dx [C, B, N]; carries dv and da [B, N] (in: of the token after the chunk; out: of the one before
    it, dv still without its decay); adds to the parameter gradients [N]. ds [C, B, N]: dL/ds."""
    C, B, N = x.shape
    for block in numba.prange((N + BLOCK - 1) // BLOCK):
        own = slice(block * BLOCK, min(N, (block + 1) * BLOCK))
        gain_n, alpha_n, rho_n, beta_n = gain[own], alpha[own], rho[own], beta[own]
        d_gain_n, d_bias_n, d_alpha_n, d_rho_n, d_beta_n = d_gain[own], d_bias[own], d_alpha[own], d_rho[own], d_beta[own]
        for b in range(B):
            dv_n, da_n = dv[b, own], da[b, own]
            for back in range(C):
                t = C - 1 - back
                x_t, v_prev, v_t, a_prev, ds_t, dx_t = (
                    x[t, b, own],
                    v[t, b, own],
                    v[t + 1, b, own],
                    a[t, b, own],
                    ds[t, b, own],
                    dx[t, b, own],
                )
                for n in range(x_t.size):
                    dv_n[n], da_n[n], to_alpha, to_rho, to_beta = lif_step_backward(
                        ds_t[n],
                        dv_n[n],
                        da_n[n],
                        v_t[n],
                        v_prev[n],
                        a_prev[n],
                        alpha_n[n],
                        rho_n[n],
                        beta_n[n] * beta_scale[b],
                        graded,
                        smooth,
                    )
                    d_alpha_n[n] += to_alpha
                    d_rho_n[n] += to_rho
                    d_beta_n[n] += to_beta * beta_scale[b]
                for n in range(x_t.size):
                    d_gain_n[n] += dv_n[n] * x_t[n] * gain_scale[b]
                    d_bias_n[n] += dv_n[n]
                    dx_t[n] = dv_n[n] * gain_n[n] * gain_scale[b]


@cpu()
def trace_forward_cpu(y, v, gamma, graded, smooth):
    """Output trace y[t] = gamma y[t-1] + (1 - gamma) s[t]. Fills y[1:] of [C+1, B, N] from v [C+1, B, N]."""
    C, B, N = y.shape[0] - 1, y.shape[1], y.shape[2]
    for b in numba.prange(B):
        for t in range(1, C + 1):
            y_prev, y_t, v_t = y[t - 1, b], y[t, b], v[t, b]
            for n in range(N):
                y_t[n] = trace_step(y_prev[n], v_t[n], gamma[n], graded, smooth)


@cpu()
def trace_backward_cpu(ds, dy_carry, d_gamma, dy, y, v, gamma, graded, smooth):
    """Adjoint of the trace. Adds to ds [C, B, N] and d_gamma [N]; carries dy_carry [B, N], which is dL/dy of the token after the chunk
    without its decay. dy [C, B, N]: what the readers of the trace send back."""
    C, B, N = dy.shape
    for block in numba.prange((N + BLOCK - 1) // BLOCK):
        own = slice(block * BLOCK, min(N, (block + 1) * BLOCK))
        gamma_n, d_gamma_n = gamma[own], d_gamma[own]
        for b in range(B):
            carry = dy_carry[b, own]
            for back in range(C):
                t = C - 1 - back
                dy_t, y_prev, v_t, ds_t = dy[t, b, own], y[t, b, own], v[t + 1, b, own], ds[t, b, own]
                for n in range(carry.size):
                    carry[n], to_s, to_gamma = trace_step_backward(carry[n], dy_t[n], y_prev[n], v_t[n], gamma_n[n], graded, smooth)
                    ds_t[n] += to_s
                    d_gamma_n[n] += to_gamma


@cpu()
def decay_forward_cpu(decayed, log_tau):
    """Overwrite `decayed` [N] with the decay per token of time constants exp(log_tau) [N]."""
    for n in numba.prange(log_tau.size):
        decayed[n] = decay(log_tau[n])


@cpu()
def decay_backward_cpu(d_log_tau, d_decay, log_tau):
    """Add to d_log_tau [N] what d_decay [N], dL/d decay, comes to, and clear it: what was handed over is not handed over twice."""
    for n in numba.prange(log_tau.size):
        d_log_tau[n] += d_decay[n] * decay_slope(log_tau[n])
        d_decay[n] = ZERO
