"""Progress of compilation: "compiling kernels 17 of 41 (once)", in whatever way the program shows its work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .waiting import Waiting

_views: list[Callable[[int, int], None]] = []  # the latest one shows it


def words(done: int, total: int) -> str:
    """The progress in words."""
    return f"compiling kernels {done} of {total} (once)"


@contextlib.contextmanager
def shown_by(show: Callable[[int, int], None]) -> Iterator[None]:
    """A context in which show(done, total) shows the progress, in place of a bar on standard error."""
    _views.append(show)
    try:
        yield
    finally:
        _views.remove(show)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A context that shows the compilation of `total` kernels. Yields a function of the number that are done."""
    if _views:
        view = _views[-1]
        yield lambda done: view(done, total)
    else:
        with Waiting("compiling kernels", total, words=words, patience=0) as waiting:
            yield waiting.show
