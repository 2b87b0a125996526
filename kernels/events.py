"""Activity to event lists and back.

On the CPU the lists are in lane order (lanes.py): for each token r and group g of sequences, index[r, g] names first the neurons that fired
in any of the group's sequences, then those that did not but sit near the threshold (surrogate slope above zero) in one of them; both parts
ascend. fired[r, g] and listed[r, g] are the ends of the two parts; value[r, g] holds, for the first part, what the axons carry in each
lane, 0 where they are silent. Forward propagation reads the first part, the gradient both.

    index [R, G, M] uint16 or uint32, value [R, G, M, LANES] float32, fired [R, G] int32, listed [R, G] int32

On a GPU every column, a token of one sequence, has a list of its own, and the lists of a signal are a ring: token t of the segment is in
row (start + t) % rows, so that the past needs no moving. The neurons that fired stand at the front of the column's list, those that did not
but sit near the threshold at its back. The rings of all signals lie one after the other in flat arrays (`place`: where a signal's begins),
which one launch can thus read from several signals:

    index [.. rows B M] uint16 or uint32, value [.. rows B M] float32, count [.. rows B 2] int32: how many fired, how many are near
"""

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from .jit import ONE, ZERO, cpu
from .lanes import LANES
from .launch import SIMULATED, THREADS, WARP, ballot, bits, gpu
from .rng import uniform
from .surrogate import carried, event, slope

FIRED, NEAR = np.uint8(2), np.uint8(1)


@cpu()
def list_events_cpu(index, value, fired, listed, v, drop, key, first_place, graded, smooth):
    """Make the lists of C tokens from membrane potentials v [C, B, M].

    drop: share of axons silenced by dropout, for which the rest is scaled up; key [1], first_place (uint64): the random numbers' key and
    the place of v[0, 0, 0] (dropout.py draws the same mask for the gradient).
    """
    C, B, M = v.shape
    G = index.shape[1]
    scale = ONE / (ONE - drop)
    for column in numba.prange(C * G):
        t, g = column // G, column % G
        state = np.zeros(M, np.uint8)
        for b in range(g * LANES, min(B, (g + 1) * LANES)):
            v_b = v[t, b]
            for n in range(M):
                s = carried(v_b[n], event(v_b[n], smooth), graded)
                state[n] |= FIRED if s != ZERO else (NEAR if slope(v_b[n]) > ZERO else np.uint8(0))
        end = 0
        for n in range(M):
            if state[n] >= FIRED:
                index[t, g, end] = n
                for lane in range(LANES):
                    b = g * LANES + lane
                    s = ZERO
                    if b < B:
                        s = carried(v[t, b, n], event(v[t, b, n], smooth), graded) * scale
                        if drop > ZERO and uniform(key[0], first_place + np.uint64((t * B + b) * M + n)) < drop:
                            s = ZERO
                    value[t, g, end, lane] = s
                end += 1
        fired[t, g] = end
        for n in range(M):
            if state[n] == NEAR:
                index[t, g, end] = n
                end += 1
        listed[t, g] = end


@cpu()
def list_values_cpu(index, value, fired, listed, x):
    """Make the lists of C tokens of plain values x [C, B, M]: all of them are carried."""
    C, B, M = x.shape
    G = index.shape[1]
    for column in numba.prange(C * G):
        t, g = column // G, column % G
        for n in range(M):
            index[t, g, n] = n
            for lane in range(LANES):
                b = g * LANES + lane
                value[t, g, n, lane] = x[t, b, n] if b < B else ZERO
        fired[t, g] = M
        listed[t, g] = M


@cpu()
def spread_events_cpu(x, index, value, fired):
    """Event lists back to activity: x [R, B, M] float32, 0 where nothing fired."""
    R, B, _ = x.shape
    for column in numba.prange(R * B):
        r, b = column // B, column % B
        g, lane = b // LANES, b % LANES
        x[r, b, :] = ZERO
        for e in range(fired[r, g]):
            x[r, b, index[r, g, e]] = value[r, g, e, lane]


