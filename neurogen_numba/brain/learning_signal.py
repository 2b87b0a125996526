"""Learning signals: what a backward pass takes as the gradient of a component's outputs, for each rule of learning.

    symmetric   the gradient of the loss, through the transposed weights of the synapses that read an output, and of the decoder
    random      e R: e is the gradient of the decoder's input, R fixed and random (Lillicrap et al. 2016, Nature Communications 7:13276, and
                "random e-prop" in Bellec et al. 2020, Nature Communications 11:3625)

Only the symmetric signal passes from component to component.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .connectome import generator

if TYPE_CHECKING:
    from .activity import Activity


FEEDBACK_SCALE = 0.1  # of random feedback: with 1, the clipped gradient leaves little for the decoder


class Symmetric:
    """Gradients of the loss, back through the synapses."""

    def __init__(self, act: Activity):
        self.act = act

    def write(self, gradients: dict, first: int, last: int):
        """Overwrite gradients, signal -> [C, B, M], of tokens first ... last - 1."""
        act, decoder = self.act, self.act.brain.decoder
        act.synapses.source_grad(gradients, first, last, act.length)
        if decoder.source in gradients:
            gradient = gradients[decoder.source]
            np.add(gradient, act.d_decoder_input[first:last], out=gradient)


class RandomFeedback:
    """The gradient of the decoder's input [C, B, R] times a matrix [R, M] for each signal; that of the decoder's source is exact."""

    def __init__(self, act: Activity):
        self.act, brain = act, act.brain
        outputs = [name for component in brain.components for name in component.outputs if name != brain.decoder.source]
        self.feedback = {name: self._drawn(name, brain) for name in outputs}

    def _drawn(self, name, brain):
        R = brain.decoder.shape[1]
        drawn = generator(self.act.dropout.seed, f"{name}.feedback").standard_normal((R, brain.signal_sizes[name]))
        return brain.backend.asarray(drawn * (FEEDBACK_SCALE / math.sqrt(R)), "float32")

    def write(self, gradients: dict, first: int, last: int):
        """As `Symmetric.write`."""
        error, backend = self.act.d_decoder_input[first:last], self.act.brain.backend
        for name, gradient in gradients.items():
            if name in self.feedback:
                backend.product(gradient.reshape(-1, gradient.shape[2]), error.reshape(-1, error.shape[2]), self.feedback[name])
            else:
                backend.apply(np.copyto, gradient, error)


SIGNALS = {"symmetric": Symmetric, "random": RandomFeedback}
