"""Segments prepared in the background, so that whoever trains need not wait for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from .batches import Batches

AHEAD = 64  # segments that are kept ready
GLANCE = 0.2  # seconds between two looks whether to stop
PATIENCE = 1.0  # seconds that the end waits for the segment under way


class Prefetch:
    """The segments of `batches` in their order, prepared by a thread that `next` starts and `close` ends.

    waited: seconds that `next` had to wait for a segment.
    """

    def __init__(self, batches: Batches):
        self._batches = batches
        self._ready: deque = deque()  # (inputs, targets, position behind them), or the exception that took their place
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._position = batches.position()
        self.waited = 0.0

    def next(self, stopping: Callable[[], bool] = lambda: False) -> tuple[np.ndarray, np.ndarray] | None:
        """The next segment as `Batches.next` gives it; None if there is none yet and `stopping()` has become true.

        Raises what went wrong while it was prepared.
        """
        began = time.monotonic()
        with self._changed:
            while not self._ready:
                if stopping():
                    return None
                self._go()
                self._changed.wait(GLANCE)
            self.waited += time.monotonic() - began
            made = self._ready.popleft()
            self._changed.notify()
        if isinstance(made, BaseException):
            raise made
        inputs, targets, self._position = made
        return inputs, targets

    def wait(self, seconds: float, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Whether `next` would find a segment, or what went wrong, at once. Waits for that, but at most so many seconds, or until
        `stopping()`."""
        began = now = time.monotonic()
        with self._changed:
            while not self._ready and now - began < seconds and not stopping():
                self._go()
                self._changed.wait(GLANCE)
                now = time.monotonic()
            self.waited += now - began
            return bool(self._ready)

    def position(self) -> dict:
        """Where the segment after the last one handed out starts, as `Batches.position`: what was prepared since does not count."""
        return self._position

    def close(self) -> None:
        """End the thread; what is ready stays so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(PATIENCE)  # one that waits for a network is left behind: it ends with the process

    def _go(self):
        if self._thread is None or not self._thread.is_alive():
            self._closing, self._thread = False, threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self):
        while True:
            try:
                made = (*self._batches.next(), self._batches.position())
            except BaseException as error:  # `next` raises it
                made = error
            with self._changed:
                self._ready.append(made)
                self._changed.notify()
                while len(self._ready) >= AHEAD and not self._closing:
                    self._changed.wait()
                if self._closing or isinstance(made, BaseException):
                    return
