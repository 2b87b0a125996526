"""Standard streams that are closed, full, broken or cannot encode a character: commands continue and lose only the output."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def usable() -> Iterator[None]:
    """In this context sys.stdin, stdout and stderr can be read and written.

    A closed stream is the null device. Standard output and input replace a character that their encoding does not have.
    """
    with contextlib.ExitStack() as undo:
        # In this order: a file gets the lowest free descriptor, so a closed stream gets its own descriptor back.
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            stream = getattr(sys, name)
            if stream is None or getattr(stream, "closed", False):
                setattr(sys, name, undo.enter_context(open(os.devnull, mode, encoding="utf-8")))
                undo.callback(setattr, sys, name, stream)
            elif isinstance(stream, io.TextIOWrapper) and name != "stderr" and stream.errors != "replace":
                undo.callback(_reconfigure, stream, stream.errors)
                _reconfigure(stream, "replace")
        yield


def _reconfigure(stream, errors):
    with contextlib.suppress(OSError):  # it flushes first
        stream.reconfigure(errors=errors)


@contextlib.contextmanager
def utf_8() -> Iterator[None]:
    """In this context, output into a file or a pipe is UTF-8 in every locale; file names are printed as their raw bytes."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or stream.isatty():
        yield
        return
    encoding, errors = stream.encoding, stream.errors
    stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            stream.reconfigure(encoding=encoding, errors=errors)


def flush() -> OSError | None:
    """Flush standard output and standard error. Returns the error of standard output, or None.

    Output that a stream refuses is dropped; otherwise Python would flush again at exit and change the exit code to 120.
    """
    errors = []
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            errors.append(None)
        except (OSError, ValueError) as error:
            errors.append(error if isinstance(error, OSError) else OSError(str(error)))
            _drop(stream)
    return errors[0]


def complain(sentence: str) -> None:
    """Print a sentence on standard error, if that is possible."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(sentence, file=sys.stderr, flush=True)


def tell_terminal(sentence: str) -> None:
    """Print a sentence on standard error, if that is a terminal. A signal handler may call it."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # RuntimeError: the signal came while it was printing
        if sys.stderr.isatty():
            print(sentence, file=sys.stderr, flush=True)


@contextlib.contextmanager
def without_signal_echo() -> Iterator[None]:
    """In this context the terminal does not print ^C for Ctrl-C, which would move a picture that is drawn there."""
    try:
        import termios

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        if os.tcgetpgrp(terminal) != os.getpgrp():
            raise OSError("a process in the background may not change its terminal")
        changed = [*before[:3], before[3] & ~termios.ECHOCTL, *before[4:]]
        termios.tcsetattr(terminal, termios.TCSANOW, changed)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, before)


def _drop(stream):
    """Redirect a standard stream to the null device, including its buffered text."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if (descriptor := stream.fileno()) in (1, 2):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
            stream.flush()


class Unfailing:
    """A text stream whose `write` and `flush` never fail: text that cannot be written is lost.

    lost: called with the first error. All other attributes are those of the stream.
    """

    def __init__(self, stream, lost: Callable[[Exception], None] = lambda error: None):
        self._stream, self._lost, self._failed = stream, lost, False

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines) -> None:
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, operation, *arguments):
        try:
            operation(*arguments)
        except (OSError, ValueError) as error:  # ValueError: closed
            if not self._failed:
                self._failed = True
                self._lost(error)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def unfailing(say: Callable[[Exception], str]) -> Iterator[None]:
    """In this context, printing never raises. say: returns the sentence for standard error at the first error of standard output."""
    stdout, stderr = sys.stdout, sys.stderr
    sys.stderr = reported = Unfailing(stderr)
    sys.stdout = Unfailing(stdout, lambda error: print(say(error), file=reported, flush=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        flush()
