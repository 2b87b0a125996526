"""Synapses in bundles on the CPU: event-driven twins of the kernels in bundles.py, which defines what is summed.

Signals and gradients lie in words of 64 neurons, [words, rows, B, WORD] float32: the columns of a tile are then neighbours in memory.
Beside them are bit masks [words, rows, B] uint64: which numbers are events, not 0. A silent block costs one look at its mask; an event
adds one contiguous row of weights, in vector registers (vector.py). All signals lie in one array and all gradients in another, so that one
launch reads several.

Forward and backward are one kernel, as on a GPU, over other tables and other copies of the weights. A task owns some columns of a word of
the output, or a bundle's weights: no two add to the same number, and every sum has a fixed order.
"""

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import cpu, cpu_serial
from .vector import WORD, make_add_outer, make_add_product, nonzero_bits

COLUMNS = 64  # of a task: its sums stay in the first-level cache, beside a bundle
_NONE, _EVERY, _WORD = np.uint64(0), np.uint64(2**64 - 1), np.uint64(WORD)

# Columns of a table of entries [E, 8] int64: what of x is read, by how many tokens late, the bundle, and where its sums go.
SOURCE, SHIFT = 0, 1  # the word that is read, and the first number that is read of it
DEPTH = 2  # numbers that are read
DELAY = 3  # tokens
WEIGHT = 4  # the first number of the weights [DEPTH, WIDTH]
WIDTH, PLACE = 5, 6  # numbers that are written, and the first of them in their word
TARGET = 7  # for weight gradients, the word that PLACE is in


@cpu()
def write_values_cpu(x, fired, start, first, values):
    """Write plain values [C, B, M] float32 into rows from start[0] + first on of x [words, rows, B, WORD]; whatever is not 0 counts as an
    event."""
    C, B, M = values.shape
    words, rows = x.shape[:2]
    row = start[0] + first
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        for word in range(words):
            size = min(WORD, M - word * WORD)
            x[word, row + t, b, :size] = values[t, b, word * WORD : word * WORD + size]
            fired[word, row + t, b] = nonzero_bits(x, np.uint64(((word * rows + row + t) * B + b) * WORD))


@register_jitable
def any_of(masks, at, columns):
    """The bits that are set in any of the masks of some columns, from `at` on."""
    bits = masks[at]
    for c in range(1, columns):
        bits |= masks[at + np.uint64(c)]
    return bits


def make_pass(width):
    """`pass_bundle` for bundles that write `width` numbers."""
    together = WORD // width  # columns, in registers: an event in one of them is looked at in all
    add_column, add_columns = make_add_product(width, 1), make_add_product(width, together)

    @register_jitable
    def pass_bundle(sums, place, x, masks, at, shift, depth, weight, weight_at, wanted, wanted_at, wanted_bits, count):
        """Add to sums [count, WORD], from `place` on, what `count` columns of x, from `at` on, send through a bundle. Columns of which
        nobody wants the sum are left out."""
        bits, c = _EVERY >> (_WORD - depth), 0
        while c < count:
            column, whole = np.uint64(c), c + together <= count
            if wanted.size > 0 and wanted[wanted_at + column] & wanted_bits == _NONE:
                c += 1
                continue
            to, read = column * _WORD + place, (at + column) * _WORD + shift
            events = ((any_of(masks, at + column, together) if whole else masks[at + column]) >> shift) & bits
            if events and whole:
                add_columns(sums, to, x, read, weight, weight_at, events)
            elif events:
                add_column(sums, to, x, read, weight, weight_at, events)
            c += together if whole else 1

    return pass_bundle


_pass_16, _pass_32, _pass_64 = make_pass(16), make_pass(32), make_pass(64)


