"""Modules that no block has shared memory for, and whose rows are short.

The way back is as tiles.py has it, but a tile's gradients stay in global memory, where those of its columns lie side by side, too
(`lay_out`). Cut into parts that fit a block, the synapses of a source would be rows of less than one, and most of the work to find that
out. A thread has a source and walks all its synapses, whatever module they end in, so that its sums never leave the registers.

Forward that is worth it for plain values, which are never silent: a thread has a target, and gathers the values at all its synapses, which
are laid out in the same way.

Columns are sequences at one token here: whatever the delay, what they need begins where 16 bytes do.
"""

import numpy as np
from numba import cuda

from .fixed import to_int64
from .half import BFLOAT16
from .jit import ZERO
from .launch import device, gpu
from .stream import read_quad
from .synapse import synapse_at
from .tiles import (
    DELAY,
    MOST_COLUMNS,
    OWED,
    PART_SIZE,
    PARTS,
    QUADS,
    REGISTERS,
    ROW_START,
    SIZE,
    WORDS,
    bits_of,
    columns_of,
    first_column,
    take_sent,
    unpack,
)

ONE_PART, HALF_WORD = np.uint64(1), np.uint32(16)


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
    b = group * np.uint64(columns_of(owed))
    for q in range(QUADS):
        word = bits_of(owed, gradient[t, b, n]) if b < B else np.uint32(0)
        b += ONE_PART
        if owed.dtype == BFLOAT16:
            other = bits_of(owed, gradient[t, b, n]) if b < B else np.uint32(0)
            word = np.uint32(word | np.uint32(other << HALF_WORD))
            b += ONE_PART
        words[at + np.uint64(q)] = word


@gpu
def pick_weights(picked, weight, place):
    """picked[i] = weight[place[i]]. A thread per synapse."""
    i = cuda.grid(1)
    if i < picked.size:
        picked[i] = weight[place[i]]


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


@device
def pass_synapse(learning, k, w, quad, sums, s, d, own_owed, d_weight, owed, units):
    """Synapse k of weight w, whose target's gradients are `quad`: add to sums, and where `learning` to d_weight."""
    unpack_quad(d, owed, quad, own_owed)
    learned = ZERO
    for j in range(MOST_COLUMNS):
        if j < columns_of(owed):
            sums[j] += w * d[j]
            learned += s[j] * d[j]
    if learning:
        cuda.atomic.add(d_weight, k, to_int64(learned * units))


@device
def walk_back(learning, sums, s, d_weight, owed, words, stretches, synapses, source, token, group, groups, length, units):
    """Add to sums what the synapses of a source bring back for a tile, the columns of which are sequences at one token, and where
    `learning` to d_weight. stretches: (table, first, end); synapses: (row_start, target, weight)."""
    (table, first_stretch, last_stretch), (row_start, target, weight) = stretches, synapses
    d = cuda.local.array(MOST_COLUMNS, np.float32)
    own_owed = cuda.local.array(QUADS, np.uint32)
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
                    quad, quad2 = read_quad(words, (owing + n) * WORDS), read_quad(words, (owing + n2) * WORDS)
                    pass_synapse(learning, k, w, quad, sums, s, d, own_owed, d_weight, owed, units)
                    if other < end:
                        pass_synapse(learning, other, w2, quad2, sums, s, d, own_owed, d_weight, owed, units)
                    k = other + ONE_PART
                k = end
                owing += np.uint64(table[p, PART_SIZE])


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
    ... last_stretch - 1, each of which is all of a module. words: what `lay_out` made. A thread per (place of a list, tile)."""
    sums = cuda.local.array(MOST_COLUMNS, np.float32)
    s = cuda.local.array(MOST_COLUMNS, np.float32)
    own_sent = cuda.local.array(QUADS, np.uint32)
    e, tile, columns = np.int64(cuda.grid(1)), np.int64(cuda.blockIdx.y), np.int64(columns_of(owed))
    fired, listed = np.int64(found[tile, 0]), np.int64(found[tile, 0] + found[tile, 1])
    if e >= listed:
        return
    learning = e < fired
    place = np.uint64(tile * M + (e if learning else M - 1 - (e - fired)))
    source, groups = np.uint64(source_at[place]), (batch + columns - 1) // columns
    token, b = first_column(tile, earliest, batch, columns, True)
    for j in range(MOST_COLUMNS):
        sums[j] = s[j] = ZERO
    if learning:
        take_sent(own_sent, sent, place)
        unpack(s, owed, own_sent, np.uint64(0))
    stretches, synapses = (table, first_stretch, last_stretch), (row_start, target, weight)
    walk_back(learning, sums, s, d_weight, owed, words, stretches, synapses, source, token, tile % groups, groups, length, units)
    add_columns(gradient, sums, owed, np.uint64(token - earliest), np.uint64(b), source)


@gpu(max_registers=REGISTERS)
def synapse_scatter(
    gradient, d_weight, owed, words, table, first_stretch, last_stretch, row_start, target, weight, values, first, length, units
):
    """`synapse_gather` back: as `synapse_backward_wide`, for plain values, which need no lists. values: what `synapse_gather` read.

    A thread per (source, tile of sequences, token)."""
    sums = cuda.local.array(MOST_COLUMNS, np.float32)
    s = cuda.local.array(MOST_COLUMNS, np.float32)
    own_words = cuda.local.array(QUADS, np.uint32)
    source, group, t = np.uint64(cuda.grid(1)), np.int64(cuda.blockIdx.y), np.int64(cuda.blockIdx.z)
    M, groups, token = np.uint64(gradient.shape[2]), np.int64(cuda.gridDim.y), first + t
    if source >= M:
        return
    for j in range(MOST_COLUMNS):
        sums[j] = s[j] = ZERO
    unpack_quad(s, owed, read_quad(values, (np.uint64(token * groups + group) * M + source) * WORDS), own_words)
    stretches, synapses = (table, first_stretch, last_stretch), (row_start, target, weight)
    walk_back(True, sums, s, d_weight, owed, words, stretches, synapses, source, token, group, groups, length, units)
    add_columns(gradient, sums, owed, np.uint64(t), np.uint64(group * np.int64(columns_of(owed))), source)
