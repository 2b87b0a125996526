"""Events through delayed sparse synapses: currents forward, gradients back.

    c[t, b, target[k]] += weight[k] s[t - delay, b, source]

Synapses are stored as CSR with a row per (delay, source), `row = (delay - first_delay) M + source`: one event walks contiguous memory.

    row_start [delays M + 1] uint32, target [K] uint16 or uint32, weight [K] float32

Work grows with the events and the synapses of those that fired, never with the number of synapses.

On the CPU currents and event lists are in lane order (lanes.py, events.py): the step of an event along its row is one multiply-add for
sixteen sequences. Lists have R rows, row r holding token r - history: the `history` tokens before the segment come first. Indices are
unsigned, because Numba checks signed ones for being negative.

On a GPU (here forward, back in tiles.py) a block holds the currents of one column, a token of one sequence, in shared memory, and its
threads walk the rows of all events that arrive there, by every arc into that current, in one launch. Where a module is larger than a block
has room for, it holds one of several `parts` of its neurons, each `part_size` of them; a row is then split by parts, targets ascend within
it, row_start has an entry for every (delay, source, part), and targets count from the beginning of their part. What blocks add to together
is whole numbers (fixed.py). The pairs of an arc and a delay are rows of a table, int64 [pairs, len(Field)]; structure, weights and lists of
all of them lie in flat arrays, and synapse k is target[k], weight[k], d_weight[k]. Numba widens what it adds to 64 bits; where 32 are
enough the code says so, which saves registers.
"""

from enum import IntEnum

import numba
import numpy as np
from numba import cuda
from numba.extending import register_jitable

from . import half
from .fixed import CURRENT, NAN, current_of, fair, to_int32
from .jit import ZERO, cpu, cpu_serial
from .lanes import add_scaled, dot, load, store
from .launch import SIMULATED, device, gpu

NEXT, TWO = np.uint32(1), np.uint32(2)
ONE_PLACE, TWICE = np.uint64(1), np.uint64(2)
PACKED, LOWER, HALF_WORD = np.dtype(np.uint32), np.uint32(0xFFFF), np.uint32(16)
UNLISTED = np.uint32(2**31)  # said of rows whose source has no list: all of it is sent


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


class Field(IntEnum):
    """What the table says of a pair of an arc and a delay."""

    SOURCES = 0  # M
    PLAIN = 1  # 1: the source sends plain values, all of them; 0: events
    DELAY = 2
    ROWS = 3  # of the source's ring
    START = 4  # where `start` has the ring's beginning
    LISTS = 5  # where the ring begins in index and value
    COUNTS = 6  # and in count
    ROW_START = 7  # where the pair's rows begin in row_start


class Share(IntEnum):
    """What a block of `synapse_forward_few` is told of its share, behind what the table says of its pair."""

    NUMBER = len(Field)  # of the share
    OF = NUMBER + 1  # how many shares the pair's events have
    PLACE = NUMBER + 2  # neurons of the currents that lie before its own in `arriving`
    SIZE = NUMBER + 3  # neurons of its current
    PARTS = NUMBER + 4  # of the current
    PART_SIZE = NUMBER + 5
    WIDTH = NUMBER + 6  # threads that walk a row together
    SPOILT = NUMBER + 7  # where the flags of the current's sequences begin


SOURCES, PLAIN, DELAY, ROWS, START, LISTS, COUNTS, ROW_START = (int(field) for field in Field)
NUMBER, OF, PLACE, SIZE, PARTS, PART_SIZE, WIDTH, SPOILT = (int(field) for field in Share)
WALKERS = 4 if SIMULATED else 256  # threads of a block, and rows that they look up at a time
ENTRIES, ALL_WALKERS = WALKERS + 1, np.uint32(WALKERS)
PAIRS = 2 if SIMULATED else 64  # that a block has room for at a time
REGISTERS = 48  # of a thread at most, so that five blocks share a multiprocessor


@register_jitable
def ring_row(start, token, rows):
    """Row of a ring that holds a token of the segment (or one before it, then negative). All uint32, which may wrap around."""
    return np.uint32(np.uint32(start + token) + rows) % rows


