"""Learning signals: what a backward pass takes as the gradient of a component's outputs, for each rule of learning.

    symmetric   the gradient of the loss, through the transposed weights of the synapses that read an output, and of the decoder
    random      e R: e is the gradient of the decoder's input, R fixed and random (Lillicrap et al. 2016, Nature Communications 7:13276, and
                "random e-prop" in Bellec et al. 2020, Nature Communications 11:3625)
    dopamine    -dopamine (x - mean of x): no gradient of the loss, and one dopamine for all neurons of a sequence (three-factor rules:
                Frémaux and Gerstner 2016, Frontiers in Neural Circuits 9:85)

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
DOPAMINE_SCALE = 1e-9  # far below Adam's epsilon of 1e-8, where an update is the gradient times rate / epsilon


class Symmetric:
    """Gradients of the loss, back through the synapses."""

    rewarded = False  # whether dopamine scales the decoder's gradient at choices

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

    rewarded = False

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


class Dopamine:
    """-dopamine (x - mean of x), scaled: dopamine of the sequence after the chunk; x: an output, 1 for an event; its mean over the chunk.

    choices [T, B] uint8: targets that the model has chosen itself. The decoder learns them in proportion to dopamine, all others as always.
    """

    rewarded = True

    def __init__(self, act: Activity):
        self.act, brain, zeros = act, act.brain, act.brain.backend.zeros
        self.choices, self.weight, self._dopamine_less_1 = (
            zeros((act.tokens, act.batch), "uint8"),
            zeros((act.tokens, act.batch)),
            zeros(act.batch),
        )
        self.factor = zeros(1)
        self.mean = {name: zeros(brain.signal_sizes[name]) for component in brain.components for name in component.outputs}

    def write(self, gradients: dict, first: int, last: int):
        """As `Symmetric.write`."""
        act, backend = self.act, self.act.brain.backend
        columns = (last - first) * act.batch
        backend.apply(np.multiply, act.weight, np.float32(-DOPAMINE_SCALE / act.loss_scale), out=self.factor)
        for name, gradient in gradients.items():
            module, mean = name.partition(".")[0], self.mean[name]
            if name.endswith(".axon"):
                backend.apply(np.greater, act.v[module][first + 1 : last + 1], np.float32(1), out=gradient)  # events
            else:
                backend.apply(np.copyto, gradient, act.signals[name].x[first:last])
            backend.apply(np.copyto, mean, np.float32(0))
            backend.add_rows(mean, gradient.reshape(columns, -1))
            backend.apply(np.divide, mean, np.float32(columns), out=mean)
            backend.apply(np.subtract, gradient, mean, out=gradient)
            backend.apply(np.multiply, gradient, act.levels["dopamine"][None, :, None], out=gradient)
            backend.apply(np.multiply, gradient, self.factor, out=gradient)

    def decoder_weight(self, first: int, last: int):
        """Weights [(last - first) B] of the decoder's gradient for tokens first ... last - 1: act.weight, at choices times dopamine."""
        act, apply, weight = self.act, self.act.brain.backend.apply, self.weight[first:last]
        apply(np.subtract, act.levels["dopamine"], np.float32(1), out=self._dopamine_less_1)
        apply(np.multiply, self.choices[first:last], self._dopamine_less_1, out=weight)
        apply(np.add, weight, np.float32(1), out=weight)
        apply(np.multiply, weight, act.weight, out=weight)
        return weight.reshape(-1)


SIGNALS = {"symmetric": Symmetric, "random": RandomFeedback, "dopamine": Dopamine}
