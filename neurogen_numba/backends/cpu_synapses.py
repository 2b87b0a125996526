"""Synapses in bundles on the CPU: tables, buffers and calls of the event-driven kernels (kernels/bundles_cpu.py)."""

from __future__ import annotations

import numpy as np

from ..kernels import bundles_cpu
from ..kernels.bundles_cpu import DELAY, DEPTH, PLACE, SHIFT, SOURCE, TARGET, WEIGHT, WIDTH, WORD
from ..kernels.population import Axon
from .base import Synapses, SynapticState

SPARE = 64  # rows more than a segment needs, where nothing is learned: what is under way is moved only once they are used up


class CpuSynapses(Synapses):
    """Tables of all projections in bundles, and a copy of the weights in which every bundle is transposed, for the backward pass.

    forward: current -> (tile_start, entries), a tile being a word of targets; backward: signal -> the same of its words of sources;
    learned: all bundles. Weights lie at the same places in `weight`, in `gradient` and in the copy.
    """

    def __init__(self, backend, projections, parameters):
        self.backend, self.projections = backend, projections
        tables = [parameters.table[f"{p.arc.name}.weight"] for p in projections]
        offsets = [(parameters.offset[table.name], parameters.numbers(table)) for table in tables]
        first, end = min(offset for offset, _ in offsets), max(offset + size for offset, size in offsets)
        self.weight, self.gradient = (flat[first:end] for flat in (parameters.flat_value, parameters.flat_gradient))
        self.places = [offset - first for offset, _ in offsets]
        self.signals = _words({p.arc.source: p.arc.sources for p in projections})
        self.currents = _words({p.arc.target: p.arc.targets for p in projections})
        self.forward, self.backward, self._learned = {}, {}, {}
        self.transposed = np.zeros_like(self.weight)

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
        _fill(self.forward, {name: _by_tile(tables, self.currents[name]) for name, tables in forward.items()})
        _fill(self.backward, {name: _by_tile(tables, self.signals[name]) for name, tables in backward.items()})
        _fill(self._learned, {"all": (np.concatenate(learned),)})
        self.learned = self._learned["all"][0]

    def rewire(self, gradient_only=False):
        self.wire()
        return True

    def refresh(self, weight=None):
        self.read = self.weight if weight is None else weight
        self.backend.launch(bundles_cpu.pack_cpu, self.transposed, self.read, self.learned)

    def state(self, signals, currents, tokens, batch, learning, copied):
        return CpuSynapticState(self, signals, tokens, batch, learning, copied)


