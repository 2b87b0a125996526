"""Logits out: a dense product with what Broca says."""

from __future__ import annotations

import math

from ..config import Brain
from .buffers import Parameter, Parameters
from .connectome import generator, has_readout

READ_GAIN = 2  # a trace is small, since few neurons are active


class Decoder:
    """logits = (2 read) @ weight.T + bias; `source` names the signal that it reads: Broca's trace, or its readout."""

    def __init__(self, brain: Brain, backend):
        self.source = "readout_broca.out" if has_readout(brain, "broca") else "broca.trace"
        self.shape, self.backend = (brain.vocabulary, brain.broca.output_size), backend

    def parameters(self):
        yield Parameter("decoder.weight", self.shape, "what Broca says -> logits", file="decoder", decays=True)
        yield Parameter("decoder.bias", self.shape[:1], "bias of the logits", file="decoder")

    def initialise(self, parameters: Parameters, seed: int):
        drawn = generator(seed, "decoder").standard_normal(self.shape) / math.sqrt(3 * self.shape[1])
        parameters.value["decoder.weight"][:] = self.backend.asarray(drawn, "float32")

    def bind(self, parameters: Parameters):
        self.weight, self.bias = parameters.value["decoder.weight"], parameters.value["decoder.bias"]
        self.d_weight, self.d_bias = parameters.gradient["decoder.weight"], parameters.gradient["decoder.bias"]

    def forward(self, act, length):
        """Logits [length * B, V] of a segment; keeps in act.read what it read."""
        act.read = act.signals[self.source].x[:length].reshape(-1, self.shape[1]) * READ_GAIN
        self._drop(act.read, act)
        logits = self.backend.zeros((act.read.shape[0], self.shape[0]))
        self.backend.product(logits, act.read, self.weight.T)
        logits += self.bias
        return logits

    def backward(self, act, d_logits):
        """Gradient of the signal read, [length, B, R]; adds to the parameters' gradients."""
        self.backend.product(self.d_weight, d_logits.T, act.read, add=True)
        self.d_bias += d_logits.sum(0)
        self.backend.product(act.read, d_logits, self.weight)
        self._drop(act.read, act)
        act.read *= READ_GAIN
        return act.read.reshape(-1, act.batch, self.shape[1])

    def _drop(self, read, act):
        if act.dropout.rate:
            self.backend.dropout(read, *act.dropout.at("decoder", 0, self.shape[1]))
