"""Logits out: a dense product with what Broca says."""

from __future__ import annotations

import math

import numpy as np

from ..config import Brain
from .buffers import Parameter, Parameters
from .chunked_cross_entropy import DecoderBlocks
from .connectome import generator, has_readout

DRAWN = 1024  # rows drawn at a time


class Decoder:
    """logits = (2 x) @ weight.T + bias; `source` names the signal x that it reads: Broca's trace, or its readout.

    A segment goes through in blocks of tokens, so that there are never more logits than the backend wants to hold (or one token's). The
    factors of the products are of the backend's `product_dtype`, the sums and what is learned are float32. The matrix has rows for a few
    tokens more than the vocabulary (`rows`), if the backend multiplies it faster then; they are 0, and nobody hears of them.
    """

    gain = 2.0  # a trace is small, since few neurons are active

    def __init__(self, brain: Brain, backend, apart: bool = False):
        """apart: it learns a block of rows at a time (chunked_cross_entropy.py)."""
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
        zeros, shape = self.backend.zeros, (act.tokens, act.batch, self.shape[1])
        if act.learning:
            act.d_read = zeros(shape)  # the gradient of what is read
            act.ones = zeros((act.tokens * act.batch, 1), self.dtype)
            act.ones[...] = 1
        if self.apart and act.learning:
            act.decoder_blocks = DecoderBlocks(self, act)
            return
        act.read = zeros(shape, self.dtype)
        tokens = max(1, min(act.tokens, self.backend.logits // (self.rows * act.batch)))
        act.logits = zeros((tokens * act.batch, self.rows))
        act.d_logits = act.logits if self.dtype == "float32" or not act.learning else zeros(act.logits.shape, self.dtype)

    def loss_scale(self, counted: int) -> float:
        """What the gradient of the logits is multiplied by where so many targets count, and divided by again: float16 goes from 6e-8 to
        65,504, and so the share of a target is 32 to 64 in it, however many there are."""
        return 2.0 ** (5 + math.ceil(math.log2(counted))) if self.dtype == "float16" else 1.0

    def blocks(self, act):
        """(first, last) of the blocks of tokens that a segment is cut into."""
        block = len(act.logits) // act.batch
        return [(first, min(act.length, first + block)) for first in range(0, act.length, block)]

    def scores(self, act, first, last):
        """Logits without their bias [(last - first) B, rows] of tokens first ... last - 1 of the segment, 0 from the vocabulary on. Whoever
        reads them next adds the bias. The next call overwrites them, where they are no more than a block."""
        read, rows = act.read[first:last].reshape(-1, self.shape[1]), (last - first) * act.batch
        self.take(read, act, first, last)
        scores = act.logits[:rows] if rows <= len(act.logits) else self.backend.zeros((rows, self.rows))
        self.backend.product(scores, read, self.factor.T)
        return scores

    def logits(self, act, first, last):
        """Logits [(last - first) B, V], as `scores`."""
        logits = self.scores(act, first, last)[:, : self.shape[0]]
        np.add(logits, self.bias[: self.shape[0]], out=logits)
        return logits

    def take(self, read, act, first, last):
        """read [(last - first) B, N] of the products' dtype = twice what the source says at these tokens, with dropout."""
        said = act.keeping.said if act.keeping else act.signals[self.source].x
        dropout = act.dropout.at("decoder", first, self.shape[1])
        self.backend.scaled_dropout(read, said[first:last].reshape(read.shape), self.gain, *dropout)

    def backward(self, act, first, last, d_logits, add=True):
        """Gradients from d_logits [(last - first) B, rows], `loss_scale` times that of the logits, 0 beyond the vocabulary. Overwrites
        act.d_read of these tokens; adds to the gradients of the parameters, or without `add` overwrites that of the weight."""
        read, d_read = (array[first:last].reshape(-1, self.shape[1]) for array in (act.read, act.d_read))
        scale = 1 / act.loss_scale
        self.backend.product(self.d_weight, d_logits.T, read, add=add, scale=scale)
        self.backend.product(self.d_bias[:, None], d_logits.T, act.ones[: len(read)], add=True, scale=scale)
        self.backend.product(d_read, d_logits, self.factor, scale=scale * self.gain)
        self.drop(d_read, act, first)

    def drop(self, d_read, act, first):
        """Mask the gradient of what was read, from token `first` on."""
        if act.dropout.rate:
            self.backend.dropout(d_read, *act.dropout.at("decoder", first, self.shape[1]))
