"""Learning online: a few updates, by the step of the trainer, on a text that somebody has just written; and their exact reversal.

A lesson is bounded: `passes` updates on each segment of the text, with the learning rate `rate` and the gradient clipped to the norm
`training.clip`. An update of Adam changes a parameter by a few times the rate at most, one of the
three-factor rule by more (brain/exploration.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import FLOAT32
from ..errors import ConfigError, TrainingError

RATE = 3e-4  # learning rate
PASSES = 20  # updates on each segment of a text


@dataclass(frozen=True)
class Lesson:
    """A text that was learned. before, after: mean loss of its tokens in nats, in the first and the last pass; updates: their number."""

    before: float
    after: float
    updates: int


class OnlineLearner:
    """Updates a model on texts, each from a zero state, and can restore the weights from before the first of them."""

    def __init__(self, model):
        self.model = model
        self._act = model.activity(model.config.training.segment, 1, learning=True)
        self._begun = None  # (weights, tensors of the optimiser, its updates) before the first lesson

    @property
    def changed(self) -> bool:
        """Whether a lesson has changed the weights."""
        return self._begun is not None

    def learn(self, text: str, rate: float, passes: int) -> Lesson:
        """Make `passes` updates on each segment of a text, at learning rate `rate`. Errors: as `NeuroGenModel.learn`."""
        segments = self._segments(text)
        if not isinstance(passes, (int, np.integer)) or not 1 <= passes <= 1000:
            raise ConfigError(f"passes: from 1 to 1,000, not {passes!r}")
        if not isinstance(rate, (float, int, np.floating)) or not 0 <= rate <= FLOAT32:
            raise ConfigError(f"rate: a learning rate from 0 on is needed, not {rate!r}")
        before, begun = self._weights(), self._begun
        self._begun = begun or before
        try:
            losses = [self._pass(segments, float(rate)) for _ in range(passes)]
        except BaseException:  # Ctrl-C as well: a lesson is whole or not there
            self._restore(before)
            self._begun = begun
            raise
        if self.model.optimizer.horizon:  # a saved checkpoint is used with its average
            self.model.optimizer.average[...] = self.model.brain.parameters.flat_value
        return Lesson(losses[0], losses[-1], passes * len(segments))

    def _pass(self, segments, rate):
        """An update on each segment; returns the mean loss of their targets."""
        self._act.reset()
        total = counted = 0
        for inputs, targets in segments:
            loss, _, norm = self.model.update(self._act, inputs, targets, rate)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(f"nothing was learned: the loss of this text is {loss}, its gradient {norm}; take a lower rate")
            in_segment = int((targets >= 0).sum())
            total, counted = total + loss * in_segment, counted + in_segment
        return total / counted

    def unlearn(self):
        """Restore the weights and the optimiser from before the first lesson, bit for bit."""
        if self._begun:
            self._restore(self._begun)
            self._begun = None

    def _segments(self, text):
        """(inputs, targets) [T, 1] int32 of each segment, the last one padded."""
        tokenizer, T = self.model.tokenizer, self._act.segment
        ids = tokenizer.encode(text)
        if tokenizer.end_of_text is not None:
            ids = np.append(tokenizer.end_of_text, ids)
        if len(ids) < 2:
            raise ConfigError("there is nothing to learn in a text of fewer than two tokens; give a longer one")
        whole = -(-(len(ids) - 1) // T) * T
        inputs, targets = np.zeros((whole, 1), np.int32), np.full((whole, 1), -1, np.int32)
        inputs[: len(ids) - 1, 0], targets[: len(ids) - 1, 0] = ids[:-1], ids[1:]
        return [(inputs[t : t + T], targets[t : t + T]) for t in range(0, whole, T)]

    def _weights(self):
        model = self.model
        numpy, tensors = model.backend.to_numpy, model.optimizer.tensors()
        return numpy(model.brain.parameters.flat_value), {name: numpy(x) for name, x in tensors.items()}, model.optimizer.steps

    def _restore(self, weights):
        model, (values, tensors, steps) = self.model, weights
        model.brain.parameters.flat_value[...] = model.backend.asarray(values)
        for name, x in model.optimizer.tensors().items():
            x[...] = model.backend.asarray(tensors[name])
        model.optimizer.steps = steps
        model.brain.refresh()
