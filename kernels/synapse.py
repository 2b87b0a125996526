"""Events through delayed sparse synapses: currents forward, gradients back.

    c[t, b, target[k]] += weight[k] s[t - delay, b, source]

Synapses are stored as CSR with a row per (delay, source), `row = (delay - first_delay) M + source`: one event walks contiguous memory.

    row_start [delays M + 1] uint32, target [K] uint16 or uint32, weight [K] float32

Work grows with the number of events times the synapses of those that fired, never with the number of synapses. Event lists (events.py) have R
rows, row r holding token r - history: the `history` columns before the segment come first. Indices are unsigned throughout, because Numba checks
signed ones for being negative, which costs as much as the addition.
"""

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import ZERO, cpu, cpu_serial

ONE_ROW = np.uint32(1)


@register_jitable
def deliver(current, row_start, target, weight, row, s):
    """One event of size s: add to the currents [N] of every target of a row."""
    for k in range(row_start[row], row_start[row + ONE_ROW]):
        current[target[k]] += weight[k] * s


@register_jitable
def collect(d_current, row_start, target, weight, row):
    """dL/ds through one row: the weighted sum of its targets' gradients d_current [N]."""
    total = ZERO
    for k in range(row_start[row], row_start[row + ONE_ROW]):
        total += weight[k] * d_current[target[k]]
    return total


@register_jitable
def collect_and_learn(d_weight, d_current, row_start, target, weight, row, s):
    """`collect`, and the row's weight gradient from the event of size s that went through it."""
    total = ZERO
    for k in range(row_start[row], row_start[row + ONE_ROW]):
        d = d_current[target[k]]
        total += weight[k] * d
        d_weight[k] += s * d
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
    """Add to current [C, B, N] what the events of the lists bring; the chunk's first token is row `first_row` of the lists.

    A task owns one column of currents, which stay in the first-level cache while it gathers the events of every delay.
    """
    C, B, _ = current.shape
    M = index.shape[2]
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        own = current[t, b]
        for d in range(delays):
            r = first_row + t - first_delay - d
            first = np.uint32(d * M)
            for e in range(fired[r, b]):
                deliver(own, row_start, target, weight, first + index[r, b, e], value[r, b, e])


@cpu()
def synapse_backward_cpu(
    ds, d_weight, d_current, index, value, fired, listed, first_row, history, row_start, target, weight, first_delay, delays, tasks
):
    """Add to ds [C, B, M] (for listed sources) and to d_weight [K], for C tokens of sources whose first is row `first_row` of the lists.

    d_current [T, B, N]: gradients of the currents of the whole segment; what would arrive after it is cut off. A task owns a range of sources, hence
    their rows and weights, and sees all columns in order: the sums do not depend on how many tasks (`tasks`) share the work.
    """
    C, B, M = ds.shape
    T = d_current.shape[0]
    for task in numba.prange(tasks):
        low, high = task * M // tasks, (task + 1) * M // tasks
        for b in range(B):
            for c in range(C):
                r = first_row + c
                arrival = r - history + first_delay
                first, last = max(0, -arrival), min(delays, T - arrival)
                if first >= last:
                    continue
                events, quiet = index[r, b, : fired[r, b]], index[r, b, fired[r, b] : listed[r, b]]
                for e in range(first_not_below(events, low), first_not_below(events, high)):
                    total = ZERO
                    for d in range(first, last):
                        row = np.uint32(d * M) + events[e]
                        total += collect_and_learn(d_weight, d_current[arrival + d, b], row_start, target, weight, row, value[r, b, e])
                    ds[c, b, events[e]] += total
                for e in range(first_not_below(quiet, low), first_not_below(quiet, high)):
                    total = ZERO
                    for d in range(first, last):
                        total += collect(d_current[arrival + d, b], row_start, target, weight, np.uint32(d * M) + quiet[e])
                    ds[c, b, quiet[e]] += total
