"""A conversation as lines: for pipes, and for terminals that cannot draw."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from .plain import forgiving, printable

YOU, NEO = "You: ", "Neo: "


class ChatLines:
    """Reads lines from standard input and prints the replies.

    On a terminal that cannot draw, the user is prompted and commands answer on standard output. Otherwise standard output contains only the
    replies, and all messages of the program go to standard error.
    """

    keys = "Ctrl-C stops a reply; Ctrl-D leaves; a line that begins with // is said with one slash"

    def __init__(self, typed: bool = True):
        """typed: whether the input is a terminal."""
        forgiving(sys.stdin)
        forgiving(sys.stdout)
        self.typed = typed and sys.stdin.isatty() and sys.stdout.isatty()
        self.examples: list[str] = []
        self.drawn = False  # whether the brain is drawn after each reply
        if self.typed:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline  # noqa: F401  gives input() arrow keys

    def read(self) -> Iterator[str]:
        """The lines, until the input ends. Ctrl-C clears the line on a terminal, and ends a pipe."""
        while True:
            try:
                yield input(YOU if self.typed else "")
            except EOFError:
                if self.typed:
                    print()
                return
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                print()

    def stream(self, conversation, pieces: Iterator[str]) -> None:
        """Print a reply while it is generated. On a terminal, Ctrl-C ends this reply only."""
        self._write(NEO if self.typed else "")
        written = ""
        try:
            for piece in paced(pieces, conversation.settings.pace):
                self._write(piece if written.strip() else piece.lstrip())
                written += piece
        except KeyboardInterrupt:
            if not self.typed:
                raise
            pieces.close()
            self._write(" (stopped)")
        self._write("\n")
        if self.drawn and conversation.monitor:
            self.show_frame(conversation)

    def show_frame(self, conversation) -> None:
        """Print the activity of the brain."""
        from .brain_panel import FEW_RECALLS, MIN_ROWS, draw

        last = conversation.last
        lines = draw(conversation.monitor.frame(), 78, MIN_ROWS + FEW_RECALLS + 1, last.nats if last else None, colors=False)
        for line in lines[:-1]:  # the legend is of colours
            self.say(line.plain.rstrip())

    def show_brain(self, conversation, shown: bool | None) -> bool:
        """Turn drawing of the brain after each reply on or off; None: toggle."""
        self.drawn = not self.drawn if shown is None else shown
        if self.drawn != bool(conversation.monitor):
            conversation.watch(self.drawn)
        return self.drawn

    def say(self, text: str) -> None:
        """Print a message of the program."""
        print(printable(text), file=sys.stdout if self.typed else sys.stderr, flush=True)

    def refuse(self, sentence: str) -> None:
        """Print an error message."""
        self.say(sentence if self.typed else f"neurogen chat: {sentence}")

    def table(self, rows: dict[str, str]) -> None:
        """Print a table of names and values."""
        width = max(map(len, rows))
        for name, value in rows.items():
            self.say(f"{name:{width}}  {value}")

    def replay(self, turns: list[tuple[str, str]]) -> None:
        """Print earlier turns of the conversation."""
        for message, reply in turns:
            self.say(f"{YOU}{message}\n{NEO}{reply.strip()}")

    def _write(self, text):
        print(printable(text), end="", flush=True)


def paced(pieces: Iterator[str], pace: float, wait=None) -> Iterator[str]:
    """The pieces, at most `pace` per second; 0: without a limit. wait: function that sleeps for a number of seconds."""
    wait, due = wait or time.sleep, time.perf_counter()
    for piece in pieces:
        yield piece
        if pace:
            due = max(due + 1 / pace, time.perf_counter() - 1 / pace)
            if (left := due - time.perf_counter()) > 0:
                wait(left)
