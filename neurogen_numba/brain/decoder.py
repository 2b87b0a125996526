"""Decoder: a dense product from Broca's output to the logits."""

from __future__ import annotations

import math

import numpy as np

from ..config import Brain
from ..optim.parameters import Parameter, Parameters
from .chunked_cross_entropy import DecoderBlocks
from .connectome import generator, has_readout

DRAWN = 1024  # rows drawn at a time
GAIN = 2.0  # a trace is small, since few neurons are active


class Decoder:
    """logits = ((2 x) @ weight.T + bias) / temperature. x is the signal `source`: Broca's trace, or its readout. The temperature is 1 while
    a run learns, and is fitted at its end (learning/temperature.py).

    A segment is processed in blocks of tokens, with at most `backend.logits` logits in a block, or those of one token. The factors of the
    products have the backend's `product_dtype`; sums and parameters are float32. `rows`: the vocabulary, padded to a multiple of
    `backend.whole_rows`. The padding is 0.
    """

    def __init__(self, brain: Brain, backend, row_wise: bool = False):
        """row_wise: it is trained a block of rows at a time (chunked_cross_entropy.py)."""
        self.row_wise = row_wise
        self.source = "readout_broca.out" if has_readout(brain, "broca") else "broca.trace"
        self.shape, self.backend = (brain.vocabulary, brain.broca.output_size), backend
        self.rows = -(-brain.vocabulary // backend.whole_rows) * backend.whole_rows
        self.dtype, self.temperature = backend.product_dtype, 1.0

    def parameters(self):
        how = {"decays": True, "room": self.rows * self.shape[1], "row_wise": self.row_wise, "quantizable": True}
        yield Parameter("decoder.weight", self.shape, "Broca's output -> logits", file="decoder", **how)
        yield Parameter("decoder.bias", self.shape[:1], "bias of the logits", file="decoder", room=self.rows)

    def initialise(self, parameters: Parameters, seed: int):
        weight, rng = parameters.value["decoder.weight"], generator(seed, "decoder")
        for first in range(0, len(weight), DRAWN):  # in float64, all of it would take several gigabytes
            rows = weight[first : first + DRAWN]
            rows[:] = self.backend.asarray(rng.standard_normal(rows.shape) / math.sqrt(3 * self.shape[1]), "float32")

    def bind(self, parameters: Parameters):
        whole = self.rows, self.shape[1]
        of = parameters.with_room
        self._bias, self.d_bias = (of(flat, "decoder.bias") for flat in (parameters.flat_value, parameters.flat_gradient))
        self.bias = self._bias  # that of the logits
        self.codes = parameters.codes.get("decoder.weight")
        if self.codes:
            self.factor = self.weight = None
            return
        self.weight = of(parameters.flat_value, "decoder.weight").reshape(whole)
        self.d_weight = None if self.row_wise else of(parameters.flat_gradient, "decoder.weight").reshape(whole)
        with self.backend.part("decoder"):
            self.factor = self.weight if self.dtype == "float32" else self.backend.zeros(whole, self.dtype)

    @property
    def gain(self) -> float:
        return GAIN / self.temperature

    def set_temperature(self, temperature: float):
        """Divide the logits by a temperature, above 0, from now on. Steps that are recorded already are as before."""
        self.temperature = temperature
        with self.backend.part("decoder"):
            self.bias = self._bias if temperature == 1 else self.backend.zeros(self.rows)
        self.refresh()

    def refresh(self):
        """Round the weights to the dtype of the products, and divide the bias by the temperature."""
        if self.factor is not self.weight:
            self.backend.assign(self.factor, self.weight)
        if self.bias is not self._bias:
            self.backend.apply(np.multiply, self._bias, np.float32(1 / self.temperature), out=self.bias)

    def allocate(self, act):
        act.loss_scale = 1.0  # factor of the gradient of the logits
        zeros, shape = self.backend.zeros, (act.tokens, act.batch, self.shape[1])
        if act.learning:
            act.d_decoder_input = zeros(shape)
            act.ones = zeros((act.tokens * act.batch, 1), self.dtype)
            act.ones[...] = 1
        if self.row_wise and act.learning:
            act.decoder_blocks = DecoderBlocks(self, act)
            return
        act.decoder_input = zeros(shape, self.dtype)
        tokens = max(1, min(act.tokens, self.backend.logits // (self.rows * act.batch)))
        act.logits = zeros((tokens * act.batch, self.rows))
        act.d_logits = act.logits if self.dtype == "float32" or not act.learning else zeros(act.logits.shape, self.dtype)

    def loss_scale(self, counted: int) -> float:
        """Loss scaling: the factor of the gradient of the logits in float16, whose range is 6e-8 to 65,504. counted: targets in the mean.

        With it the gradient of one target is 32 to 64, for any number of targets. 1 for other dtypes.
        """
        return 2.0 ** (5 + math.ceil(math.log2(counted))) if self.dtype == "float16" else 1.0

    def blocks(self, act, first, last):
        """(first, last) of the blocks of tokens first ... last - 1."""
        block = len(act.logits) // act.batch
        return [(begin, min(last, begin + block)) for begin in range(first, last, block)]

    def losses(self, act, first, last):
        """Overwrite losses and hits of tokens first ... last - 1, whose targets are in act.targets."""
        for begin, end in self.blocks(act, first, last):
            logits = self.scores(act, begin, end)
            self.cross_entropy(act, begin, end, logits, logits)

    def cross_entropy(self, act, first, last, logits, d_logits, weight=None):
        """Overwrite losses and hits of a block of tokens from `scores`; and d_logits, which may be the same array, with the gradient.
        weight: as in `Backend.cross_entropy`; act.weight without it."""
        weight = act.weight if weight is None else weight
        losses, hits, targets = (array[first:last].reshape(-1) for array in (act.losses, act.hits, act.targets))
        self.backend.cross_entropy(losses, hits, d_logits, logits, self.bias, targets, weight, self.shape[0])

    def scores(self, act, first, last):
        """Logits without bias [(last - first) B, rows] of tokens first ... last - 1, 0 in the padding.

        The kernel that reads them adds the bias. The next call overwrites them, unless they are more than a block.
        """
        read, rows = act.decoder_input[first:last].reshape(-1, self.shape[1]), (last - first) * act.batch
        self.load_input(read, act, first, last)
        scores = act.logits[:rows] if rows <= len(act.logits) else self.backend.zeros((rows, self.rows))
        if self.codes:
            self.backend.quantized_product(scores, read, *self.codes)
        else:
            self.backend.product(scores, read, self.factor.T)
        return scores

    def logits(self, act, first, last):
        """Logits [(last - first) B, V] with their bias. As `scores` otherwise."""
        logits = self.scores(act, first, last)[:, : self.shape[0]]
        np.add(logits, self.bias[: self.shape[0]], out=logits)
        return logits

    def load_input(self, out, act, first, last):
        """out [(last - first) B, N], of the products' dtype = dropout(2 x / temperature) of tokens first ... last - 1."""
        x = act.checkpointing.decoder_source if act.checkpointing else act.signals[self.source].x
        dropout = act.dropout.arguments("decoder", first, self.shape[1])
        self.backend.scaled_dropout(out, x[first:last].reshape(out.shape), self.gain, *dropout)

    def backward(self, act, first, last, d_logits, add=True):
        """Compute the gradients of input and parameters from d_logits [(last - first) B, rows].

        d_logits: `loss_scale` times the gradient of the logits, 0 in the padding. Overwrites act.d_decoder_input of these tokens;
        accumulates the gradient of the bias, and that of the weight, which it overwrites without `add`.
        """
        read, d_read = (array[first:last].reshape(-1, self.shape[1]) for array in (act.decoder_input, act.d_decoder_input))
        scale = 1 / act.loss_scale
        self.backend.product(self.d_weight, d_logits.T, read, add=add, scale=scale)
        self.backend.product(self.d_bias[:, None], d_logits.T, act.ones[: len(read)], add=True, scale=scale / self.temperature)
        self.backend.product(d_read, d_logits, self.factor, scale=scale * self.gain)
        self.input_dropout_backward(d_read, act, first)

    def input_dropout_backward(self, d_input, act, first):
        """Apply the dropout mask to the gradient of the input, from token `first` on."""
        if act.dropout.rates["decoder"]:
            self.backend.dropout(d_input, *act.dropout.arguments("decoder", first, self.shape[1]))
