"""Synapses in bundles on the CPU: tables, buffers and calls of the event-driven kernels (kernels/bundles_cpu.py)."""

from __future__ import annotations

import numpy as np

from ..kernels import bundles_cpu
from ..kernels.bundles_cpu import DELAY, DEPTH, PLACE, SHIFT, SOURCE, TARGET, WEIGHT, WIDTH, WORD
from ..kernels.population import Axon
from .base import Synapses, SynapticState


class CpuSynapses(Synapses):
    """Tables of all projections in bundles, and a copy of the weights in which every bundle is transposed, for the backward pass.

    forward: current -> (tile_start, entries), a tile being a word of targets; backward: signal -> the same of its words of sources;
    learned: all bundles. Weights lie at the same places in `weight`, in `gradient` and in the copy.
    """

    def __init__(self, backend, projections, parameters):
        self.backend, self.projections = backend, projections
        offsets = [(parameters.offset[f"{p.arc.name}.weight"], p.weight.size) for p in projections]
        first, end = min(offset for offset, _ in offsets), max(offset + size for offset, size in offsets)
        self.weight, self.gradient = (flat[first:end] for flat in (parameters.flat_value, parameters.flat_gradient))
        self.places = [offset - first for offset, _ in offsets]
        self.signals = _words({p.arc.source: p.arc.sources for p in projections})
        self.currents = _words({p.arc.target: p.arc.targets for p in projections})

    def wire(self):
        forward, backward, learned = {}, {}, []
        for p, place in zip(self.projections, self.places, strict=True):
            arc, size = p.arc, p.arc.bundle
            source, target = p.block.ravel() * size, np.repeat(np.arange(arc.tiles), arc.bundles_per_tile) * size
            table = np.zeros((p.block.size, 8), np.int64)
            table[:, SOURCE], table[:, SHIFT] = self.signals[arc.source].start + source // WORD, source % WORD
            table[:, TARGET], table[:, PLACE] = self.currents[arc.target].start + target // WORD, target % WORD
            table[:, DEPTH], table[:, WIDTH], table[:, DELAY] = size, size, p.delay.ravel()
            table[:, WEIGHT] = place + np.arange(len(table)) * size * size
            back = table.copy()
            back[:, [SOURCE, SHIFT, TARGET, PLACE]] = table[:, [TARGET, PLACE, SOURCE, SHIFT]]
            forward.setdefault(arc.target, []).append(table)
            backward.setdefault(arc.source, []).append(back)
            learned.append(table)
        self.forward = {name: _by_tile(tables, self.currents[name]) for name, tables in forward.items()}
        self.backward = {name: _by_tile(tables, self.signals[name]) for name, tables in backward.items()}
        self.learned = np.concatenate(learned)
        self.transposed = np.zeros_like(self.weight)

    def refresh(self):
        bundles_cpu.pack_cpu(self.transposed, self.weight, self.learned)

    def state(self, signals, currents, tokens, batch, learning, copied):
        return CpuSynapticState(self, signals, tokens, batch, learning, copied)


