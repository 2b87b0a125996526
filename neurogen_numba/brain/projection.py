"""Delayed sparse synapses, and dense ones, from a signal to a current."""

from __future__ import annotations

import math

import numpy as np

from ..kernels.lanes import LANES
from .buffers import Parameter, Parameters
from .connectome import Arc, draw_synapses, generator


def groups(batch: int) -> int:
    """How many groups of LANES sequences a batch makes."""
    return -(-batch // LANES)


class Current:
    """What a target receives during a segment.

    value: [T, B, N]. While learning, gradient: [C, B, N], that of the chunk under way; and lanes: [T, G, N, LANES], the same for the whole
    segment in lane order, where sparse synapses arrive (None elsewhere).
    """

    def __init__(self, backend, tokens, batch, size, chunk, learning, sparse):
        self.value = backend.zeros((tokens, batch, size))
        if learning:
            self.gradient = backend.zeros((chunk, batch, size))
            self.lanes = backend.zeros((tokens, groups(batch), size, LANES)) if sparse else None


class Signal:
    """What a source sends during a segment of T tokens.

    lists: event lists of the `history` tokens before the segment and of its own (kernels/events.py): index [history + T, G, M],
    value [history + T, G, M, LANES], fired, listed [history + T, G]. None where only dense projections listen.
    x: [T, B, M] plain values, where the source is not an axon. gradient: [C, B, M], dL/ds of the chunk under way.
    """

    def __init__(self, backend, tokens, batch, size, history, index_dtype, chunk, learning, sparse):
        self.history, self.x, self.lists = history, None, None
        if sparse:
            rows = (history + tokens, groups(batch))
            shapes = (((size,), index_dtype), ((size, LANES), "float32"), ((), "int32"), ((), "int32"))
            self.lists = tuple(backend.zeros(rows + more, kind) for more, kind in shapes)
        if learning:
            self.gradient = backend.zeros((chunk, batch, size))

    def rows(self, first, last):
        """The lists of tokens first ... last - 1 of the segment."""
        return tuple(array[self.history + first : self.history + last] for array in self.lists)

    def roll(self, tokens):
        """Make the last columns of a segment of `tokens` the history of the next one."""
        if not self.history:
            return
        index, value, fired, listed = self.lists
        for array in (index, value, fired):
            array[: self.history] = array[tokens : tokens + self.history].copy()
        listed[: self.history] = fired[: self.history]  # no gradient reaches back before a segment


class Projection:
    """The synapses of one arc, sparse or dense: a signal to a current, and gradients back."""

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
        self.row_start, self.target = self.backend.asarray(row_start, "uint32"), self.backend.asarray(target, self.index_dtype)

    def bind(self, parameters: Parameters):
        self.weight, self.d_weight = parameters.value[f"{self.arc.name}.weight"], parameters.gradient[f"{self.arc.name}.weight"]

    def forward(self, act, first, last):
        """Add to the current of tokens first ... last - 1 what reaches it then: in act.lanes(...) from sparse synapses, in its value from
        dense ones."""
        signal, current = act.signals[self.arc.source], act.currents[self.arc.target]
        if self.arc.dense:
            self.backend.product(_columns(current.value[first:last]), _columns(signal.x[first:last]), self.weight, add=True)
            return
        index, carried, fired, _ = signal.lists
        arriving = act.lanes(last - first, self.arc.targets)
        self.backend.synapse_forward(arriving, index, carried, fired, signal.history + first, *self._wiring())

    def backward(self, act, first, last):
        """Add to the gradient of the signal of tokens first ... last - 1, and to the weights', from that of the current at and after
        them."""
        signal, current = act.signals[self.arc.source], act.currents[self.arc.target]
        if self.arc.dense:
            d_current, x = _columns(current.gradient[: last - first]), _columns(signal.x[first:last])
            self.backend.product(_columns(signal.gradient[: last - first]), d_current, self.weight.T, add=True)
            self.backend.product(self.d_weight, x.T, d_current, add=True)
        else:
            self._backward_rows(act, signal, current, signal.history + first, last - first)

    def backward_before(self, act):
        """The weights' gradient from events before the segment, once the current's gradient is known for all of it. The gradient of those
        events themselves goes nowhere."""
        signal, current, reach = act.signals[self.arc.source], act.currents[self.arc.target], self.arc.longest_delay
        for row in range(signal.history - reach, signal.history, act.chunk):
            self._backward_rows(act, signal, current, row, min(act.chunk, signal.history - row))

    def _backward_rows(self, act, signal, current, first_row, rows):
        ds, d_current = act.lanes(rows, self.arc.sources), current.lanes[: act.length]
        self.backend.synapse_backward(
            ds, self.d_weight, d_current, *signal.lists, first_row, signal.history, *self._wiring(), self.backend.tasks
        )

    def _wiring(self):
        return self.row_start, self.target, self.weight, self.arc.first_delay, self.arc.delays


def _columns(x):
    """[T, B, N] as a matrix [T B, N]."""
    return x.reshape(-1, x.shape[2])
