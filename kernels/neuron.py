"""LIF-A: leaky integrate-and-fire neuron with soft reset and adaptation.

    I[t] = x[t] gain + bias                                              x: normalised current
    v[t] = alpha v[t-1] - z[t-1] + I[t] - beta a[t-1]                    membrane potential; the threshold is 1
    z[t] = event(v[t])                                                   event (surrogate.py)
    a[t] = rho a[t-1] + (1 - rho) z[t]                                   adaptation

alpha and rho are exp(-1 / tau), tau = exp(log_tau) in tokens. Training replaces dz/dv by the surrogate slope; the reset passes gradient
(Bellec et al. 2018, "Long short-term memory and learning-to-learn in networks of spiking neurons", for the adaptation).

The output trace of a neuron is y[t] = gamma y[t-1] + (1 - gamma) s[t], s what its axon carries. Here is one neuron over one token;
population.py has the loops. `gain_scale` and the factor of beta are the neuromodulators', 1 when neutral.
"""

import math

import numba
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu
from .launch import gpu
from .surrogate import carried, event, slope


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
