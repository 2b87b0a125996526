"""Progress of what has to be done before there is anything to show: on standard error, once it has taken a moment."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator

PATIENCE = 1.0  # seconds without a word
INTERVAL = 10.0  # seconds between two lines where there is no terminal


class Waiting:
    """Progress through `total` of something: `with Waiting("reading a.txt", total) as waiting: ... waiting.show(done)`.

    A bar on a terminal, which goes when it is done; elsewhere a line now and then. total: None where nobody knows.
    unit: "bytes" or another plural.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "bytes"):
        self._what, self._total, self._unit = what, total or None, unit
        self._began = self._told = time.monotonic()
        self._bar = None
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Say that so many are done, where it is time to say anything."""
        now = time.monotonic()
        if now - self._began < PATIENCE:
            return
        if self._terminal:
            self._draw(done)
        elif self._told == self._began or now - self._told >= INTERVAL:
            self._told = now
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream that has gone ends nothing
                print(f"{self._what}: {self._amount(done)}", file=sys.stderr, flush=True)

    def _amount(self, done):
        of = f" of {self._total:,}" if self._total else ""
        share = f", {min(100, 100 * done // self._total)} %" if self._total else ""
        return f"{done:,}{of} {self._unit}{share}"

    def _draw(self, done):
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total, amount="")
            self._bar.start()
        self._bar.update(self._task, completed=done, amount=self._amount(done))

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *failure) -> None:
        if self._bar:
            self._bar.stop()


def watched(pieces: Iterable, what: str, total: int | None = None) -> Iterator:
    """The pieces of a source as they are, with the progress through their `total` bytes."""
    with Waiting(what, total) as waiting:
        done = 0
        for piece in pieces:
            yield piece
            done += len(piece.text.encode())
            waiting.show(done)
