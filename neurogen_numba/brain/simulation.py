"""Simulation of the dynamics alone: neurons, axons and memories driven by noise, without tokens, decoder or learning."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..config import Brain as BrainConfig
from ..kernels import rng
from .activity import Activity
from .brain import Brain
from .component import Component


def chunks(batch: int) -> int:
    """Chunks of a segment: more for few copies, because the first and the last chunks overlap with fewer others."""
    return max(8, 32 // batch)


class Stimulus(Component):
    """Poisson input in place of the embedding: stimulates random neurons of the Thalamus (kernels/stimulus.py)."""

    name, stream, inputs = "stimulus", "thalamus", ("thalamus.current",)

    def __init__(self, backend, rate: float, strength: float, seed: int):
        self.backend, self.rate, self.strength, self.key = backend, np.float32(rate), np.float32(strength), rng.key(seed)
        self.ticks = backend.zeros(1, "uint64")

    def forward(self, act, first, last):
        current = act.currents["thalamus.current"].value[first:last]
        self.backend.poisson(current, self.rate, self.strength, self.key, self.ticks)
        self.backend.apply(np.add, self.ticks, np.uint64(last - first), out=self.ticks)


class Simulation:
    """`batch` copies of a brain with the same wiring, each with its own noise. A tick corresponds to a token.

    rate: probability per tick that a neuron of the Thalamus is stimulated; strength: of a stimulus.
    """

    def __init__(self, config: BrainConfig, backend, batch: int = 1, rate: float = 0.1, strength: float = 3.0, seed: int = 0):
        small = dataclasses.replace(config, vocabulary=1, neuromodulation=False)  # the decoder is not used, so nothing surprises
        self.brain = Brain(small, backend, senses=Stimulus(backend, rate, strength, seed))
        self.brain.initialise(seed)
        self.segment = config.chunk * chunks(batch)  # ticks
        with backend.part(f"activity of {batch} copies for {self.segment} ticks"):
            self.act = Activity(self.brain, self.segment, batch)
        self._run = backend.record(self._step)

    def run(self):
        """Simulate `segment` ticks."""
        self._run()

    def _step(self):
        self.brain.forward(self.act)
        self.act.advance(self.segment)
