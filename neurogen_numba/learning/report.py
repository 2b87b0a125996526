"""Reports of a run: the trainer yields them, views show them, metrics.jsonl records them.

They hold plain numbers and text, and BrainReport small arrays, so they can be written or sent without the model.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Report:
    """Root of the reports below; `kind` names each in its record."""

    kind: ClassVar[str]

    def to_record(self) -> dict:
        """The report as one JSON object, its kind first; NaN and infinity become None, since JSON lacks them."""
        return {"kind": self.kind, **_jsonable(dataclasses.asdict(self))}


@dataclass(frozen=True)
class StepReport(Report):
    """One optimiser step."""

    kind: ClassVar[str] = "step"
    step: int  # done so far, over the run's life
    steps: int  # planned in all
    tokens: int  # training tokens so far, without padding
    loss: float  # nats per token
    accuracy: float  # share of tokens predicted right, 0 to 1
    bits_per_byte: float
    learning_rate: float
    gradient_norm: float  # before clipping
    tokens_per_second: float  # of the latest updates; NaN until a second one is made, because the first loads kernels
    seconds: float  # of training, over the run's life
    activity: dict[str, float]  # module -> share of its neurons that fire per token, 0 to 1
    waited: float = 0.0  # share of the latest updates' time spent waiting for text, 0 to 1
    time_limit: float = math.inf  # seconds of training, over the run's life

    @property
    def seconds_left(self) -> float:
        """Seconds of training left: those of the steps at the current throughput, or those of the time limit, whichever end first.

        Infinite while the throughput is unknown or 0.
        """
        if not self.step or not self.tokens_per_second > 0:
            return math.inf
        steps = max(0, self.steps - self.step) * (self.tokens / self.step) / self.tokens_per_second
        return min(steps, max(0, self.time_limit - self.seconds))

    @property
    def done(self) -> float:
        """Part of the run that is done, 0 to 1: of the steps, or of the time limit, whichever ends first."""
        return min(1, max(self.step / max(1, self.steps), self.seconds / self.time_limit))


@dataclass(frozen=True)
class EvalReport(Report):
    """An evaluation on held-out text."""

    kind: ClassVar[str] = "evaluation"
    step: int
    loss: float  # nats per token
    accuracy: float  # 0 to 1
    bits_per_byte: float
    floor_bits_per_byte: float | None  # entropy of the built-in corpus; None for other text
    tokens: int  # scored
    last: bool = False  # the final evaluation, on other text, so not comparable with the others


@dataclass(frozen=True)
class SampleReport(Report):
    """Text that the model wrote."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str  # the continuation, without the prompt
    truth: str | None = None  # the true continuation in the held-out text


@dataclass(frozen=True, eq=False)  # comparing arrays gives an array
class BrainReport(Report):
    """Snapshot of a brain after a segment of T tokens, for figures. Its record has step and levels only."""

    kind: ClassVar[str] = "brain"
    step: int
    levels: dict[str, float]  # neuromodulator -> its level, mean over the sequences; 0 is neutral
    text: str  # of the first sequence
    events: dict[str, np.ndarray]  # module -> [T, some of its neurons] bool, in the first sequence
    membrane: dict[str, np.ndarray]  # module -> logarithm of time constants in tokens, of some of its neurons; empty without
    adaptation: dict[str, np.ndarray]  # the same
    weights: dict[str, np.ndarray]  # projection -> some of its weights
    memory: np.ndarray  # [T, heads x width], what was read from the associative memory in the first sequence
    memory_heads: int
    working_memory: np.ndarray  # [T, slots], of the first sequence

    def to_record(self) -> dict:
        return {"kind": self.kind, "step": self.step, "levels": _jsonable(self.levels)}


@dataclass(frozen=True)
class CheckpointReport(Report):
    """A checkpoint that is whole and on disk."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    bytes: int
    seconds: float  # to save
    held: float  # of these, seconds that training was blocked
    kept: int  # checkpoints that the run has now
    kept_bytes: int  # of these together


@dataclass(frozen=True)
class Notice(Report):
    """A sentence for the user."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True)
class FinalReport(Report):
    """The end of a run: its result, name -> number or text, in the order to show it."""

    kind: ClassVar[str] = "final"
    summary: dict


def _jsonable(value):
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
