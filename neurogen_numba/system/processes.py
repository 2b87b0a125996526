"""Helper processes: they import this package, and never the user's script."""

from __future__ import annotations

import contextlib
import signal
import sys
import types
from multiprocessing.context import SpawnContext, SpawnProcess


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj):
        # A spawned process runs the caller's script again, for what it pickles. Without `if __name__ == "__main__":` that would train a
        # second time, and a script from standard input cannot be found. An empty module in its place has nothing to run.
        script = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = script


class Context(SpawnContext):
    """`multiprocessing.get_context("spawn")` whose processes do not import the user's script.

    Spawned, not forked: a forked process would inherit locks, threads and the GPU context in an undefined state.
    """

    Process = _Process


def _of_a_terminal():
    """The signals that a terminal sends to all of its processes; only the training process handles them."""
    return {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}


def ignore_terminal() -> None:
    """Ignore Ctrl-C and the end of the terminal from now on, in a helper process."""
    for number in _of_a_terminal():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def terminal_blocked():
    """A process that is started in this context ignores Ctrl-C and the end of the terminal from its start."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # the first process would start it, which unblocks Ctrl-C before Python 3.12
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _of_a_terminal())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
