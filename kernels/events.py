"""Activity to event lists and back.

The lists are in lane order (lanes.py): for each token r and group g of sequences, index[r, g] names first the neurons that fired in any of
the group's sequences, then those that did not but sit near the threshold (surrogate slope above zero) in one of them; both parts ascend.
fired[r, g] and listed[r, g] are the ends of the two parts; value[r, g] holds, for the first part, what the axons carry in each lane, 0
where they are silent. Forward propagation reads the first part, the gradient both.

    index [R, G, M] uint16 or uint32, value [R, G, M, LANES] float32, fired [R, G] int32, listed [R, G] int32
"""

import numba
import numpy as np

from .jit import ONE, ZERO, cpu
from .lanes import LANES
from .rng import uniform
from .surrogate import carried, event, slope

FIRED, NEAR = np.uint8(2), np.uint8(1)


@cpu()
def list_events_cpu(index, value, fired, listed, v, drop, key, first_place, graded, smooth):
    """Make the lists of C tokens from membrane potentials v [C, B, M].

    drop: share of axons silenced by dropout, for which the rest is scaled up; key, first_place (uint64): the random numbers' key and the
    place of v[0, 0, 0] (dropout.py draws the same mask for the gradient).
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
                        if drop > ZERO and uniform(key, first_place + np.uint64((t * B + b) * M + n)) < drop:
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
