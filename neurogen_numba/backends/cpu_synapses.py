"""Synapses in bundles on the CPU: tables, buffers and calls of the event-driven loops in kernels/bundles_cpu.py."""

from __future__ import annotations

import numpy as np

from ..kernels import bundles_cpu
from ..kernels.bundles_cpu import (
    COLUMNS_OF_ENTRY,
    DELAY,
    DEPTH,
    OUT_SHIFT,
    OUT_WIDTH,
    SCALE,
    SHIFT,
    SOURCE,
    TARGET,
    WEIGHT,
    WORD,
)
from ..kernels.population import Axon
from .base import Synapses, SynapticState

SPARE_ROWS = 64  # extra rows without learning, so that the history is moved to the front once per 64 tokens instead of at every segment


class CpuSynapses(Synapses):
    """Tables of all bundles, and a copy of the weights with every bundle transposed, for the backward pass.

    forward: current -> (tile_start, entries), where a tile is a word of targets; backward: signal -> the same for its words of sources;
    learned: entries of all bundles. A bundle has the same offset in `weight`, in `gradient` and in the copy.
    """

    def __init__(self, backend, projections, parameters):
        self.backend, self.projections = backend, projections
        part = parameters.together([f"{p.arc.name}.weight" for p in projections])
        self.weight, self.gradient, self.scale, self.weight_offsets, self.scale_offsets = part
        self.signals = _words({p.arc.source: p.arc.sources for p in projections})
        self.currents = _words({p.arc.target: p.arc.targets for p in projections})
        self.forward, self.backward = {}, {}
        self.transposed = self.weight if parameters.bits else np.zeros_like(self.weight)  # codes have no backward pass

    def wire(self):
        forward, backward, learned = {}, {}, []
        for number, p in enumerate(self.projections):
            table = self.entries(np.full(p.block.size, number), p.tile, p.block.ravel(), p.delay.ravel())
            table[:, WEIGHT] += self.weight_offsets[number]
            table[:, SCALE] += self.scale_offsets[number]
            back = table.copy()
            back[:, [SOURCE, SHIFT, TARGET, OUT_SHIFT]] = table[:, [TARGET, OUT_SHIFT, SOURCE, SHIFT]]
            forward.setdefault(p.arc.target, []).append(table)
            backward.setdefault(p.arc.source, []).append(back)
            learned.append(table)
        _fill(self.forward, {name: _by_tile(tables, self.currents[name]) for name, tables in forward.items()})
        _fill(self.backward, {name: _by_tile(tables, self.signals[name]) for name, tables in backward.items()})
        self.learned = np.concatenate(learned)

    def entries(self, projection, tile, block, delay):
        """Table of bundles [K] of one size; their weights follow one another, from offset 0 on."""
        size = self.projections[projection[0]].arc.bundle
        first = np.array([(self.signals[p.arc.source].start, self.currents[p.arc.target].start) for p in self.projections])[projection]
        table = np.zeros((len(tile), COLUMNS_OF_ENTRY), np.int64)
        table[:, SOURCE], table[:, SHIFT] = first[:, 0] + block * size // WORD, block * size % WORD
        table[:, TARGET], table[:, OUT_SHIFT] = first[:, 1] + tile * size // WORD, tile * size % WORD
        table[:, DEPTH], table[:, OUT_WIDTH], table[:, DELAY] = size, size, delay
        table[:, WEIGHT], table[:, SCALE] = np.arange(len(table)) * size * size, np.arange(len(table))
        return table

    def rewire(self):
        self.wire()
        return True

    def refresh(self, weight=None):
        self.read = self.weight if weight is None else weight
        if not self.scale.size:
            self.backend.launch(bundles_cpu.pack_cpu, self.transposed, self.read, self.learned)

    def state(self, signals, currents, tokens, batch, learning, copied):
        return CpuSynapticState(self, signals, tokens, batch, learning, copied)


