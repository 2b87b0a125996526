"""Synapses in bundles on the CPU: event-driven versions of the kernels in bundles.py, which has the equations.

Signals and gradients are stored in words of 64 neurons, [words, rows, B, WORD] float32, so that the columns of a tile are contiguous. For
each word there is a bit mask, [words, rows, B] uint64, with a bit for every number that is not 0 (an event). A silent block costs one read
of its mask; an event adds one contiguous row of weights in SIMD registers (vector.py). One array holds all signals and one all gradients,
so that one call reads several.

Forward and backward are the same kernel with different tables and different copies of the weights. A task computes some columns of an
output word, or the weights of one bundle: no two tasks add to the same number, and every sum has a fixed order.
"""

import numba
import numpy as np
from numba.extending import register_jitable

from .jit import ONE, cpu, cpu_serial
from .vector import WORD, make_add_outer, make_add_product, nonzero_bits

COLUMNS = 64  # of a task: its sums and one bundle fit in the L1 cache
_ZERO, _ALL_BITS, _WORD = np.uint64(0), np.uint64(2**64 - 1), np.uint64(WORD)

# Columns of a table of entries [E, 9] int64. An entry is one bundle: its sources in x, its delay, its weights, its targets.
SOURCE, SHIFT = 0, 1  # word of x, and offset of the first source in that word
DEPTH = 2  # number of sources
DELAY = 3  # tokens
WEIGHT = 4  # offset of the weights [DEPTH, OUT_WIDTH]
OUT_WIDTH, OUT_SHIFT = 5, 6  # number of targets, and offset of the first in its word
TARGET = 7  # word of the targets; only weight gradients use it
SCALE = 8  # index of the scale of the weights, if they are codes (codes.py)
COLUMNS_OF_ENTRY = 9


@cpu()
def write_values_cpu(x, fired, start, first, values):
    """Write plain values [C, B, M] float32 into rows start[0] + first ... of x [words, rows, B, WORD], and set the masks `fired`: every
    number that is not 0 is an event."""
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
def union_of_masks(masks, x_column, columns):
    """The bitwise OR of the masks of `columns` columns, from x_column on."""
    bits = masks[x_column]
    for c in range(1, columns):
        bits |= masks[x_column + np.uint64(c)]
    return bits


def make_add_bundle(width):
    """`add_bundle` for bundles of `width` targets."""
    unrolled = WORD // width  # columns whose sums are in registers together; an event in one of them is applied to all
    add_column, add_columns = make_add_product(width, 1), make_add_product(width, unrolled)

    @register_jitable
    def add_bundle(
        sums, out_shift, x, masks, x_column, shift, depth, weight, weight_offset, scale, needs_grad, grad_column, grad_bits, count
    ):
        """Add a bundle's product to sums [count, WORD], from out_shift on, for `count` columns of x, from x_column on.

        needs_grad: masks of the outputs that are needed; a column without any is skipped. Of size 0: all are needed.
        """
        bits, c = _ALL_BITS >> (_WORD - depth), 0
        while c < count:
            column, whole = np.uint64(c), c + unrolled <= count
            if needs_grad.size > 0 and needs_grad[grad_column + column] & grad_bits == _ZERO:
                c += 1
                continue
            out_offset, x_offset = column * _WORD + out_shift, (x_column + column) * _WORD + shift
            events = ((union_of_masks(masks, x_column + column, unrolled) if whole else masks[x_column + column]) >> shift) & bits
            if events and whole:
                add_columns(sums, out_offset, x, x_offset, weight, weight_offset, scale, events)
            elif events:
                add_column(sums, out_offset, x, x_offset, weight, weight_offset, scale, events)
            c += unrolled if whole else 1

    return add_bundle


_add_16, _add_32, _add_64 = make_add_bundle(16), make_add_bundle(32), make_add_bundle(64)


