"""Modules that no block has shared memory for, and whose rows are short.

Cut into parts that fit a block, the synapses of a source would be rows of less than one, and most of the work to find that out. So on the
way back a thread has a source and walks all its synapses, whatever module they end in, and its sums never leave the registers. What it
needs of a tile lies in global memory, side by side: a *line* of 32 bytes for each neuron, which is what the second-level cache is read in,
with what sixteen sequences (eight of float32) have sent, or are owed, at one token. Columns are sequences, so that a line is whole whatever
the delay. There are lines [rows, tiles of sequences, N] of every signal that wide modules learn from, in a ring as events are (events.py),
and of every wide current's gradient.

Forward a block has the currents of a part in shared memory, and each of its threads walks the rows of several events at a time. Plain
values, which are never silent, are gathered instead: a thread has a target and looks at the lines of all its sources.
"""

import numba
import numpy as np
from numba import cuda

from .events import heard_as
from .fixed import CURRENT, NAN, current_of, to_int64
from .half import BFLOAT16, lower, upper
from .jit import ZERO
from .launch import SIMULATED, THREADS, WARP, ballot, bits, device, from_lane, gpu
from .stream import read_quad, write_quad
from .synapse import LOWER, NEXT, ONE_PLACE, PAIRS, UNLISTED, bring, decode, fetch, look_up_pairs, synapse_at
from .tiles import DELAY, OWED, PART_SIZE, PARTS, QUADS, REGISTERS, ROW_START, SIZE, bits_of, columns_of, is_number, nearby

NONE, ALL_BITS = np.uint32(0), np.uint32(0xFFFFFFFF)
MANY_WALKERS, ROWS = (8, 2) if SIMULATED else (1024, 4)  # threads of a block forward, and rows that each of them walks at a time
ALL_WALKERS = np.uint32(MANY_WALKERS)
FANNERS = 8 if SIMULATED else THREADS  # threads of a block otherwise
LINE, QUAD = 8, np.uint64(QUADS)  # words of 32 bits
OF_LINE, TIMES, MOST = np.uint64(LINE), LINE // QUADS, 16  # a line has as many columns as other tiles have, times TIMES; MOST at most


@device
def columns_of_line(owed):
    """Columns of a line (int64): sequences at one token."""
    return np.int64(columns_of(owed)) * TIMES


@device
def line_at(place, start, rows, token, tile, tiles, N, n):
    """Which line of a ring that begins with number `place` is that of neuron n at a token of the segment (negative: before it)."""
    row = np.uint64((np.int64(start[0]) + np.int64(token) + rows) % rows)
    return np.uint64(place) + (row * np.uint64(tiles) + np.uint64(tile)) * np.uint64(N) + np.uint64(n)


