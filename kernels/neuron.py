"""LIF-A: leaky integrate-and-fire neuron with soft reset and adaptation.

    I[t] = x[t] gain + bias                                              x: normalised current
    v[t] = alpha v[t-1] - z[t-1] + I[t] - beta a[t-1]                    membrane potential; the threshold is 1
    z[t] = event(v[t])                                                   event (surrogate.py)
    a[t] = rho a[t-1] + (1 - rho) z[t]                                   adaptation

alpha and rho are exp(-1 / tau), tau in tokens. Training replaces dz/dv by the surrogate slope; the reset passes gradient (Bellec et al.
2018, "Long short-term memory and learning-to-learn in networks of spiking neurons", for the adaptation).

A scan runs over the C tokens of a chunk. v and a are [C+1, B, N] float32: row 0 is the token before the chunk. Per-neuron parameters are
[N] float32; `gain_scale` and `beta_scale` are the neuromodulators' factors, [B] float32, 1 when neutral.
"""

import numba
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu
from .surrogate import carried, event, slope

BLOCK = 64  # neurons that one CPU task owns: no two tasks add to the same parameter's gradient


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
                drive = x_t[n] * gain_n[n] * gain_scale[b] + bias_n[n]
                v_t[n], a_t[n] = lif_step(v_prev[n], a_prev[n], drive, alpha_n[n], rho_n[n], beta_n[n] * beta_scale[b], smooth)


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
                s = carried(v_t[n], event(v_t[n], smooth), graded)
                y_t[n] = gamma[n] * y_prev[n] + (ONE - gamma[n]) * s


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
                    carry[n] = gamma_n[n] * carry[n] + dy_t[n]
                    s = carried(v_t[n], event(v_t[n], smooth), graded)
                    ds_t[n] += (ONE - gamma_n[n]) * carry[n]
                    d_gamma_n[n] += carry[n] * (y_prev[n] - s)
