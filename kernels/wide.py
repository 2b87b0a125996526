"""Modules that no block has shared memory for, and whose rows are short.

The way back is as tiles.py has it, but a tile's gradients stay in global memory, where those of its columns lie side by side, too
(`lay_out`). Cut into parts that fit a block, the synapses of a source would be rows of less than one, and most of the work to find that
out. A thread has a source and walks all its synapses, whatever module they end in and whatever their delay, so that its sums never leave
the registers. They lie in one row, each of which is two words: where it lands, and its weight.

Forward a block has the currents of a part in shared memory, and each of its threads walks the rows of several events at a time. Plain
values, which are never silent, are gathered instead: a thread has a target and looks at the values at all its synapses, which are laid out
as gradients are.

Columns are sequences at one token here: whatever the delay, what they need begins where 16 bytes do.
"""

import numba
import numpy as np
from numba import cuda

from .fixed import CURRENT, NAN, current_of, to_int64
from .half import BFLOAT16
from .jit import ZERO
from .launch import SIMULATED, THREADS, device, gpu
from .stream import read_quad, write_quad
from .synapse import NEXT, PAIRS, UNLISTED, bring, decode, fetch, look_up_pairs
from .tiles import (
    DELAY,
    MOST_COLUMNS,
    OWED,
    QUADS,
    REGISTERS,
    SIZE,
    WORDS,
    bits_of,
    columns_of,
    first_column,
    take_sent,
    unpack,
)

ONE_PART, HALF_WORD, NONE = np.uint64(1), np.uint32(16), np.uint32(0)
MANY_WALKERS, ROWS = (8, 2) if SIMULATED else (1024, 4)  # threads of a block, and rows that each of them walks at a time
ALL_WALKERS = np.uint32(MANY_WALKERS)
FANNERS = 8 if SIMULATED else THREADS  # threads of a block on the way back
# The first byte of a landing says in which stretch a synapse ends, the others at which neuron.
STRETCHES, NEURONS = 256, 2**24
STRETCH, NEURON = np.uint32(24), np.uint32(NEURONS - 1)
NO_LANDING = np.uint32(0xFFFFFFFF)  # fills up an odd row
NOWHERE = np.uint64(0xFFFFFFFFFFFFFFFF)


@gpu
def lay_out(words, owed, place, gradient, first):
    """The gradient [C, B, N] of tokens from `first` on as tiles have it: 16 bytes of `words` for each neuron, [T, tiles of sequences, N],
    the first of which is number `place`.

    owed: an array of the type that the gradients are to have. A thread per (neuron, tile of sequences, token).
    """
    n, group, t = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    B, N = np.uint64(gradient.shape[1]), np.uint64(gradient.shape[2])
    if n >= N:
        return
    at = (np.uint64(place) + ((np.uint64(first) + t) * np.uint64(cuda.gridDim.y) + group) * N + n) * WORDS
    b, quad = group * np.uint64(columns_of(owed)), cuda.local.array(QUADS, np.uint32)
    for q in range(QUADS):
        word = bits_of(owed, gradient[t, b, n]) if b < B else NONE
        b += ONE_PART
        if owed.dtype == BFLOAT16:
            other = bits_of(owed, gradient[t, b, n]) if b < B else NONE
            word = np.uint32(word | np.uint32(other << HALF_WORD))
            b += ONE_PART
        quad[q] = word
    write_quad(words, at, quad[0], quad[1], quad[2], quad[3])


@gpu
def pick_weights(picked, weight, place):
    """picked[i] = weight[place[i]]. A thread per synapse."""
    i = cuda.grid(1)
    if i < picked.size:
        picked[i] = weight[place[i]]


@gpu
def pick_words(synapses, weight, place):
    """The second of the two words of synapse i = the bits of weight[place[i]]. A thread per synapse."""
    i = cuda.grid(1)
    if i < place.size:
        synapses[2 * i + 1] = np.float32(weight[place[i]]).view(np.uint32)


@device
def unpack_quad(numbers, owed, quad, own_words):
    """numbers [MOST_COLUMNS] float32 = what four words hold."""
    for q in range(QUADS):
        own_words[q] = quad[q]
    unpack(numbers, owed, own_words, np.uint64(0))


