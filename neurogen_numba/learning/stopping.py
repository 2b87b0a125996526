"""Early end of a training run: Ctrl-C, and the signals of a terminal or a scheduler."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from ..system.streams import tell_terminal

STOPPING = "stopping after this update; Ctrl-C again stops at once"
AGAIN = 1.0  # seconds after which another Ctrl-C counts as a second one


class Signals:
    """Handlers for Ctrl-C, SIGTERM and SIGHUP: `with Signals() as signals: ...`.

    Before `signals.hand_over(trainer.stop)` they raise KeyboardInterrupt; afterwards the run ends with a checkpoint, and `tell` is called
    with STOPPING. A second Ctrl-C then ends it at once. One that follows within AGAIN seconds is ignored, because a program between
    terminal and run may forward the first one again. Under nohup, SIGHUP stays ignored. Outside the main thread, Python allows no
    handlers, so none are set.
    """

    def __init__(self):
        self._stop: Callable[[], None] | None = None
        self.tell: Callable[[str], None] = tell_terminal
        self._before, self._asked = {}, 0.0

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if (number := getattr(signal, name, None)) is None:
                    continue  # Windows has no SIGHUP
                before = signal.getsignal(number)
                if name != "SIGHUP" or before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def hand_over(self, stop: Callable[[], None]) -> None:
        """Call `stop` for each signal from now on."""
        self._stop = stop

    def _handle(self, number, frame):
        now = time.monotonic()
        if self._stop is None or (number == signal.SIGINT and self._asked and now - self._asked > AGAIN):
            raise KeyboardInterrupt
        if number == signal.SIGINT and not self._asked:
            self._asked = now
        self._stop()
        self.tell(STOPPING)
