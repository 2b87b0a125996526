"""Synapses in bundles on the CPU: buffers and calls of the event-driven kernels (kernels/bundles_cpu.py)."""

from __future__ import annotations

import numpy as np

from ..kernels import bundles_cpu
from ..kernels.bundles_cpu import WORD
from ..kernels.population import Axon
from .base import Synapses, SynapticState


def by_block(arc, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(block_start [blocks + 1], bundle [bundles]) int32: which bundles read each block of sources, in ascending order."""
    start = np.zeros(arc.blocks + 1, np.int32)
    start[1:] = np.cumsum(np.bincount(block.ravel(), minlength=arc.blocks))
    return start, np.argsort(block.ravel(), kind="stable").astype(np.int32)


class CpuSynapses(Synapses):
    def __init__(self, projections):
        self.projections = projections

    def wire(self):
        self.readers = {p.arc.name: by_block(p.arc, p.block) for p in self.projections}

    def refresh(self):
        pass  # the kernels read the weights themselves

    def state(self, signals, currents, tokens, batch, learning):
        return CpuSynapticState(self, signals, currents, tokens, batch, learning)


class CpuSynapticState(SynapticState):
    """Of each signal x [words, history + T, B, WORD] float32 and the masks fired, near [words, history + T, B] uint64; of each current its
    gradient d [words, T, B, WORD]. Rows 0 ... history - 1 are the tokens before the segment."""

    def __init__(self, synapses, signals, currents, tokens, batch, learning):
        self.synapses, self.batch = synapses, batch
        self.sizes = {name: size for name, (size, _) in signals.items()}
        self.history = {name: history for name, (_, history) in signals.items()}
        shapes = {name: (-(-size // WORD), history + tokens, batch) for name, (size, history) in signals.items()}
        self.x = {name: np.zeros((*shape, WORD), np.float32) for name, shape in shapes.items()}
        self.fired = {name: np.zeros(shape, np.uint64) for name, shape in shapes.items()}
        # a plain value has a gradient wherever it is
        self.near = {n: np.full(shape, 0 if n.endswith(".axon") else 2**64 - 1, np.uint64) for n, shape in shapes.items()}
        self.d = {n: np.zeros((-(-size // WORD), tokens, batch, WORD), np.float32) for n, size in currents.items()} if learning else {}

    def axon(self, signal):
        return Axon(self.x[signal], np.array([self.history[signal]], np.int32), self.fired[signal], self.near[signal])

    def write_values(self, signal, first, last, x):
        bundles_cpu.write_values_cpu(self.x[signal], self.fired[signal], self.history[signal] + first, x)

    def forward(self, current, first, last, value):
        value[...] = 0
        for p in self.synapses.projections:
            if p.arc.target == current:
                x, fired, row = self.x[p.arc.source], self.fired[p.arc.source], self.history[p.arc.source] + first
                bundles_cpu.make_forward_cpu(p.arc.bundle)(value, x, fired, p.weight, p.block, p.delay, row)

    def set_current_grad(self, current, first, last, gradient):
        bundles_cpu.write_gradient_cpu(self.d[current], first, gradient)

    def source_grad(self, signal, first, last, length, gradient):
        gradient[...] = 0
        masks, row = (self.fired[signal], self.near[signal]), self.history[signal] + first
        for p in self.synapses.projections:
            if p.arc.source == signal:
                wiring = p.weight, p.delay, *self.synapses.readers[p.arc.name]
                bundles_cpu.make_backward_cpu(p.arc.bundle)(gradient, *masks, self.d[p.arc.target], *wiring, first, row, length)

    def accumulate_weight_grad(self, length):
        for p in self.synapses.projections:
            read = self.x[p.arc.source], self.fired[p.arc.source], self.d[p.arc.target], p.block, p.delay, self.history[p.arc.source]
            bundles_cpu.make_weight_grad_cpu(p.arc.bundle)(p.d_weight, *read, length)

    def advance(self, length):
        for name, history in self.history.items():
            if history:
                for array in (self.x[name], self.fired[name]):
                    array[:, :history] = array[:, length : length + history].copy()

    def ring(self, signal):
        return {"value": self.x[signal], "fired": self.fired[signal], "start": np.array([self.history[signal]], np.int32)}

    def past(self, signal):
        history, size = self.history[signal], self.sizes[signal]
        return np.moveaxis(self.x[signal][:, :history], 0, 2).reshape(history, self.batch, -1)[:, :, :size].copy()

    def set_past(self, signal, past):
        history = self.history[signal]
        bundles_cpu.write_values_cpu(self.x[signal], self.fired[signal], 0, np.ascontiguousarray(past[:history], np.float32))

    def forget(self, sequences):
        silent = np.flatnonzero(sequences)
        for name, history in self.history.items():
            self.x[name][:, :history, silent], self.fired[name][:, :history, silent] = 0, 0