@device
def add_numbers(sums, w, quad, x, owed, own_words):
    """sums[j] += w times the numbers of four words."""
    unpack_quad(x, owed, quad, own_words)
    for j in range(MOST_COLUMNS):
        if j < columns_of(owed):
            sums[j] += w * x[j]


@device
def add_columns(x, sums, owed, t, b, n):
    """x[t, b + j, n] += sums[j] of the columns that there are."""
    for j in range(MOST_COLUMNS):
        if j < columns_of(owed) and b < np.uint64(x.shape[1]) and t < np.uint64(x.shape[0]):
            x[t, b, n] += sums[j]
        b += ONE_PART


@gpu
def synapse_gather(current, owed, words, source, weight, M, first):
    """Add to current [C, B, N], from token `first` of the segment on, what M plain values bring without delay.

    words: the values of the segment as `lay_out` has them, of the type of `owed`; source, weight [K, N]: the synapses of each neuron, which
    are added up in their order. A thread per (neuron, tile of sequences, token).
    """
    sums = cuda.local.array(MOST_COLUMNS, np.float32)
    x = cuda.local.array(MOST_COLUMNS, np.float32)
    own_words = cuda.local.array(QUADS, np.uint32)
    n, group, t = np.uint64(cuda.grid(1)), np.uint64(cuda.blockIdx.y), np.uint64(cuda.blockIdx.z)
    if n >= np.uint64(current.shape[2]):
        return
    base = ((np.uint64(first) + t) * np.uint64(cuda.gridDim.y) + group) * np.uint64(M)
    for j in range(MOST_COLUMNS):
        sums[j] = ZERO
    i, synapses = np.uint64(0), np.uint64(source.shape[0])
    while i < synapses:  # two at a time, so that more loads are on their way
        other = i + ONE_PART
        w, at = weight[i, n], source[i, n]
        w2, at2 = (weight[other, n], source[other, n]) if other < synapses else (w, at)
        quad, quad2 = read_quad(words, (base + at) * WORDS), read_quad(words, (base + at2) * WORDS)
        add_numbers(sums, w, quad, x, owed, own_words)
        if other < synapses:
            add_numbers(sums, w2, quad2, x, owed, own_words)
        i = other + ONE_PART
    add_columns(current, sums, owed, t, group * np.uint64(columns_of(owed)), n)


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
def find_places(places, table, first_stretch, last_stretch, token, group, groups, length):
    """places[p] = where `words` has the gradients of a tile's columns at the module in which stretch first_stretch + p ends, for what was
    sent at `token`; NOWHERE after the segment and the last stretch. Shared; every thread takes part."""
    p = np.int64(cuda.threadIdx.x)
    while p < STRETCHES:
        places[p] = NOWHERE
        if p < last_stretch - first_stretch:
            arrival = token + table[first_stretch + p, DELAY]
            if 0 <= arrival < length:
                places[p] = np.uint64(table[first_stretch + p, OWED] + (arrival * groups + group) * table[first_stretch + p, SIZE])
        p += np.int64(cuda.blockDim.x)
    cuda.syncthreads()


@device
def read_landing(words, place, landing):
    """The gradients of the tile at a neuron of the module that begins at `place`, four words; zeros NOWHERE."""
    return read_quad(words, (place + np.uint64(landing & NEURON)) * WORDS) if place != NOWHERE else (NONE, NONE, NONE, NONE)


@device
def pass_synapse(learning, place, i, w, quad, sums, s, d, own_owed, d_weight, owed, units):
    """Synapse i of weight w (its bits), whose target's gradients are `quad`: add to sums, and where `learning` to d_weight."""
    unpack_quad(d, owed, quad, own_owed)
    factor, learned = np.uint32(w).view(np.float32), ZERO
    for j in range(MOST_COLUMNS):
        if j < columns_of(owed):
            sums[j] += factor * d[j]
            learned += s[j] * d[j]
    if learning:
        cuda.atomic.add(d_weight, place[i], to_int64(learned * units))


