"""The dynamics alone: neurons, axons and memories of a brain driven by noise, without tokens, decoder or learning."""

from __future__ import annotations

import dataclasses

import numpy as np

from .brain.activity import Activity
from .brain.brain import Brain
from .config import Brain as BrainConfig
from .kernels import rng


def chunks(batch: int, mode: str) -> int:
    """Chunks of a segment. In pipelined mode the first and the last have less to overlap with, so there are more of them for few copies."""
    return max(8, 32 // batch) if mode == "pipelined" else 8


class Stimulus:
    """Stands where the embedding would: hits neurons of the Thalamus at random (kernels/stimulus.py)."""

    inputs, outputs, kept, lane = ("thalamus.current",), (), (), "thalamus"

    def __init__(self, backend, rate: float, strength: float, seed: int):
        self.backend, self.rate, self.strength, self.key = backend, np.float32(rate), np.float32(strength), rng.key(seed)
        self.ticks = backend.zeros(1, "uint64")

    def parameters(self):
        return ()

    def initialise(self, parameters, seed):
        pass

    def bind(self, parameters):
        pass

    def allocate(self, act):
        pass

    def forward(self, act, first, last):
        current = act.currents["thalamus.current"].value[first:last]
        self.backend.poisson(current, self.rate, self.strength, self.key, self.ticks)
        np.add(self.ticks, np.uint64(last - first), out=self.ticks)


class Simulation:
    """A brain of B copies with the same wiring and noise of their own. A tick is what a token is elsewhere.

    rate: share of the neurons of the Thalamus that are hit in a tick; strength: of a hit.
    """

    def __init__(self, config: BrainConfig, backend, batch: int = 1, rate: float = 0.1, strength: float = 3.0, seed: int = 0):
        mute = dataclasses.replace(config, vocabulary=1)  # nobody asks the decoder
        self.brain = Brain(mute, backend, senses=Stimulus(backend, rate, strength, seed))
        self.brain.initialise(seed)
        self.segment = config.chunk * chunks(batch, backend.mode)  # ticks
        with backend.part(f"activity of {batch} copies for {self.segment} ticks"):
            self.act = Activity(self.brain, self.segment, batch)
        self._run = backend.record(self._think)

    def run(self):
        """Go on for `segment` ticks."""
        self._run()

    def _think(self):
        self.brain.think(self.act)
        self.act.advance(self.segment)
