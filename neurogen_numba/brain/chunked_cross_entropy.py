"""Chunked cross-entropy: trains the decoder one block of its rows at a time, without all logits or its whole gradient in memory.

Two passes over the blocks (kernels/online_cross_entropy.py):
1. Compute the logits of a block; update each token's running maximum and sum of exponentials.
2. Compute the logits again and overwrite them with their gradient. Accumulate the gradient of the decoder's input from it, and update the
   block's rows with theirs at once.
"""

from __future__ import annotations

import math

from ..kernels.adamw import BLOCK
from ..kernels.softmax import LOWEST

FRACTION = 4  # a block holds at most `backend.logits` / FRACTION logits, because this mode is for little memory


class DecoderBlocks:
    """Buffers of the two passes: logits and gradient of one block of rows, and the softmax statistics of every token of a segment.

    Iterating gives (first row, end row, how many of these rows are tokens of the vocabulary) for each block.
    """

    def __init__(self, decoder, act):
        backend, (vocabulary, size), tokens = decoder.backend, decoder.shape, act.tokens * act.batch
        zeros = backend.zeros
        unit = math.lcm(backend.whole_rows, BLOCK // math.gcd(BLOCK, size))  # rows; a block of them starts at a multiple of BLOCK numbers
        fitting = backend.logits // FRACTION // max(tokens, size) // unit * unit
        self.rows = min(max(fitting, unit), -(-decoder.rows // unit) * unit)
        self.vocabulary, self.all_rows = vocabulary, decoder.rows
        self.logits = zeros((tokens, self.rows))
        self.d_logits = self.logits if decoder.dtype == "float32" else zeros((tokens, self.rows), decoder.dtype)
        self.gradient = zeros(self.rows * size)
        self.read = zeros((tokens, size), decoder.dtype)
        self.top, self.total, self.picked, self.factor = (zeros(tokens) for _ in range(4))
        self.best = zeros(tokens, "int32")
        self.loss_squares, self.loss_norm = zeros(-(-tokens // BLOCK), "float64"), zeros(1)

    def __iter__(self):
        for first in range(0, self.all_rows, self.rows):
            end = min(self.all_rows, first + self.rows)
            yield first, end, min(end, self.vocabulary) - first


def learn_by_blocks(decoder, act, optimizer):
    """Compute losses and hits of the current segment, and train the decoder.

    Overwrites act.losses, act.hits and act.d_decoder_input; updates decoder.weight; accumulates into the gradient of decoder.bias.
    """
    backend, buffers, size, rows = decoder.backend, act.decoder_blocks, decoder.shape[1], act.length * act.batch
    read, d_read = buffers.read[:rows], act.d_decoder_input[: act.length].reshape(rows, size)
    decoder.load_input(read, act, 0, act.length)
    targets, losses, hits = (array[: act.length].reshape(-1) for array in (act.targets, act.losses, act.hits))
    per_row = buffers.top, buffers.best, buffers.total, buffers.picked, buffers.factor
    top, best, total, picked, factor = (array[:rows] for array in per_row)
    top[...], total[...] = LOWEST, 0

    def logits_of(first, end):
        """(logits without bias, bias) of a block of rows."""
        logits = buffers.logits[:rows, : end - first]
        backend.product(logits, read, decoder.factor[first:end].T)
        return logits, decoder.bias[first:end]

    for first, end, tokens in buffers:
        backend.softmax_part(top, best, total, picked, *logits_of(first, end), targets, first, tokens)
    backend.softmax_end(losses, hits, factor, top, best, total, picked, targets, act.weight)
    backend.sum_of_squares(buffers.loss_squares[: -(-rows // BLOCK)], losses)
    backend.norm(buffers.loss_norm, buffers.loss_squares)
    optimizer.begin(buffers.loss_norm)
    scale = 1 / act.loss_scale
    for first, end, tokens in buffers:
        d_logits = buffers.d_logits[:rows, : end - first]
        backend.softmax_gradient(d_logits, *logits_of(first, end), top, factor, targets, act.weight, first, tokens)
        backend.product(d_read, d_logits, decoder.factor[first:end], add=first > 0, scale=scale * decoder.gain)
        backend.product(decoder.d_bias[first:end, None], d_logits.T, act.ones[:rows], add=True, scale=scale)
        numbers = (end - first) * size
        whole = -(-numbers // BLOCK) * BLOCK
        backend.product(buffers.gradient[:numbers].reshape(end - first, size), d_logits.T, read, scale=scale)
        buffers.gradient[numbers:whole] = 0
        optimizer.update_rows("decoder.weight", first, end - first, buffers.gradient[:whole])
    decoder.input_dropout_backward(d_read, act, 0)