@device
def column_of(table, pair, start, token, b, B):
    """Which column (uint64) of the source's ring a token of the segment (int32; negative: before it) of sequence b is."""
    row = ring_row(np.uint32(start[table[pair, START]]), np.uint32(token), np.uint32(table[pair, ROWS]))
    return np.uint64(np.uint32(row * B + np.uint32(b)))


@register_jitable
def fetch(target, weight, k):
    """What memory has of synapse k, as it is, so that nothing waits for it yet. Where the targets are 32 bits wide they hold the weight,
    too: a bfloat16, which is the upper half of a float32, in their own upper half. One load then brings both."""
    return (target[k], ZERO) if target.dtype == PACKED else (target[k], weight[k])


@register_jitable
def decode(target, fetched):
    """(target within its part, weight) of a synapse that was fetched."""
    word, weight = fetched
    if target.dtype == PACKED:
        return np.uint64(word & LOWER), half.upper(word)
    return np.uint64(word), weight


@register_jitable
def synapse_at(target, weight, k):
    """(target within its part, weight) of synapse k."""
    return decode(target, fetch(target, weight, k))


@device
def running_ends(ends, counts, pairs):
    """ends[p] = sum of counts[0] ... counts[p]. Shared arrays; every thread takes part."""
    cuda.syncthreads()
    if cuda.threadIdx.x < pairs:
        end = np.uint32(0)
        for p in range(cuda.threadIdx.x + 1):
            end = np.uint32(end + counts[p])
        ends[cuda.threadIdx.x] = end
    cuda.syncthreads()


@device
def bring(arriving, n, units):
    """Add so many units (float32) to arriving[n]; whether they spoil the sum, which cannot show it."""
    cuda.atomic.add(arriving, n, to_int32(units))
    return not fair(units)


@device
def look_up_pairs(bases, row_places, counts, ends, table, first_pair, pairs, token, start, count, b, B, part):
    """Of pairs first_pair ... first_pair + pairs - 1, whose events arrive at a token of sequence b: where their lists begin, where their
    rows do, with bit 31 set where the list has no index, how many events they have, and how many up to and with each. Shared arrays;
    every thread takes part."""
    thread = np.uint32(cuda.threadIdx.x)
    if thread < pairs:
        pair = first_pair + np.int64(thread)
        sources, plain = np.uint64(table[pair, SOURCES]), table[pair, PLAIN] != 0
        column = column_of(table, pair, start, np.int32(token - np.int32(table[pair, DELAY])), b, B)
        bases[thread] = np.uint64(table[pair, LISTS]) + column * sources
        row_places[thread] = np.uint32(table[pair, ROW_START] + part)
        counts[thread] = np.uint32(sources) if plain else np.uint32(count[np.uint64(table[pair, COUNTS]) + TWICE * column])
        if plain:
            row_places[thread] |= UNLISTED
    running_ends(ends, counts, pairs)


