"""Delayed synapses from a signal to a current."""

from __future__ import annotations

import functools
import math

import numpy as np

from ..optim.parameters import Parameter, Parameters
from .connectome import Arc, draw_bundles, generator, real_weights


class Current:
    """Synaptic current of a target: value [T, B, N] of the buffered tokens; if asked for, gradient [C, B, N] of the current chunk."""

    def __init__(self, backend, tokens, batch, size, chunk, gradient):
        self.value = backend.zeros((tokens, batch, size))
        if gradient:
            self.gradient = backend.zeros((chunk, batch, size))


class Signal:
    """Output of a source: x [T, B, M] plain values of the buffered tokens, None for axons; for learning, gradient [C, B, M] of the current
    chunk."""

    def __init__(self, backend, batch, size, chunk, learning):
        self.x = None
        if learning:
            self.gradient = backend.zeros((chunk, batch, size))


class Projection:
    """The synapses of one arc, in bundles: structure and weights. The backend's `Synapses` computes them.

    block, delay: [tiles, bundles per tile] int32 NumPy, read-only: the source block of a bundle, and its axonal delay in tokens; [bundles]
    of a pruned projection. tile: [bundles] int32, the tile of each bundle.
    """

    def __init__(self, arc: Arc, backend):
        self.arc, self.backend = arc, backend

    def parameters(self):
        arc = self.arc
        meaning = f"synapses {arc.source} -> {arc.target}, delays {arc.first_delay} to {arc.longest_delay} tokens"
        high = 0.0 if arc.inhibitory else math.inf
        how = {"decays": True, "high": high, "bundle": arc.bundle, "quantizable": True}
        yield Parameter(f"{arc.name}.weight", arc.weight_shape, meaning, **how)

    def initialise(self, parameters: Parameters, seed: int):
        """Draw structure and weights."""
        self.set_structure(*draw_bundles(self.arc, seed))
        drawn = self.draw_weights(np.arange(len(self.tile)), generator(seed, f"{self.arc.name}.weight"))
        parameters.value[f"{self.arc.name}.weight"][...] = self.backend.asarray(drawn, "float32")

    def draw_weights(self, bundles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """First weights [K, BS, BT] of some bundles [K], NumPy float64."""
        arc, tile = self.arc, self.tile[bundles]
        sources, targets = real_weights(arc, self.block, self.tile)
        # of each tile; smaller for one that reads the last block
        fan_in = np.bincount(self.tile, sources.sum(axis=1), arc.tiles)
        drawn = rng.standard_normal((len(bundles), arc.bundle, arc.bundle))
        drawn *= sources[bundles, :, None] * targets[bundles, None, :] / np.sqrt(fan_in[tile])[:, None, None]
        return -np.abs(drawn) if arc.inhibitory else drawn

    def set_structure(self, block, delay, tile=None):
        """Structure as `draw_bundles` returns it, NumPy."""
        tile = self.arc.all_tiles if tile is None else tile
        self.block, self.delay, self.tile = (np.array(array, np.int32) for array in (block, delay, tile))
        for array in (self.block, self.delay, self.tile):
            array.flags.writeable = False

    def bind(self, parameters: Parameters):
        name = f"{self.arc.name}.weight"
        self.weight, self.d_weight = parameters.value.get(name), parameters.gradient.get(name)  # without them, of codes
        self.dense = functools.partial(parameters.dense, name)  # a copy of the weights, NumPy
