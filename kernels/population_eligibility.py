"""How the current of a chunk acts on the time after it: what e-prop needs of a population, in place of later tokens.

A neuron's adjoint passes a vector h [K] from token to token, in reverse: `d_state` of the neuron, then the gradient of its trace. It is
linear in h. So what later tokens will ask of this chunk can be computed before they are read, with the unit vectors in place of h:

    dL/dc[t]   = sum over k  to_current[k, t] h[k]                 h: of the token after the chunk
    h'[l]      = sum over k  transition[l, k] h[k]                 h': of the token before the chunk
    dL/dtheta  = sum over k  direct[k, theta] h[k]                 theta: a parameter of the neuron

An eligibility trace [K] of a parameter collects `direct` over all chunks that were read (Bellec et al. 2020, "A solution to the learning
dilemma for recurrent networks of spiking neurons", Nature Communications 11:3625, there token by token):

    gradient += sum over k  h'[k] trace[k];      trace[k] <- sum over l  transition[l, k] trace[l] + direct[k]

eligibility.py does the same for synapses. Only the path of a neuron to itself counts: of the normalisation, the term of its own current.
Arrays as in population.py; K: number of states, and one for the trace; P: number of parameters.
"""

import functools

import numba
import numpy as np
from numba import cuda

from .gate import gate_step, gate_step_backward
from .jit import ONE, ZERO, cpu
from .launch import gpu
from .neuron import drive, trace_step_backward
from .population import SEQUENCES, Physics
from .surrogate import carried
from .tuples import add, load, rows, save, unit, zeros

GAIN, BIAS, GAMMA = -3, -2, -1  # indices of the parameters that all neurons have


