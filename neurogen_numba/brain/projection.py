"""Delayed sparse synapses, and dense ones, from a signal to a current."""

from __future__ import annotations

import math

import numpy as np

from .buffers import Parameter, Parameters
from .connectome import Arc, draw_synapses, generator


class Current:
    """What a target receives during a segment: value and, while learning, its gradient, [T, B, N] float32."""

    def __init__(self, backend, tokens, batch, size, learning):
        self.value = backend.zeros((tokens, batch, size))
        self.gradient = backend.zeros((tokens, batch, size)) if learning else None


class Signal:
    """What a source sends during a segment of T tokens.

    lists: event lists of the `history` columns before the segment and of its own columns (kernels/events.py): index, value [history + T, B, M],
    fired, listed [history + T, B]. None where only dense projections listen.
    x: [T, B, M] plain values, where the source is not an axon. gradient: [C, B, M], dL/ds of the chunk under way. before: [history, B, M] takes the
    gradient that falls to tokens before the segment, which nobody reads.
    """

    def __init__(self, backend, tokens, batch, size, history, index_dtype, chunk, learning, listed=True):
        self.history, self.x, self.lists = history, None, None
        if listed:
            rows = (history + tokens, batch)
            self.lists = tuple(backend.zeros(rows + more, kind) for more, kind in (((size,), index_dtype), ((size,), "float32"), ((), "int32"), ((), "int32")))
        if learning:
            self.gradient = backend.zeros((chunk, batch, size))
            self.before = backend.zeros((history, batch, size))

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
    """Sparse synapses of one arc."""

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

    def forward(self, signal, current, first, last):
        """Add to the current of tokens first ... last - 1 what reaches it then."""
        value = current.value[first:last]
        if self.arc.dense:
            self.backend.product(_columns(value), _columns(signal.x[first:last]), self.weight, add=True)
            return
        index, carried, fired, _ = signal.lists
        row = signal.history + first
        wiring = self.row_start, self.target, self.weight, self.arc.first_delay, self.arc.delays
        self.backend.synapse_forward(value, index, carried, fired, row, *wiring)

    def backward(self, signal, current, first, last, length):
        """Add to the signal's gradient of tokens first ... last - 1, and to the weights', from the current's gradient at and after them.

        length: tokens of the segment; what arrives after it is cut off.
        """
        if self.arc.dense:
            d_current, x = _columns(current.gradient[first:last]), _columns(signal.x[first:last])
            self.backend.product(_columns(signal.gradient[: last - first]), d_current, self.weight.T, add=True)
            self.backend.product(self.d_weight, x.T, d_current, add=True)
            return
        self._backward_rows(signal.gradient[: last - first], signal, current.gradient[:length], signal.history + first)

    def backward_before(self, signal, current, length):
        """The weights' gradient from events before the segment, once the current's gradient is known for all of it."""
        reach = self.arc.longest_delay
        if reach:
            self._backward_rows(signal.before[:reach], signal, current.gradient[:length], signal.history - reach)

    def _backward_rows(self, ds, signal, d_current, first_row):
        wiring = self.row_start, self.target, self.weight, self.arc.first_delay, self.arc.delays
        self.backend.synapse_backward(ds, self.d_weight, d_current, *signal.lists, first_row, signal.history, *wiring, self.backend.tasks)


def _columns(x):
    """[T, B, N] as a matrix [T B, N]."""
    return x.reshape(-1, x.shape[2])
