"""The way back through sparse synapses on a GPU, several columns at a time.

    ds[t, b, source] = sum over its synapses: weight[k] d_current[t + delay, b, target[k]]
    d_weight[k]     += s[t, b, source] d_current[t + delay, b, target[k]]

Nearly a third of the neurons sit near the threshold, and the gradient goes through them all. So a synapse is walked once for a tile of
columns, which are neighbouring tokens of a sequence: one load brings weight and target, and a second the gradients of the tile's columns at
that target, which lie side by side in 16 bytes of shared memory, four of float32 or eight of bfloat16. A source is walked if any of the
tile's columns lists it (events.py); neighbouring tokens list much the same ones. As many lanes as there are columns share out a row, and
fold their sums so that each ends with that of one column.

Modules that are wide (wide.py) have tiles of their own, twice as many columns, which are sequences at one token.

What `s` and `d_current` are kept in, float32 or bfloat16, the array `owed` decides.
"""

from enum import IntEnum

import numba
import numpy as np
from numba import cuda

from .fixed import to_int64
from .half import BFLOAT16, lower, to_bfloat16, upper
from .jit import ZERO
from .launch import SIMULATED, WARP, ballot, bits, device, from_lane, gpu, shuffle_xor
from .synapse import decode, fetch

WORDS, QUADS = np.uint64(4), 4  # of 32 bits, that a tile has for a neuron
PAIR = 2 * QUADS  # words of two neurons
MOST_COLUMNS = 8
AT_ONCE = 4  # entries of a list that a thread reads at a time
AHEAD = 2  # synapses of a row that a lane fetches at a time
TILERS = 8 if SIMULATED else 1024  # threads of a block
ALIGNED = None if SIMULATED else 16  # bytes: a thread reads what a tile has for a neuron at once
REGISTERS = 64
_NONE, _ONE, _HALF, _LOWER, _UPPER = np.uint32(0), np.uint32(1), np.uint32(16), np.uint32(0xFFFF), np.uint32(0xFFFF0000)
_ONCE, _FOUR = np.uint64(1), np.uint64(4)


class Stretch(IntEnum):
    """What the table says of the synapses of one arc and delay that end in one part of a module."""

    DELAY = 0
    ROW_START = 1  # where their rows begin in row_start
    PARTS = 2  # entries of row_start from a source to the next
    OWED = 3  # where the gradients of the part's first neuron begin in `owed`; of a wide module (wide.py), which line is its first neuron's
    LEAD = 4  # numbers from a sequence of these to the next
    SIZE = 5  # neurons of the part; of the whole module where it is walked at once (wide.py)
    PART_SIZE = 6  # neurons of a part that is not the last


DELAY, ROW_START, PARTS, OWED, LEAD, SIZE, PART_SIZE = (int(field) for field in Stretch)


def columns_in(owed) -> int:
    """Columns of a tile, as the host asks for them."""
    return 8 if owed.dtype == BFLOAT16 else 4


@device
def columns_of(owed):
    """Columns of a tile (uint32)."""
    return np.uint32(8) if owed.dtype == BFLOAT16 else np.uint32(4)


@device
def bits_of(owed, x):
    """The bits (uint32) of x (float32) as a tile keeps it."""
    return np.uint32(to_bfloat16(x)) if owed.dtype == BFLOAT16 else np.float32(x).view(np.uint32)


@device
def nearby(owed):
    """The bits of -0: what stands for a neuron near the threshold."""
    return np.uint32(0x8000) if owed.dtype == BFLOAT16 else np.uint32(0x80000000)


@device
def is_number(owed, word):
    """Whether anything but zeros, of whatever sign, is in a word."""
    return (word & (np.uint32(0x7FFF7FFF) if owed.dtype == BFLOAT16 else np.uint32(0x7FFFFFFF))) != 0


@device
def mark(tile, owed, n, j, number):
    """Put the bits of a number where the tile has column j of neuron n, which was 0."""
    if owed.dtype == BFLOAT16:
        cuda.atomic.or_(tile, n * WORDS + (j >> _ONCE), np.uint32(number << np.uint32((j & _ONCE) << _FOUR)))
    else:
        tile[n * WORDS + j] = number


@device
def unpack(numbers, owed, words, first):
    """numbers [MOST_COLUMNS] float32 = what stands at words[first:]."""
    for q in range(4):
        word = np.uint32(words[first + np.uint64(q)])
        if owed.dtype == BFLOAT16:
            numbers[2 * q], numbers[2 * q + 1] = lower(word), upper(word)
        else:
            numbers[q] = word.view(np.float32)