@functools.cache
def make_population_eligibility(physics: Physics, constants: int, graded: bool, traced: bool, gated: bool):
    """A specialised `population_eligibility`. constants: number of the neuron's own parameters; others as in `make_population_forward`."""
    adjoint, modulate, event, S = physics.adjoint, physics.modulate, physics.surrogate.event, physics.states
    K, P, FIRST = S + traced, constants + 3, S + 1  # FIRST: index of the first d_constant in the result of the adjoint
    normalize_backward = physics.normalization.backward

    @gpu
    def population_eligibility(
        to_current, to_gate, transition, traces, partial, h, state, r, c, gate, parameters, gain_scale, beta_scale, hypercolumn
    ):
        """Block (i, b): neurons of sequence b, one per thread.

        to_current, to_gate [K, C B N], transition [K, K, B N], traces [K, P, B N], h [K, B N]; partial [B P, N]: the sequences' parts of
        the parameters' gradients. State arrays, r, c and gate are flat.
        """
        direct, moved = cuda.local.array((P, K), np.float32), cuda.local.array((K, K), np.float32)
        N, B, size = parameters.gain.size, gain_scale.size, hypercolumn
        n, b = np.int64(cuda.grid(1)), np.int64(cuda.blockIdx.y)
        if n >= N:
            return
        i, H, row = b * N + n, (N + size - 1) // size, B * N
        gain, bias, gain_b, beta_b = parameters.gain[n], parameters.bias[n], gain_scale[b], beta_scale[b]
        scaled, neurons = modulate(load(parameters.constants, n), beta_b), np.float32(min(size, N - n // size * size))
        for p in range(P):  # 1. The gradient: what the chunk asks of the tokens before it.
            total = ZERO
            for k in range(K):
                total += h[k, i] * traces[k, p, i]
            partial[b * P + p, n] = total
        for k in range(K):  # 2. The adjoint of the chunk, from the k-th unit vector.
            d_state, dy = unit(state.values, k), ONE if k == S else ZERO
            d_constants, d_gain, d_bias, d_gamma = zeros(parameters.constants), ZERO, ZERO, ZERO
            j = i + (c.size // row - 1) * row  # in [C, B, N]
            while j >= i:
                before, after, ds = load(state.values, j), load(state.values, j + row), ZERO
                if traced:
                    s = carried(after[0], event(after[0]), graded)
                    dy, ds, d_gamma_t = trace_step_backward(dy, ZERO, state.y[j], s, parameters.gamma[n])
                    d_gamma += d_gamma_t
                r_t = r[j // N * H + n // size]
                x = r_t * (gate_step(c[j], gate[j]) if gated else c[j])
                drive_t = drive(x, gain, gain_b, bias)
                adjoints = adjoint(ds, *d_state, *before, *after, drive_t, *scaled, graded)
                d_state, d_drive = adjoints[:S], adjoints[S]
                d_constants = add(d_constants, modulate(adjoints[FIRST:], beta_b))
                d_gain, d_bias, dx = d_gain + d_drive * x * gain_b, d_bias + d_drive, d_drive * gain * gain_b * r_t
                d = normalize_backward(dx, x, dx * x / neurons)
                if gated:
                    d, to_gate[k, j] = gate_step_backward(d, c[j], gate[j])
                to_current[k, j] = d
                j -= row
            save(rows(moved, 0, d_state), k, d_state)
            if traced:
                moved[S, k] = dy
            sums = d_constants + (d_gain, d_bias, d_gamma)
            save(rows(direct, 0, sums), k, sums)
        for p in range(P):  # 3. The traces after the chunk.
            for k in range(K):
                total = direct[p, k]
                for other in range(K):
                    total += moved[other, k] * traces[other, p, i]
                direct[p, k] = total
        for k in range(K):
            for p in range(P):
                traces[k, p, i] = direct[p, k]
            for other in range(K):
                transition[other, k, i] = moved[other, k]

    return population_eligibility


@functools.cache
def make_population_eligibility_cpu(physics: Physics):
    """`population_eligibility_cpu` for a kind of neuron."""
    adjoint, modulate, event, S = physics.adjoint, physics.modulate, physics.surrogate.event, physics.states
    FIRST, normalize_backward = S + 1, physics.normalization.backward

    @cpu()
    def population_eligibility_cpu(
        to_current, to_gate, transition, traces, h, d, state, r, c, gate, parameters, gain_scale, beta_scale, hypercolumn, graded
    ):
        """Overwrite to_current, to_gate [K, C, B, N] and transition [K, K, B, N]; update traces [K, P, B, N]; accumulate d, the arrays of
        NeuronParameters as a flat tuple. h [K, B, N].

        A task computes one hypercolumn of SEQUENCES sequences; their parts of the gradient are added in a fixed order.
        """
        C, B, N = c.shape
        K, P, H, groups = len(h), len(d), r.shape[2], (B + SEQUENCES - 1) // SEQUENCES
        (values, y), (constants, gain, bias, gamma) = state, parameters
        traced, gated = gamma.size > 0, gate.size > 0
        partial = np.zeros((groups, P, N), np.float32)
        for task in numba.prange(groups * H):
            group, column = task // H, task % H
            chosen = slice(column * hypercolumn, min(N, (column + 1) * hypercolumn))
            constants_h, gain_h, bias_h = load(constants, chosen), gain[chosen], bias[chosen]
            size = np.float32(gain_h.size)
            direct = np.empty((K, P, gain_h.size), np.float32)
            carries = np.empty((K, K, gain_h.size), np.float32)  # [unit vector, entry of h before the chunk]
            scratch = np.empty((3, gain_h.size), np.float32)
            x, ds, d_drive = scratch[0], scratch[1], scratch[2]
            for b in range(group * SEQUENCES, min(B, (group + 1) * SEQUENCES)):
                for p in range(P):
                    total = partial[group, p, chosen]
                    for k in range(K):
                        h_k, trace = h[k, b, chosen], traces[k, p, b, chosen]
                        for n in range(x.size):
                            total[n] += h_k[n] * trace[n]
                for k in range(K):
                    to_start = carries[k]  # h of the token before, for every entry of h
                    to_start[:] = ZERO
                    to_start[k] = ONE
                    direct[k] = ZERO
                    d_state, sums = rows(to_start, 0, values), rows(direct[k], 0, d)
                    d_constants, d_gain, d_bias, d_gamma = sums[:GAIN], sums[GAIN], sums[BIAS], sums[GAMMA]
                    for back in range(C):
                        t = C - 1 - back
                        before, after = load(values, (t, b, chosen)), load(values, (t + 1, b, chosen))
                        c_t, r_t, dc_t = c[t, b, chosen], r[t, b, column], to_current[k, t, b, chosen]
                        ds[:] = ZERO
                        if traced:
                            v_t, gamma_h, dy, y_prev = after[0], gamma[chosen], to_start[S], y[t, b, chosen]
                            for n in range(x.size):
                                s = carried(v_t[n], event(v_t[n]), graded)
                                dy[n], ds[n], d_gamma_t = trace_step_backward(dy[n], ZERO, y_prev[n], s, gamma_h[n])
                                d_gamma[n] += d_gamma_t
                        if gated:
                            g_t = gate[t, b, chosen]
                            for n in range(x.size):
                                x[n] = gate_step(c_t[n], g_t[n]) * r_t
                        else:
                            for n in range(x.size):
                                x[n] = c_t[n] * r_t
                        for n in range(x.size):
                            i, scaled = drive(x[n], gain_h[n], gain_scale[b], bias_h[n]), modulate(load(constants_h, n), beta_scale[b])
                            adjoints = adjoint(ds[n], *load(d_state, n), *load(before, n), *load(after, n), i, *scaled, graded)
                            save(d_state, n, adjoints[:S])
                            save(d_constants, n, add(load(d_constants, n), modulate(adjoints[FIRST:], beta_scale[b])))
                            d_drive[n] = adjoints[S]
                        for n in range(x.size):
                            d_gain[n] += d_drive[n] * x[n] * gain_scale[b]
                            d_bias[n] += d_drive[n]
                            dx = d_drive[n] * gain_h[n] * gain_scale[b] * r_t
                            dc_t[n] = normalize_backward(dx, x[n], dx * x[n] / size)
                        if gated:
                            g_t, dg_t = gate[t, b, chosen], to_gate[k, t, b, chosen]
                            for n in range(x.size):
                                dc_t[n], dg_t[n] = gate_step_backward(dc_t[n], c_t[n], g_t[n])
                for p in range(P):
                    for k in range(K):
                        for other in range(K):
                            trace, factor, total = traces[other, p, b, chosen], carries[k, other], direct[k, p]
                            for n in range(x.size):
                                total[n] += factor[n] * trace[n]
                    for k in range(K):
                        traces[k, p, b, chosen] = direct[k, p]
                for k in range(K):
                    for other in range(K):
                        transition[other, k, b, chosen] = carries[k, other]
        for group in range(groups):
            for p in range(P):
                total, share = d[p], partial[group, p]
                for n in range(total.size):
                    total[n] += share[n]

    return population_eligibility_cpu
