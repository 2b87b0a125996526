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
        most = act.tokens * act.most_columns  # of any rank: blocks are the same on all
        zeros = backend.zeros
        unit = math.lcm(backend.whole_rows, BLOCK // math.gcd(BLOCK, size))  # rows; a block of them starts at a multiple of BLOCK numbers
        fitting = backend.logits // FRACTION // max(most, size) // unit * unit
        self.rows = min(max(fitting, unit), -(-decoder.rows // unit) * unit)
        self.vocabulary, self.all_rows = vocabulary, decoder.rows
        self.logits = zeros((tokens, self.rows))
        self.d_logits = self.logits if decoder.dtype == "float32" else zeros((tokens, self.rows), decoder.dtype)
        self.gradient = zeros(self.rows * size)
        self.read = zeros((tokens, size), decoder.dtype)
        self.top, self.total, self.picked, self.factor = (zeros(tokens) for _ in range(4))
        self.best = zeros(tokens, "int32")
        self.per_row = self.top, self.best, self.total, self.picked, self.factor
        self.loss_squares, self.loss_norm = zeros(-(-tokens // BLOCK), "float64"), zeros(1)

    def logits_of(self, decoder, rows, first, end):
        """(logits without bias, bias) of a block of the decoder's rows, at some rows of tokens, in the first rows of `logits`."""
        logits = self.logits[: rows.stop - rows.start, : end - first]
        decoder.backend.product(logits, self.read[rows], decoder.factor[first:end].T)
        return logits, decoder.bias[first:end]

    def __iter__(self):
        for first in range(0, self.all_rows, self.rows):
            end = min(self.all_rows, first + self.rows)
            yield first, end, min(end, self.vocabulary) - first


def losses_by_blocks(decoder, act, first, last):
    """The first pass: compute losses and hits of tokens first ... last - 1."""
    backend, buffers, tokens_of = decoder.backend, act.decoder_blocks, slice(first * act.batch, last * act.batch)
    decoder.load_input(buffers.read[tokens_of], act, first, last)
    top, best, total, picked, factor = (array[tokens_of] for array in buffers.per_row)
    targets, losses, hits = (array[first:last].reshape(-1) for array in (act.targets, act.losses, act.hits))
    top[...], total[...] = LOWEST, 0
    for begin, end, tokens in buffers:
        logits = buffers.logits_of(decoder, tokens_of, begin, end)
        backend.softmax_part(top, best, total, picked, *logits, targets, begin, tokens)
    backend.softmax_end(losses, hits, factor, top, best, total, picked, targets, act.weight)


def learn_by_blocks(decoder, act, optimizer, communicator):
    """The second pass: train the decoder on the current segment, whose losses are known.

    Overwrites act.d_decoder_input; updates decoder.weight, from the sum of the gradients of all ranks; accumulates into the gradient of
    decoder.bias.
    """
    backend, buffers, size, rows = decoder.backend, act.decoder_blocks, decoder.shape[1], act.length * act.batch
    read, d_read = buffers.read[:rows], act.d_decoder_input[: act.length].reshape(rows, size)
    targets, losses = (array[: act.length].reshape(-1) for array in (act.targets, act.losses))
    top, factor = buffers.top[:rows], buffers.factor[:rows]
    backend.sum_of_squares(buffers.loss_squares[: -(-rows // BLOCK)], losses)
    backend.norm(buffers.loss_norm, buffers.loss_squares)
    communicator.begin(buffers.loss_norm)  # not finite on any rank: no rank updates
    communicator.join()
    optimizer.begin(buffers.loss_norm)
    scale = 1 / act.loss_scale
    for first, end, tokens in buffers:
        d_logits, logits = buffers.d_logits[:rows, : end - first], buffers.logits_of(decoder, slice(0, rows), first, end)
        backend.softmax_gradient(d_logits, *logits, top, factor, targets, act.weight, first, tokens)
        backend.product(d_read, d_logits, decoder.factor[first:end], add=first > 0, scale=scale * decoder.gain)
        backend.product(decoder.d_bias[first:end, None], d_logits.T, act.ones[:rows], add=True, scale=scale / decoder.temperature)
        numbers = (end - first) * size
        whole = -(-numbers // BLOCK) * BLOCK
        backend.product(buffers.gradient[:numbers].reshape(end - first, size), d_logits.T, read, scale=scale)
        buffers.gradient[numbers:whole] = 0
        communicator.begin(buffers.gradient[:whole])
        communicator.join()
        optimizer.update_rows("decoder.weight", first, end - first, buffers.gradient[:whole])
    decoder.input_dropout_backward(d_read, act, 0)