@cpu()
def gather_cpu(
    out, x, masks, x_rows, weight, scale, tile_start, entries, start, first, step, limit, needs_grad, grad_rows, grad_start, word
):
    """Overwrite out [C, B, N] float32: each word of it is the sum over its entries, entries[tile_start[tile] : tile_start[tile + 1]].

    x, masks: flat, with `x_rows` rows per word. Without a delay, token 0 of out reads row start[0] + first; a delay of one token is `step`
    rows, -1 forward and 1 backward. Rows from `limit` on are ignored. weight: flat, in the copy for this direction, float32 or codes with
    `scale`, flat; of size 0 for float32. needs_grad: masks with `grad_rows` rows per word of the outputs that are needed, from word `word`
    and row grad_start[0] + first on; of size 0: all are needed. A task computes COLUMNS columns (tokens and sequences) of one word.
    """
    C, B, N = out.shape
    tiles, groups = tile_start.size - 1, -(-C * B // COLUMNS)
    row, grad_row = start[0] + first, grad_start[0] + first
    for task in numba.prange(tiles * groups):
        tile, column = task // groups, task % groups * COLUMNS
        count = min(COLUMNS, C * B - column)
        sums = np.zeros(count * WORD, np.float32)
        grad_column = np.uint64(((word + tile) * grad_rows + grad_row) * B + column)
        for e in range(tile_start[tile], tile_start[tile + 1]):
            begin = row + step * entries[e, DELAY]
            inside = min(count, (limit - begin) * B - column)
            x_column, shift = np.uint64((entries[e, SOURCE] * x_rows + begin) * B + column), np.uint64(entries[e, SHIFT])
            depth, weight_offset = np.uint64(entries[e, DEPTH]), np.uint64(entries[e, WEIGHT])
            source = x, masks, x_column, shift, depth, weight, weight_offset
            width, out_shift = entries[e, OUT_WIDTH], np.uint64(entries[e, OUT_SHIFT])
            factor = scale[entries[e, SCALE]] if scale.size > 0 else ONE
            bundle_bits = (_ALL_BITS >> np.uint64(WORD - width)) << out_shift
            if width == 64:
                _add_64(sums, out_shift, *source, factor, needs_grad, grad_column, bundle_bits, inside)
            elif width == 32:
                _add_32(sums, out_shift, *source, factor, needs_grad, grad_column, bundle_bits, inside)
            else:
                _add_16(sums, out_shift, *source, factor, needs_grad, grad_column, bundle_bits, inside)
        last = min(WORD, N - tile * WORD)
        for c in range(count):
            t, b = (column + c) // B, (column + c) % B
            out[t, b, tile * WORD : tile * WORD + last] = sums[c * WORD : c * WORD + last]


def make_add_gradient(width):
    """`add_gradient` for bundles of `width` targets."""
    unrolled = WORD // width
    add_column, add_columns = make_add_outer(width, 1), make_add_outer(width, unrolled)

    @register_jitable
    def add_gradient(d_weight, weight_offset, x, masks, x_column, shift, depth, d, d_column, out_shift, count):
        """Accumulate the gradient of a bundle's weights over `count` columns: x from x_column on, d from d_column on."""
        bits, c = _ALL_BITS >> (_WORD - depth), 0
        while c < count:
            column, whole = np.uint64(c), c + unrolled <= count
            x_offset, row = (x_column + column) * _WORD + shift, (d_column + column) * _WORD + out_shift
            events = ((union_of_masks(masks, x_column + column, unrolled) if whole else masks[x_column + column]) >> shift) & bits
            if events and whole:
                add_columns(d_weight, weight_offset, x, x_offset, d, row, events)
            elif events:
                add_column(d_weight, weight_offset, x, x_offset, d, row, events)
            c += unrolled if whole else 1

    return add_gradient


_add_gradient_16, _add_gradient_32, _add_gradient_64 = make_add_gradient(16), make_add_gradient(32), make_add_gradient(64)


@cpu()
def weight_grad_cpu(d_weight, x, masks, x_rows, d, d_rows, entries, row, B, length):
    """Accumulate d_weight, flat, over `length` tokens of B sequences. row: of the segment's first token in x. A task computes one
    bundle."""
    for e in numba.prange(len(entries)):
        x_column = np.uint64((entries[e, SOURCE] * x_rows + row - entries[e, DELAY]) * B)
        d_column, out_shift, weight_offset = (
            np.uint64(entries[e, TARGET] * d_rows * B),
            np.uint64(entries[e, OUT_SHIFT]),
            np.uint64(entries[e, WEIGHT]),
        )
        shift, depth, width = np.uint64(entries[e, SHIFT]), np.uint64(entries[e, DEPTH]), entries[e, OUT_WIDTH]
        if width == 64:
            _add_gradient_64(d_weight, weight_offset, x, masks, x_column, shift, depth, d, d_column, out_shift, length * B)
        elif width == 32:
            _add_gradient_32(d_weight, weight_offset, x, masks, x_column, shift, depth, d, d_column, out_shift, length * B)
        else:
            _add_gradient_16(d_weight, weight_offset, x, masks, x_column, shift, depth, d, d_column, out_shift, length * B)


@cpu_serial()
def advance_cpu(x, fired, start, length, history, tokens):
    """Advance start[0] by a segment of `length` tokens. If x and fired have no rows left for `tokens` more, copy the last `history` rows to
    the beginning."""
    start[0] += length
    if start[0] + tokens > x.shape[1]:
        for word in range(x.shape[0]):
            for row in range(history):
                x[word, row], fired[word, row] = x[word, start[0] - history + row], fired[word, start[0] - history + row]
        start[0] = history


@cpu()
def pack_cpu(transposed, weight, entries):
    """Write the weights of every bundle, [DEPTH, OUT_WIDTH], transposed to the same offset of `transposed`; both arrays are flat."""
    for e in numba.prange(len(entries)):
        first, depth, width = entries[e, WEIGHT], entries[e, DEPTH], entries[e, OUT_WIDTH]
        for s in range(depth):
            for n in range(width):
                transposed[first + n * depth + s] = weight[first + s * width + n]
