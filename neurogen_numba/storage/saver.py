"""Asynchronous checkpoints: a step copies the run's state, and a thread writes the copies to disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..learning.report import CheckpointReport, Notice, Report
from . import checkpoint


@dataclass(frozen=True)
class Snapshot:
    """Copies of a run's state at one step."""

    step: int
    tensors: dict
    documents: dict
    tokenizer: object
    loss: float | None  # on the validation subset, if measured at this step


def save(run: Path, take: Callable[[], Snapshot], keep: int) -> CheckpointReport:
    """Take a snapshot and write it before returning; keep the `keep` newest checkpoints and the best. Raises CheckpointError."""
    began = time.monotonic()
    return _write(run, take(), keep, began)


def _write(run, snapshot, keep, began, blocked=None):
    folder = checkpoint.step_folder(run, snapshot.step)
    size = checkpoint.save(folder, snapshot.tensors, snapshot.documents, snapshot.tokenizer, snapshot.loss)
    remaining = checkpoint.prune(run, keep)
    seconds = time.monotonic() - began
    total = sum(bytes_ for _, bytes_ in remaining)
    return CheckpointReport(snapshot.step, str(folder), size, seconds, seconds if blocked is None else blocked, len(remaining), total)


class Saver:
    """Writes one checkpoint at a time: `with Saver(run, keep) as saver: ...`. Leaving the context waits for it.

    If a checkpoint cannot be written, for example on a full disk, a notice says so and training continues.
    """

    def __init__(self, run: Path, keep: int):
        self.run, self.keep = run, keep
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None

    def begin(self, take: Callable[[], Snapshot]) -> list[Report]:
        """Take a snapshot now and write it in the background. Waits for the previous checkpoint, and returns its report."""
        began = time.monotonic()
        reports = self.wait()
        snapshot = take()
        self._writing = self._pool.submit(_write, self.run, snapshot, self.keep, began, time.monotonic() - began)
        return reports

    def poll(self) -> list[Report]:
        """The report of the checkpoint in progress, once, if it is done."""
        return self.wait() if self._writing and self._writing.done() else []

    def wait(self) -> list[Report]:
        """Wait for the checkpoint in progress, and return its report."""
        writing, self._writing = self._writing, None
        try:
            return [writing.result()] if writing else []
        except CheckpointError as error:
            return [Notice(f"{error}; training continues, and the next checkpoint will be tried again")]

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown()