@device
def word_of(words, place, token, tokens):
    """words[place], zero where there is no such token."""
    return words[np.uint64(place)] if 0 <= token < tokens else _NONE


@device
def load_owed(tile, owed, words, place, lead, token, tokens, size):
    """Fill a tile with the gradients of `size` neurons from place on, at tokens from `token` on; zeros beyond the `tokens` there are.

    lead: numbers from a token to the next; words: `owed` as uint32. Places and leads are even, so that two bfloat16 come at once; two
    neurons of them are stored at once, too, 16 bytes each.
    """
    i, pair = np.uint64(cuda.threadIdx.x), cuda.local.array(PAIR, np.uint32)
    if owed.dtype == BFLOAT16:
        while i < np.uint64((size + 1) >> 1):
            for q in range(QUADS):
                c = token + 2 * q
                one = word_of(words, ((place + c * lead) >> 1) + np.int64(i), c, tokens)
                other = word_of(words, ((place + (c + 1) * lead) >> 1) + np.int64(i), c + 1, tokens)
                pair[q] = np.uint32((one & _LOWER) | np.uint32(other << _HALF))
                pair[QUADS + q] = np.uint32((one >> _HALF) | (other & _UPPER))
            for q in range(PAIR):
                tile[i * WORDS * np.uint64(2) + np.uint64(q)] = pair[q]
            i += np.uint64(TILERS)
    else:
        while i < np.uint64(size):
            for q in range(QUADS):
                tile[i * WORDS + np.uint64(q)] = word_of(words, place + (token + q) * lead + np.int64(i), token + q, tokens)
            i += np.uint64(TILERS)


@device
def swap_halves(sums, lane, distance):
    """A lane gives the lane at a distance the sums that are to end there, and takes over its own half of that lane's."""
    upper = (lane & np.uint32(distance)) != 0
    for j in range(distance):
        given = sums[j] if upper else sums[j + distance]
        sums[j] = (sums[j + distance] if upper else sums[j]) + shuffle_xor(given, distance)


if SIMULATED:  # a lane for all columns

    def lanes_of(owed):
        return 1

    def total_of(total, place, lane, begun):
        return begun  # a lane for all columns has no number to keep: whether there are any

    def add_up(total, place, wanted, begun, sums, lane, owed):
        for j in range(columns_of(owed)):
            if wanted:
                total[place + j] = (total[place + j] if begun else ZERO) + sums[j]

else:

    @device
    def lanes_of(owed):
        """Lanes that share a row: as many as there are columns, so that each ends with the sum of one."""
        return columns_of(owed)

    @device
    def total_of(total, place, lane, begun):
        """What the lane's column has so far."""
        return total[place + np.uint64(lane)] if begun else ZERO

    @device
    def add_up(total, place, wanted, before, sums, lane, owed):
        """total[place + j] = what was there before, and the sum of sums[j] over the lanes; the lane that is to have column j knows it."""
        if owed.dtype == BFLOAT16:
            swap_halves(sums, lane, 4)
        swap_halves(sums, lane, 2)
        swap_halves(sums, lane, 1)
        if wanted:
            total[place + np.uint64(lane)] = before + sums[0]


@device
def first_column(tile, earliest, batch, columns):
    """(token, sequence) of a tile's first column. Tiles of different sequences come one after the other, then those of later tokens."""
    return earliest + tile // batch * columns, tile % batch