def _words(sizes):
    """name -> range of its words, one after the other."""
    ranges, end = {}, 0
    for name, size in sizes.items():
        ranges[name] = range(end, end - (-size // WORD))
        end = ranges[name].stop
    return ranges


def _fill(tables, new):
    """Put new tables, name -> arrays, in the place of those of another wiring: a tape reads them where they are."""
    for name, arrays in new.items():
        for old, array in zip(tables.setdefault(name, arrays), arrays, strict=True):
            old[...] = array


def _by_tile(tables, words):
    """(tile_start [tiles + 1], entries), sorted by the word that they write; within a word in the order of the tables."""
    entries = np.concatenate(tables)
    tile = entries[:, TARGET] - words.start
    start = np.zeros(len(words) + 1, np.int64)
    start[1:] = np.cumsum(np.bincount(tile, minlength=len(words)))
    return start, entries[np.argsort(tile, kind="stable")]


class CpuSynapticState(SynapticState):
    """Of all signals, word after word, x [words, history + T, B, WORD] float32 and the masks `fired` and `wanted` [words, history + T, B];
    of all currents their gradients d [words, T, B, WORD] and `given`, the masks of what is not 0. history: the longest there is;
    the segment's first token has row start[0], and the `history` rows before it are the tokens before the segment."""

    def __init__(self, synapses, signals, tokens, batch, learning, copied):
        self.synapses, self.tokens, self.batch, self.signals, self.copied = synapses, tokens, batch, signals, copied
        self.history = max(history for _, history in signals.values())
        self.start, self._segment = np.array([self.history], np.int32), np.zeros(1, np.int32)  # rows of the first token in x, in d
        self._launch = synapses.backend.launch
        rows = self.history + tokens + (0 if learning else SPARE)
        shape = synapses.signals[next(reversed(synapses.signals))].stop, rows, batch
        self.x, self.fired = np.zeros((*shape, WORD), np.float32), np.zeros(shape, np.uint64)
        self.wanted = np.zeros(shape, np.uint64)
        shape = synapses.currents[next(reversed(synapses.currents))].stop if learning else 0, tokens, batch
        self.d, self.given = np.zeros((*shape, WORD), np.float32), np.zeros(shape, np.uint64)
        self._flat = {what: getattr(self, what).reshape(-1) for what in ("x", "fired", "wanted", "d", "given")}
        self._axons = {}
        for name, words in synapses.signals.items():
            ring, fired, wanted = (self._own(array, words) for array in (self.x, self.fired, self.wanted))
            self._axons[name] = Axon(ring, self.start, fired, wanted)
            if not name.endswith(".axon"):  # a plain value has a gradient wherever it is
                wanted[...] = 2**64 - 1

    @property
    def row(self):
        """Of the segment's first token."""
        return int(self.start[0])

    @property
    def _before(self):
        """The rows of the tokens before the segment."""
        return slice(self.row - self.history, self.row)

    def _own(self, array, words):
        return array[words.start : words.stop]

    def axon(self, signal):
        return self._axons.get(signal, self.synapses.backend.no_axon)

    def forward(self, values, first, last):
        flat, rows, synapses = self._flat, self.x.shape[1], self.synapses
        for current, value in values.items():
            if current not in synapses.forward:
                synapses.backend.apply(np.copyto, value, np.float32(0))
                continue
            read = flat["x"], flat["fired"], rows, synapses.read, *synapses.forward[current]
            self._launch(bundles_cpu.gather_cpu, value, *read, self.start, first, -1, rows, flat["given"][:0], 0, self.start, 0)
            if current in self.copied:
                own = self._axons[self.copied[current]]
                self._launch(bundles_cpu.write_values_cpu, own.ring, own.fired, self.start, first, value)

    def set_current_grad(self, current, first, last, gradient):
        words = self.synapses.currents[current]
        own = self._own(self.d, words), self._own(self.given, words)
        self._launch(bundles_cpu.write_values_cpu, *own, self._segment, first, gradient)

    def source_grad(self, gradients, first, last, length):
        flat, synapses = self._flat, self.synapses
        for signal, gradient in gradients.items():
            if signal not in synapses.backward:
                gradient[...] = 0
                continue
            read = flat["d"], flat["given"], self.tokens, synapses.transposed, *synapses.backward[signal]
            wanted = flat["wanted"], self.x.shape[1], self.start, synapses.signals[signal].start
            self._launch(bundles_cpu.gather_cpu, gradient, *read, self._segment, first, 1, length, *wanted)

    def accumulate_weight_grad(self, length):
        flat, synapses = self._flat, self.synapses
        read = flat["x"], flat["fired"], self.x.shape[1], flat["d"], self.tokens
        self._launch(bundles_cpu.weight_grad_cpu, synapses.gradient, *read, synapses.learned, self.row, self.batch, length)

    def advance(self, length):
        self._launch(bundles_cpu.advance_cpu, self.x, self.fired, self.start, length, self.history, self.tokens)

    def ring(self, signal):
        own = self._axons[signal]
        return {"value": own.ring, "fired": own.fired, "start": own.start}

    def past(self, signal):
        size, history = self.signals[signal]
        rows = self._axons[signal].ring[:, self.row - history : self.row]
        return np.moveaxis(rows, 0, 2).reshape(history, self.batch, -1)[:, :, :size].copy()

    def set_past(self, signal, past):
        own, history = self._axons[signal], self.signals[signal][1]
        values = np.ascontiguousarray(past[:history], np.float32)
        self._launch(bundles_cpu.write_values_cpu, own.ring, own.fired, self.start, -history, values)

    def reset(self, sequences):
        silent = np.flatnonzero(sequences)
        self.x[:, self._before, silent], self.fired[:, self._before, silent] = 0, 0
