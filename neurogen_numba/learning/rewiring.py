"""Structural plasticity: bundles of synapses with small weights are removed, and as many grow from other sources, with other delays.

Three criteria, here applied to whole bundles:

- set: remove the smallest, grow at random (Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
  connectivity inspired by network science").
- rigl: remove the smallest, grow where the gradient is largest (Evci et al. 2020, "Rigging the lottery: making all tickets winners"). Of an
  absent bundle the gradient costs as much as of a present one, so each new bundle is the best of CANDIDATES drawn at random.
- deep_r: the norm of a bundle takes a random step with a drift towards 0; at 0 the bundle is removed, and one grows at random (Bellec et
  al. 2018, "Deep rewiring: training very sparse deep networks").

The number of bundles of a tile stays. A new bundle begins with weights of 0, so it changes nothing until it has learned. With the
three-factor rule (brain/exploration.py), which scales all weights of a projection alike, it begins with weights drawn as the first ones.

Norms, gradients and the choice among candidates are computed on the device. One number per bundle is copied to the host, which draws.
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
        arcs, offset = self.brain.arcs, self.brain.parameters.offset
        self._shapes = np.array([(arc.bundles_per_tile, arc.blocks, arc.first_delay) for arc in arcs])
        self._first_rows = np.array([offset[f"{arc.name}.weight"] // arc.bundle**2 for arc in arcs])

    def due(self, step: int, steps: int) -> bool:
        """Whether update `step` (from 1) of `steps` rewires."""
        return step % self.training.rewire_interval == 0 and step < LAST * steps

    def due_before(self, steps: int) -> bool:
        """Whether any of `steps` updates rewires."""
        return self.training.rewire_interval < LAST * steps

    def __call__(self, act, step: int, steps: int) -> int:
        """Rewire after the backward pass of update `step` (from 1) of `steps`, on the segment of `act`: overwrites structure, weights,
        gradients and moments of the bundles that change. Returns how many bundles grew."""
        share, sizes = share_at(self.training, step, steps), sorted({p.arc.bundle for p in self.projections})
        grown = sum(self._rewire([p for p in self.projections if p.arc.bundle == size], act, share, step) for size in sizes)
        if grown:
            self.brain.rewire()
        return grown

    def _rewire(self, projections, act, share, step):
        """Rewire projections whose bundles have one size, all together. Returns K, how many bundles grow.

        of, slots [K]: index of a bundle's projection, and of the bundle within it. pairs [K]: what it becomes, as `grow_bundles` has it.
        """
        chosen = [self._choose(p, share, step) for p in projections]
        slots, pairs = (np.concatenate(parts, axis=-1) for parts in zip(*chosen, strict=True))
        ends = np.cumsum([len(local) for local, _ in chosen])
        if not len(slots):
            return 0
        of = np.repeat([self.brain.projections.index(p) for p in projections], np.diff(ends, prepend=0))
        pairs = self._best(act, of, slots, pairs) if self.training.rewire == "rigl" else pairs[0]
        grown = list(zip(projections, np.split(slots, ends[:-1]), np.split(pairs, ends[:-1]), strict=True))
        for p, local, new in grown:
            p.set_structure(*with_bundles(p, local, new))
        parameters, asarray, size = self.brain.parameters, self.model.backend.asarray, projections[0].arc.bundle ** 2
        values, gradients = (flat.reshape(-1, size) for flat in (parameters.flat_value, parameters.flat_gradient))  # a bundle is a row
        rows = self._first_rows[of] + slots
        index = asarray(rows, "int64")
        if act.exploration:  # gradients reach no synapse, and a weight of 0 would stay 0
            seed = self.training.seed
            drawn = [p.draw_weights(local, generator_of(seed, f"{p.arc.name}.weight.{step}")) for p, local, _ in grown]
            values[index] = asarray(np.concatenate(drawn).reshape(-1, size), "float32")
        else:
            values[index] = 0
            gradients[index] = self._gradient(act, of, slots, pairs)
        self.model.optimizer.begin_again(rows, size)
        return len(slots)

    def _choose(self, projection, share, step):
        """(slots [K], pairs [candidates, K]) of the bundles to remove, and what may grow in their place."""
        arc, rng = projection.arc, generator_of(self.training.seed, f"{projection.arc.name}.rewire.{step}")
        weight = projection.weight.reshape(len(projection.weight), -1)
        norms = self.model.backend.to_numpy(_squares(weight)) ** 0.5
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

    def _best(self, act, of, slots, pairs):
        """The candidate with the largest gradient, for each bundle [K]."""
        norms = np.stack([_squares(self._gradient(act, of, slots, candidate)) for candidate in pairs])
        return pairs[self.model.backend.to_numpy(norms.argmax(axis=0)), np.arange(len(slots))]

    def _gradient(self, act, of, slots, pairs):
        """Gradient [K, numbers of a bundle] of the bundles as these pairs [K], summed over all ranks."""
        per_tile, blocks, first_delay = self._shapes[of].T
        gradient = act.synapses.bundle_grad(of, slots // per_tile, pairs % blocks, first_delay + pairs // blocks, act.length)
        self.model.communicator.begin(gradient)
        self.model.communicator.join()
        return gradient


def _squares(rows):
    """The sum of squares of each row [K, N]."""
    return (rows * rows).sum(axis=1)


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
