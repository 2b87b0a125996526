"""Kernels are compiled before the step that launches them runs. Then their number is known, and progress has a total.

A step does the same operations every time. So it first runs with its launches noted, not made. Of the noted kernels, those on disk are
loaded. The others are compiled, one after the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from ..kernels import cache
from ..system import compiling

_noting = threading.local()


def noted() -> Launches | None:
    """Where this thread notes launches instead of making them; None: it makes them."""
    return getattr(_noting, "launches", None)


class Launches:
    """The kernels of a step, each once for the types of its arguments."""

    def __init__(self):
        self._kernels = {}

    def add(self, kernel, signature: tuple):
        """Note a launch. kernel: a Numba dispatcher; signature: types of its arguments."""
        self._kernels[id(kernel), signature] = kernel, signature

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """A context in which this thread notes its launches here."""
        _noting.launches = self
        try:
            yield
        finally:
            _noting.launches = None

    def compile(self, stopping: Callable[[], bool] = lambda: False):
        """Compile what is neither in memory nor on disk, and show the progress. End early if `stopping()` becomes true."""
        missing = [(kernel, signature) for kernel, signature in self._kernels.values() if not cache.available(kernel, signature)]
        if not missing:
            return
        with compiling.progress(len(missing)) as waiting:
            waiting.show(0)
            for done, (kernel, signature) in enumerate(missing, 1):
                if stopping():
                    return
                kernel.compile(signature)
                waiting.show(done)
