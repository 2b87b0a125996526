"""A sign of life: a rank tells its supervisor (supervise.py), once a second, how long its current work takes."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

BEAT = 1.0  # seconds
PATIENCE = 40.0  # seconds that an update may take
TIMES = 5  # or this many times as long as the longest before
UNTIMED = 2  # the first works of a process compile kernels, and have no limit


class Pulse:
    """Beats into a file descriptor, from a thread. None: it beats for nobody."""

    def __init__(self, descriptor: int | None):
        self._descriptor = descriptor
        self.joined = False  # whether this rank is connected with the others; until then it cannot beat
        self._what, self._began, self._longest, self._works = "", None, 0.0, 0
        if descriptor is not None:
            threading.Thread(target=self._beat, daemon=True).start()

    @contextlib.contextmanager
    def working(self, what: str):
        """A context for work whose length is known from before. Waiting for other ranks does not count."""
        self._what, self._began = what, time.monotonic()
        try:
            yield
        finally:
            self._works += 1
            if self._works > UNTIMED and self._began is not None:
                self._longest = max(self._longest, time.monotonic() - self._began)
            self._began = None

    @contextlib.contextmanager
    def waiting(self):
        """A context in which this rank waits for others."""
        began, waits = self._began, time.monotonic()
        self._began = None
        try:
            yield
        finally:
            if began is not None:
                self._began = began + time.monotonic() - waits

    def _beat(self):
        while True:
            began = self._began
            late = began is not None and self._works >= UNTIMED and time.monotonic() - began > max(PATIENCE, TIMES * self._longest)
            says = {"joined": self.joined, "late": f"{self._what} has taken {time.monotonic() - began:.0f} seconds" if late else ""}
            try:
                os.write(self._descriptor, (json.dumps(says) + "\n").encode())
            except OSError:  # the supervisor is gone
                return
            time.sleep(BEAT)