@gpu(max_registers=REGISTERS)
def list_sources(
    source_at, sent, found, owed, start, lists, counts, rows, plain, index, value, count, M, earliest, first, last, batch, span
):
    """List the sources of every tile: those that fired in any of its columns from the front, those that are near the threshold in one
    of them from the back; in no order that matters.

    source_at [tiles M] uint32; sent [QUADS, tiles M] uint32: what the columns sent, where a source fired; found [tiles, 2] int32: how
    many fired and how many are near, zeros before. The ring as in events.py; plain: of values, all of which are listed. Tiles begin
    with token `earliest`, which may be before the segment; from `first` on, where a gradient is wanted, those near the threshold
    count; `last`: where the tokens end; batch: number of sequences. A block per (tile, `span` sources), with shared memory for these.
    """
    tile = cuda.shared.array(0, numba.uint32, ALIGNED)
    names = cuda.local.array(AT_ONCE, np.int64)
    numbers = cuda.local.array(AT_ONCE, np.uint32)
    thread, columns = np.int64(cuda.threadIdx.x), np.int64(columns_of(owed))
    lane = np.uint32(np.uint32(thread) % np.uint32(WARP))
    earlier = np.uint32(np.uint32(_ONE << lane) - _ONE)
    low = np.int64(cuda.blockIdx.y) * span
    size = min(span, M - low)
    i = np.uint64(thread)
    while i < np.uint64(size) * WORDS:
        tile[i] = _NONE
        i += np.uint64(TILERS)
    cuda.syncthreads()
    own_threads = TILERS // columns  # of a column
    j, own = np.uint64(thread // own_threads), thread % own_threads
    token, b = first_column(np.int64(cuda.blockIdx.x), earliest, batch, columns)
    token += np.int64(j)
    if token < last:
        at = (start[0] + token + rows) % rows * batch + b
        base = lists + at * M
        if plain:
            for n in range(own, size, own_threads):
                mark(tile, owed, np.uint64(n), j, bits_of(owed, value[np.uint64(base + low + n)]))
        else:
            fired, near = np.int64(count[np.uint64(counts + 2 * at)]), np.int64(count[np.uint64(counts + 2 * at + 1)])
            for e in range(own, fired, own_threads * AT_ONCE):
                for u in range(AT_ONCE):
                    here, place = e + u * own_threads < fired, np.uint64(base + e + u * own_threads)
                    names[u] = np.int64(index[place]) - low if here else -1
                    numbers[u] = bits_of(owed, value[place]) if here else _NONE
                for u in range(AT_ONCE):
                    if 0 <= names[u] < size:
                        mark(tile, owed, np.uint64(names[u]), j, numbers[u])
            if token >= first:
                for e in range(own, near, own_threads * AT_ONCE):
                    for u in range(AT_ONCE):
                        place = np.uint64(base + M - 1 - e - u * own_threads)
                        names[u] = np.int64(index[place]) - low if e + u * own_threads < near else -1
                    for u in range(AT_ONCE):
                        if 0 <= names[u] < size:
                            mark(tile, owed, np.uint64(names[u]), j, nearby(owed))
    cuda.syncthreads()
    slot = np.uint64(np.int64(cuda.blockIdx.x) * M)
    for n0 in range(0, size, TILERS):
        n, word, fired = np.uint64(n0 + thread), _NONE, False
        if n < np.uint64(size):
            for q in range(QUADS):
                word |= tile[n * WORDS + np.uint64(q)]
            fired = plain or is_number(owed, word)
        near = word != 0 and not fired
        fired_mask, near_mask, fired_at, near_at = ballot(fired), ballot(near), np.int32(0), np.int32(0)
        if lane == 0:
            fired_at = cuda.atomic.add(found, (cuda.blockIdx.x, 0), np.int32(bits(fired_mask)))
            near_at = cuda.atomic.add(found, (cuda.blockIdx.x, 1), np.int32(bits(near_mask)))
        fired_at, near_at = from_lane(fired_at, 0), from_lane(near_at, 0)
        if fired or near:
            e = np.int64(fired_at + np.int32(bits(np.uint32(fired_mask & earlier))))
            if near:
                e = M - 1 - np.int64(near_at + np.int32(bits(np.uint32(near_mask & earlier))))
            place = slot + np.uint64(e)
            source_at[place] = np.uint32(np.uint32(low) + np.uint32(n))
            if fired:
                for q in range(QUADS):
                    sent[np.uint64(q), place] = tile[n * WORDS + np.uint64(q)]


@device
def fetch_ahead(words, weights, target, weight, k, end, lanes):
    """The synapses k, k + lanes, ... before `end`, AHEAD of them. What is missing leads to neuron 0 and weighs nothing: if that one's
    gradient is no number, neither are sums that have nothing to do with it, and no update is made anyway."""
    for q in range(AHEAD):
        words[q], weights[q] = _NONE, ZERO
        if k < end:
            word, own_weight = fetch(target, weight, np.uint64(k))
            words[q], weights[q] = np.uint32(word), own_weight
        k = np.uint32(k + lanes)


@device
def pass_fetched(learning, words, weights, k, end, sums, s, d, d_weight, owed, tile, target, lanes, units):
    """The synapses fetched, the first of which is synapse k: add to sums, and where `learning` to d_weight."""
    for q in range(AHEAD):
        n, w = decode(target, (words[q], weights[q]))
        unpack(d, owed, tile, n * WORDS)
        for j in range(MOST_COLUMNS):
            if j < columns_of(owed):
                sums[j] += w * d[j]
        if learning and k < end:
            owing = ZERO
            for j in range(MOST_COLUMNS):
                if j < columns_of(owed):
                    owing += s[j] * d[j]
            cuda.atomic.add(d_weight, np.uint64(k), to_int64(owing * units))
        k = np.uint32(k + lanes)


@device
def take_sent(words, sent, place):
    """words [QUADS] = what the columns of a tile have sent, from one place of the lists."""
    for q in range(QUADS):
        words[q] = sent[np.uint64(q), np.uint64(place)]


@device
def walk_rows(
    learning, begun, offset, first, last, total, d_weight, owed, tile, source_at, sent, row_place, parts, row_start, target, weight, units
):
    """Places first ... last - 1 of the lists: add to their totals, where these have begun, and where `learning` to d_weight.

    Row i goes to group (offset + i) % groups. `offset` is a multiple of the rows that a warp walks at a time, and how many turns it takes
    is the same in all its lanes, so that they come to each shuffle together. A lane looks up one row for its group, so for every `lanes`
    rows there is a wait; from there on the synapses that come next, in the row or in the group's next one, are on their way from memory
    while those at hand are passed.
    """
    sums = cuda.local.array(MOST_COLUMNS, np.float32)
    s = cuda.local.array(MOST_COLUMNS, np.float32)
    d = cuda.local.array(MOST_COLUMNS, np.float32)
    words = cuda.local.array(AHEAD, np.uint32)
    weights = cuda.local.array(AHEAD, np.float32)
    next_words = cuda.local.array(AHEAD, np.uint32)
    next_weights = cuda.local.array(AHEAD, np.float32)
    next_s = cuda.local.array(QUADS, np.uint32)
    lanes, columns, thread = np.uint32(lanes_of(owed)), np.uint32(columns_of(owed)), np.uint32(cuda.threadIdx.x)
    lane, groups = np.uint32(thread % lanes), np.uint32(np.uint32(TILERS) // lanes)
    group = np.uint32(np.uint32(np.uint32(thread // lanes) - offset) % groups)  # a power of two: wraps around as it should
    leader = np.uint32(np.uint32(thread % np.uint32(WARP)) - lane)  # first lane of the group
    own = np.uint32(first + group)
    while np.uint32(own - leader // lanes) < last:  # as long as the warp's first group has one
        # a lane looks up one row for its group
        turns = min(lanes, np.uint32(np.uint32(np.uint32(last - own) + np.uint32(leader // lanes + groups - _ONE)) // groups))
        own_first, own_last = np.int32(0), np.int32(0)
        at = np.uint32(own + lane * groups)
        if at < last:
            row = np.uint64(np.uint32(row_place + np.uint32(source_at[np.uint64(at)]) * parts))
            own_first, own_last = np.int32(row_start[row]), np.int32(row_start[row + _ONCE])
        k, end = np.uint32(np.uint32(from_lane(own_first, leader)) + lane), np.uint32(from_lane(own_last, leader))
        fetch_ahead(next_words, next_weights, target, weight, k, end, lanes)
        if learning:
            take_sent(next_s, sent, min(own, np.uint32(last - _ONE)))
        turn = _NONE
        while turn < turns:
            before = total_of(total, np.uint64(min(own, np.uint32(last - _ONE))) * np.uint64(columns), lane, begun)
            if learning:
                unpack(s, owed, next_s, np.uint64(0))
            turn = np.uint32(turn + _ONE)
            peer = np.uint32(leader + turn)  # what is fetched behind the last turn is never passed
            row_k, row_end = np.uint32(np.uint32(from_lane(own_first, peer)) + lane), np.uint32(from_lane(own_last, peer))
            for j in range(MOST_COLUMNS):
                sums[j] = ZERO
            more = True
            while more:
                for q in range(AHEAD):
                    words[q], weights[q] = next_words[q], next_weights[q]
                next_k, next_end = np.uint32(k + np.uint32(AHEAD) * lanes), end
                more = np.uint32(next_k - lane) < end
                if not more:
                    next_k, next_end = row_k, row_end
                fetch_ahead(next_words, next_weights, target, weight, next_k, next_end, lanes)
                pass_fetched(learning, words, weights, k, end, sums, s, d, d_weight, owed, tile, target, lanes, units)
                k, end = next_k, next_end
            if learning:
                take_sent(next_s, sent, min(np.uint32(own + groups), np.uint32(last - _ONE)))
            add_up(total, np.uint64(own) * np.uint64(columns), own < last, before, sums, lane, owed)
            own = np.uint32(own + groups)


@device
def share_of(begin, places, more):
    """Where the share of this block begins among so many places from `begin` on, or (more: 1) that of the next."""
    return np.uint32(begin + np.uint32(np.uint32(np.uint32(places) * np.uint32(cuda.blockIdx.y + more)) // np.uint32(cuda.gridDim.y)))


@device
def clear(total, columns, begin, places):
    """The block's share of the totals of so many places is 0."""
    i = np.uint64(share_of(np.uint32(begin), places, _NONE)) * np.uint64(columns) + np.uint64(cuda.threadIdx.x)
    while i < np.uint64(share_of(np.uint32(begin), places, _ONE)) * np.uint64(columns):
        total[i] = ZERO
        i += np.uint64(TILERS)


@gpu(max_registers=REGISTERS)
def synapse_backward(
    total,
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
    """The totals [tiles M columns] of every tile's sources, and what is added to d_weight (int64, `units` to 1), by stretches first_stretch
    ... last_stretch - 1.

    Lists and tiles as `list_sources` made them; owed: gradients of the currents, of `length` tokens, and the same as uint32 `words`. A
    block per (tile, share of its sources), with shared memory for a part of a module.
    """
    tile = cuda.shared.array(0, numba.uint32, ALIGNED)
    columns, begun = np.int64(columns_of(owed)), False
    together = np.uint32(np.uint32(WARP) // np.uint32(lanes_of(owed)))  # rows that a warp walks at a time
    for p in range(first_stretch, last_stretch):
        token, b = first_column(np.int64(cuda.blockIdx.x), earliest, batch, columns)
        token += table[p, DELAY]
        if token + columns > 0 and token < length:
            cuda.syncthreads()
            load_owed(tile, owed, words, table[p, OWED] + b * table[p, LEAD], table[p, LEAD] * batch, token, length, table[p, SIZE])
            cuda.syncthreads()
            rows = source_at, sent, np.uint32(table[p, ROW_START]), np.uint32(table[p, PARTS]), row_start, target, weight, units
            begin, fired = np.uint32(cuda.blockIdx.x * M), found[cuda.blockIdx.x, 0]
            first, last = share_of(begin, fired, _NONE), share_of(begin, fired, _ONE)
            walk_rows(True, begun, _NONE, first, last, total, d_weight, owed, tile, *rows)
            # warps that had a row less, if any, begin with these
            offset, near = np.uint32(np.uint32(np.uint32(last - first) + together - _ONE) // together * together), found[cuda.blockIdx.x, 1]
            begin = np.uint32((cuda.blockIdx.x + 1) * M - near)
            walk_rows(False, begun, offset, share_of(begin, near, _NONE), share_of(begin, near, _ONE), total, d_weight, owed, tile, *rows)
            begun = True
    if not begun:  # all of it arrives after the segment
        clear(total, columns, cuda.blockIdx.x * M, found[cuda.blockIdx.x, 0])
        clear(total, columns, (cuda.blockIdx.x + 1) * M - found[cuda.blockIdx.x, 1], found[cuda.blockIdx.x, 1])


@gpu
def hand_out(gradient, total, found, source_at, owed, first, batch):
    """Put the totals of the sources listed into gradient [C, B, M] of tokens from `first` on, zeros before. A block per (tile, some places
    of its list)."""
    e, columns, M = np.int64(cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x), np.int64(columns_of(owed)), gradient.shape[2]
    token, b = first_column(np.int64(cuda.blockIdx.x), first, batch, columns)
    if e < M and (e < found[cuda.blockIdx.x, 0] or M - e <= found[cuda.blockIdx.x, 1]):
        place = np.uint64(cuda.blockIdx.x * M + e)
        source = np.uint64(source_at[place])
        for j in range(columns):
            t = token - first + j
            if 0 <= t < gradient.shape[0]:
                gradient[np.uint64(t), np.uint64(b), source] = total[place * np.uint64(columns) + np.uint64(j)]
