"""Learning online: a few updates, by the step of the trainer, on a text that somebody has just written; and their exact reversal.

A lesson is bounded: `passes` updates on each segment of the text, with the learning rate `rate` and the gradient clipped to the norm
`training.clip`. An update of Adam changes a parameter by a few times the rate at most, one of the three-factor rule by more
(brain/exploration.py).

The batch of an update has copies of the segment, segments of earlier lessons, each from a zero state, and sequences of text that the model
was trained on (rehearsal.py). Each target has the same weight. The text goes on from update to update, with the state of its sequences.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from ..config import FLOAT32
from ..errors import ConfigError, TrainingError
from ..system.waiting import doing
from .rehearsal import Rehearsal

DEFAULT = 2e-4, 60  # learning rate, and updates on each segment of a text
ALONE = 3e-4, 20  # the same where no training text is rehearsed
REVIEWED = 8  # segments of earlier lessons in a batch, at most; with more of them, each comes in its turn
LESSON_RATIO = 1 / 6  # targets of the copies of a segment to those of the training text; from one copy to one a sequence of text


@dataclass(frozen=True)
class Lesson:
    """A text that was learned. before, after: mean loss of its tokens in nats, in the first and the last pass; updates: their number.

    alone: why no training text was rehearsed with it, a sentence; "" if some was, or if no run has trained the model.
    """

    before: float
    after: float
    updates: int
    alone: str = ""


class OnlineLearner:
    """Updates a model on texts, each from a zero state, and can restore the weights from before the first of them."""

    def __init__(self, model):
        self.model, self._rehearsal, self._act = model, Rehearsal(model), None
        self._begun = None  # (weights, tensors of the optimiser, its updates) before the first lesson
        self._learned = []  # segments of all lessons since

    @property
    def changed(self) -> bool:
        """Whether a lesson has changed the weights."""
        return self._begun is not None

    def learn(self, text: str, rate: float | None, passes: int | None) -> Lesson:
        """Make `passes` updates on each segment of a text, at learning rate `rate`; None: as DEFAULT or ALONE have it. Raises what
        `NeuroGenModel.learn` does."""
        segments = self._segments(text)
        if passes is not None and (isinstance(passes, bool) or not isinstance(passes, (int, np.integer)) or not 1 <= passes <= 1000):
            raise ConfigError(f"passes: from 1 to 1,000, not {passes!r}")
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, (float, int, np.floating)) or not 0 <= rate <= FLOAT32):
            raise ConfigError(f"rate: a learning rate from 0 on is needed, not {rate!r}")
        rehearses = self._rehearsal.available()
        usual = DEFAULT if rehearses else ALONE
        rate, passes = float(usual[0] if rate is None else rate), int(passes or usual[1])
        before, begun = self._weights(), self._begun
        self._begun = begun or before
        try:
            copies, beside = self._copies(segments) if rehearses else 1, self._beside(rehearses)
            self._prepare(copies + min(len(self._learned), REVIEWED) + (self._rehearsal.sequences if rehearses else 0))
            losses = []
            with doing("learning", passes) as show:
                for done in range(passes):
                    show(done)
                    losses.append(self._pass(segments, copies, beside, rate))
        except BaseException:  # Ctrl-C as well: a lesson makes all of its updates, else no update
            self._restore(before)
            self._begun = begun
            raise
        self._learned += segments
        if self.model.optimizer.horizon:  # a saved checkpoint is used with its average
            self.model.optimizer.average[...] = self.model.brain.parameters.flat_value
        return Lesson(losses[0], losses[-1], passes * len(segments), self._rehearsal.missing)

    def _copies(self, segments):
        """The copies of each segment in a batch, by their mean number of targets."""
        in_segment = sum((targets >= 0).sum() for _, targets in segments) / len(segments)
        beside = self._rehearsal.sequences * len(segments[0][0])
        return int(np.clip(round(LESSON_RATIO * beside / in_segment), 1, self._rehearsal.sequences))

    def _prepare(self, sequences):
        """Reset the activity, or make one of as many sequences."""
        if self._act is None or self._act.batch != sequences:
            self._act = None  # its memory is free before another one is allocated
            self._act = self.model.activity(self.model.config.training.segment, sequences, learning=True)
        self._act.reset()

    def _pass(self, segments, copies, beside, rate):
        """An update on each segment; returns the mean loss of their targets."""
        total = counted = 0
        for inputs, targets in segments:
            parts, resets = next(beside)
            batch = [np.hstack(each) for each in zip(*[(inputs, targets)] * copies, *parts, strict=True)]
            _, _, norm = self.model.update(self._act, *batch, rate, np.array([not counted] * copies + resets))
            loss, in_segment = float(self._act.surprise[0]), int((targets >= 0).sum())
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(f"nothing was learned: the loss of this text is {loss}, its gradient {norm}; take a lower rate")
            total, counted = total + loss * in_segment, counted + in_segment
        return total / counted

    def _beside(self, rehearses):
        """The sequences beside the copies, of update after update: (parts, resets). A part is (inputs, targets) of one or more sequences,
        `resets` has a bool for each of these. The training text begins anew where it did in training, after an end of text."""
        turn, count = itertools.cycle(self._learned), min(len(self._learned), REVIEWED)
        while True:
            parts, resets = list(itertools.islice(turn, count)), [True] * count
            if rehearses:
                text = self._rehearsal.next()
                ends = (text[0][0] == self.model.tokenizer.end_of_text) & self.model.config.text.reset_at_documents
                parts, resets = [*parts, text], [*resets, *ends]
            yield parts, resets

    def unlearn(self):
        """Restore the weights and the optimiser from before the first lesson, bit for bit."""
        if self._begun:
            self._restore(self._begun)
            self._begun, self._learned = None, []
            self._rehearsal.restart()

    def _segments(self, text):
        """(inputs, targets) [T, 1] int32 of each segment, the last one padded."""
        tokenizer, T = self.model.tokenizer, self.model.config.training.segment
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