@cpu()
def gather_cpu(out, x, masks, x_rows, weight, tile_start, entries, start, first, step, limit, wanted, wanted_rows, wanted_start, word):
    """Overwrite out [C, B, N] float32 with the sum over the entries of each word of it.

    x: flat, and its masks, with `x_rows` rows; token 0 of out, through an entry without delay, reads row start[0] + first.
    A delay of a token is `step` rows, -1 forward and 1 backward; rows from `limit` on are of no token. weight: flat, in the order of the
    direction. wanted: masks with `wanted_rows` rows of who needs a sum at all, from word `word` and row wanted_start[0] + first on; of size
    0: all do.
    """
    C, B, N = out.shape
    tiles, groups = tile_start.size - 1, -(-C * B // COLUMNS)
    row, wanted_row = start[0] + first, wanted_start[0] + first
    for task in numba.prange(tiles * groups):
        tile, column = task // groups, task % groups * COLUMNS
        count = min(COLUMNS, C * B - column)
        sums = np.zeros(count * WORD, np.float32)
        wanted_at = np.uint64(((word + tile) * wanted_rows + wanted_row) * B + column)
        for e in range(tile_start[tile], tile_start[tile + 1]):
            begin = row + step * entries[e, DELAY]
            inside = min(count, (limit - begin) * B - column)
            at, shift = np.uint64((entries[e, SOURCE] * x_rows + begin) * B + column), np.uint64(entries[e, SHIFT])
            depth, weight_at = np.uint64(entries[e, DEPTH]), np.uint64(entries[e, WEIGHT])
            width, place = entries[e, WIDTH], np.uint64(entries[e, PLACE])
            of_bundle = (_EVERY >> np.uint64(WORD - width)) << place
            if width == 64:
                _pass_64(sums, place, x, masks, at, shift, depth, weight, weight_at, wanted, wanted_at, of_bundle, inside)
            elif width == 32:
                _pass_32(sums, place, x, masks, at, shift, depth, weight, weight_at, wanted, wanted_at, of_bundle, inside)
            else:
                _pass_16(sums, place, x, masks, at, shift, depth, weight, weight_at, wanted, wanted_at, of_bundle, inside)
        last = min(WORD, N - tile * WORD)
        for c in range(count):
            t, b = (column + c) // B, (column + c) % B
            out[t, b, tile * WORD : tile * WORD + last] = sums[c * WORD : c * WORD + last]


def make_learn(width):
    """`learn_bundle` for bundles that write `width` numbers."""
    together = WORD // width
    add_column, add_columns = make_add_outer(width, 1), make_add_outer(width, together)

    @register_jitable
    def learn_bundle(d_weight, weight_at, x, masks, at, shift, depth, d, d_at, place, count):
        """Add to a bundle's gradient what `count` columns come to: x from column `at`, d from column `d_at` on."""
        bits, c = _EVERY >> (_WORD - depth), 0
        while c < count:
            column, whole = np.uint64(c), c + together <= count
            read, row = (at + column) * _WORD + shift, (d_at + column) * _WORD + place
            events = ((any_of(masks, at + column, together) if whole else masks[at + column]) >> shift) & bits
            if events and whole:
                add_columns(d_weight, weight_at, x, read, d, row, events)
            elif events:
                add_column(d_weight, weight_at, x, read, d, row, events)
            c += together if whole else 1

    return learn_bundle


_learn_16, _learn_32, _learn_64 = make_learn(16), make_learn(32), make_learn(64)


@cpu()
def weight_grad_cpu(d_weight, x, masks, x_rows, d, d_rows, entries, row, B, length):
    """Add to d_weight, flat, what `length` tokens of B sequences come to; row: of the segment's first token in x."""
    for e in numba.prange(len(entries)):
        at = np.uint64((entries[e, SOURCE] * x_rows + row - entries[e, DELAY]) * B)
        d_at, place, weight_at = np.uint64(entries[e, TARGET] * d_rows * B), np.uint64(entries[e, PLACE]), np.uint64(entries[e, WEIGHT])
        shift, depth, width = np.uint64(entries[e, SHIFT]), np.uint64(entries[e, DEPTH]), entries[e, WIDTH]
        if width == 64:
            _learn_64(d_weight, weight_at, x, masks, at, shift, depth, d, d_at, place, length * B)
        elif width == 32:
            _learn_32(d_weight, weight_at, x, masks, at, shift, depth, d, d_at, place, length * B)
        else:
            _learn_16(d_weight, weight_at, x, masks, at, shift, depth, d, d_at, place, length * B)


@cpu_serial()
def advance_cpu(x, fired, start, length, history, tokens):
    """Move start[0] on by a segment of `length` tokens. Where the rows of x and fired have no room for `tokens` more, their last `history`
    tokens come to the beginning."""
    start[0] += length
    if start[0] + tokens > x.shape[1]:
        for word in range(x.shape[0]):
            for row in range(history):
                x[word, row], fired[word, row] = x[word, start[0] - history + row], fired[word, start[0] - history + row]
        start[0] = history


@cpu()
def pack_cpu(transposed, weight, entries):
    """Write every bundle's weights [DEPTH, WIDTH] into `transposed` at the same place as [WIDTH, DEPTH]; both are flat."""
    for e in numba.prange(len(entries)):
        first, depth, width = entries[e, WEIGHT], entries[e, DEPTH], entries[e, WIDTH]
        for s in range(depth):
            for n in range(width):
                transposed[first + n * depth + s] = weight[first + s * width + n]
