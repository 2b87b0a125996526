"""A run's metrics.jsonl as columns of numbers, for figures, notebooks and other programs."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..learning.report import EvalReport, SampleReport, StepReport
from ..storage.run_folder import METRICS

LARGEST = 1e30  # a larger number is not a measurement


@dataclass(frozen=True)
class History:
    """All measurements of a run. Columns are float64 [reports], NaN where a number is missing."""

    training: dict[str, np.ndarray]  # the fields of StepReport, except the activity
    activity: dict[str, np.ndarray]  # module -> share of its neurons with an event per token
    validation: dict[str, np.ndarray]  # the fields of EvalReport
    levels: dict[str, np.ndarray]  # "step", and neuromodulator -> level
    samples: list[SampleReport]

    @property
    def step(self) -> int:
        """The last step that was reported; 0 before the first."""
        return int(self.training["step"][-1]) if len(self.training["step"]) else 0

    def columns(self) -> dict:
        """All columns except the samples, as lists for JSON: those of training, and under "activity" and "validation" the others."""
        tables = {"activity": self.activity, "validation": self.validation}
        return _lists(self.training) | {name: _lists(columns) for name, columns in tables.items()}

    def texts(self) -> list[dict]:
        """The samples for JSON: step, prompt, continuation, truth (None if the run has not saved it)."""
        return [{"step": s.step, "prompt": s.prompt, "continuation": s.text, "truth": s.truth} for s in self.samples]


def read_history(run: str | Path, until: float = math.inf) -> History:
    """The history of a run directory up to the step `until`. Incomplete and damaged lines are skipped.

    Raises ConfigError if there is none.
    """
    path = Path(run) / METRICS
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the folder of a run, for example runs/nano-1") from None
    records = {"step": [], "evaluation": [], "sample": [], "brain": []}
    for line in lines:
        try:
            record = json.loads(line)
            if 0 <= record["step"] <= min(until, LARGEST) and isinstance(record["step"], int):
                records[record["kind"]].append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    steps = records["step"]
    activities, levels = [_table(record, "activity") for record in steps], [_table(record, "levels") for record in records["brain"]]
    return History(
        training=_columns(steps, [name for name in _fields(StepReport) if name != "activity"]),
        activity=_columns(activities, activities[-1] if steps else ()),
        validation=_columns(records["evaluation"], _fields(EvalReport)),
        levels=_columns(records["brain"], ["step"]) | _columns(levels, levels[-1] if levels else ()),
        samples=[SampleReport(*(record.get(name) for name in _fields(SampleReport))) for record in records["sample"] if _is_text(record)],
    )


def _table(record, name):
    table = record.get(name)
    return table if isinstance(table, dict) else {}


def _is_text(sample):
    return all(isinstance(sample.get(name), str) for name in ("prompt", "text")) and isinstance(sample.get("truth"), (str, type(None)))


def _fields(report):
    return [field.name for field in dataclasses.fields(report)]


def _columns(records, names):
    return {name: np.array([_number(record.get(name)) for record in records], np.float64) for name in names}


def _number(value):
    """A number that can be drawn; NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and abs(value) <= LARGEST else math.nan


def _lists(columns):
    def number(value):
        return None if math.isnan(value) else int(value) if value.is_integer() and abs(value) < 2**53 else value

    return {name: [number(value) for value in column.tolist()] for name, column in columns.items()}
