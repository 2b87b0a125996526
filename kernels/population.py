"""Populations of neurons: fused forward and backward kernels, from raw current to state, trace and axon.

    c' = c 2 sigmoid(g)  where there is a gate (gate.py)        x = c' r  (normalize.py)        i = drive(x), y (neuron.py)
    state = step(state, i)  of any neuron (`Physics`)           axon: carried(v, event(v)), dropped out (surrogate.py, dropout.py)

The physics are scalar functions in other files; this file has the loops. x and c' are not stored: the backward pass recomputes x = c' r.

Arrays of a chunk are [C, B, N] float32: c, gate (raw currents), ds, dy (gradients of axon and trace). State arrays are [C+1, B, N]; row 0
is the token before the chunk. r is [C, B, hypercolumns]. Without a gate or a trace, its arrays have size 0.

An axon is a ring: token t of the segment is in row (start[0] + t) % rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .dropout import dropout_factor, mask_index, mask_index_32, mask_index_alone
from .gate import gate_step, gate_step_backward
from .half import store
from .jit import ONE, ZERO, cpu, cpu_serial_sum
from .launch import SIMULATED, WARP, device, gpu, warp_sum
from .neuron import drive, trace_step, trace_step_backward
from .normalize import Normalization
from .surrogate import Surrogate, carried
from .tuples import add, load, rows, save, zeros
from .vector import WORD, nonzero_bits, prefetch

BLOCK_DIM = 4 if SIMULATED else 256  # approximate block size if hypercolumns are smaller: a block takes several of them
MAX_REGISTERS = 64  # per thread: 65,536 registers of a multiprocessor / 1,024 threads, the block of the largest hypercolumn
TILE_BYTES = 64 if SIMULATED else 16 * 2**10  # approximate shared memory of a block
LOADS, BACK_LOADS = 16, 2  # loads that a thread keeps in flight, forward and backward: a load takes hundreds of cycles
RESIDENT = 1024  # threads that run concurrently on a multiprocessor (occupancy) with MAX_REGISTERS each
SEQUENCES = 4  # of a CPU task of the backward pass
CACHE_LINE = 16  # float32 numbers in a cache line of 64 bytes
u32 = np.uint32
U1 = u32(1)


class Physics(NamedTuple):
    """The functions of a neuron that the loops call (neurons/definition.py). The first state is the membrane potential v.

    step(*state, i, *constants) -> state after the token.
    adjoint(ds, *d_state, *before, *after, i, *constants, graded) -> (*d_state, d_i, *d_constants). ds is dL/ds[t]; before and after are the
    states around the token; d_state is passed from token to token in reverse.
    modulate(constants, factor) -> constants with the neuromodulator's factor; factor_gradient(d_constants, constants) -> the gradient of
    that factor from the gradients of its results.
    """

    step: Callable
    adjoint: Callable
    modulate: Callable
    factor_gradient: Callable
    surrogate: Surrogate
    normalization: Normalization
    states: int

    def __repr__(self):
        return self.step.__name__


class NeuronState(NamedTuple):
    """values: the state arrays of a neuron, v first; y: output trace, of size 0 if no synapse reads it. Each [C+1, B, N].

    The backward pass uses the same tuple for its carry, each [B, N]: d_state, and dy before its decay, of the token after the chunk.
    """

    values: tuple
    y: Any


class NeuronParameters(NamedTuple):
    """Constants per neuron [N], or their gradients: those of this kind of neuron, and those of all neurons (neuron.py). gamma has size 0
    without a trace."""

    constants: tuple
    gain: Any
    bias: Any
    gamma: Any


def flat(parameters: NeuronParameters) -> tuple:
    """The arrays of NeuronParameters as one flat tuple."""
    return *parameters.constants, *parameters[1:]


class Axon(NamedTuple):
    """The ring buffer of a signal: of an axon, a trace or a memory. A ring of size 0 is not written: no synapse reads the signal, or the
    pass only recomputes states.

    ring [words, rows, B, WORD] float32, on a GPU also float16 or bfloat16: neuron n is in word n // WORD, padded with zeros. start [1]
    int32: row of the segment's first token. CPU: bit masks fired, needs_grad [words, rows, B] uint64. Bit i of word w is neuron WORD w + i;
    a neuron needs a gradient if it fired or its surrogate slope is not 0. On the CPU the rows of a segment do not wrap around. GPU: both
    masks have size 0.
    """

    ring: Any
    start: Any
    fired: Any
    needs_grad: Any


@register_jitable
def axon_value(s, drop, key, offset, i, token_size):
    """The i-th value s after dropout with rate `drop` (dropout.py)."""
    if drop > ZERO and s != ZERO:
        s *= dropout_factor(drop, key, mask_index_32(offset, i, token_size))
    return s


# CUDA. A block computes `columns` whole hypercolumns, one thread per neuron. Arrays are flat, so one index i serves all arrays [C, B, N]:
# the next token is at i + B N, and state[i] is the state before the token. Neighbouring threads read neighbouring numbers (coalesced).
# Indices are uint32: with 64-bit indices the compiler keeps a 64-bit pointer per array in two registers, and the backward kernel spills.
# Numba promotes index arithmetic to 64 bits; the casts u32(...) bring it back.


@functools.cache
def make_population_forward(physics: Physics, graded: bool, traced: bool, gated: bool):
    """A specialised `population_forward`. graded: events carry the membrane potential; traced: with output traces; gated: with a gate."""
    LOADS_PER_THREAD = LOADS // 4 if gated else LOADS  # a gate needs a second load each: more would exceed the registers
    step, modulate, event, normalizer = physics.step, physics.modulate, physics.surrogate.event, physics.normalization.normalizer

    @gpu(max_registers=MAX_REGISTERS)
    def population_forward(
        state,
        r,
        ring,
        start,
        trace_ring,
        trace_start,
        first,
        c,
        gate,
        parameters,
        gain_scale,
        beta_scale,
        hypercolumn,
        columns,
        tokens,
        drop,
        key,
        offset_of_mask,
    ):
        """Block (i, b): the i-th `columns` hypercolumns of sequence b. ring, trace_ring [words, rows B, WORD]: of the axon and the trace;
        `first`: the chunk's first token in its segment.

        Tiles of `tokens` tokens. 1. A thread loads the currents of its neuron into shared memory. 2. A warp per token and hypercolumn sums
        the squares and computes r. 3. A thread steps its neuron through the tokens, with the state in registers.
        """
        shared = cuda.shared.array(0, numba.float32)  # currents [tokens, threads], then r [tokens, columns]
        currents, gates = cuda.local.array(LOADS_PER_THREAD, np.float32), cuda.local.array(LOADS_PER_THREAD, np.float32)
        N, B, size, columns = u32(parameters.gain.size), u32(gain_scale.size), u32(hypercolumn), u32(columns)
        token_size, H, thread, width = u32(B * N), u32((N + size - U1) // size), u32(cuda.threadIdx.x), u32(cuda.blockDim.x)
        C, tile_tokens = u32(u32(c.size) // token_size), u32(tokens)
        b, first_column, normalizers = u32(cuda.blockIdx.y), u32(u32(cuda.blockIdx.x) * columns), u32(tile_tokens * width)
        n = u32(first_column * size + thread)
        active, ring_rows, key_0 = thread < columns * size and n < N, u32(ring.shape[1]), key[0]
        trace_rows, trace_slot, word, bit = u32(trace_ring.shape[1]), b, np.uint64(n // u32(WORD)), np.uint64(n % u32(WORD))
        values, constants, gain, bias, gamma, y = zeros(state.values), zeros(parameters.constants), ZERO, ZERO, ZERO, ZERO
        gain_b, slot, thread_column = gain_scale[b], b, u32(thread // size)
        i = u32(b * N + n)  # in [C, B, N]
        if active:
            constants, gain, bias = modulate(load(parameters.constants, n), beta_scale[b]), parameters.gain[n], parameters.bias[n]
            values = load(state.values, i)
            if traced:
                y, gamma = state.y[i], parameters.gamma[n]
        if ring_rows > 0:
            slot = u32(u32(start[0] + first) % (ring_rows // B) * B + b)
        if trace_rows > 0:
            trace_slot = u32(u32(trace_start[0] + first) % (trace_rows // B) * B + b)
        done = u32(0)
        while done < C:
            count = min(u32(C - done), tile_tokens)
            k, j = thread, u32((done * B + b) * N + n)
            while active and k < count * width:  # 1.
                for s in range(LOADS_PER_THREAD):
                    inside, i_s = u32(k + u32(s) * width) < u32(count * width), u32(j + u32(s) * token_size)
                    currents[s] = c[i_s] if inside else ZERO
                    if gated:
                        gates[s] = gate[i_s] if inside else ZERO
                for s in range(LOADS_PER_THREAD):
                    if gated:
                        currents[s] = gate_step(currents[s], gates[s])
                    if u32(k + u32(s) * width) < u32(count * width):
                        shared[u32(k + u32(s) * width)] = currents[s]
                k, j = u32(k + u32(LOADS_PER_THREAD) * width), u32(j + u32(LOADS_PER_THREAD) * token_size)
            cuda.syncthreads()  # waits for the currents of all threads
            task, lane = u32(thread // u32(WARP)), u32(thread % u32(WARP))
            while task < count * columns:  # 2.
                s, local_column = u32(task // columns), u32(task % columns)
                h = u32(first_column + local_column)
                if h < H:
                    neurons, square = min(size, u32(N - h * size)), ZERO
                    k = u32(s * width + local_column * size + lane)
                    last = u32(s * width + local_column * size + neurons)
                    while k < last:
                        square += shared[k] * shared[k]
                        k = u32(k + u32(WARP))
                    square = warp_sum(square, WARP)
                    if lane == 0:
                        normal = normalizer(square, np.int64(neurons))
                        shared[u32(normalizers + task)] = normal
                        r[u32(u32((done + s) * B + b) * H + h)] = normal
                task = u32(task + width // u32(WARP))
            cuda.syncthreads()  # waits for r of all hypercolumns
            k, j = thread, u32(normalizers + thread_column)
            while active and k < count * width:  # 3.
                x, index = shared[k] * shared[j], i
                k, j, i = u32(k + width), u32(j + columns), u32(i + token_size)
                values = step(*values, drive(x, gain, gain_b, bias), *constants)
                save(state.values, i, values)
                v = values[0]
                if traced:
                    y = trace_step(y, carried(v, event(v), graded), gamma)
                    state.y[i] = y
                    if trace_rows > 0:
                        store(trace_ring[word], np.uint64(trace_slot), bit, y)
                        trace_slot = u32(trace_slot + B)
                        if trace_slot >= trace_rows:
                            trace_slot = u32(trace_slot - trace_rows)
                if ring_rows > 0:
                    store(
                        ring[word],
                        np.uint64(slot),
                        bit,
                        axon_value(carried(v, event(v), graded), drop, key_0, offset_of_mask, index, token_size),
                    )
                    slot = u32(slot + B)
                    if slot >= ring_rows:
                        slot = u32(slot - ring_rows)
            done = u32(done + count)

    return population_forward


@device
def fetch_token(ds, dy, state, r, c, gate, i, j, traced, gated):
    """Load everything that the backward pass reads for a token: ds, the state before it, c, r, gate, y before it, dy. Called one token
    ahead of its use, so that the loads overlap with arithmetic."""
    g = y = dy_t = ZERO
    if gated:
        g = gate[i]
    if traced:
        y, dy_t = state.y[i], dy[i]
    return ds[i], load(state.values, i), c[i], r[j], g, y, dy_t


@functools.cache
def make_population_backward(physics: Physics, graded: bool, traced: bool, gated: bool, modulated: bool = False, several: bool = False):
    """A specialised `population_backward`, as in `make_population_forward`; modulated: with gradients of the sensitivities; several:
    with dropout of a batch that several processes share. Its division takes registers that the others need."""
    index_of = mask_index_32 if several else mask_index_alone
    LOADS_PER_THREAD = BACK_LOADS if gated else 1  # in step 3; without a gate, step 3 loads nothing
    adjoint, modulate, event, S = physics.adjoint, physics.modulate, physics.surrogate.event, physics.states
    factor_gradient, FIRST = physics.factor_gradient, S + 1  # FIRST: index of the first d_constant in the result of the adjoint
    normalize_backward = physics.normalization.backward

    @gpu(max_registers=MAX_REGISTERS)
    def population_backward(
        d_current,
        shift,
        offset,
        d_gate,
        carry,
        partial,
        ds,
        dy,
        state,
        r,
        c,
        gate,
        parameters,
        gain_scale,
        beta_scale,
        gain_slope,
        beta_slope,
        hypercolumn,
        columns,
        tokens,
        scale,
        drop,
        key,
        offset_of_mask,
    ):
        """Block (i, j): the i-th `columns` hypercolumns of the j-th group of sequences, one sequence after another.

        Tiles of `tokens` tokens in reverse. 1. A thread runs the adjoint of its neuron and stores r dx and x in shared memory. 2. A warp
        per token and hypercolumn sums r dx x. 3. A thread writes the gradient of its neuron's current, times `scale`.

        d_current, d_gate [lines, columns, numbers per line] of any float type, from column `offset` on: neuron n is in line n >> shift.
        partial [groups parameters, N]: partial sums of the parameters' gradients, one per group. If it is modulated, a group is one
        sequence, and the gradients of the sensitivities of gain and adaptation follow. gain_slope, beta_slope [B]: derivatives of the
        logarithms of the factors by these.
        """
        shared = cuda.shared.array(0, numba.float32)  # r dx and x [tokens, threads] each, then the means [tokens, columns]
        currents, gates = cuda.local.array(LOADS_PER_THREAD, np.float32), cuda.local.array(LOADS_PER_THREAD, np.float32)
        N, B, size, columns = u32(parameters.gain.size), u32(gain_scale.size), u32(hypercolumn), u32(columns)
        token_size, H, thread, width = u32(B * N), u32((N + size - U1) // size), u32(cuda.threadIdx.x), u32(cuda.blockDim.x)
        C, tile_tokens = u32(u32(c.size) // token_size), u32(tokens)
        x_tile, means = u32(tile_tokens * width), u32(tile_tokens * width * u32(2))
        first_column = u32(u32(cuda.blockIdx.x) * columns)
        n = u32(first_column * size + thread)
        active = thread < columns * size and n < N
        constants, gain, bias, gamma = zeros(parameters.constants), ZERO, ZERO, ZERO
        if active:
            constants, gain, bias = load(parameters.constants, n), parameters.gain[n], parameters.bias[n]
            if traced:
                gamma = parameters.gamma[n]
        d_constants, d_gain, d_bias, d_gamma = zeros(constants), ZERO, ZERO, ZERO

        group = u32((B + u32(cuda.gridDim.y) - U1) // u32(cuda.gridDim.y))  # sequences
        b = u32(u32(cuda.blockIdx.y) * group)
        last_b = min(B, u32(b + group))
        while b < last_b:
            left, begin = C, u32(b * N + n)
            i, j = u32(begin + left * token_size), u32((left * B + b) * H + n // size)  # in [C, B, N] and r, of the token after the chunk
            dy_t, d_state, after = ZERO, zeros(carry.values), zeros(state.values)
            fetched = ZERO, zeros(state.values), ZERO, ZERO, ZERO, ZERO, ZERO
            if active:
                d_state, after = load(carry.values, begin), load(state.values, i)
                if traced:
                    dy_t = carry.y[begin]
                fetched = fetch_token(ds, dy, state, r, c, gate, u32(i - token_size), u32(j - B * H), traced, gated)
            while left > 0:
                count = min(left, tile_tokens)
                left = u32(left - count)
                k = u32(count * width + thread)
                while active and k >= width:  # 1.
                    ds_t, before, x, r_t, g, y_prev, dy_in = fetched
                    i, j, k = u32(i - token_size), u32(j - B * H), u32(k - width)
                    if i > begin:
                        fetched = fetch_token(ds, dy, state, r, c, gate, u32(i - token_size), u32(j - B * H), traced, gated)
                    if drop > ZERO:
                        ds_t *= dropout_factor(drop, key[0], index_of(offset_of_mask, i, token_size))
                    if traced:
                        s_t = carried(after[0], event(after[0]), graded)
                        dy_t, ds_from_trace, dgamma_t = trace_step_backward(dy_t, dy_in, y_prev, s_t, gamma)
                        ds_t += ds_from_trace
                        d_gamma += dgamma_t
                    beta_b, gain_b = beta_scale[b], gain_scale[b]  # loaded again for each token, to save registers
                    drive_t = drive(
                        r_t * (gate_step(x, g) if gated else x), gain, gain_b, bias
                    )  # used by some adjoints, otherwise dead code
                    adjoints = adjoint(ds_t, *d_state, *before, *after, drive_t, *modulate(constants, beta_b), graded)
                    d_state, d_drive, after = adjoints[:S], adjoints[S], before
                    d_constants = add(d_constants, modulate(adjoints[FIRST:], beta_b))
                    d_bias += d_drive
                    x, dx = r_t * (gate_step(x, g) if gated else x), d_drive * gain_b
                    d_gain += dx * x
                    shared[k], shared[u32(x_tile + k)] = dx * gain * r_t, x
                cuda.syncthreads()  # waits for both tiles of all threads
                task, lane = u32(thread // u32(WARP)), u32(thread % u32(WARP))
                while task < count * columns:  # 2.
                    s, local_column = u32(task // columns), u32(task % columns)
                    before = u32((first_column + local_column) * size)
                    if before < N:
                        neurons = min(size, u32(N - before))
                        k, dot = u32(s * width + local_column * size + lane), ZERO
                        end = u32(s * width + local_column * size + neurons)
                        while k < end:
                            dot += shared[k] * shared[u32(x_tile + k)]
                            k = u32(k + u32(WARP))
                        dot = warp_sum(dot, WARP)
                        if lane == 0:
                            shared[u32(means + task)] = dot / np.float32(neurons)
                    task = u32(task + width // u32(WARP))
                cuda.syncthreads()  # waits for the means
                s = u32(0)
                while active and s < count:  # 3.
                    if gated:
                        for t in range(LOADS_PER_THREAD):
                            i_t = u32(u32((left + min(u32(s + u32(t)), u32(count - U1))) * B + b) * N + n)
                            currents[t], gates[t] = c[i_t], gate[i_t]
                    for t in range(LOADS_PER_THREAD):
                        if s < count:
                            k, token = u32(s * width + thread), u32((left + s) * B + b)
                            mean = shared[u32(means + s * columns + thread // size)]
                            d = normalize_backward(shared[k], shared[u32(x_tile + k)], mean)
                            column, line = np.uint64(u32(token + u32(offset))), n >> u32(shift)
                            in_line, line = np.uint64(n - (line << u32(shift))), np.uint64(line)
                            if gated:
                                d, dg = gate_step_backward(d, currents[t], gates[t])
                                store(d_gate[line], column, in_line, dg * scale)
                            store(d_current[line], column, in_line, d * scale)
                            s = u32(s + U1)
            if active:
                save(carry.values, begin, d_state)
                if traced:
                    carry.y[begin] = dy_t
            b = u32(b + U1)
        if modulated and active:
            b = u32(b - U1)
            to_gain, to_beta = d_gain * gain * gain_slope[b], factor_gradient(d_constants, constants) * beta_slope[b]
            sums = d_constants + (d_gain, d_bias, d_gamma, to_gain, to_beta)
            save(rows(partial, u32(b * u32(len(sums))), sums), n, sums)
        if active and not modulated:
            totals = d_constants + (d_gain, d_bias, d_gamma)
            save(rows(partial, u32(u32(cuda.blockIdx.y) * u32(len(totals))), totals), n, totals)

    return population_backward


@gpu
def add_parameter_gradients(d, partial):
    """Reduce partial [groups parameters, N] over the groups, in order, and add to d, a tuple of arrays [N]. Block (i, k): parameter k of
    the i-th blockDim.x neurons, one thread per neuron. A gamma of size 0 is skipped."""
    n, k, total = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), ZERO
    if n >= np.uint64(d[k].size):
        return
    row = k
    while row < np.uint64(partial.shape[0]):
        total += partial[row, n]
        row += np.uint64(len(d))
    d[k][n] += total


# The CPU. A task computes one hypercolumn, whose rows stay in the cache. Loops over a row are vectorised. A loop over `prange` accepts
# tuples of arrays but not tuples of tuples, so these are unpacked before it.


@cpu_serial_sum()
def dot(x, y):
    """Sum of x y over two rows."""
    total = ZERO
    for n in range(x.size):
        total += x[n] * y[n]
    return total


@register_jitable
def fetch_row(x, t, b, first, size):
    """Prefetch x[t, b, first : first + size] into the cache: a row of the next token, while the current one is computed."""
    _, B, N = x.shape
    for n in range(0, size, CACHE_LINE):
        prefetch(x, np.uint64((t * B + b) * N + first + n))


@functools.cache
def make_population_forward_cpu(physics: Physics):
    """`population_forward_cpu` for a kind of neuron."""
    step, modulate, event, normalizer = physics.step, physics.modulate, physics.surrogate.event, physics.normalization.normalizer

    @cpu()
    def population_forward_cpu(state, r, c, gate, parameters, gain_scale, beta_scale, hypercolumn, graded):
        """Overwrite rows 1 ... C of the state, and r [C, B, hypercolumns]. `write_events_cpu` writes the axon."""
        C, B, N = c.shape
        H, (values, y), (constants, gain, bias, gamma) = r.shape[2], state, parameters
        for task in numba.prange(B * H):
            b, h = task // H, task % H
            column_slice = slice(h * hypercolumn, min(N, (h + 1) * hypercolumn))
            constants_h, gain_h, bias_h = load(constants, column_slice), gain[column_slice], bias[column_slice]
            x = np.empty(gain_h.size, np.float32)
            for t in range(C):
                c_t, before, after = c[t, b, column_slice], load(values, (t, b, column_slice)), load(values, (t + 1, b, column_slice))
                if gate.size > 0:
                    g_t = gate[t, b, column_slice]
                    for n in range(x.size):
                        x[n] = gate_step(c_t[n], g_t[n])
                else:
                    x[:] = c_t
                r_t = normalizer(dot(x, x), x.size)
                r[t, b, h] = r_t
                for n in range(x.size):
                    i, scaled = drive(x[n] * r_t, gain_h[n], gain_scale[b], bias_h[n]), modulate(load(constants_h, n), beta_scale[b])
                    save(after, n, step(*load(before, n), i, *scaled))
                if gamma.size > 0:
                    v_t, gamma_h, y_prev, y_t = after[0], gamma[column_slice], y[t, b, column_slice], y[t + 1, b, column_slice]
                    for n in range(x.size):
                        y_t[n] = trace_step(y_prev[n], carried(v_t[n], event(v_t[n]), graded), gamma_h[n])

    return population_forward_cpu


@functools.cache
def make_write_events_cpu(surrogate: Surrogate):
    """`write_events_cpu` for a surrogate, whose slope decides which neurons need a gradient."""
    event, slope = surrogate

    @cpu()
    def write_events_cpu(axon, first, v, drop, key, offset_of_mask, graded):
        """Write the axons of C tokens from v [C, B, N] into rows start[0] + first ...: the ring and both bit masks.

        A dropped neuron is in neither mask: no synapse reads it, and it gets no gradient.
        """
        C, B, N = v.shape
        x, fired, needs_grad, row = axon.ring, axon.fired, axon.needs_grad, axon.start[0] + first
        words, ring_rows = x.shape[:2]
        for task in numba.prange(C * B):
            t, b = task // B, task % B
            grad_mask = np.zeros(WORD, np.float32)
            for word in range(words):
                first, size = word * WORD, min(WORD, N - word * WORD)
                v_t, s = v[t, b, first : first + size], x[word, row + t, b]
                index = mask_index(offset_of_mask, np.uint64(task * N + first))
                grad_mask[size:] = ZERO
                for n in range(size):
                    s[n] = carried(v_t[n], event(v_t[n]), graded)
                for n in range(size):
                    grad_mask[n] = abs(s[n]) + slope(v_t[n])
                if drop > ZERO:
                    for n in range(size):
                        factor = dropout_factor(drop, key[0], index + np.uint64(n))
                        s[n] *= factor
                        grad_mask[n] *= factor
                fired[word, row + t, b] = nonzero_bits(x, np.uint64(((word * ring_rows + row + t) * B + b) * WORD))
                needs_grad[word, row + t, b] = nonzero_bits(grad_mask, np.uint64(0))

    return write_events_cpu


@functools.cache
def make_population_backward_cpu(physics: Physics, modulated: bool = False):
    """`population_backward_cpu` for a kind of neuron; modulated: with gradients of the sensitivities."""
    adjoint, modulate, event, S = physics.adjoint, physics.modulate, physics.surrogate.event, physics.states
    factor_gradient, FIRST = physics.factor_gradient, S + 1  # FIRST: index of the first d_constant in the result of the adjoint
    normalize_backward = physics.normalization.backward
    GAIN = -5 if modulated else -3  # index of d_gain in the totals, which begin with the d_constants

    @cpu()
    def population_backward_cpu(
        d_current,
        d_gate,
        carry,
        d,
        ds,
        dy,
        state,
        r,
        c,
        gate,
        parameters,
        gain_scale,
        beta_scale,
        gain_slope,
        beta_slope,
        hypercolumn,
        scale,
        drop,
        key,
        offset_of_mask,
        graded,
    ):
        """Overwrite d_current [C, B, N or more] and d_gate; accumulate d, the arrays of NeuronParameters as a flat tuple, then
        those of the sensitivities if it is modulated. carry [B, N] comes from the token after the chunk and returns for the token before
        it.

        A task computes one hypercolumn of SEQUENCES sequences. Their partial sums of the parameters' gradients are added in a fixed order,
        whichever thread ran them.
        """
        C, B, N = c.shape
        H, groups = r.shape[2], (B + SEQUENCES - 1) // SEQUENCES
        (values, y), (d_values, d_y), (constants, gain, bias, gamma) = state, carry, parameters
        traced, gated = gamma.size > 0, gate.size > 0
        partial = np.zeros((groups, len(d), N), np.float32)
        for task in numba.prange(groups * H):
            group, h = task // H, task % H
            column_slice = slice(h * hypercolumn, min(N, (h + 1) * hypercolumn))
            constants_h, gain_h, bias_h = load(constants, column_slice), gain[column_slice], bias[column_slice]
            totals = load(rows(partial[group], 0, d), column_slice)
            d_constants, d_gain, d_bias, d_gamma = totals[:GAIN], totals[GAIN], totals[GAIN + 1], totals[GAIN + 2]
            scratch = np.empty((4, gain_h.size), np.float32)
            x, dx, ds_t, d_drive = scratch[0], scratch[1], scratch[2], scratch[3]
            for b in range(group * SEQUENCES, min(B, (group + 1) * SEQUENCES)):
                d_state = load(d_values, (b, column_slice))
                for back in range(C):
                    t = C - 1 - back
                    c_t, before, after = c[t, b, column_slice], load(values, (t, b, column_slice)), load(values, (t + 1, b, column_slice))
                    if t > 0:
                        for row in (c, *values, ds, d_current):
                            fetch_row(row, t - 1, b, column_slice.start, x.size)
                    ds_t[:] = ds[t, b, column_slice]
                    if drop > ZERO:
                        index = mask_index(offset_of_mask, np.uint64((t * B + b) * N + h * hypercolumn))
                        for n in range(x.size):
                            ds_t[n] *= dropout_factor(drop, key[0], index + np.uint64(n))
                    if traced:
                        v_t, gamma_h, d_y_n, dy_t, y_prev = (
                            after[0],
                            gamma[column_slice],
                            d_y[b, column_slice],
                            dy[t, b, column_slice],
                            y[t, b, column_slice],
                        )
                        for n in range(x.size):
                            s_t = carried(v_t[n], event(v_t[n]), graded)
                            d_y_n[n], ds_from_trace, dgamma_t = trace_step_backward(d_y_n[n], dy_t[n], y_prev[n], s_t, gamma_h[n])
                            ds_t[n] += ds_from_trace
                            d_gamma[n] += dgamma_t
                    r_t = r[t, b, h]
                    if gated:
                        g_t = gate[t, b, column_slice]
                        for n in range(x.size):
                            x[n] = gate_step(c_t[n], g_t[n]) * r_t
                    else:
                        for n in range(x.size):
                            x[n] = c_t[n] * r_t
                    for n in range(x.size):
                        i, scaled = drive(x[n], gain_h[n], gain_scale[b], bias_h[n]), modulate(load(constants_h, n), beta_scale[b])
                        adjoints = adjoint(ds_t[n], *load(d_state, n), *load(before, n), *load(after, n), i, *scaled, graded)
                        save(d_state, n, adjoints[:S])
                        save(d_constants, n, add(load(d_constants, n), modulate(adjoints[FIRST:], beta_scale[b])))
                        d_drive[n] = adjoints[S]
                        if modulated:
                            totals[-1][n] += factor_gradient(adjoints[FIRST:], load(constants_h, n)) * beta_scale[b] * beta_slope[b]
                    for n in range(x.size):
                        d_gain[n] += d_drive[n] * x[n] * gain_scale[b]
                        d_bias[n] += d_drive[n]
                        dx[n] = d_drive[n] * gain_h[n] * gain_scale[b] * r_t
                    if modulated:
                        to_gain = totals[-2]
                        for n in range(x.size):
                            to_gain[n] += d_drive[n] * x[n] * gain_h[n] * gain_scale[b] * gain_slope[b]
                    mean, dc_t = dot(dx, x) / np.float32(x.size), d_current[t, b, column_slice]
                    for n in range(x.size):
                        dc_t[n] = normalize_backward(dx[n], x[n], mean)
                    if gated:
                        g_t, dg_t = gate[t, b, column_slice], d_gate[t, b, column_slice]
                        for n in range(x.size):
                            dc_t[n], dg_t[n] = gate_step_backward(dc_t[n], c_t[n], g_t[n])
                        if scale != ONE:
                            dg_t *= scale
                    if scale != ONE:
                        dc_t *= scale
        for group in range(groups):
            for k in range(len(d)):
                total, share = d[k], partial[group, k]
                for n in range(total.size):
                    total[n] += share[n]

    return population_backward_cpu
