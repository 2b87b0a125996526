"""Views: they receive the reports of `learning.report` and display them. A view never influences the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from ..learning.report import Report


class View(Protocol):
    """A view of a training run: `with view: view.show(report)` for each report, in order. A signal handler may call `say`."""

    def __enter__(self) -> View: ...

    def __exit__(self, *failure) -> None: ...

    def show(self, report: Report) -> None: ...

    def say(self, sentence: str) -> None: ...


class Unbreakable:
    """A wrapper around the view from `make()`. If the view fails, `tell` gets one sentence, the view is closed, and the run continues."""

    def __init__(self, make: Callable[[], View], tell: Callable[[str], None]):
        self._make, self._tell, self._view = make, tell, None

    def __enter__(self) -> Unbreakable:
        def enter():
            self._view = self._make()
            self._view.__enter__()

        self._try(enter)
        return self

    def __exit__(self, *failure) -> None:
        if self._view:
            self._try(self._view.__exit__, *failure)

    def show(self, report: Report) -> None:
        if self._view:
            self._try(self._view.show, report)

    def say(self, sentence: str) -> None:
        if self._view:
            self._try(self._view.say, sentence)

    def _try(self, operation, *arguments):
        try:
            operation(*arguments)
        except Exception as error:
            view, self._view = self._view, None
            with contextlib.suppress(Exception):
                view.__exit__(None, None, None)  # restores the cursor
            self._tell(f"neurogen train: a view of the run failed ({type(error).__name__}: {error}); training continues without it")


def open_view(title: str, plain: bool | None = None) -> View:
    """The live view if standard output is a terminal that can draw it, else lines of text.

    plain: True or False overrides the choice.
    """
    if plain is None:
        plain = not can_draw()
    if plain:
        from .plain import PlainView

        return PlainView(title)
    from .live import LiveView

    return LiveView(title)


def can_draw() -> bool:
    """Whether standard output is a terminal that can move its cursor and show block characters."""
    import sys

    from rich.console import Console

    console = Console()
    # isatty as well: FORCE_COLOR makes Rich call a pipe a terminal, and a log file would fill with cursor movements
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty() and console.encoding.startswith("utf")
