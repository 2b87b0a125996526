"""Progress of preparations, on standard error, if they take longer than a second."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

PATIENCE = 1.0  # seconds before the first output
INTERVAL = 10.0  # seconds between two lines without a terminal


class Waiting:
    """Progress through `total` of something: `with Waiting("reading a.txt", total) as waiting: ... waiting.show(done)`.

    A bar on a terminal, removed at the end; otherwise a line every INTERVAL seconds, and one at the end. total: None if unknown.
    unit: "bytes" or another plural. words: the progress as a sentence, from (done, total). patience: seconds until it is shown.
    """

    _shown: list[Waiting] = []  # bars on the terminal, latest last; only that one is drawn

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "bytes",
        words: Callable[[int, int], str] | None = None,
        patience: float = PATIENCE,
    ):
        self._what, self._total, self._unit, self._words, self._patience = what, total or None, unit, words, patience
        self._began, self._last_output, self._bar = time.monotonic(), None, None
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Report that `done` are done, if enough time has passed."""
        now = time.monotonic()
        if now - self._began < self._patience:
            return
        if self._terminal:
            self._draw(done)
        elif self._last_output is None or now - self._last_output >= INTERVAL or done == self._total:
            self._last_output = now
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed stream must not stop the work
                print(self._words(done, self._total) if self._words else f"{self._what}: {self._amount(done)}", file=sys.stderr, flush=True)

    def _amount(self, done):
        if self._words:
            return self._words(done, self._total).removeprefix(self._what).strip()
        of = f" of {self._total:,}" if self._total else ""
        share = f", {min(100, 100 * done // self._total)} %" if self._total else ""
        return f"{done:,}{of} {self._unit}{share}"

    def _draw(self, done):
        if self._bar is None:
            for other in list(self._shown):  # it is drawn anew when it has something to show
                other._hide()
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
            self._shown.append(self)
        self._bar.update(self._task, completed=done, amount=self._amount(done))

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *failure) -> None:
        self._hide()

    def _hide(self):
        if self._bar:
            self._bar.stop()
            self._bar = None
            self._shown.remove(self)


def watched(pieces: Iterable, what: str, total: int | None = None) -> Iterator:
    """Iterate over the pieces of a source and show progress through `total` bytes."""
    with Waiting(what, total) as waiting:
        done = 0
        for piece in pieces:
            yield piece
            done += len(piece.text.encode())
            waiting.show(done)
