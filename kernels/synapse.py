"""Events through delayed sparse synapses: currents forward, gradients back.

    c[t, b, target[k]] += weight[k] s[t - delay, b, source]

Synapses are stored as CSR with a row per (delay, source), `row = (delay - first_delay) M + source`: one event walks contiguous memory.

    row_start [delays M + 1] uint32, target [K] uint16 or uint32, weight [K] float32

Work grows with the events and the synapses of those that fired, never with the number of synapses. Currents and event lists are in lane
order (lanes.py, events.py): the step of an event along its row is one multiply-add for sixteen sequences. Lists have R rows, row r holding
token r - history: the `history` tokens before the segment come first. Indices are unsigned, because Numba checks signed ones for being
negative.
"""

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import cpu, cpu_serial
from .lanes import add_scaled, dot, load, store

NEXT = np.uint32(1)


@register_jitable
def deliver(current, row_start, target, weight, row, s):
    """Events s (lanes): add to the currents [N, LANES] of every target of a row."""
    for k in range(row_start[row], row_start[row + NEXT]):
        store(current, target[k], add_scaled(load(current, target[k]), weight[k], s))


@register_jitable
def collect(total, d_current, row_start, target, weight, row):
    """total (lanes) + dL/ds through one row: the weighted sum of its targets' gradients d_current [N, LANES]."""
    for k in range(row_start[row], row_start[row + NEXT]):
        total = add_scaled(total, weight[k], load(d_current, target[k]))
    return total


@register_jitable
def collect_and_learn(total, d_weight, d_current, row_start, target, weight, row, s):
    """`collect`, and add to the row's weight gradient what the events s (lanes) that went through it owe."""
    for k in range(row_start[row], row_start[row + NEXT]):
        d = load(d_current, target[k])
        total = add_scaled(total, weight[k], d)
        d_weight[k] += dot(s, d)
    return total


@cpu_serial()
def first_not_below(ascending, bound):
    """Position of the first entry of `ascending` that is at least `bound`."""
    low, high = 0, ascending.size
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


@cpu()
def synapse_forward_cpu(current, index, value, fired, first_row, row_start, target, weight, first_delay, delays):
    """Add to current [C, G, N, LANES] what the events of the lists bring; the chunk's first token is row `first_row` of the lists.

    A task owns the currents of one token and group, and gathers the events of every delay.
    """
    C, G = current.shape[:2]
    M = index.shape[2]
    for column in numba.prange(C * G):
        t, g = column // G, column % G
        for d in range(delays):
            r = first_row + t - first_delay - d
            first = np.uint32(d * M)
            for e in range(fired[r, g]):
                deliver(current[t, g], row_start, target, weight, first + index[r, g, e], load(value[r, g], e))


@cpu()
def synapse_backward_cpu(
    ds, d_weight, d_current, index, value, fired, listed, first_row, history, row_start, target, weight, first_delay, delays, tasks
):
    """Add to ds [C, G, M, LANES] (of listed sources) and to d_weight [K], for C tokens of sources whose first is row `first_row` of the
    lists.

    d_current [T, G, N, LANES]: gradients of the currents of the whole segment; what would arrive after it is cut off. A task owns a range
    of sources, hence their rows and weights, and sees all tokens in order: the sums do not depend on how many tasks (`tasks`) share the
    work.
    """
    C, G, M = ds.shape[:3]
    T = d_current.shape[0]
    for task in numba.prange(tasks):
        low, high = task * M // tasks, (task + 1) * M // tasks
        for g in range(G):
            for c in range(C):
                r = first_row + c
                arrival = r - history + first_delay
                first, last = max(0, -arrival), min(delays, T - arrival)
                if first >= last:
                    continue
                events, near = index[r, g, : fired[r, g]], index[r, g, fired[r, g] : listed[r, g]]
                for e in range(first_not_below(events, low), first_not_below(events, high)):
                    s, total = load(value[r, g], e), load(ds[c, g], events[e])
                    for d in range(first, last):
                        row = np.uint32(d * M) + events[e]
                        total = collect_and_learn(total, d_weight, d_current[arrival + d, g], row_start, target, weight, row, s)
                    store(ds[c, g], events[e], total)
                for e in range(first_not_below(near, low), first_not_below(near, high)):
                    total = load(ds[c, g], near[e])
                    for d in range(first, last):
                        total = collect(total, d_current[arrival + d, g], row_start, target, weight, np.uint32(d * M) + near[e])
                    store(ds[c, g], near[e], total)
