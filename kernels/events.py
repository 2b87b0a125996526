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
from .launch import SIMULATED, THREADS, WARP, ballot, bits, from_lane, gpu
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


LISTERS = 8 if SIMULATED else THREADS  # threads of a block
OWN = 2 if SIMULATED else 4  # neurons of a thread
SILENT = np.float32(-1e9)  # a potential that neither fires nor is near, whatever the mode


@register_jitable
def heard_as(v, drop, key, place, graded, smooth):
    """(s, fired, near): what an axon carries of a membrane potential, the more the more others dropout silences, and in which part of the
    list it is, if in any. What dropout silences is in none: nobody hears it, and it gets no gradient."""
    s = carried(v, event(v, smooth), graded)
    fired = s != ZERO
    near = not fired and slope(v) > ZERO
    if drop > ZERO and (fired or near) and uniform(key, place) < drop:
        fired = near = False
    return s * (ONE / (ONE - drop)), fired, near


@gpu
def clear_counts(count, start, counts, rows, first, batch):
    """Empty the lists of tokens from `first` of the segment on in one signal's ring, as `list_events` wants them. A thread per number and
    token."""
    i, t = cuda.grid(1), cuda.blockIdx.y
    if i < 2 * batch:
        count[counts + (start[0] + first + t) % rows * 2 * batch + i] = 0


@gpu
def list_events(index, value, count, start, place, counts, rows, first, v, drop, key, first_place, graded, smooth):
    """Add to the lists of the tokens of v [C, B, M], the first of which is token `first` of the segment, in one signal's ring.

    place, counts: where the ring begins in index and value, and in count; start [1] int32; drop, key, first_place as on the CPU. A thread
    has OWN neurons; a warp reserves room for its own, so that warps come in no order, and nothing must depend on one.
    """
    s = cuda.local.array(OWN, np.float32)
    fired = cuda.local.array(OWN, np.uint32)
    near = cuda.local.array(OWN, np.uint32)
    b, t, thread = cuda.blockIdx.x, cuda.blockIdx.y, np.int64(cuda.threadIdx.x)
    B, M, lane = v.shape[1], v.shape[2], thread % WARP
    first_neuron = (cuda.blockIdx.z * LISTERS + thread - lane) * OWN + lane
    column = (start[0] + first + t) % rows * B + b
    base, bit = place + np.int64(column) * M, np.uint32(1) << np.uint32(lane)
    row = v[np.uint64(t), np.uint64(b)]
    for i in range(OWN):
        n = np.uint64(first_neuron + i * WARP)
        s[i] = row[n] if n < np.uint64(M) else SILENT
    fired_at = near_at = np.int32(0)
    for i in range(OWN):
        n = np.uint64(first_neuron + i * WARP)
        s[i], fires, nears = heard_as(s[i], drop, key[0], first_place + np.uint64((t * B + b) * M) + n, graded, smooth)
        fired[i], near[i] = ballot(fires), ballot(nears)
        fired_at, near_at = np.int32(fired_at + np.int32(bits(fired[i]))), np.int32(near_at + np.int32(bits(near[i])))
    if lane == 0:
        fired_at, near_at = cuda.atomic.add(count, counts + 2 * column, fired_at), cuda.atomic.add(count, counts + 2 * column + 1, near_at)
    fired_at, near_at = np.int64(from_lane(fired_at, 0)), np.int64(from_lane(near_at, 0))
    earlier = np.uint32(bit - np.uint32(1))
    for i in range(OWN):
        n = np.uint32(first_neuron + i * WARP)
        if fired[i] & bit:
            at = np.uint64(base + fired_at + np.int64(bits(np.uint32(fired[i] & earlier))))
            index[at] = n
            value[at] = s[i]
        if near[i] & bit:
            index[np.uint64(base + M - 1 - near_at - np.int64(bits(np.uint32(near[i] & earlier))))] = n
        fired_at, near_at = fired_at + np.int64(bits(fired[i])), near_at + np.int64(bits(near[i]))


@gpu
def list_values(value, start, place, rows, first, x):
    """Put plain values x [C, B, M] into a signal's ring: all of them are carried, in order, and they need no index. A thread per value."""
    i, b, t = cuda.grid(1), cuda.blockIdx.y, cuda.blockIdx.z
    B, M = x.shape[1], x.shape[2]
    if i < M:
        column = ((start[0] + first + t) % rows) * B + b
        value[place + np.int64(column) * M + i] = x[t, b, i]


@gpu
def spread_events(x, index, value, count):
    """The lists of a token back to activity: x [B, M], zeros before, from index and value [B, M] and count [B, 2]. A thread per entry."""
    e, b = cuda.grid(1), cuda.blockIdx.y
    if e < count[b, 0]:
        x[b, index[b, e]] = value[b, e]


@gpu
def turn_ring(start, rows, tokens, spoilt):
    """start [S] int32: go on by so many tokens in the rings of all S signals, of rows [S] int32; and clear the flags `spoilt`. A thread per
    signal and flag."""
    i = cuda.grid(1)
    if i < start.size:
        start[i] = (start[i] + tokens) % rows[i]
    if i < spoilt.size:
        spoilt[i] = 0
