"""Delayed sparse synapses, and dense ones, from a signal to a current."""

from __future__ import annotations

import math

import numpy as np

from .buffers import Parameter, Parameters
from .connectome import Arc, draw_synapses, generator


class Current:
    """What a target receives during a segment: value [T, B, N]; while learning, gradient [C, B, N] of the chunk under way."""

    def __init__(self, backend, tokens, batch, size, chunk, learning):
        self.value = backend.zeros((tokens, batch, size))
        if learning:
            self.gradient = backend.zeros((chunk, batch, size))


class Signal:
    """What a source sends during a segment: x [T, B, M] plain values, where the source is not an axon; while learning, gradient [C, B, M]
    of the chunk under way."""

    def __init__(self, backend, batch, size, chunk, learning):
        self.x = None
        if learning:
            self.gradient = backend.zeros((chunk, batch, size))


class Projection:
    """The synapses of one arc, sparse or dense. The backend's `Synapses` run the sparse ones; here is what they are made of."""

    def __init__(self, arc: Arc, backend, index_dtype):
        self.arc, self.backend, self.index_dtype = arc, backend, index_dtype

    def parameters(self):
        arc = self.arc
        shape = (arc.sources, arc.targets) if arc.dense else (arc.targets * arc.synapses_per_target,)
        meaning = f"synapses {arc.source} -> {arc.target}, delays {arc.first_delay} to {arc.longest_delay} tokens"
        yield Parameter(f"{arc.name}.weight", shape, meaning, decays=True, high=0.0 if arc.inhibitory else math.inf)

    def initialise(self, parameters: Parameters, seed: int):
        """Draw structure and weights."""
        arc = self.arc
        if not arc.dense:
            self.set_structure(*draw_synapses(arc, seed, self.index_dtype))
        weight = parameters.value[f"{arc.name}.weight"]
        drawn = generator(seed, f"{arc.name}.weight").standard_normal(weight.shape) / math.sqrt(arc.synapses_per_target)
        weight[...] = self.backend.asarray(-np.abs(drawn) if arc.inhibitory else drawn, "float32")

    def set_structure(self, row_start, target):
        """Structure as `draw_synapses` returns it, NumPy."""
        self.row_start, self.target = np.array(row_start, np.uint32), np.array(target, self.index_dtype)
        for array in (self.row_start, self.target):
            array.flags.writeable = False

    def bind(self, parameters: Parameters):
        self.weight, self.d_weight = parameters.value[f"{self.arc.name}.weight"], parameters.gradient[f"{self.arc.name}.weight"]

    def forward(self, act, first, last):
        """Dense: add to the current of tokens first ... last - 1 what reaches it then."""
        signal, current = act.signals[self.arc.source], act.currents[self.arc.target]
        self.backend.product(
            _columns(current.value[act.here(first, last)]), _columns(signal.x[act.here(first, last)]), self.weight, add=True
        )

    def backward(self, act, first, last):
        """Dense: add to the gradient of the signal of tokens first ... last - 1, and to the weights', from that of the current."""
        signal, current = act.signals[self.arc.source], act.currents[self.arc.target]
        d_current, x = _columns(current.gradient[: last - first]), _columns(signal.x[act.here(first, last)])
        self.backend.product(_columns(signal.gradient[: last - first]), d_current, self.weight.T, add=True)
        self.backend.product(self.d_weight, x.T, d_current, add=True)


def _columns(x):
    """[T, B, N] as a matrix [T B, N]."""
    return x.reshape(-1, x.shape[2])