BLOCK, WIDE_BLOCK = (8, 16) if SIMULATED else (THREADS, 1024)  # threads; wide, where there are few columns
WARPS = WIDE_BLOCK // WARP


@register_jitable
def heard_as(v, drop, key, place, graded, smooth):
    """(s, fired, near): what an axon carries of a membrane potential, and in which part of the list it is, if in any. What dropout silences
    is in none: nobody hears it, and it gets no gradient."""
    s = carried(v, event(v, smooth), graded)
    fired = s != ZERO
    near = not fired and slope(v) > ZERO
    if drop > ZERO and (fired or near) and uniform(key, place) < drop:
        fired = near = False
    return s, fired, near


@gpu
def list_events(index, value, count, start, place, counts, rows, first, v, drop, key, first_place, graded, smooth):
    """Make the lists of the tokens of v [C, B, M], the first of which is token `first` of the segment, in one signal's ring.

    place, counts: where the ring begins in index and value, and in count; start [1] int32; drop, key, first_place as on the CPU. A block
    per column, a range of neurons for each of its warps: it counts first, then it knows where its part of the list begins.
    """
    fired_in = cuda.shared.array(WARPS, np.int32)
    near_in = cuda.shared.array(WARPS, np.int32)
    b, t = cuda.blockIdx.x, cuda.blockIdx.y
    B, M = v.shape[1], v.shape[2]
    column = ((start[0] + first + t) % rows) * B + b
    base = place + np.int64(column) * M
    scale = ONE / (ONE - drop)
    warp, lane = cuda.threadIdx.x // WARP, cuda.threadIdx.x % WARP
    own, warps = (M + cuda.blockDim.x - 1) // cuda.blockDim.x * WARP, cuda.blockDim.x // WARP
    begin, end = warp * own, min(M, (warp + 1) * own)
    places = first_place + np.uint64((t * B + b) * M)
    fired_at = near_at = np.int32(0)
    for n0 in range(begin, end, WARP):
        n = n0 + lane
        fired = near = False
        if n < end:
            _, fired, near = heard_as(v[t, b, n], drop, key[0], places + np.uint64(n), graded, smooth)
        fired_at += np.int32(bits(ballot(fired)))
        near_at += np.int32(bits(ballot(near)))
    if lane == 0:
        fired_in[warp], near_in[warp] = fired_at, near_at
    cuda.syncthreads()
    fired_at = near_at = fired_end = near_end = np.int32(0)
    for other in range(warps):
        if other < warp:
            fired_at += fired_in[other]
            near_at += near_in[other]
        fired_end += fired_in[other]
        near_end += near_in[other]
    before = (np.uint32(1) << np.uint32(lane)) - np.uint32(1)
    for n0 in range(begin, end, WARP):
        n = n0 + lane
        s, fired, near = ZERO, False, False
        if n < end:
            s, fired, near = heard_as(v[t, b, n], drop, key[0], places + np.uint64(n), graded, smooth)
        fired_mask, near_mask = ballot(fired), ballot(near)
        if fired:
            at = base + fired_at + bits(fired_mask & before)
            index[at] = n
            value[at] = s * scale
        if near:
            index[base + M - 1 - near_at - bits(near_mask & before)] = n
        fired_at += np.int32(bits(fired_mask))
        near_at += np.int32(bits(near_mask))
    if cuda.threadIdx.x == 0:
        count[counts + 2 * column] = fired_end
        count[counts + 2 * column + 1] = near_end


@gpu
def list_values(value, start, place, rows, first, x):
    """Put plain values x [C, B, M] into a signal's ring: all of them are carried, in order, and they need no index. A thread per value."""
    i, b, t = cuda.grid(1), cuda.blockIdx.y, cuda.blockIdx.z
    B, M = x.shape[1], x.shape[2]
    if i < M:
        column = ((start[0] + first + t) % rows) * B + b
        value[place + np.int64(column) * M + i] = x[t, b, i]


@gpu
def turn_ring(start, rows, tokens):
    """start [S] int32: go on by so many tokens in the rings of all S signals, of rows [S] int32. A thread per signal."""
    i = cuda.grid(1)
    if i < start.size:
        start[i] = (start[i] + tokens) % rows[i]
