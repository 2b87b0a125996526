"""Synapses in bundles on the CPU: event-driven twins of the kernels in bundles.py, which defines what is summed.

A signal or gradient lies in words of 64 neurons, [words, R, B, WORD] float32: the columns of a tile are then neighbours in memory. Beside
a signal are bit masks [words, R, B] uint64: which neurons fired, and which are near the threshold and so have a gradient, too. A silent
block costs one look at its mask; an event adds one contiguous row of BT weights, which is vector code.

A task owns a target tile (forward, weights) or a source block (backward): no two add to the same number, and every sum has a fixed order.
"""

import functools

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from .jit import ZERO, cpu, cpu_sums

WORD = 64  # neurons of a mask
_ONE, _NONE, _EVERY = np.uint64(1), np.uint64(0), np.uint64(2**64 - 1)


@intrinsic
def trailing_zeros(typing, x):
    """How many bits below the lowest set bit of x (uint64, not 0) are 0."""

    def codegen(context, builder, signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), codegen


@cpu()
def write_values_cpu(x, fired, first, values):
    """Write plain values [C, B, M] float32 into rows from `first` on; whatever is not 0 counts as an event."""
    C, B, M = values.shape
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        for word in range(x.shape[0]):
            fires = _NONE
            for i in range(min(WORD, M - word * WORD)):
                x[word, first + t, b, i] = values[t, b, word * WORD + i]
                fires |= np.uint64(values[t, b, word * WORD + i] != ZERO) << np.uint64(i)
            fired[word, first + t, b] = fires


@cpu()
def write_gradient_cpu(d, first, gradient):
    """Write the gradient of a current, [C, B, N] float32, into rows from `first` on of d [words, T, B, WORD]."""
    C, B, N = gradient.shape
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        for word in range(d.shape[0]):
            for i in range(min(WORD, N - word * WORD)):
                d[word, first + t, b, i] = gradient[t, b, word * WORD + i]


@functools.cache
def make_forward_cpu(BT: int):
    """`bundles_forward_cpu` for tiles of BT targets: a constant, so that an event is straight vector code."""

    @cpu()
    def bundles_forward_cpu(current, x, fired, weight, block, delay, first_row):
        """Add to current [C, B, N] float32 what reaches it through bundles.

        weight [bundles, BS, BT] float32; block, delay [tiles, K] int32: of the K bundles of a tile; first_row: row of the first token in x.
        """
        C, B, N = current.shape
        BS = weight.shape[1]
        K, bits = block.shape[1], _EVERY >> np.uint64(WORD - BS)
        for tile in numba.prange(block.shape[0]):
            sums, width = np.zeros((C, B, BT), np.float32), min(BT, N - tile * BT)
            for k in range(K):
                place = block[tile, k] * BS
                word, shift, w = place // WORD, place % WORD, weight[tile * K + k]
                for t in range(C):
                    row = first_row + t - delay[tile, k]
                    for b in range(B):
                        events = (fired[word, row, b] >> np.uint64(shift)) & bits
                        if events:
                            values, own = x[word, row, b], sums[t, b]
                            while events:
                                s = np.int64(trailing_zeros(events))
                                events &= events - _ONE
                                value, line = values[shift + s], w[s]
                                for n in range(BT):
                                    own[n] += value * line[n]
            for t in range(C):
                for b in range(B):
                    own, out = sums[t, b], current[t, b, tile * BT : tile * BT + width]
                    for n in range(width):
                        out[n] += own[n]

    return bundles_forward_cpu


@functools.cache
def make_backward_cpu(BT: int):
    """`bundles_backward_cpu` for tiles of BT targets."""

    @cpu_sums()
    def bundles_backward_cpu(source_grad, fired, near, d, weight, delay, block_start, bundle, first, first_row, length):
        """Add to source_grad [C, B, M] float32, of tokens from `first` on, the gradient that comes back through bundles to the sources that
        fired or are near the threshold.

        d [words, T, B, WORD]: the current's gradient; block_start [blocks + 1], bundle [bundles] int32: which bundles read a block;
        first_row: row of token `first` in the masks; length: tokens of the segment.
        """
        C, B, M = source_grad.shape
        BS = weight.shape[1]
        K, bits, tiles_of_word = delay.shape[1], _EVERY >> np.uint64(WORD - BS), WORD // BT
        for q in numba.prange(block_start.size - 1):
            place, width = q * BS, min(BS, M - q * BS)
            word, shift = place // WORD, np.uint64(place % WORD)
            sums = np.zeros((C, B, BS), np.float32)
            for e in range(block_start[q], block_start[q + 1]):
                tile, k = bundle[e] // K, bundle[e] % K
                d_word, d_first, w = d[tile // tiles_of_word], tile % tiles_of_word * BT, weight[bundle[e]]
                for t in range(min(C, length - first - delay[tile, k])):
                    for b in range(B):
                        wanted = ((fired[word, first_row + t, b] | near[word, first_row + t, b]) >> shift) & bits
                        if wanted:
                            own, gradient = sums[t, b], d_word[first + t + delay[tile, k], b, d_first : d_first + BT]
                            while wanted:
                                s = np.int64(trailing_zeros(wanted))
                                wanted &= wanted - _ONE
                                line, dot = w[s], ZERO
                                for n in range(BT):
                                    dot += gradient[n] * line[n]
                                own[s] += dot
            for t in range(C):
                for b in range(B):
                    own, out = sums[t, b], source_grad[t, b, place : place + width]
                    for s in range(width):
                        out[s] += own[s]

    return bundles_backward_cpu


@functools.cache
def make_weight_grad_cpu(BT: int):
    """`bundles_weight_grad_cpu` for tiles of BT targets."""

    @cpu()
    def bundles_weight_grad_cpu(d_weight, x, fired, d, block, delay, first_row, length):
        """Add to d_weight [bundles, BS, BT] float32 what `length` tokens come to; first_row: row of the segment's first token in x."""
        BS = d_weight.shape[1]
        B, K, bits, tiles_of_word = d.shape[2], block.shape[1], _EVERY >> np.uint64(WORD - BS), WORD // BT
        for tile in numba.prange(block.shape[0]):
            d_word, d_first = d[tile // tiles_of_word], tile % tiles_of_word * BT
            for k in range(K):
                place = block[tile, k] * BS
                word, shift, own = place // WORD, place % WORD, d_weight[tile * K + k]
                for t in range(length):
                    row = first_row + t - delay[tile, k]
                    for b in range(B):
                        events = (fired[word, row, b] >> np.uint64(shift)) & bits
                        if events:
                            values, gradient = x[word, row, b], d_word[t, b, d_first : d_first + BT]
                            while events:
                                s = np.int64(trailing_zeros(events))
                                events &= events - _ONE
                                value, line = values[shift + s], own[s]
                                for n in range(BT):
                                    line[n] += value * gradient[n]

    return bundles_weight_grad_cpu
