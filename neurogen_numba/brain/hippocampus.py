"""Associative memory of the hippocampus: stores facts stated once and recalls them later (kernels/memory.py)."""

from __future__ import annotations

import numpy as np

from ..config import Brain
from ..optim.parameters import Parameter, Parameters
from .component import Component
from .neuromodulation import WRITE

DECAY = (5, 8)  # before the sigmoid, from the first head to the last: memories of 150 to 3,000 tokens


class AssociativeMemory(Component):
    """Writes and reads `heads` fast-weight matrices of `width` x `width` at every token."""

    name, stream = "memory", "hippocampus"
    inputs = ("memory.query", "memory.value", "memory.write")
    outputs = ("memory.out",)

    def __init__(self, brain: Brain, backend):
        self.heads, self.width, self.backend = brain.memory_heads, brain.memory_width, backend
        self.erase = 1.0 if brain.memory_rule == "delta" else 0.0

    def parameters(self):
        yield Parameter("memory.decay", (self.heads,), "what a head keeps per token, before the sigmoid")
        yield Parameter("memory.write_bias", (self.heads,), "bias of the write strength, before the sigmoid")

    def initialise(self, parameters: Parameters, seed: int):
        parameters.value["memory.decay"][:] = self.backend.asarray(np.linspace(*DECAY, self.heads), "float32")

    def bind(self, parameters: Parameters):
        self.decay, self.write_bias = parameters.value["memory.decay"], parameters.value["memory.write_bias"]
        self.d_decay, self.d_write_bias = parameters.gradient["memory.decay"], parameters.gradient["memory.write_bias"]

    def allocate(self, act):
        shape = (act.batch, self.heads, self.width, self.width)
        act.S, act.key = self.backend.zeros(shape), self.backend.zeros((act.batch, self.heads * self.width))
        act.signals["memory.out"].x = self.backend.zeros((act.buffered_tokens, act.batch, self.heads * self.width))
        if act.learning:
            chunks = -(-act.tokens // act.chunk)
            act.S_before, act.key_before = self.backend.zeros((chunks, *shape)), self.backend.zeros((chunks, *act.key.shape))
            if act.buffered_tokens < act.tokens:
                act.S_recomputed, act.key_recomputed = self.backend.zeros(shape), self.backend.zeros(act.key.shape)
            act.dS, act.d_key = self.backend.zeros(shape), self.backend.zeros(act.key.shape)
            act.d_decay = self.backend.zeros((act.batch, self.heads))

    def forward(self, act, first, last):
        if act.learning:
            act.S_before[first // act.chunk][...], act.key_before[first // act.chunk][...] = act.S, act.key
        self._recall(act, first, last, act.S, act.key, act.synapses.axon("memory.out"))

    def recompute(self, act, first, last):
        act.S_recomputed[...], act.key_recomputed[...] = self._before(act, first)
        self._recall(act, first, last, act.S_recomputed, act.key_recomputed, self.backend.no_axon)

    def backward(self, act, first, last):
        dq, dv, dw = (act.currents[name].gradient[: last - first] for name in self.inputs)
        d_out = act.signals["memory.out"].gradient[: last - first]
        act.d_decay[...] = 0
        q, v, w = self._inputs(act, first, last)
        inputs = q, v, w, self.write_bias, self.decay, act.factor(WRITE, first)
        self.backend.memory_backward(dq, dv, dw, act.d_decay, act.dS, act.d_key, d_out, *self._before(act, first), *inputs, self.erase)
        self.backend.add_rows(self.d_decay, act.d_decay)
        self.backend.add_rows(self.d_write_bias, dw.reshape(-1, self.heads))
        if modulation := act.brain.modulation:
            modulation.backward(act, WRITE, first, dw, w, self.write_bias)

    def _recall(self, act, first, last, S, key, axon):
        """Overwrite the output of a chunk, also in the axon; roll S and key on from before the chunk to after it."""
        out, inputs = act.signals["memory.out"].x[act.buffer_slice(first, last)], self._inputs(act, first, last)
        self.backend.memory_forward(out, S, key, *inputs, self.write_bias, self.decay, act.factor(WRITE, first), axon, first, self.erase)

    def _inputs(self, act, first, last):
        return (act.currents[name].value[act.buffer_slice(first, last)] for name in self.inputs)

    @staticmethod
    def _before(act, first):
        """(S, key) at the beginning of the chunk."""
        return act.S_before[first // act.chunk], act.key_before[first // act.chunk]
