"""Activity to event lists and back.

A column is one token of one sequence. Its list names, in index[r, b], first the neurons that fired and then the quiet ones that sit near the
threshold (surrogate slope above zero); both parts ascend. fired[r, b] and listed[r, b] are the ends of the two parts; value[r, b] holds what the
axons of those that fired carry. Forward propagation reads the first part, the gradient both.

    index [R, B, M] uint16 or uint32, value [R, B, M] float32, fired [R, B] int32, listed [R, B] int32
"""

import numba
import numpy as np

from .jit import ONE, ZERO, cpu
from .rng import uniform
from .surrogate import carried, event, slope


@cpu()
def list_events_cpu(index, value, fired, listed, v, drop, key, first_place, graded, smooth):
    """Make the lists of C columns of membrane potentials v [C, B, M].

    drop: share of axons silenced by dropout, for which the rest is scaled up; key, first_place (uint64): the random numbers' key and the place
    of v[0, 0, 0]. An axon that is dropped is in neither part: it carries neither event nor gradient.
    """
    C, B, M = v.shape
    scale = ONE / (ONE - drop)
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        place = first_place + np.uint64(column) * np.uint64(M)
        v_t, index_t, value_t = v[t, b], index[t, b], value[t, b]
        end = 0
        for n in range(M):
            s = carried(v_t[n], event(v_t[n], smooth), graded)
            if s != ZERO and (drop == ZERO or uniform(key, place + np.uint64(n)) >= drop):
                index_t[end] = n
                value_t[end] = s * scale
                end += 1
        fired[t, b] = end
        for n in range(M):
            quiet = slope(v_t[n]) > ZERO and carried(v_t[n], event(v_t[n], smooth), graded) == ZERO
            if quiet and (drop == ZERO or uniform(key, place + np.uint64(n)) >= drop):
                index_t[end] = n
                end += 1
        listed[t, b] = end


@cpu()
def list_values_cpu(index, value, fired, listed, x):
    """Make the lists of C columns of plain values x [C, B, M]: all of them are carried, none is quiet."""
    C, B, M = x.shape
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        for n in range(M):
            index[t, b, n] = n
            value[t, b, n] = x[t, b, n]
        fired[t, b] = M
        listed[t, b] = M


@cpu()
def spread_events_cpu(x, index, value, fired):
    """Event lists back to activity: x [R, B, M] float32, 0 where nothing fired."""
    R, B, _ = x.shape
    for column in numba.prange(R * B):
        r, b = column // B, column % B
        x[r, b, :] = ZERO
        for e in range(fired[r, b]):
            x[r, b, index[r, b, e]] = value[r, b, e]
