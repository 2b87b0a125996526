"""A conversation in the terminal; plain text where there is none."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from ..config import did_you_mean
from ..errors import ConfigError
from . import can_draw
from .plain import forgiving, item, printable

COMMANDS = {  # name -> argument, what it does
    "help": ("", "this list"),
    "reset": ("", "forget the conversation"),
    "temperature": ("X", "how freely words are drawn, 0 or more"),
    "seed": ("N", "draw with the random numbers of seed N"),
    "quit": ("", "leave, as does Ctrl-D"),
}
YOU, NEO = "You: ", "Neo: "


class ChatScreen:
    """Reads what a person types and prints what the model answers.

    title, facts: the header, facts as name -> number or text. Without a terminal on both sides there are no colours, no line
    breaks of ours and no speeds: the same answers give the same bytes. What either side says is printed as it is, never as markup.
    """

    def __init__(self, title: str, facts: dict):
        forgiving(sys.stdin)
        forgiving(sys.stdout)
        self.typed = sys.stdin.isatty()
        self.drawn = self.typed and can_draw()
        self.console = Console() if self.drawn else Console(force_terminal=False, color_system=None)
        if self.typed:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline  # noqa: F401  gives input() arrow keys and a history
        self._header(title, dict(item(str(name), value) for name, value in facts.items()))

    def read(self) -> str | None:
        """The next line; None at its end, by Ctrl-D or Ctrl-C."""
        try:
            return input(YOU if self.typed else "")
        except (EOFError, KeyboardInterrupt):
            if self.typed:
                self._write("\n")
            return None

    def stream(self, pieces: Iterator[str]) -> str:
        """Prints the pieces (one per token) as they come; Ctrl-C ends this reply only. Returns what was said."""
        said, count, stopped = "", 0, False
        wrap = WordWrap(self.console.width, len(NEO)) if self.drawn else None
        start = time.perf_counter()
        self._write(NEO, "bold green")
        try:
            for piece in pieces:
                count += 1
                shown = printable(piece if said.strip() else piece.lstrip())
                said += piece
                self._write(wrap.feed(shown) if wrap else shown)
        except KeyboardInterrupt:
            stopped = True
            if hasattr(pieces, "close"):
                pieces.close()
        if wrap:
            self._write(wrap.end())
        speed = f"{count / max(time.perf_counter() - start, 1e-9):,.0f} tokens/s"
        self._write("\n")
        if self.drawn:
            self.say(f"{'stopped, ' if stopped else ''}{speed}", indent=len(NEO))
        return said

    def say(self, text: str, indent: int = 0) -> None:
        """A line from the program itself, such as an answer to a command."""
        self._write(" " * indent + printable(text) + "\n", "dim")

    def help(self) -> None:
        """Lists the commands."""
        for name, (argument, meaning) in COMMANDS.items():
            self.say(f"{f'/{name} {argument}':16}{meaning}")

    def _header(self, title, facts):
        if not self.drawn:
            self._write(printable(", ".join([title, *(f"{name} {value}" for name, value in facts.items())])).replace("\n", " ") + "\n")
            return
        body = Text("   ").join(Text.assemble((printable(name) + " ", "dim"), (printable(value), "bold")) for name, value in facts.items())
        hint = Text("/help lists the commands", "dim")
        self.console.print(
            Panel(
                body, title=Text(printable(title), "bold"), title_align="left", subtitle=hint, subtitle_align="right", border_style="cyan"
            )
        )

    def _write(self, text, style=""):
        self.console.print(Text(text, style), end="", soft_wrap=True)


class WordWrap:
    """Breaks a stream of text between words: lines of `width` columns, all but the first starting with `indent` empty ones."""

    def __init__(self, width: int, indent: int):
        self.indent = indent
        self.width = max(width, indent + 2)  # room for one wide character
        self.column = indent
        self.word = ""  # with the spaces before it; kept back until it is whole

    def feed(self, text: str) -> str:
        """What can be printed now that `text` has come."""
        ready = ""
        for char in text:
            if char == "\n":
                ready += self.end() + "\n" + " " * self.indent
                self.column = self.indent
                continue
            if char == " " and self.word.strip():
                ready += self.end()
            self.word += char
            if cell_len(char) == 2 or cell_len(self.word) >= self.width - self.indent:  # scripts without spaces; endless words
                ready += self.end()
        return ready

    def end(self) -> str:
        """The word that was kept back."""
        word, self.word = self.word, ""
        if self.column + cell_len(word) <= self.width:
            self.column += cell_len(word)
            return word
        word = word.lstrip(" ")
        self.column = self.indent + cell_len(word)
        return "\n" + " " * self.indent + word


def parse_command(line: str) -> tuple[str, float | int | None] | None:
    """(name, argument) of a line such as "/temperature 0.8"; None for a line that is said to the model.

    Raises ConfigError, in one sentence, for a command that does not exist or an argument that does not fit.
    """
    if not line.strip().startswith("/"):
        return None
    word, *arguments = line.split()
    name = word[1:]
    if name not in COMMANDS:
        raise ConfigError(f"{word}: no such command; {did_you_mean(word, [f'/{known}' for known in COMMANDS])}")
    wanted = COMMANDS[name][0]
    if not wanted:
        if arguments:
            raise ConfigError(f"/{name} takes nothing after it; got {' '.join(arguments)!r}")
        return name, None
    with contextlib.suppress(ValueError, OverflowError):
        (text,) = arguments
        value = int(text) if name == "seed" else float(text)
        if value >= 0 and math.isfinite(value):
            return name, value
    example = {"temperature": "a number of at least 0, such as /temperature 0.8", "seed": "a whole number of at least 0, such as /seed 7"}
    raise ConfigError(f"/{name} needs {example[name]}; got {' '.join(arguments) or 'nothing'!r}")
