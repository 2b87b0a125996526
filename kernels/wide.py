"""Modules that no block has shared memory for, and whose rows are short.

The way back is as tiles.py has it, but a tile's gradients stay in global memory, where those of its columns lie side by side, too
(`lay_out`): 32 bytes for a neuron, which is what the second-level cache is read in. Cut into parts that fit a block, the synapses of a
source would be rows of less than one, and most of the work to find that out. A thread has a source and walks all its synapses, whatever
module they end in, so that its sums never leave the registers.

Forward a block has the currents of a part in shared memory, and each of its threads walks the rows of several events at a time. Plain
values, which are never silent, are gathered instead: a thread has a target and looks at the values at all its synapses, which are laid out
as gradients are.

Columns are sequences at one token here: whatever the delay, what they need begins where 32 bytes do.
"""

import numba
import numpy as np
from numba import cuda

from .fixed import CURRENT, NAN, current_of, to_int64
from .half import BFLOAT16, lower, upper
from .jit import ZERO
from .launch import SIMULATED, THREADS, device, gpu
from .stream import read_quad, write_quad
from .synapse import NEXT, PAIRS, UNLISTED, bring, decode, fetch, look_up_pairs, synapse_at
from .tiles import DELAY, LINE, OWED, PART_SIZE, PARTS, QUADS, REGISTERS, ROW_START, SIZE, bits_of, columns_of, first_abreast

ONE_PART, HALF_WORD, NONE = np.uint64(1), np.uint32(16), np.uint32(0)
MANY_WALKERS, ROWS = (8, 2) if SIMULATED else (1024, 4)  # threads of a block forward, and rows that each of them walks at a time
ALL_WALKERS = np.uint32(MANY_WALKERS)
FANNERS = 8 if SIMULATED else THREADS  # threads of a block otherwise
WORDS, QUAD = np.uint64(LINE), np.uint64(4)  # of 32 bits, that a tile has for a neuron
TIMES, MOST = LINE // QUADS, 16  # as many columns as other tiles have; at most


@device
def columns_abreast(owed):
    """Columns of a tile (int64): sequences at one token."""
    return np.int64(columns_of(owed)) * TIMES


@gpu
def lay_out(words, owed, place, gradient, first):
    """The gradient [C, B, N] of tokens from `first` on as tiles have it: LINE of `words` for each neuron, [T, tiles of sequences, N], the
    first of which is number `place`.

    owed: an array of the type that the gradients are to have. A thread per (neuron, tile of sequences, token).
    """
    line = cuda.local.array(LINE, np.uint32)
    n, group, t = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    B, N = np.uint64(gradient.shape[1]), np.uint64(gradient.shape[2])
    if n >= N:
        return
    at = (np.uint64(place) + ((np.uint64(first) + t) * np.uint64(cuda.gridDim.y) + group) * N + n) * WORDS
    b = group * np.uint64(columns_abreast(owed))
    for q in range(LINE):
        word = bits_of(owed, gradient[t, b, n]) if b < B else NONE
        b += ONE_PART
        if owed.dtype == BFLOAT16:
            other = bits_of(owed, gradient[t, b, n]) if b < B else NONE
            word = np.uint32(word | np.uint32(other << HALF_WORD))
            b += ONE_PART
        line[q] = word
    write_quad(words, at, line[0], line[1], line[2], line[3])
    write_quad(words, at + QUAD, line[4], line[5], line[6], line[7])


@gpu
def pick_weights(picked, weight, place):
    """picked[i] = weight[place[i]]. A thread per synapse."""
    i = cuda.grid(1)
    if i < picked.size:
        picked[i] = weight[place[i]]


@device
def read_line(line, words, place):
    """line [LINE] = the words of a tile for the neuron at a place."""
    first, second = read_quad(words, place * WORDS), read_quad(words, place * WORDS + QUAD)
    for q in range(4):
        line[q], line[q + 4] = first[q], second[q]


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
        if j < columns_abreast(owed) and b < np.uint64(x.shape[1]) and t < np.uint64(x.shape[0]):
            x[t, b, n] += sums[j]
        b += ONE_PART