def _words(sizes):
    """name -> range of its words; the ranges are consecutive."""
    ranges, end = {}, 0
    for name, size in sizes.items():
        ranges[name] = range(end, end - (-size // WORD))
        end = ranges[name].stop
    return ranges


def _fill(tables, new):
    """Copy new tables, name -> arrays, into the existing arrays, because a tape holds their addresses."""
    for name, arrays in new.items():
        for old, array in zip(tables.setdefault(name, arrays), arrays, strict=True):
            old[...] = array


def _by_tile(tables, words):
    """(tile_start [tiles + 1], entries), sorted by the word that they write; a stable sort, in the order of the tables."""
    entries = np.concatenate(tables)
    tile = entries[:, TARGET] - words.start
    start = np.zeros(len(words) + 1, np.int64)
    start[1:] = np.cumsum(np.bincount(tile, minlength=len(words)))
    return start, entries[np.argsort(tile, kind="stable")]


class CpuSynapticState(SynapticState):
    """Buffers of all signals and currents, word after word.

    Signals: x [words, history + T, B, WORD] float32 and the masks `fired` and `needs_grad` [words, history + T, B]. Gradients of currents:
    d [words, T, B, WORD] and `nonzero`, the masks of the numbers that are not 0. history: the longest of all signals. The segment's first
    token is in row start[0]; the `history` rows before it are the tokens before the segment.
    """

    def __init__(self, synapses, signals, tokens, batch, learning, copied):
        self.synapses, self.tokens, self.batch, self.signals, self.copied = synapses, tokens, batch, signals, copied
        self.history = max(history for _, history in signals.values())
        self.start, self._segment = np.array([self.history], np.int32), np.zeros(1, np.int32)  # rows of the first token in x, in d
        self._launch = synapses.backend.launch
        rows = self.history + tokens + (0 if learning else SPARE_ROWS)
        shape = synapses.signals[next(reversed(synapses.signals))].stop, rows, batch
        self.x, self.fired = np.zeros((*shape, WORD), np.float32), np.zeros(shape, np.uint64)
        self.needs_grad = np.zeros(shape, np.uint64)
        shape = synapses.currents[next(reversed(synapses.currents))].stop if learning else 0, tokens, batch
        self.d, self.nonzero = np.zeros((*shape, WORD), np.float32), np.zeros(shape, np.uint64)
        self._flat = {what: getattr(self, what).reshape(-1) for what in ("x", "fired", "needs_grad", "d", "nonzero")}
        self._axons = {}
        for name, words in synapses.signals.items():
            ring, fired, needs_grad = (self._word_range(array, words) for array in (self.x, self.fired, self.needs_grad))
            self._axons[name] = Axon(ring, self.start, fired, needs_grad)
            if not name.endswith(".axon"):  # a plain value always needs a gradient
                needs_grad[...] = 2**64 - 1

    @property
    def row(self):
        """The row of the segment's first token."""
        return int(self.start[0])

    @property
    def _before(self):
        """The rows of the tokens before the segment."""
        return slice(self.row - self.history, self.row)

    def _word_range(self, array, words):
        return array[words.start : words.stop]

    def axon(self, signal):
        return self._axons.get(signal, self.synapses.backend.no_axon)

    def forward(self, values, first, last):
        flat, rows, synapses = self._flat, self.x.shape[1], self.synapses
        for current, value in values.items():
            if current not in synapses.forward:
                synapses.backend.apply(np.copyto, value, np.float32(0))
                continue
            read = flat["x"], flat["fired"], rows, synapses.read, synapses.scale, *synapses.forward[current]
            self._launch(bundles_cpu.gather_cpu, value, *read, self.start, first, -1, rows, flat["nonzero"][:0], 0, self.start, 0)
            if current in self.copied:
                axon = self._axons[self.copied[current]]
                self._launch(bundles_cpu.write_values_cpu, axon.ring, axon.fired, self.start, first, value)

    def set_current_grad(self, current, first, last, gradient):
        words = self.synapses.currents[current]
        buffers = self._word_range(self.d, words), self._word_range(self.nonzero, words)
        self._launch(bundles_cpu.write_values_cpu, *buffers, self._segment, first, gradient)

    def source_grad(self, gradients, first, last, length):
        flat, synapses = self._flat, self.synapses
        for signal, gradient in gradients.items():
            if signal not in synapses.backward:
                gradient[...] = 0
                continue
            read = flat["d"], flat["nonzero"], self.tokens, synapses.transposed, synapses.scale, *synapses.backward[signal]
            needs_grad = flat["needs_grad"], self.x.shape[1], self.start, synapses.signals[signal].start
            self._launch(bundles_cpu.gather_cpu, gradient, *read, self._segment, first, 1, length, *needs_grad)

    def accumulate_weight_grad(self, length):
        self._weight_grad(self.synapses.gradient, self.synapses.learned, length)

    def _weight_grad(self, gradient, entries, length):
        read = self._flat["x"], self._flat["fired"], self.x.shape[1], self._flat["d"], self.tokens
        self._launch(bundles_cpu.weight_grad_cpu, gradient, *read, entries, self.row, self.batch, length)

    def bundle_grad(self, projection, tile, block, delay, length):
        entries = self.synapses.entries(projection, tile, block, delay)
        gradient = np.zeros((len(entries), entries[0, DEPTH] * entries[0, OUT_WIDTH]), np.float32)
        self._weight_grad(gradient.reshape(-1), entries, length)
        return gradient

    def advance(self, length):
        self._launch(bundles_cpu.advance_cpu, self.x, self.fired, self.start, length, self.history, self.tokens)

    def ring(self, signal):
        axon = self._axons[signal]
        return {"value": axon.ring, "fired": axon.fired, "start": axon.start}

    def past(self, signal):
        size, history = self.signals[signal]
        rows = self._axons[signal].ring[:, self.row - history : self.row]
        return np.moveaxis(rows, 0, 2).reshape(history, self.batch, -1)[:, :, :size].copy()

    def set_past(self, signal, past):
        axon, history = self._axons[signal], self.signals[signal][1]
        values = np.ascontiguousarray(past[:history], np.float32)
        self._launch(bundles_cpu.write_values_cpu, axon.ring, axon.fired, self.start, -history, values)

    def reset(self, sequences):
        silent = np.flatnonzero(sequences)
        self.x[:, self._before, silent], self.fired[:, self._before, silent] = 0, 0
