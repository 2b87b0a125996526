"""Progress of work that takes long: in the view that is open, else on standard error after a second."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

PATIENCE = 1.0  # seconds before the first output
INTERVAL = 10.0  # seconds between two lines without a terminal

_views: list[Callable[[str, int, int | None], None]] = []  # the latest one shows it


@contextlib.contextmanager
def shown_by(show: Callable[[str, int, int | None], None]) -> Iterator[None]:
    """A context in which show(sentence, done, total) shows progress, in place of standard error. At the end the sentence is ""."""
    _views.append(show)
    try:
        yield
    finally:
        _views.remove(show)


@contextlib.contextmanager
def doing(what: str, total: int | None = None, patience: float = PATIENCE) -> Iterator[Callable[[int], None]]:
    """A context that shows its work only where it can be removed again: in a view, or on a terminal after `patience` seconds.

    Yields show(done), of `total`.
    """
    with Waiting(what, total, unit="", patience=patience) as waiting:
        show = waiting.show if waiting.visible else lambda done: None
        show(0)
        yield show


class Waiting:
    """Progress through `total` of something: `with Waiting("reading a.txt", total) as waiting: ... waiting.show(done)`.

    With a view (`shown_by`), the view shows it at once. Else a bar on a terminal, removed at the end; otherwise a line every INTERVAL
    seconds, and one at the end. total: None if unknown.
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
        self._viewed = False  # whether a view shows it

    @property
    def visible(self) -> bool:
        """Whether it is shown where it can be removed again."""
        return bool(_views) or self._terminal

    def show(self, done: int, total: int | None = None) -> None:
        """Report that `done` are done, if enough time has passed. total: a better estimate than before."""
        self._total = total or self._total
        if _views:
            _views[-1](self._words(done, self._total) if self._words else self._what, done, self._total)
            self._viewed = True
            return
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
        if not self._unit:
            return ""
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
        self._bar.update(self._task, completed=done, total=self._total, amount=self._amount(done))

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *failure) -> None:
        self.end()

    def end(self) -> None:
        """Remove it. Nothing happens if it is not shown."""
        if self._viewed and _views:
            _views[-1]("", 0, None)
        self._viewed = False
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
