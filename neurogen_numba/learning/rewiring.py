"""Structural plasticity: bundles of synapses with small weights are removed, and as many grow from other sources, with other delays.

Three criteria, here applied to whole bundles:

- set: remove the smallest, grow at random (Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
  connectivity inspired by network science").
- rigl: remove the smallest, grow where the gradient is largest (Evci et al. 2020, "Rigging the lottery: making all tickets winners"). Of an
  absent bundle the gradient costs as much as of a present one, so each new bundle is the best of CANDIDATES drawn at random.
- deep_r: the norm of a bundle takes a random step with a drift towards 0; at 0 the bundle is removed, and one grows at random (Bellec et
  al. 2018, "Deep rewiring: training very sparse deep networks").

The number of bundles of a tile stays. A new bundle begins with weights of 0, so it changes nothing until it has learned.
"""

from __future__ import annotations

import math

import numpy as np

from ..brain.connectome import Arc, grow_bundles
from ..brain.connectome import generator as generator_of
from ..config import Training
from ..errors import ConfigError

CANDIDATES = 8  # per bundle that grows, for rigl
LAST = 0.75  # of a run: the share of updates after which wiring stays, so that new synapses have time to learn


class Rewiring:
    """Rewires a model at intervals of `training.rewire_interval`. Raises ConfigError if no projection has room for other bundles."""

    def __init__(self, model):
        self.model, self.brain, self.training = model, model.brain, model.config.training
        known = [p for p in self.brain.projections if not p.arc.pruned]  # a pruned one keeps its wiring
        self.projections = [p for p in known if p.arc.bundles_per_tile < p.arc.blocks * p.arc.delays]
        if not self.projections:
            raise ConfigError(
                "training.rewire_interval: every target reads all blocks of its sources at all delays, so no other bundle can grow; "
                "set it to 0, or lower brain.fan_in"
            )

    def due(self, step: int, steps: int) -> bool:
        """Whether update `step` (from 1) of `steps` rewires."""
        return step % self.training.rewire_interval == 0 and step < LAST * steps

    def due_before(self, steps: int) -> bool:
        """Whether any of `steps` updates rewires."""
        return self.training.rewire_interval < LAST * steps

    def __call__(self, act, step: int, steps: int) -> int:
        """Rewire after the backward pass of update `step` (from 1) of `steps`, on the segment of `act`: overwrites structure, weights and
        moments of the bundles that change, and the gradients of all synapses. Returns how many bundles grew."""
        share = share_at(self.training, step, steps)
        grown = {p.arc.name: self._choose(p, share, step) for p in self.projections}
        grown = {name: choice for name, choice in grown.items() if len(choice[0])}
        if not grown:
            return 0
        if self.training.rewire == "rigl":
            self._rank(act, grown)
        for projection in self.projections:
            if projection.arc.name in grown:
                slots, pairs = grown[projection.arc.name]
                self._clear(projection, slots)
                projection.set_structure(*with_bundles(projection, slots, pairs[0]))
        self.brain.rewire()
        self._gradient(act)
        return sum(len(slots) for slots, _ in grown.values())

    def _choose(self, projection, share, step):
        """(slots [K], pairs [candidates, K]) of the bundles to remove, and what may grow in their place."""
        arc, rng = projection.arc, generator_of(self.training.seed, f"{projection.arc.name}.rewire.{step}")
        weight = projection.weight.reshape(len(projection.weight), -1)
        norms = self.model.backend.to_numpy((weight * weight).sum(axis=1)) ** 0.5
        if self.training.rewire == "deep_r":
            walked = random_walk(norms, share, rng)
            factor = np.where(walked > 0, walked / np.maximum(norms, 1e-30), 1.0)
            weight *= self.model.backend.asarray(factor.astype(np.float32)[:, None])
            slots = np.flatnonzero(walked <= 0)
        else:
            slots = np.sort(np.argsort(norms, kind="stable")[: round(share * len(norms))])
        count = CANDIDATES if self.training.rewire == "rigl" else 1
        pairs = grow_bundles(arc, projection.block, projection.delay, slots, count, rng)
        there = (pairs >= 0).all(axis=0)  # a tile may have no other bundle left
        return slots[there], pairs[:, there]

    def _rank(self, act, grown):
        """Put the candidate with the largest gradient first, for every bundle that grows."""
        before = {p.arc.name: (p.block, p.delay) for p in self.projections}
        norms = {name: [] for name in grown}
        for candidate in range(CANDIDATES):
            for p in self.projections:
                if p.arc.name in grown:
                    slots, pairs = grown[p.arc.name]
                    p.set_structure(*with_bundles(p, slots, pairs[candidate]))
            self.brain.rewire(gradient_only=True)
            self._gradient(act)
            for p in self.projections:
                if p.arc.name in grown:
                    gradient = self._rows(p.d_weight, grown[p.arc.name][0])
                    norms[p.arc.name].append(self.model.backend.to_numpy((gradient * gradient).sum(axis=1)))
        for p in self.projections:
            p.set_structure(*before[p.arc.name])
        for name, (slots, pairs) in grown.items():
            best = np.argmax(norms[name], axis=0)
            grown[name] = slots, pairs[best, np.arange(len(slots))][None]

    def _gradient(self, act):
        """Compute the gradients of all weights of synapses again, for the wiring that there is now."""
        self.brain.synapses.gradient[...] = 0
        act.synapses.accumulate_weight_grad(act.length)
        self.model.communicator.begin(self.brain.synapses.gradient)
        self.model.communicator.join()

    def _rows(self, array, slots):
        return array.reshape(len(array), -1)[self.model.backend.asarray(slots, "int64")]

    def _clear(self, projection, slots):
        """Set weights, and their optimiser state, to 0."""
        index = self.model.backend.asarray(slots, "int64")
        bundles = len(projection.weight)
        projection.weight.reshape(bundles, -1)[index] = 0
        self.model.optimizer.clear(f"{projection.arc.name}.weight", slots, bundles)


def share_at(training: Training, step: int, steps: int) -> float:
    """Share of the bundles that a rewiring at update `step` removes: from `rewire_share` along half a cosine to 0 at the last one."""
    return training.rewire_share * 0.5 * (1 + math.cos(math.pi * min(1.0, step / (LAST * steps))))


def random_walk(norms: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Norms after a step of DEEP R: a drift towards 0 and noise, each of `share` times the median norm."""
    length = share * float(np.median(norms))
    return norms + length * (rng.standard_normal(len(norms)) - 1)


def with_bundles(projection, slots: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(block, delay) [tiles, bundles per tile] of a projection after bundles `slots` have become pairs of a delay and a block."""
    arc: Arc = projection.arc
    block, delay = projection.block.copy().reshape(-1), projection.delay.copy().reshape(-1)
    block[slots], delay[slots] = pairs % arc.blocks, arc.first_delay + pairs // arc.blocks
    return block.reshape(projection.block.shape), delay.reshape(projection.delay.shape)
