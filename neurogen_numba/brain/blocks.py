"""Learning the decoder a block of its rows at a time: neither all logits nor the whole gradient are ever there.

The blocks go by twice (kernels/softmax_blocks.py). The first time, the logits of each make their contribution to the largest one and to the
sum of exponentials of every token; the second time, they are computed again, and become their gradient. From it comes the block's part of
what is owed for what was read, and the gradient of its rows, with which the optimiser updates them at once.
"""

from __future__ import annotations

import math

from ..kernels.adamw import BLOCK
from ..kernels.softmax import LOWEST


class DecoderBlocks:
    """Room for the logits and the gradient of a block of rows of the decoder, and for what is kept per token of a segment."""

    def __init__(self, decoder, act):
        backend, (vocabulary, size), tokens = decoder.backend, decoder.shape, act.tokens * act.batch
        zeros = backend.zeros
        unit = math.lcm(backend.whole_rows, BLOCK // math.gcd(BLOCK, size))  # rows: such a block begins at a multiple of BLOCK numbers
        fitting = backend.logits // max(tokens, size) // unit * unit
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
        """(first row, end, how many of the rows are tokens)."""
        for first in range(0, self.all_rows, self.rows):
            end = min(self.all_rows, first + self.rows)
            yield first, end, min(end, self.vocabulary) - first


def learn_by_blocks(decoder, act, optimizer):
    """Losses and hits of the segment under way; updates the decoder's weight, adds to the gradient of its bias, and turns what was read
    into its gradient."""
    backend, own, size, rows = decoder.backend, act.decoder_blocks, decoder.shape[1], act.length * act.batch
    read, d_read = own.read[:rows], act.d_read[: act.length].reshape(rows, size)
    decoder.take(read, act, 0, act.length)
    targets, losses, hits = (array[: act.length].reshape(-1) for array in (act.targets, act.losses, act.hits))
    top, best, total, picked, factor = (array[:rows] for array in (own.top, own.best, own.total, own.picked, own.factor))
    top[...], total[...] = LOWEST, 0

    def logits_of(first, end):
        """(logits without their bias, the bias) of a block of rows."""
        logits = own.logits[:rows, : end - first]
        backend.product(logits, read, decoder.factor[first:end].T)
        return logits, decoder.bias[first:end]

    for first, end, tokens in own:
        backend.softmax_part(top, best, total, picked, *logits_of(first, end), targets, first, tokens)
    backend.softmax_end(losses, hits, factor, top, best, total, picked, targets, act.weight)
    backend.sum_of_squares(own.loss_squares[: -(-rows // BLOCK)], losses)
    backend.norm(own.loss_norm, own.loss_squares)
    optimizer.begin(own.loss_norm)
    scale = 1 / act.loss_scale
    for first, end, tokens in own:
        d_logits = own.d_logits[:rows, : end - first]
        backend.softmax_gradient(d_logits, *logits_of(first, end), top, factor, targets, act.weight, first, tokens)
        backend.product(d_read, d_logits, decoder.factor[first:end], add=first > 0, scale=scale * decoder.gain)
        backend.product(decoder.d_bias[first:end, None], d_logits.T, act.ones[:rows], add=True, scale=scale)
        numbers = (end - first) * size
        whole = -(-numbers // BLOCK) * BLOCK
        backend.product(own.gradient[:numbers].reshape(end - first, size), d_logits.T, read, scale=scale)
        own.gradient[numbers:whole] = 0
        optimizer.update_rows("decoder.weight", first, end - first, own.gradient[:whole])
    decoder.drop(d_read, act, 0)