@gpu(max_registers=REGISTERS)
def synapse_forward(current, table, first_pair, last_pair, start, first, index, value, count, row_start, target, weight, width, part_size):
    """Overwrite current [C, B, N], from token `first` of the segment on, with what pairs first_pair ... last_pair - 1 bring.

    A block per (sequence, token, part), with part_size int32 of dynamic shared memory. It looks up the rows of WALKERS events at a
    time, then `width` threads walk a row together. If what one synapse brings is not `fair`, all currents of the block are NaN.
    """
    arriving = cuda.shared.array(0, numba.int32)
    bases = cuda.shared.array(PAIRS, np.uint64)
    row_places = cuda.shared.array(PAIRS, np.uint32)
    counts = cuda.shared.array(PAIRS, np.uint32)
    ends = cuda.shared.array(PAIRS, np.uint32)
    row_first = cuda.shared.array(ENTRIES, np.uint32)
    row_last = cuda.shared.array(ENTRIES, np.uint32)
    sent = cuda.shared.array(ENTRIES, np.float32)
    b, t, thread = cuda.blockIdx.x, cuda.blockIdx.y, np.uint32(cuda.threadIdx.x)
    B, parts, lanes = np.uint32(current.shape[1]), np.uint32(cuda.gridDim.z), np.uint32(width)
    low = cuda.blockIdx.z * part_size
    size = min(part_size, current.shape[2] - low)
    group, lane, groups = np.uint32(thread // lanes), np.uint32(thread % lanes), np.uint32(ALL_WALKERS // lanes)
    for n in range(thread, size, ALL_WALKERS):
        arriving[n] = 0
    spoilt = False
    row_first[ALL_WALKERS] = row_last[ALL_WALKERS] = np.uint32(0)
    for round_ in range(first_pair, last_pair, PAIRS):
        pairs = np.uint32(min(PAIRS, last_pair - round_))
        look_up_pairs(bases, row_places, counts, ends, table, round_, pairs, np.int32(first) + t, start, count, b, B, cuda.blockIdx.z)
        total, pair_, begin = ends[pairs - np.uint32(1)], np.uint32(0), np.uint32(0)
        batch = np.uint32(0)
        while batch < total:
            f = np.uint32(batch + thread)
            row_first[thread] = row_last[thread] = np.uint32(0)
            if f < total:
                while ends[pair_] <= f:
                    begin = ends[pair_]
                    pair_ = np.uint32(pair_ + np.uint32(1))
                e, place = np.uint32(f - begin), row_places[pair_]
                at = bases[pair_] + np.uint64(e)
                source = e if place & UNLISTED else np.uint32(index[at])
                row = np.uint64(np.uint32((place & ~UNLISTED) + source * parts))
                row_first[thread], row_last[thread] = row_start[row], row_start[row + ONE_PLACE]
                sent[thread] = value[at] * CURRENT
            cuda.syncthreads()
            i = group
            while i < ALL_WALKERS:  # two rows at a time, so that more loads are on their way
                other = min(np.uint32(i + groups), ALL_WALKERS)  # the entry after the last one is empty
                k, last, s = np.uint32(row_first[i] + lane), row_last[i], sent[i]
                k2, last2, s2 = np.uint32(row_first[other] + lane), row_last[other], sent[other]
                while k < last or k2 < last2:
                    n = n2 = np.uint64(0)
                    w = w2 = ZERO
                    if k < last:
                        n, w = synapse_at(target, weight, np.uint64(k))
                    if k2 < last2:
                        n2, w2 = synapse_at(target, weight, np.uint64(k2))
                    if k < last:
                        spoilt |= bring(arriving, n, w * s)
                    if k2 < last2:
                        spoilt |= bring(arriving, n2, w2 * s2)
                    k, k2 = np.uint32(k + lanes), np.uint32(k2 + lanes)
                i = np.uint32(i + TWO * groups)
            cuda.syncthreads()
            batch = np.uint32(batch + ALL_WALKERS)
    spoilt_by_any = cuda.syncthreads_or(np.int32(spoilt))
    for n in range(thread, size, ALL_WALKERS):
        current[t, b, low + n] = NAN if spoilt_by_any else current_of(arriving[n])


@gpu(max_registers=REGISTERS)
def synapse_forward_few(arriving, spoilt, shares, start, first, index, value, count, row_start, target, weight, by_column):
    """The same for a few columns, or parts that no block has room for, and for several currents at once: add to arriving, int32, in global
    memory, so that many blocks can share a column. It holds [C, B, N] for each current, one after the other. If what one synapse brings is
    not `fair`, the current's flag of that sequence in `spoilt` is set.

    A block per (share and sequence, token), told by shares [shares, len(Field) + len(Share)] int64. by_column: the blocks of a column come
    one after the other, so that what they add to stays in the cache; otherwise those of a share do, and what they read stays there. Where
    there are more threads than walk the rows of its events, several groups have a slice of each row.
    """
    block, of_all, t, threads = np.uint32(cuda.blockIdx.x), np.uint32(shares.shape[0]), cuda.blockIdx.y, np.uint32(cuda.blockDim.x)
    B = np.uint32(np.uint32(cuda.gridDim.x) // of_all)
    own, b = (block % of_all, block // of_all) if by_column else (block // B, block % B)
    of, lanes = np.uint32(shares[own, OF]), np.uint32(shares[own, WIDTH])
    thread = np.uint32(np.uint32(shares[own, NUMBER]) * threads + np.uint32(cuda.threadIdx.x))
    group, lane, groups = np.uint32(thread // lanes), np.uint32(thread % lanes), np.uint32(np.uint32(of * threads) // lanes)
    sources, plain, parts = np.uint32(shares[own, SOURCES]), shares[own, PLAIN] != 0, np.uint32(shares[own, PARTS])
    column = column_of(shares, own, start, np.int32(np.int32(first) + t - np.int32(shares[own, DELAY])), b, B)
    base = np.uint64(shares[own, LISTS]) + column * np.uint64(sources)
    fired = sources if plain else np.uint32(count[np.uint64(shares[own, COUNTS]) + TWICE * column])
    columns, of_current = np.uint64(np.uint32(cuda.gridDim.y) * B), np.uint64(np.uint32(np.uint32(t) * B) + np.uint32(b))
    place = np.uint64(shares[own, PLACE]) * columns + of_current * np.uint64(shares[own, SIZE])
    slices = max(NEXT, np.uint32(groups // max(NEXT, fired)))
    row_place, e, step = np.uint32(shares[own, ROW_START]), np.uint32(group // slices), np.uint32(lanes * slices)
    lane, unfair = np.uint32(lane + np.uint32(group % slices) * lanes), False
    while e < fired:
        source = e if plain else np.uint32(index[base + np.uint64(e)])
        s = value[base + np.uint64(e)] * CURRENT
        part, of_part = np.uint32(0), place
        while part < parts:
            row = np.uint64(np.uint32(row_place + source * parts + part))
            k, last = np.uint32(row_start[row] + lane), row_start[row + ONE_PLACE]
            while k < last:  # two synapses at a time, so that more loads are on their way
                n, w = synapse_at(target, weight, np.uint64(k))
                n2, w2, other = np.uint64(0), ZERO, np.uint32(k + step)
                if other < last:
                    n2, w2 = synapse_at(target, weight, np.uint64(other))
                unfair |= bring(arriving, of_part + n, w * s)
                if other < last:
                    unfair |= bring(arriving, of_part + n2, w2 * s)
                k = np.uint32(other + step)
            part, of_part = np.uint32(part + NEXT), of_part + np.uint64(shares[own, PART_SIZE])
        e = np.uint32(e + np.uint32(groups // slices))
    if unfair:
        spoilt[np.uint64(shares[own, SPOILT]) + np.uint64(b)] = 1


@gpu
def take_currents(current, arriving, spoilt):
    """current [C, B, N] float32 from arriving int32, which is cleared; NaN for sequences whose flag in spoilt [B] is set. A thread per
    number."""
    n, b, t = cuda.grid(1), cuda.blockIdx.y, cuda.blockIdx.z
    if n < current.shape[2]:
        current[t, b, n] = NAN if spoilt[b] else current_of(arriving[t, b, n])
        arriving[t, b, n] = 0


@gpu
def pack_synapses(words, target, weight):
    """words (uint32) = target (uint16) and weight as bfloat16, as `synapse_at` reads them. A thread per synapse."""
    k = cuda.grid(1)
    if k < words.size:
        words[k] = np.uint32(target[k]) | np.uint32(np.uint32(half.to_bfloat16(weight[k])) << HALF_WORD)


@gpu
def spread_weights(dense, place, weight):
    """dense[0, place[k]] = weight[k]: sparse synapses as a matrix of any float type (half.py), the rest of which stays 0. A thread per
    synapse."""
    k = cuda.grid(1)
    if k < weight.size:
        half.store(dense, 0, place[k], weight[k])


@gpu
def gather_gradients(d_weight, d_dense, place):
    """d_weight[k] += d_dense.flat[place[k]]. A thread per synapse."""
    k = cuda.grid(1)
    if k < d_weight.size:
        d_weight[k] += d_dense[place[k]]
