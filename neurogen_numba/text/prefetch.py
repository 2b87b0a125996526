"""Prefetching of segments in a background thread, so that training does not wait for text."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from .batches import Batches

PREFETCH = 64  # segments that are prepared in advance
POLL_INTERVAL = 0.2  # seconds between checks for a stop
PATIENCE = 1.0  # seconds that `close` waits for the segment in progress


class Prefetch:
    """The segments of `batches`, in order, prepared by a thread. `next` starts the thread, `close` ends it.

    waited: seconds that `next` had to wait for a segment.
    """

    def __init__(self, batches: Batches):
        self._batches = batches
        self._ready: deque = deque()  # (inputs, targets, position after them), or an exception
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._position = batches.position()
        self.waited = 0.0

    def next(self, stopping: Callable[[], bool] = lambda: False) -> tuple[np.ndarray, np.ndarray] | None:
        """The next segment, as from `Batches.next`; None if none is ready and `stopping()` has become true.

        Raises the exception that occurred during its preparation.
        """
        began = time.monotonic()
        with self._changed:
            while not self._ready:
                if stopping():
                    return None
                self._go()
                self._changed.wait(POLL_INTERVAL)
            self.waited += time.monotonic() - began
            made = self._ready.popleft()
            self._changed.notify()
        if isinstance(made, BaseException):
            raise made
        inputs, targets, self._position = made
        return inputs, targets

    def wait(self, seconds: float, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Whether `next` would return, or raise, without waiting. Waits for that up to `seconds`, or until `stopping()`."""
        began = now = time.monotonic()
        with self._changed:
            while not self._ready and now - began < seconds and not stopping():
                self._go()
                self._changed.wait(POLL_INTERVAL)
                now = time.monotonic()
            self.waited += now - began
            return bool(self._ready)

    def position(self) -> dict:
        """The start of the segment after the last one returned, as `Batches.position`; segments in the queue do not count."""
        return self._position

    def close(self) -> None:
        """End the thread; segments in the queue stay available."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(PATIENCE)  # if it waits for a network, it is abandoned and ends with the process

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
                while len(self._ready) >= PREFETCH and not self._closing:
                    self._changed.wait()
                if self._closing or isinstance(made, BaseException):
                    return
