"""Equations that all neurons share: drive, output trace, decay per token. One neuron, one token; population.py has the loops.

    I[t] = x[t] gain gain_scale + bias                                   x: normalised current; gain_scale: neuromodulator, 1 when neutral
    y[t] = gamma y[t-1] + (1 - gamma) s[t]                               output trace; s: value on the axon (surrogate.py)

A decay is exp(-1 / tau), tau = exp(log_tau) in tokens. The equations from I to s differ between neurons (neurogen_numba/neurons).
"""

import math

import numba
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu
from .launch import gpu


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
    """The drive of a neuron from its normalised current x."""
    return x * gain * gain_scale + bias


@register_jitable
def trace_step(y, s, gamma):
    """y[t] of one neuron from y[t-1] and the value s[t] on its axon."""
    return gamma * y + (ONE - gamma) * s


@register_jitable
def trace_step_backward(dy_next, dy, y_prev, s, gamma):
    """Adjoint of `trace_step`: (dL/dy[t] including later tokens, its contribution to ds, d_gamma). dy_next: the first result, of token
    t + 1."""
    dy += gamma * dy_next
    return dy, (ONE - gamma) * dy, dy * (y_prev - s)


@gpu
def decay_forward(decayed, log_tau):
    """decayed = decay(log_tau). One thread per neuron."""
    n = cuda.grid(1)
    if n < log_tau.size:
        decayed[n] = decay(log_tau[n])


@gpu
def decay_backward(d_log_tau, d_decay, log_tau):
    """d_log_tau += d_decay d decay / d log_tau, and d_decay = 0. One thread per neuron."""
    n = cuda.grid(1)
    if n < log_tau.size:
        d_log_tau[n] += d_decay[n] * decay_slope(log_tau[n])
        d_decay[n] = ZERO


@gpu
def gain_forward(scaled, gain, input_scale):
    """scaled = gain input_scale. One thread per neuron."""
    n = cuda.grid(1)
    if n < gain.size:
        scaled[n] = gain[n] * input_scale[n]


@gpu
def gain_backward(d_gain, d_scaled, input_scale):
    """d_gain += d_scaled input_scale, and d_scaled = 0. One thread per neuron."""
    n = cuda.grid(1)
    if n < d_gain.size:
        d_gain[n] += d_scaled[n] * input_scale[n]
        d_scaled[n] = ZERO


@cpu()
def decay_forward_cpu(decayed, log_tau):
    """As `decay_forward`."""
    for n in numba.prange(log_tau.size):
        decayed[n] = decay(log_tau[n])


@cpu()
def decay_backward_cpu(d_log_tau, d_decay, log_tau):
    """As `decay_backward`."""
    for n in numba.prange(log_tau.size):
        d_log_tau[n] += d_decay[n] * decay_slope(log_tau[n])
        d_decay[n] = ZERO


@cpu()
def gain_forward_cpu(scaled, gain, input_scale):
    """As `gain_forward`."""
    for n in numba.prange(gain.size):
        scaled[n] = gain[n] * input_scale[n]


@cpu()
def gain_backward_cpu(d_gain, d_scaled, input_scale):
    """As `gain_backward`."""
    for n in numba.prange(d_gain.size):
        d_gain[n] += d_scaled[n] * input_scale[n]
        d_scaled[n] = ZERO