@gpu
def synapse_gather(current, owed, words, source, weight, M, first):
    """Add to current [C, B, N], from token `first` of the segment on, what M plain values bring without delay.

    words: the values of the segment as `lay_out` has them, of the type of `owed`; source, weight [K, N]: the synapses of each neuron, which
    are added up in their order. A thread per (neuron, tile of sequences, token).
    """
    sums = cuda.local.array(MOST, np.float32)
    line = cuda.local.array(LINE, np.uint32)
    other_line = cuda.local.array(LINE, np.uint32)
    n, group, t = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    if n >= np.uint64(current.shape[2]):
        return
    base = ((np.uint64(first) + t) * np.uint64(cuda.gridDim.y) + group) * np.uint64(M)
    for j in range(MOST):
        sums[j] = ZERO
    i, synapses = np.uint64(0), np.uint64(source.shape[0])
    while i < synapses:  # two at a time, so that more loads are on their way
        other = i + ONE_PART
        w, at = weight[i, n], source[i, n]
        w2, at2 = (weight[other, n], source[other, n]) if other < synapses else (w, at)
        read_line(line, words, base + at)
        read_line(other_line, words, base + at2)
        add_line(sums, w, line, owed)
        if other < synapses:
            add_line(sums, w2, other_line, owed)
        i = other + ONE_PART
    add_columns(current, sums, owed, t, group * np.uint64(columns_abreast(owed)), n)


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
                k[r], last[r] = row_start[row], row_start[row + ONE_PART]
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
                row += ONE_PART
                end = np.uint64(row_start[row])
                while k < end:  # two synapses at a time, so that more loads are on their way
                    other = k + ONE_PART
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
                    k = other + ONE_PART
                k = end
                owing += np.uint64(table[p, PART_SIZE])


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
    source_at,
    sent,
    found,
    M,
    earliest,
    length,
    batch,
    units,
):
    """Add to gradient [C, B, M] of tokens from `earliest` on, and to d_weight as `tiles.synapse_backward` does, by stretches first_stretch
    ... last_stretch - 1, each of which is all of a module. Lists as `list_sources_wide` made them; words: what `lay_out` made. A thread per
    (place of a list, tile)."""
    sums = cuda.local.array(MOST, np.float32)
    s = cuda.local.array(LINE, np.uint32)
    e, tile, columns = np.int64(cuda.grid(1)), np.int64(cuda.blockIdx.y), columns_abreast(owed)
    fired, listed = np.int64(found[tile, 0]), np.int64(found[tile, 0] + found[tile, 1])
    if e >= listed:
        return
    learning = e < fired
    place = np.uint64(tile * M + (e if learning else M - 1 - (e - fired)))
    source, groups = np.uint64(source_at[place]), (batch + columns - 1) // columns
    token, b = first_abreast(tile, earliest, batch, columns)
    for j in range(MOST):
        sums[j] = ZERO
    for q in range(LINE):
        s[q] = sent[np.uint64(q), place] if learning else NONE
    stretches, synapses = (table, first_stretch, last_stretch), (row_start, target, weight)
    walk_back(learning, sums, s, d_weight, owed, words, stretches, synapses, source, token, tile % groups, groups, length, units)
    add_columns(gradient, sums, owed, np.uint64(token - earliest), np.uint64(b), source)


@gpu(launch_bounds=(FANNERS, 4))
def synapse_scatter(
    gradient, d_weight, owed, words, table, first_stretch, last_stretch, row_start, target, weight, values, first, length, units
):
    """`synapse_gather` back: as `synapse_backward_wide`, for plain values, which need no lists. values: what `synapse_gather` read.

    A thread per (source, tile of sequences, token)."""
    sums = cuda.local.array(MOST, np.float32)
    s = cuda.local.array(LINE, np.uint32)
    source, group, t = np.uint64(cuda.grid(1)), np.int64(cuda.blockIdx.y), np.int64(cuda.blockIdx.z)
    M, groups, token = np.uint64(gradient.shape[2]), np.int64(cuda.gridDim.y), first + t
    if source >= M:
        return
    for j in range(MOST):
        sums[j] = ZERO
    read_line(s, values, np.uint64(token * groups + group) * M + source)
    stretches, synapses = (table, first_stretch, last_stretch), (row_start, target, weight)
    walk_back(True, sums, s, d_weight, owed, words, stretches, synapses, source, token, group, groups, length, units)
    add_columns(gradient, sums, owed, np.uint64(t), np.uint64(group * columns_abreast(owed)), source)
