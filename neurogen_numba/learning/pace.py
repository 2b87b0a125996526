"""How fast a run goes, by its last updates. What it spends on looking at itself does not count."""

from __future__ import annotations

from typing import NamedTuple

LAST = 10  # updates that the speed is measured over


class Mark(NamedTuple):
    """Where a run was at a moment; between two of them its speed is measured."""

    step: int
    tokens: int
    moment: float  # seconds on the clock
    waited: float  # seconds, for text


class Pace:
    """The speed between the last marks, one after each update; `start` is that before the first."""

    def __init__(self, start: Mark):
        self._start, self._marks = start.step, [start]

    def add(self, mark: Mark) -> None:
        self._marks = [*self._marks[-LAST:], mark]
        if len(self._marks) == 3 and self._marks[0].step == self._start:
            del self._marks[0]  # the first update loads or compiles the kernels: as soon as there is another, it is no measure

    def pause(self, seconds: float) -> None:
        """So much time went by with something else."""
        self._marks = [mark._replace(moment=mark.moment + seconds) for mark in self._marks]

    @property
    def tokens_per_second(self) -> float:
        return self._gone("tokens") / self._seconds()

    @property
    def waited(self) -> float:
        """Share of the time that went by without text to train on."""
        return self._gone("waited") / self._seconds()

    @property
    def seconds_per_step(self) -> float:
        return self._seconds() / self._gone("step")

    def _seconds(self):
        return max(1e-9, self._gone("moment"))

    def _gone(self, what):
        return getattr(self._marks[-1], what) - getattr(self._marks[0], what)
