"""The time budget of a run: its throughput over the last updates, and the number of updates that fit into the time left."""

from __future__ import annotations

import math
from typing import NamedTuple

LAST = 10  # updates over which the throughput is measured


class Mark(NamedTuple):
    """Progress of a run at one moment."""

    step: int
    tokens: int
    moment: float  # seconds on the clock
    waited: float  # seconds spent waiting for text


class Throughput:
    """Throughput between the last LAST + 1 marks. `add` takes a mark after each update; `start` is the mark before the first update."""

    def __init__(self, start: Mark):
        self._start, self._marks, self._oldest = start.step, [start], start

    def add(self, mark: Mark) -> None:
        self._marks = [*self._marks[-LAST:], mark]
        if len(self._marks) == 3 and self._marks[0].step == self._start:
            del self._marks[0]  # the first update loads or compiles the kernels, so it is dropped once there is another
            self._oldest = self._marks[0]

    def plan_made(self) -> None:
        """Measure `seconds_per_step` anew from here: a plan has taken the time before into account."""
        self._oldest = self._marks[-1]

    def pause(self, seconds: float) -> None:
        """Exclude this much time: evaluation, samples and checkpoints do not count."""
        self._marks = [mark._replace(moment=mark.moment + seconds) for mark in self._marks]
        self._oldest = self._oldest._replace(moment=self._oldest.moment + seconds)

    @property
    def tokens_per_second(self) -> float:
        """NaN while only the first update is known."""
        return math.nan if self._marks[0].step == self._start else self._difference("tokens") / self._seconds()

    @property
    def waited(self) -> float:
        """Share of the time spent waiting for text, 0 to 1."""
        return self._difference("waited") / self._seconds()

    @property
    def seconds_per_step(self) -> float:
        """Over the last LAST updates, or over all since the last plan, whichever is less, so that one slow moment counts once."""
        recent, last = self._seconds() / self._difference("step"), self._marks[-1]
        updates = last.step - self._oldest.step
        return min(recent, max(1e-9, last.moment - self._oldest.moment) / updates) if updates else recent

    def steps_within(self, seconds: float, evaluation: float) -> int:
        """Updates that fit into a time, at least 1. evaluation: seconds of evaluation per update, on average."""
        return max(1, int(seconds / (self.seconds_per_step + evaluation)))

    def _seconds(self):
        return max(1e-9, self._difference("moment"))

    def _difference(self, what):
        return getattr(self._marks[-1], what) - getattr(self._marks[0], what)
