"""Calibration: second moments of what weights are multiplied with while a model reads a text. Quantisation rounds for them.

The decoder reads one signal. A current is the sum of several projections, so the sources of all of them count together: a `Group` has
neighbouring targets of a current that read the same sources, each through the delay of its bundle.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .brain import Brain
from .model import NeuroGenModel
from .projection import Projection


@dataclass
class Group:
    """Neighbouring targets of a current, as many as the smallest tile of its projections has.

    bundles: (projection, index of the bundle, slice of its targets) of all their synapses. moments [K, K] float32: the mean of x x^T, x the
    values of their K sources, one bundle after the other; of tokens.
    """

    bundles: list[tuple[Projection, int, slice]]
    moments: np.ndarray | float = 0.0

    def add(self, signals: dict[str, np.ndarray], tokens: int):
        """Add the sum of x x^T over the last `tokens` tokens of signals [M, tokens, B], the oldest first."""
        x = np.concatenate([_sources(p, index, signals[p.arc.source], tokens) for p, index, _ in self.bundles])
        self.moments = self.moments + x @ x.T


def groups(brain: Brain) -> Iterator[Group]:
    """The groups of all currents."""
    for current in dict.fromkeys(arc.target for arc in brain.arcs):
        projections = [p for p in brain.projections if p.arc.target == current]
        width = min(p.arc.bundle for p in projections)
        for first in range(0, projections[0].arc.targets, width):
            bundles = []
            for p in projections:
                tile, offset = divmod(first, p.arc.bundle)
                bundles += [(p, int(index), slice(offset, offset + width)) for index in np.flatnonzero(p.tile == tile)]
            if bundles:  # pruning may leave none
                yield Group(bundles)


def calibrate(model: NeuroGenModel, segments: Iterable[np.ndarray]) -> tuple[list[Group], np.ndarray]:
    """(groups with their moments; the mean of x x^T [N, N], x what the decoder reads), while the model reads segments: token ids [T, B]
    int32, each the continuation of the last, the first from a zero state."""
    act, made, decoder, tokens, brain = None, list(groups(model.brain)), 0.0, 0, model.brain
    for ids in segments:
        act = act or model.activity(*ids.shape)
        model.load_segment(act, ids, np.concatenate([ids[1:], np.full_like(ids[:1], -1)]))
        brain.forward(act, functools.partial(brain.decoder.losses, act))
        signals = {name: _values(model, act, name) for name in {arc.source for arc in brain.arcs}}
        for group in made:
            group.add(signals, act.length)
        x = model.backend.to_numpy(act.decoder_input).astype(np.float64).reshape(ids.size, -1)
        decoder, tokens = decoder + x.T @ x, tokens + ids.size
        act.advance(act.length)
    for group in made:
        group.moments /= tokens
    return made, decoder / tokens


def _values(model, act, signal):
    """The values [M, tokens, B] float32 of a signal in this segment and in the history before it, M padded to whole blocks."""
    ring = {name: model.backend.to_numpy(array) for name, array in act.synapses.ring(signal).items()}
    rows = ring["start"][0] + np.arange(-model.brain.history(signal), act.length)
    x = ring["value"][:, rows % ring["value"].shape[1]].astype(np.float32)  # [words, tokens, B, 64]
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(-1, *x.shape[1:3])


def _sources(projection, index, x, tokens):
    """Values [sources, tokens B] that a bundle carries in the last `tokens` tokens of a signal x [M, tokens, B]."""
    size, end = projection.arc.bundle, x.shape[1] - projection.delay.ravel()[index]
    first = projection.block.ravel()[index] * size
    return x[first : first + size, end - tokens : end].reshape(size, -1)
