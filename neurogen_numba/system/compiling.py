"""Progress of compilation: "compiling kernels 17 of 41 (once)"."""

from __future__ import annotations

from .waiting import Waiting


def words(done: int, total: int) -> str:
    """The progress in words."""
    return f"compiling kernels {done} of {total} (once)"


def progress(total: int) -> Waiting:
    """A context that shows the compilation of `total` kernels: `with progress(41) as waiting: waiting.show(17)`."""
    return Waiting("compiling kernels", total, words=words, patience=0)