@device
def set_column(line, owed, j, number):
    """Put the bits (uint32) of a number where the line has column j, which was 0."""
    if owed.dtype == BFLOAT16:
        line[j // 2] |= np.uint32(number << np.uint32(16 * (j % 2)))
    else:
        line[j] = number


@device
def write_line(words, place, line):
    write_quad(words, place * OF_LINE, line[0], line[1], line[2], line[3])
    write_quad(words, place * OF_LINE + QUAD, line[4], line[5], line[6], line[7])


@gpu
def lay_out(words, owed, place, start, rows, first, x):
    """The lines of x [C, B, N] float32, the first of which is token `first` of the segment, in the ring of lines that begins with number
    `place`: start [1] int32 and rows as in events.py.

    owed: an array of the type that numbers are to have. A thread per (neuron, tile of sequences, token).
    """
    line = cuda.local.array(LINE, np.uint32)
    n, tile, t = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    B, N = np.uint64(x.shape[1]), np.uint64(x.shape[2])
    if n >= N:
        return
    first_sequence = tile * np.uint64(columns_of_line(owed))
    for q in range(LINE):
        line[q] = NONE
    for j in range(MOST):
        b = first_sequence + np.uint64(j)
        if j < columns_of_line(owed) and b < B:
            set_column(line, owed, j, bits_of(owed, x[t, b, n]))
    write_line(words, line_at(place, start, rows, first + np.int64(t), tile, cuda.gridDim.y, N, n), line)


@device
def heard_bits(owed, v, drop, key, place, graded, smooth):
    """What a line says of a membrane potential: what the axon carries, -0 near the threshold, otherwise 0."""
    s, fired, near = heard_as(v, drop, key, place, graded, smooth)
    if fired:
        return bits_of(owed, s)
    return nearby(owed) if near else NONE


@gpu
def lay_events(words, owed, start, rows, first, v, drop, key, first_place, graded, smooth):
    """The lines of the events of membrane potentials v [C, B, N]: as `lay_out`, with drop, key and first_place as in events.py. A thread
    per (neuron, tile of sequences, token)."""
    line = cuda.local.array(LINE, np.uint32)
    n, tile, t = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    B, N = np.uint64(v.shape[1]), np.uint64(v.shape[2])
    if n >= N:
        return
    first_sequence = tile * np.uint64(columns_of_line(owed))
    for q in range(LINE):
        line[q] = NONE
    for j in range(MOST):
        b = first_sequence + np.uint64(j)
        if j < columns_of_line(owed) and b < B:
            number = heard_bits(owed, v[t, b, n], drop, key[0], first_place + (t * B + b) * N + n, graded, smooth)
            set_column(line, owed, j, number)
    write_line(words, line_at(0, start, rows, first + np.int64(t), tile, cuda.gridDim.y, N, n), line)


@gpu
def forget_lines(words, owed, N, sequences):
    """0 in all lines [rows, tiles, N] for the sequences [B] that are not 0. A thread per (neuron, tile, row)."""
    forgotten = cuda.local.array(LINE, np.uint32)
    n, tile, row = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    if n >= np.uint64(N):
        return
    at = ((row * np.uint64(cuda.gridDim.y) + tile) * np.uint64(N) + n) * OF_LINE
    first_sequence = tile * np.uint64(columns_of_line(owed))
    for q in range(LINE):
        forgotten[q] = NONE
    for j in range(MOST):
        b = first_sequence + np.uint64(j)
        if j < columns_of_line(owed) and b < np.uint64(sequences.size) and sequences[b]:
            set_column(forgotten, owed, j, LOWER if owed.dtype == BFLOAT16 else ALL_BITS)
    for q in range(LINE):
        if forgotten[q] != NONE:
            words[at + np.uint64(q)] &= np.uint32(~forgotten[q])


@gpu
def pick_weights(picked, weight, place):
    """picked[i] = weight[place[i]]. A thread per synapse."""
    i = cuda.grid(1)
    if i < picked.size:
        picked[i] = weight[place[i]]


@device
def read_line(line, words, place):
    """line [LINE] = the words of a tile for the neuron at a place."""
    first, second = read_quad(words, place * OF_LINE), read_quad(words, place * OF_LINE + QUAD)
    for q in range(QUADS):
        line[q], line[q + QUADS] = first[q], second[q]


@device
def add_line(sums, w, line, owed):
    """sums[j] += w times column j of what a tile has for a neuron."""
    for q in range(LINE):
        if owed.dtype == BFLOAT16:
            sums[2 * q] += w * lower(line[q])
            sums[2 * q + 1] += w * upper(line[q])
        else:
            sums[q] += w * np.uint32(line[q]).view(np.float32)


@device
def product_of_lines(one, other, owed):
    """The sum over the columns of what a tile has for one neuron times what it has for another."""
    total = ZERO
    for q in range(LINE):
        if owed.dtype == BFLOAT16:
            total += lower(one[q]) * lower(other[q])
            total += upper(one[q]) * upper(other[q])
        else:
            total += np.uint32(one[q]).view(np.float32) * np.uint32(other[q]).view(np.float32)
    return total


@device
def add_columns(x, sums, owed, t, b, n):
    """x[t, b + j, n] += sums[j] of the columns that there are."""
    for j in range(MOST):
        if j < columns_of_line(owed) and b < np.uint64(x.shape[1]) and t < np.uint64(x.shape[0]):
            x[t, b, n] += sums[j]
        b += ONE_PLACE


@gpu
def synapse_gather(current, owed, words, start, rows, source, weight, M, first):
    """Add to current [C, B, N], from token `first` of the segment on, what M plain values bring without delay.

    words, start, rows: the values as `lay_out` has them, of the type of `owed`; source, weight [K, N]: the synapses of each neuron, which
    are added up in their order. A thread per (neuron, tile of sequences, token).
    """
    sums = cuda.local.array(MOST, np.float32)
    line = cuda.local.array(LINE, np.uint32)
    other_line = cuda.local.array(LINE, np.uint32)
    n, group, t = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    if n >= np.uint64(current.shape[2]):
        return
    base = line_at(0, start, rows, first + np.int64(t), group, cuda.gridDim.y, M, 0)
    for j in range(MOST):
        sums[j] = ZERO
    i, synapses = np.uint64(0), np.uint64(source.shape[0])
    while i < synapses:  # two at a time, so that more loads are on their way
        other = i + ONE_PLACE
        w, at = weight[i, n], source[i, n]
        w2, at2 = (weight[other, n], source[other, n]) if other < synapses else (w, at)
        read_line(line, words, base + at)
        read_line(other_line, words, base + at2)
        add_line(sums, w, line, owed)
        if other < synapses:
            add_line(sums, w2, other_line, owed)
        i = other + ONE_PLACE
    add_columns(current, sums, owed, t, group * np.uint64(columns_of_line(owed)), n)


@gpu(max_registers=REGISTERS)
def synapse_forward_wide(current, table, first_pair, last_pair, start, first, index, value, count, row_start, target, weight, part_size):
    """`synapse.synapse_forward` for parts so large that no second block has room beside them, with rows of a few synapses.

    A block per (sequence, token, part), with part_size int32 of dynamic shared memory. A thread walks ROWS rows at a time: what it loads
    of each does not wait for the others.
    """
    arriving = cuda.shared.array(0, numba.int32)
    bases = cuda.shared.array(PAIRS, np.uint64)
    row_places = cuda.shared.array(PAIRS, np.uint32)
    counts = cuda.shared.array(PAIRS, np.uint32)
    ends = cuda.shared.array(PAIRS, np.uint32)
    at = cuda.local.array(ROWS, np.uint64)
    k = cuda.local.array(ROWS, np.uint32)
    last = cuda.local.array(ROWS, np.uint32)
    s = cuda.local.array(ROWS, np.float32)
    word = cuda.local.array(ROWS, np.uint32)
    w = cuda.local.array(ROWS, np.float32)
    b, t, part, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z, np.uint32(cuda.threadIdx.x)
    B, parts, low = np.uint32(current.shape[1]), np.uint32(cuda.gridDim.z), part * part_size
    size = min(part_size, current.shape[2] - low)
    for n in range(thread, size, ALL_WALKERS):
        arriving[n] = 0
    spoilt = False
    for round_ in range(first_pair, last_pair, PAIRS):
        pairs = np.uint32(min(PAIRS, last_pair - round_))
        look_up_pairs(bases, row_places, counts, ends, table, round_, pairs, np.int32(first) + t, start, count, b, B, part)
        total, pair, begin, f = ends[pairs - NEXT], NONE, NONE, thread
        while f < total:
            for r in range(ROWS):  # of events after the last one, what that one has is looked up, too
                e = min(np.uint32(f + np.uint32(r) * ALL_WALKERS), np.uint32(total - NEXT))
                while ends[pair] <= e:
                    begin = ends[pair]
                    pair = np.uint32(pair + NEXT)
                k[r], at[r] = np.uint32(e - begin), bases[pair] + np.uint64(e - begin)
                last[r] = row_places[pair]
            for r in range(ROWS):
                listed = last[r] < UNLISTED
                heard = np.uint32(index[at[r] if listed else np.uint64(0)])
                k[r] = np.uint32((last[r] & ~UNLISTED) + (heard if listed else k[r]) * parts)
                s[r] = value[at[r]] * CURRENT
            for r in range(ROWS):
                row = np.uint64(k[r])
                k[r], last[r] = row_start[row], row_start[row + ONE_PLACE]
                if np.uint32(f + np.uint32(r) * ALL_WALKERS) >= total:
                    last[r] = k[r]
            left = True
            while left:
                left = False
                for r in range(ROWS):
                    word[r], w[r] = fetch(target, weight, np.uint64(k[r] if k[r] < last[r] else NONE))
                for r in range(ROWS):
                    if k[r] < last[r]:
                        n, factor = decode(target, (word[r], w[r]))
                        spoilt |= bring(arriving, n, factor * s[r])
                        k[r] = np.uint32(k[r] + NEXT)
                        left |= k[r] < last[r]
            f = np.uint32(f + np.uint32(ROWS) * ALL_WALKERS)
        cuda.syncthreads()  # before the next round's pairs
    spoilt_by_any = cuda.syncthreads_or(np.int32(spoilt))
    for n in range(thread, size, ALL_WALKERS):
        current[t, b, low + n] = NAN if spoilt_by_any else current_of(arriving[n])


@device
def walk_back(learning, sums, s, d_weight, owed, words, stretches, synapses, source, token, group, groups, length, units):
    """Add to sums what the synapses of a source bring back for a tile, the columns of which are sequences at one token, and where
    `learning` to d_weight, for what they sent: s [LINE]. stretches: (table, first, end); synapses: (row_start, target, weight)."""
    (table, first_stretch, last_stretch), (row_start, target, weight) = stretches, synapses
    line = cuda.local.array(LINE, np.uint32)
    other_line = cuda.local.array(LINE, np.uint32)
    for p in range(first_stretch, last_stretch):
        arrival = token + table[p, DELAY]
        if 0 <= arrival < length:
            owing = np.uint64(table[p, OWED] + (arrival * groups + group) * table[p, SIZE])
            row = np.uint64(np.uint32(table[p, ROW_START]) + np.uint32(source) * np.uint32(table[p, PARTS]))
            k = np.uint64(row_start[row])
            for _ in range(table[p, PARTS]):
                row += ONE_PLACE
                end = np.uint64(row_start[row])
                while k < end:  # two synapses at a time, so that more loads are on their way
                    other = k + ONE_PLACE
                    n, w = synapse_at(target, weight, k)
                    n2, w2 = synapse_at(target, weight, other) if other < end else (n, ZERO)
                    read_line(line, words, owing + n)
                    read_line(other_line, words, owing + n2)
                    add_line(sums, w, line, owed)
                    if learning:
                        cuda.atomic.add(d_weight, k, to_int64(product_of_lines(s, line, owed) * units))
                    if other < end:
                        add_line(sums, w2, other_line, owed)
                        if learning:
                            cuda.atomic.add(d_weight, other, to_int64(product_of_lines(s, other_line, owed) * units))
                    k = other + ONE_PLACE
                k = end
                owing += np.uint64(table[p, PART_SIZE])


@device
def list_source(listed, found, which, here, n):
    """List n in shared memory where `here`: in the first part, from the front, or in the second, from the back. found [2] counts both.
    Every thread takes part."""
    mask, lane, at = ballot(here), np.uint32(np.uint32(cuda.threadIdx.x) % np.uint32(WARP)), np.int32(0)
    if lane == 0:
        at = cuda.atomic.add(found, which, np.int32(bits(mask)))
    at = from_lane(at, 0) + np.int32(bits(np.uint32(mask & np.uint32(np.uint32(np.uint32(1) << lane) - np.uint32(1)))))
    if here:
        listed[at if which == 0 else FANNERS - 1 - at] = n


@gpu(launch_bounds=(FANNERS, 3))  # 80 registers for a thread
def synapse_backward_wide(
    gradient,
    d_weight,
    owed,
    words,
    table,
    first_stretch,
    last_stretch,
    row_start,
    target,
    weight,
    sent,
    start,
    rows,
    plain,
    M,
    earliest,
    length,
    batch,
    units,
):
    """Add to gradient [C, B, M] of tokens from `earliest` on, and to d_weight as `tiles.synapse_backward` does, by stretches first_stretch
    ... last_stretch - 1, each of which is all of a module.

    words: lines of the gradients; sent, start, rows: of what M sources sent. plain: values, all of which are listed; of events those that
    fired, and where a gradient is wanted (C is not 0) those near the threshold. A block per (FANNERS sources, tile) lists those of its
    sources that have something to do, so that its first threads have one each and whole warps have none. The tiles of a group of sequences
    come token by token, for they want much the same gradients.
    """
    listed = cuda.shared.array(FANNERS, np.uint32)
    found = cuda.shared.array(2, np.int32)
    sums = cuda.local.array(MOST, np.float32)
    s = cuda.local.array(LINE, np.uint32)
    columns, thread = columns_of_line(owed), cuda.threadIdx.x
    groups = (batch + columns - 1) // columns
    tokens = np.int64(cuda.gridDim.y) // groups
    token, group = earliest + np.int64(cuda.blockIdx.y) % tokens, np.int64(cuda.blockIdx.y) // tokens
    n, fired, near = np.int64(cuda.blockIdx.x) * FANNERS + thread, False, False
    base = line_at(0, start, rows, token, group, groups, M, 0)
    if thread < 2:
        found[thread] = 0
    cuda.syncthreads()
    if n < M:
        read_line(s, sent, base + np.uint64(n))
        word = NONE
        for q in range(LINE):
            word |= s[q]
        fired = plain or is_number(owed, word)
        near = word != NONE and not fired and gradient.shape[0] > 0
    list_source(listed, found, 0, fired, n)
    list_source(listed, found, 1, near, n)
    cuda.syncthreads()
    learning = thread < found[0]
    if thread >= found[0] + found[1]:
        return
    source = np.uint64(listed[thread if learning else FANNERS - 1 - (thread - found[0])])
    for j in range(MOST):
        sums[j] = ZERO
    for q in range(LINE):
        s[q] = NONE
    if learning:
        read_line(s, sent, base + source)
    stretches, synapses = (table, first_stretch, last_stretch), (row_start, target, weight)
    walk_back(learning, sums, s, d_weight, owed, words, stretches, synapses, source, token, group, groups, length, units)
    add_columns(gradient, sums, owed, np.uint64(token - earliest), np.uint64(group * columns), source)
