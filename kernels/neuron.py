"""What all neurons have in common: the drive, the output trace, and decays per token.

    I[t] = x[t] gain + bias                                              x: normalised current
    y[t] = gamma y[t-1] + (1 - gamma) s[t]                               output trace; s: what the axon carries (surrogate.py)

A decay is exp(-1 / tau), tau = exp(log_tau) in tokens. What happens between I and s is the neuron's own (neurogen_numba/neurons).
Here is one neuron over one token; population.py has the loops. `gain_scale` is a neuromodulator's, 1 when neutral.
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
    """The output trace of one neuron after a token, from the one before it and what the axon carries."""
    return gamma * y + (ONE - gamma) * s


@register_jitable
def trace_step_backward(dy_next, dy, y_prev, s, gamma):
    """Adjoint of `trace_step`: (dL/dy[t] with what comes from later, its share of ds, d_gamma). dy_next: the first of them, of t + 1."""
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
