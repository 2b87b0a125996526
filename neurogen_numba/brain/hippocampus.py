"""Associative memory of the hippocampus: facts told once, answered later (kernels/memory.py)."""

from __future__ import annotations

import numpy as np

from ..config import Brain
from .buffers import Parameter, Parameters


class AssociativeMemory:
    """`heads` fast-weight matrices of `width` x `width`, written and read at every token."""

    inputs = ("memory.query", "memory.key", "memory.value", "memory.write")
    outputs = ("memory.out",)

    def __init__(self, brain: Brain, backend):
        self.heads, self.width, self.backend = brain.memory_heads, brain.memory_width, backend

    def parameters(self):
        yield Parameter("memory.decay", (self.heads,), "what a head keeps per token, before the sigmoid")
        yield Parameter("memory.write_bias", (self.heads,), "bias of the write strength, before the sigmoid")

    def initialise(self, parameters: Parameters, seed: int):
        parameters.value["memory.decay"][:] = self.backend.asarray(np.linspace(2, 7, self.heads), "float32")

    def bind(self, parameters: Parameters):
        self.decay, self.write_bias = parameters.value["memory.decay"], parameters.value["memory.write_bias"]
        self.d_decay, self.d_write_bias = parameters.gradient["memory.decay"], parameters.gradient["memory.write_bias"]

    def allocate(self, act):
        shape = (act.batch, self.heads, self.width, self.width)
        act.S = self.backend.zeros(shape)
        act.signals["memory.out"].x = self.backend.zeros((act.tokens, act.batch, self.heads * self.width))
        if act.learning:
            act.S_before = [self.backend.zeros(shape) for _ in range(0, act.tokens, act.chunk)]
            act.dS = self.backend.zeros(shape)

    def _inputs(self, act, first, last):
        return (act.currents[name].value[first:last] for name in self.inputs)

    def forward(self, act, first, last):
        if act.learning:
            act.S_before[first // act.chunk][:] = act.S
        q, k, v, w = self._inputs(act, first, last)
        out = act.signals["memory.out"].x[first:last]
        self.backend.memory_forward(out, act.S, q, k, v, w, self.write_bias, self.decay, act.write_scale)
        act.send("memory.out", first, last)

    def backward(self, act, first, last):
        dq, dk, dv, dw = (act.currents[name].gradient[: last - first] for name in self.inputs)
        q, k, v, w = self._inputs(act, first, last)
        d_decay = self.backend.zeros((act.batch, self.heads))
        self.backend.memory_backward(
            dq,
            dk,
            dv,
            dw,
            d_decay,
            act.dS,
            act.signals["memory.out"].gradient[: last - first],
            act.S_before[first // act.chunk],
            q,
            k,
            v,
            w,
            self.write_bias,
            self.decay,
            act.write_scale,
        )
        self.d_decay += d_decay.sum(0)
        self.d_write_bias += dw.sum((0, 1))
