"""What a run tells whoever watches it: the trainer yields these, views draw them, metrics.jsonl keeps them.

Plain numbers and text, and in BrainReport small arrays, so that a report can be written or sent without the model it came from.
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
        """The report as one JSON object, its kind first; a number that is not finite becomes None, since JSON has no word for it."""
        return {"kind": self.kind, **_jsonable(dataclasses.asdict(self))}


@dataclass(frozen=True)
class StepReport(Report):
    """One optimiser step."""

    kind: ClassVar[str] = "step"
    step: int  # done so far, over the run's life
    steps: int  # planned in all
    tokens: int  # trained on so far; what is left of a segment behind the end of a document is none
    loss: float  # nats per token
    accuracy: float  # share of tokens predicted right, 0 to 1
    bits_per_byte: float
    learning_rate: float
    gradient_norm: float  # before clipping
    tokens_per_second: float
    seconds: float  # of training, over the run's life
    activity: dict[str, float]  # module -> share of its neurons with an event per token, 0 to 1
    waited: float = 0.0  # share of the time of the latest updates that went into waiting for text, 0 to 1

    @property
    def seconds_left(self) -> float:
        """Seconds of training still to come, at the present speed; infinite while there is none."""
        if not self.step or not self.tokens_per_second > 0:
            return math.inf
        return max(0, self.steps - self.step) * (self.tokens / self.step) / self.tokens_per_second


@dataclass(frozen=True)
class EvalReport(Report):
    """A look at held-out text."""

    kind: ClassVar[str] = "evaluation"
    step: int
    loss: float  # nats per token
    accuracy: float  # 0 to 1
    bits_per_byte: float
    floor_bits_per_byte: float | None  # the entropy of the built-in corpus: no model gets below it; None for other text
    tokens: int  # looked at
    last: bool = False  # the look at the end of a run, at other text than those before it, which it is not to be compared with


@dataclass(frozen=True)
class SampleReport(Report):
    """Text that the model wrote."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str  # the continuation, without the prompt
    truth: str | None = None  # how held-out text went on after the prompt


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class BrainReport(Report):
    """What the brain looks like after a segment of T tokens. Its record has step and levels; the arrays are there to be drawn."""

    kind: ClassVar[str] = "brain"
    step: int
    levels: dict[str, float]  # neuromodulator -> its level, mean over the sequences; 0 is neutral
    text: str  # what the first sequence heard
    events: dict[str, np.ndarray]  # module -> [T, some of its neurons] bool, in the first sequence
    membrane: dict[str, np.ndarray]  # module -> logarithm of time constants in tokens, of some of its neurons
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
    seconds: float  # that saving took
    held: float  # seconds of these that training stood still
    kept: int  # checkpoints that the run has now
    kept_bytes: int  # of these together


@dataclass(frozen=True)
class Notice(Report):
    """A sentence for the person who watches."""

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