def _words(sizes):
    """name -> range of its words, one after the other."""
    ranges, end = {}, 0
    for name, size in sizes.items():
        ranges[name] = range(end, end - (-size // WORD))
        end = ranges[name].stop
    return ranges


def _by_tile(tables, words):
    """(tile_start [tiles + 1], entries), sorted by the word that they write; within a word in the order of the tables."""
    entries = np.concatenate(tables)
    tile = entries[:, TARGET] - words.start
    start = np.zeros(len(words) + 1, np.int64)
    start[1:] = np.cumsum(np.bincount(tile, minlength=len(words)))
    return start, entries[np.argsort(tile, kind="stable")]


class CpuSynapticState(SynapticState):
    """Of all signals, word after word, x [words, history + T, B, WORD] float32 and the masks `fired` and `wanted` [words, history + T, B];
    of all currents their gradients d [words, T, B, WORD] and `given`, the masks of what is not 0. history: the longest there is; rows
    0 ... history - 1 are the tokens before the segment."""

    def __init__(self, synapses, signals, tokens, batch, learning, copied):
        self.synapses, self.tokens, self.batch, self.signals, self.copied = synapses, tokens, batch, signals, copied
        self.history = max(history for _, history in signals.values())
        shape = synapses.signals[next(reversed(synapses.signals))].stop, self.history + tokens, batch
        self.x, self.fired = np.zeros((*shape, WORD), np.float32), np.zeros(shape, np.uint64)
        self.wanted = np.zeros(shape, np.uint64)
        for name, words in synapses.signals.items():
            if not name.endswith(".axon"):  # a plain value has a gradient wherever it is
                self._own(self.wanted, words)[...] = 2**64 - 1
        shape = synapses.currents[next(reversed(synapses.currents))].stop if learning else 0, tokens, batch
        self.d, self.given = np.zeros((*shape, WORD), np.float32), np.zeros(shape, np.uint64)

    def _own(self, array, words):
        return array[words.start : words.stop]

    def axon(self, signal):
        if signal not in self.synapses.signals:
            return self.synapses.backend.no_axon
        ring, fired, wanted = (self._own(array, self.synapses.signals[signal]) for array in (self.x, self.fired, self.wanted))
        return Axon(ring, np.array([self.history], np.int32), fired, wanted)

    def write_values(self, signal, first, last, x):
        words, rows = self.synapses.signals[signal], slice(self.history + first, self.history + last)
        bundles_cpu.write_values_cpu(self._own(self.x, words), self._own(self.fired, words), rows.start, x)
        if signal.endswith(".axon"):
            self._own(self.wanted, words)[:, rows] = self._own(self.fired, words)[:, rows]

    def forward(self, values, first, last):
        for current, value in values.items():
            if current not in self.synapses.forward:
                value[...] = 0
                continue
            read = self.x.reshape(-1), self.fired.reshape(-1), self.x.shape[1], self.synapses.weight, *self.synapses.forward[current]
            bundles_cpu.gather_cpu(value, *read, self.history + first, -1, self.x.shape[1], self.fired.reshape(-1)[:0], 0, 0, 0)
            if current in self.copied:
                self.write_values(self.copied[current], first, last, value)

    def set_current_grad(self, current, first, last, gradient):
        words = self.synapses.currents[current]
        bundles_cpu.write_values_cpu(self._own(self.d, words), self._own(self.given, words), first, gradient)

    def source_grad(self, gradients, first, last, length):
        for signal, gradient in gradients.items():
            if signal not in self.synapses.backward:
                gradient[...] = 0
                continue
            read = self.d.reshape(-1), self.given.reshape(-1), self.tokens, self.synapses.transposed, *self.synapses.backward[signal]
            wanted = self.wanted.reshape(-1), self.x.shape[1], self.history + first, self.synapses.signals[signal].start
            bundles_cpu.gather_cpu(gradient, *read, first, 1, length, *wanted)

    def accumulate_weight_grad(self, length):
        x, d, synapses = (self.x.reshape(-1), self.fired.reshape(-1), self.x.shape[1]), (self.d.reshape(-1), self.tokens), self.synapses
        bundles_cpu.weight_grad_cpu(synapses.gradient, *x, *d, synapses.learned, self.history, self.batch, length)

    def advance(self, length):
        for array in (self.x, self.fired):
            array[:, : self.history] = array[:, length : length + self.history].copy()

    def ring(self, signal):
        x, fired = (self._own(array, self.synapses.signals[signal]) for array in (self.x, self.fired))
        return {"value": x, "fired": fired, "start": np.array([self.history], np.int32)}

    def past(self, signal):
        size, history = self.signals[signal]
        rows = self._own(self.x, self.synapses.signals[signal])[:, self.history - history : self.history]
        return np.moveaxis(rows, 0, 2).reshape(history, self.batch, -1)[:, :, :size].copy()

    def set_past(self, signal, past):
        words, history = self.synapses.signals[signal], self.signals[signal][1]
        values = np.ascontiguousarray(past[:history], np.float32)
        bundles_cpu.write_values_cpu(self._own(self.x, words), self._own(self.fired, words), self.history - history, values)

    def reset(self, sequences):
        silent = np.flatnonzero(sequences)
        self.x[:, : self.history, silent], self.fired[:, : self.history, silent] = 0, 0