@device
def walk_back(learning, sums, s, d_weight, owed, words, places, row_start, synapses, place, source, units):
    """Add to sums what the synapses of a source bring back for a tile, the columns of which are sequences at one token, and where
    `learning` to d_weight. places: of `find_places`; two synapses are read at once, and the next two before they are passed."""
    d = cuda.local.array(MOST_COLUMNS, np.float32)
    own_owed = cuda.local.array(QUADS, np.uint32)
    k, end = np.uint64(row_start[source]), np.uint64(row_start[source + ONE_PART])
    ahead = read_quad(synapses, k * WORDS) if k < end else (NO_LANDING, NONE, NO_LANDING, NONE)
    while k < end:
        (landing, w, other, w2), i = ahead, k + k
        k += ONE_PART
        ahead = read_quad(synapses, (k if k < end else np.uint64(0)) * WORDS)
        begin, begin2 = places[landing >> STRETCH], places[other >> STRETCH]
        quad, quad2 = read_landing(words, begin, landing), read_landing(words, begin2, other)
        if begin != NOWHERE:
            pass_synapse(learning, place, i, w, quad, sums, s, d, own_owed, d_weight, owed, units)
        if begin2 != NOWHERE:
            pass_synapse(learning, place, i + ONE_PART, w2, quad2, sums, s, d, own_owed, d_weight, owed, units)


@gpu(max_registers=REGISTERS)
def synapse_backward_wide(
    gradient,
    d_weight,
    owed,
    words,
    table,
    first_stretch,
    last_stretch,
    row_start,
    synapses,
    place,
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
    ... last_stretch - 1, each of which is all of a module. words: what `lay_out` made.

    row_start [M + 1]: where each source's synapses begin, in pairs; synapses: landing and weight of each, two words; place: which of
    d_weight it is.
    A thread per (place of a list, tile).
    """
    places = cuda.shared.array(STRETCHES, np.uint64)
    sums = cuda.local.array(MOST_COLUMNS, np.float32)
    s = cuda.local.array(MOST_COLUMNS, np.float32)
    own_sent = cuda.local.array(QUADS, np.uint32)
    e, tile, columns = np.int64(cuda.grid(1)), np.int64(cuda.blockIdx.y), np.int64(columns_of(owed))
    groups, (token, b) = (batch + columns - 1) // columns, first_column(tile, earliest, batch, columns, True)
    find_places(places, table, first_stretch, last_stretch, token, tile % groups, groups, length)
    fired, listed = np.int64(found[tile, 0]), np.int64(found[tile, 0] + found[tile, 1])
    if e >= listed:
        return
    learning = e < fired
    at = np.uint64(tile * M + (e if learning else M - 1 - (e - fired)))
    source = np.uint64(source_at[at])
    for j in range(MOST_COLUMNS):
        sums[j] = s[j] = ZERO
    if learning:
        take_sent(own_sent, sent, at)
        unpack(s, owed, own_sent, np.uint64(0))
    walk_back(learning, sums, s, d_weight, owed, words, places, row_start, synapses, place, source, units)
    add_columns(gradient, sums, owed, np.uint64(token - earliest), np.uint64(b), source)


@gpu(max_registers=REGISTERS)
def synapse_scatter(
    gradient, d_weight, owed, words, table, first_stretch, last_stretch, row_start, synapses, place, values, first, length, units
):
    """`synapse_gather` back: as `synapse_backward_wide`, for plain values, which need no lists. values: what `synapse_gather` read.

    A thread per (source, tile of sequences, token)."""
    places = cuda.shared.array(STRETCHES, np.uint64)
    sums = cuda.local.array(MOST_COLUMNS, np.float32)
    s = cuda.local.array(MOST_COLUMNS, np.float32)
    own_words = cuda.local.array(QUADS, np.uint32)
    source, group, t = np.uint64(cuda.grid(1)), np.int64(cuda.blockIdx.y), np.int64(cuda.blockIdx.z)
    M, groups, token = np.uint64(gradient.shape[2]), np.int64(cuda.gridDim.y), first + t
    find_places(places, table, first_stretch, last_stretch, token, group, groups, length)
    if source >= M:
        return
    for j in range(MOST_COLUMNS):
        sums[j] = s[j] = ZERO
    unpack_quad(s, owed, read_quad(values, (np.uint64(token * groups + group) * M + source) * WORDS), own_words)
    walk_back(True, sums, s, d_weight, owed, words, places, row_start, synapses, place, source, units)
    add_columns(gradient, sums, owed, np.uint64(t), np.uint64(group * np.int64(columns_of(owed))), source)
