"""Logits out: a dense product with what Broca says."""

from __future__ import annotations

import math

import numpy as np

from ..config import Brain
from .blocks import DecoderBlocks
from .buffers import Parameter, Parameters
from .connectome import generator, has_readout

READ_GAIN = np.float32(2)  # a trace is small, since few neurons are active
DRAWN = 1024  # rows drawn at a time


class Decoder:
    """logits = (2 read) @ weight.T + bias; `source` names the signal that it reads: Broca's trace, or its readout.

    A segment goes through in blocks of tokens, so that there are never more logits than the backend wants to hold (or one token's). The
    factors of the products are of the backend's `product_dtype`, the sums and what is learned are float32. The matrix has rows for a few
    tokens more than the vocabulary (`rows`), if the backend multiplies it faster then; they are 0, and nobody hears of them.
    """

    def __init__(self, brain: Brain, backend, apart: bool = False):
        """apart: it learns a block of rows at a time (blocks.py)."""
        self.apart = apart
        self.source = "readout_broca.out" if has_readout(brain, "broca") else "broca.trace"
        self.shape, self.backend = (brain.vocabulary, brain.broca.output_size), backend
        self.rows = -(-brain.vocabulary // backend.whole_rows) * backend.whole_rows
        self.dtype = backend.product_dtype

    def parameters(self):
        room = self.rows * self.shape[1]
        yield Parameter("decoder.weight", self.shape, "what Broca says -> logits", file="decoder", decays=True, room=room, apart=self.apart)
        yield Parameter("decoder.bias", self.shape[:1], "bias of the logits", file="decoder", room=self.rows)

    def initialise(self, parameters: Parameters, seed: int):
        weight, rng = parameters.value["decoder.weight"], generator(seed, "decoder")
        for first in range(0, len(weight), DRAWN):  # in float64, all of it would take several gigabytes
            rows = weight[first : first + DRAWN]
            rows[:] = self.backend.asarray(rng.standard_normal(rows.shape) / math.sqrt(3 * self.shape[1]), "float32")

    def bind(self, parameters: Parameters):
        whole = self.rows, self.shape[1]
        of = parameters.with_room
        self.weight = of(parameters.flat_value, "decoder.weight").reshape(whole)
        self.d_weight = None if self.apart else of(parameters.flat_gradient, "decoder.weight").reshape(whole)
        self.bias, self.d_bias = (of(flat, "decoder.bias") for flat in (parameters.flat_value, parameters.flat_gradient))
        with self.backend.part("decoder"):
            self.factor = self.weight if self.dtype == "float32" else self.backend.zeros(whole, self.dtype)

    def refresh(self):
        """Round the weights to what the products take."""
        if self.factor is not self.weight:
            self.factor[...] = self.weight

    def allocate(self, act):
        act.loss_scale = 1.0  # how much larger the gradient of the logits is made on its way
        act.read = self.backend.zeros((act.tokens, act.batch, self.shape[1]))  # what is read; on the way back, what is owed for it
        if self.apart and act.learning:
            act.ones = self.backend.zeros((act.tokens * act.batch, 1), self.dtype)
            act.ones[...] = 1
            act.decoder_blocks = DecoderBlocks(self, act)
            return
        tokens = max(1, min(act.tokens, self.backend.logits // (self.rows * act.batch)))
        rows, size, zeros = tokens * act.batch, self.shape[1], self.backend.zeros
        act.logits = zeros((rows, self.rows))
        act.ones = zeros((max(rows, act.tokens * act.batch), 1), self.dtype)
        act.ones[...] = 1
        act.factor = zeros((rows, size), self.dtype) if self.dtype != "float32" else None
        act.d_logits = act.logits if self.dtype == "float32" or not act.learning else zeros(act.logits.shape, self.dtype)

    def loss_scale(self, counted: int) -> float:
        """What the gradient of the logits is multiplied by where so many targets count, and divided by again: float16 goes from 6e-8 to
        65,504, and so the share of a target is 32 to 64 in it, however many there are."""
        return 2.0 ** (5 + math.ceil(math.log2(counted))) if self.dtype == "float16" else 1.0

    def blocks(self, act):
        """(first, last) of the blocks of tokens that a segment is cut into."""
        block = len(act.logits) // act.batch
        return [(first, min(act.length, first + block)) for first in range(0, act.length, block)]

    def logits(self, act, first, last):
        """Logits [(last - first) B, V] of tokens first ... last - 1 of the segment, which the next call overwrites, where they are no more
        than a block."""
        read, rows = act.read[first:last].reshape(-1, self.shape[1]), (last - first) * act.batch
        self.hear(read, act, first, last)
        logits = act.logits[:rows] if rows <= len(act.logits) else self.backend.zeros((rows, self.rows))
        self.backend.affine(logits, read, self.factor, self.bias, None if act.factor is None else act.factor[: len(read)])
        return logits[:, : self.shape[0]]

    def hear(self, read, act, first, last):
        """Take what is read of these tokens into read [(last - first) B, N]."""
        said = act.keeping.said if act.keeping else act.signals[self.source].x
        np.multiply(said[first:last].reshape(read.shape), READ_GAIN, out=read)
        self._drop(read, act, first)

    def unhear(self, d_read, act, first):
        """Turn the gradient of what was read, from token `first` on, into that of the signal."""
        self._drop(d_read, act, first)
        np.multiply(d_read, READ_GAIN, out=d_read)

    def backward(self, act, first, last, d_logits):
        """Turn what was read of these tokens into its gradient; adds to the parameters' gradients. d_logits [(last - first) B, rows]:
        `loss_scale` times the gradient, 0 beyond the vocabulary."""
        read = act.read[first:last].reshape(-1, self.shape[1])
        scale = 1 / act.loss_scale
        self.backend.product(self.d_weight, d_logits.T, self._factor(act, read), add=True, scale=scale)
        self.backend.product(self.d_bias[:, None], d_logits.T, act.ones[: len(read)], add=True, scale=scale)
        self.backend.product(read, d_logits, self.factor, scale=scale)
        self.unhear(read, act, first)

    def _factor(self, act, read):
        if act.factor is None:
            return read
        factor = act.factor[: len(read)]
        factor[...] = read
        return factor

    def _drop(self, read, act, first):
        if act.dropout.rate:
            self.backend.dropout(read, *act.dropout.at("decoder", first, self.shape[1]))
