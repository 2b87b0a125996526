"""Sparse synapses on the CPU: event lists and currents in lane order (kernels/lanes.py)."""

from __future__ import annotations

import math

import numba
import numpy as np

from ..kernels import events, lanes, synapse
from ..kernels.lanes import LANES
from .base import Synapses, Traffic


def groups(batch: int) -> int:
    """How many groups of LANES sequences a batch makes."""
    return -(-batch // LANES)


class CpuSynapses(Synapses):
    def __init__(self, projections, index_dtype):
        self.projections, self.index_dtype = projections, index_dtype

    def wire(self):
        self.wiring = {p.arc.name: (p.row_start, p.target, p.weight, p.arc.first_delay, p.arc.delays) for p in self.projections}

    def refresh(self):
        pass  # the kernels read the weights themselves

    def traffic(self, signals, currents, tokens, batch, chunk, learning):
        return CpuTraffic(self, signals, currents, tokens, batch, chunk, learning)


class CpuTraffic(Traffic):
    """Lists: event lists of the `history` tokens before the segment and of its own (kernels/events.py): index [history + T, G, M],
    value [history + T, G, M, LANES], fired, listed [history + T, G]."""

    def __init__(self, synapses, signals, currents, tokens, batch, chunk, learning):
        self.synapses, self.batch, self.chunk = synapses, batch, chunk
        self.sizes = {name: size for name, (size, _) in signals.items()}
        self.history = {name: history for name, (_, history) in signals.items()}
        self.lists = {}
        for name, (size, history) in signals.items():
            rows = (history + tokens, groups(batch))
            shapes = (((size,), synapses.index_dtype), ((size, LANES), "float32"), ((), "int32"), ((), "int32"))
            self.lists[name] = tuple(np.zeros(rows + more, kind) for more, kind in shapes)
        # gradients of the currents of the whole segment in lane order
        self.d_current = {n: np.zeros((tokens, groups(batch), size, LANES), np.float32) for n, size in currents.items()} if learning else {}
        widest = max((*currents.values(), *self.sizes.values()))
        self._sums = np.zeros(chunk * groups(batch) * widest * LANES, np.float32)

    def _empty(self, tokens, size):
        """Lane-ordered zeros [tokens, G, size, LANES], for what is summed up over several projections; shared by all of them."""
        shape = (tokens, groups(self.batch), size, LANES)
        sums = self._sums[: math.prod(shape)].reshape(shape)
        sums[...] = 0
        return sums

    def turn_back(self, length):
        self.length = length

    def _rows(self, signal, first, last):
        history = self.history[signal]
        return tuple(array[history + first : history + last] for array in self.lists[signal])

    def send_events(self, signal, first, last, v, dropout, graded, smooth):
        events.list_events_cpu(*self._rows(signal, first, last), v, *dropout, graded, smooth)

    def send_values(self, signal, first, last, x):
        events.list_values_cpu(*self._rows(signal, first, last), x)

    def receive(self, values, first, last):
        for current, value in values.items():
            value[...] = 0
            arriving = self._empty(last - first, value.shape[2])
            for p in self.synapses.projections:
                if p.arc.target == current:
                    index, carried, fired, _ = self.lists[p.arc.source]
                    first_row = self.history[p.arc.source] + first
                    synapse.synapse_forward_cpu(arriving, index, carried, fired, first_row, *self.synapses.wiring[p.arc.name])
            lanes.add_from_lanes_cpu(value, arriving)

    def owe(self, current, first, last, gradient):
        lanes.to_lanes_cpu(self.d_current[current][first:last], gradient)

    def owed(self, signal, first, last, gradient):
        gradient[...] = 0
        arriving = self._empty(last - first, self.sizes[signal])
        for p in self.synapses.projections:
            if p.arc.source == signal:
                self._backward(p, arriving, first)
        lanes.add_from_lanes_cpu(gradient, arriving)

    def settle(self, length):
        """The synapses' gradient from events before the segment. That of those events themselves goes nowhere."""
        for p in self.synapses.projections:
            for first in range(-p.arc.longest_delay, 0, self.chunk):
                self._backward(p, self._empty(min(self.chunk, -first), p.arc.sources), first)

    def _backward(self, p, ds, first):
        history, wiring = self.history[p.arc.source], self.synapses.wiring[p.arc.name]
        d_current = self.d_current[p.arc.target][: self.length]
        lists = self.lists[p.arc.source]
        synapse.synapse_backward_cpu(ds, p.d_weight, d_current, *lists, history + first, history, *wiring, numba.get_num_threads())

    def advance(self, length):
        for name, history in self.history.items():
            if not history:
                continue
            index, value, fired, listed = self.lists[name]
            for array in (index, value, fired):
                array[:history] = array[length : length + history].copy()
            value[:history] += np.float32(0)  # a silent lane may hold -0, which a state that is saved and loaded does not
            listed[:history] = fired[:history]  # no gradient reaches back before a segment

    def ring(self, signal):
        index, value, fired, _ = self.lists[signal]
        return {"index": index, "value": value, "count": fired, "start": np.array([self.history[signal]], np.int32)}

    def past(self, signal):
        index, value, fired, _ = self._rows(signal, -self.history[signal], 0)
        past = np.zeros((self.history[signal], self.batch, self.sizes[signal]), np.float32)
        events.spread_events_cpu(past, index, value, fired)
        return past

    def set_past(self, signal, past):
        history, size = self.history[signal], self.sizes[signal]
        padded = np.zeros((history, groups(self.batch) * LANES, size), np.float32)
        padded[:, : self.batch] = past
        padded = padded.reshape(history, -1, LANES, size).swapaxes(2, 3)  # lane order
        index, value, fired, listed = self._rows(signal, -history, 0)
        for r, g in np.ndindex(fired.shape):
            heard = np.flatnonzero(padded[r, g].any(1))
            fired[r, g] = listed[r, g] = heard.size
            index[r, g, : heard.size], value[r, g, : heard.size] = heard, padded[r, g, heard]

    def forget(self, sequences):
        group, lane = np.divmod(np.flatnonzero(sequences), LANES)
        for name in self.lists:
            _, value, fired, listed = self._rows(name, -self.history[name], 0)
            if sequences.all():
                fired[...] = listed[...] = 0
            else:
                value[:, group, :, lane] = 0
