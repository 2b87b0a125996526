"""Word wrap for text that arrives in pieces."""

from __future__ import annotations

from rich.cells import cell_len
from rich.style import Style

Line = list[tuple[Style, str]]  # runs of text of one style


class WordWrap:
    """Wraps text into lines of at most `width` cells; all but the first are indented by `indent` cells.

    lead: prefix of the first line, `indent` cells wide, with its style. Complete lines never change, so the cost per piece does not grow
    with the text.
    """

    def __init__(self, width: int, lead: str = "", style: Style | None = None):
        self.indent = cell_len(lead)
        self.width = max(width, self.indent + 2)  # room for one wide character
        self._lines: list[Line] = [[(style or Style.null(), lead)] if lead else []]
        self._column = self.indent
        self._word: list[tuple[str, Style]] = []  # characters of the incomplete word, with the spaces before it
        self._cells = 0  # of the word
        self._solid = False  # whether the word has more than spaces

    def feed(self, text: str, style: Style) -> None:
        """Append a piece of text."""
        for char in text:
            if char == "\n":
                self._add_word(self._lines)
                self._lines.append(self._new_line())
                self._column = self.indent
                continue
            if char == " " and self._solid:
                self._add_word(self._lines)
            size = cell_len(char)
            self._word.append((char, style))
            self._cells += size
            self._solid = self._solid or char != " "
            if size == 2 or self._cells >= self.width - self.indent:  # scripts without spaces; endless words
                self._add_word(self._lines)

    def lines(self) -> list[Line]:
        """The text so far, with the incomplete word."""
        if not self._word:
            return self._lines
        before = self._word, self._cells, self._solid, self._column
        lines = [*self._lines[:-1], list(self._lines[-1])]
        self._add_word(lines)
        self._word, self._cells, self._solid, self._column = before
        return lines

    def _new_line(self):
        return [(Style.null(), " " * self.indent)] if self.indent else []

    def _add_word(self, lines):
        """Append the word to the last line, or start a new line with it, without the spaces before it."""
        word, cells = self._word, self._cells
        if self._column + cells > self.width:
            first = next((n for n, (char, _) in enumerate(word) if char != " "), len(word))
            word, cells = word[first:], cells - first
            lines.append(self._new_line())
            self._column = self.indent
        line = lines[-1]
        for char, style in word:
            if line and line[-1][0] is style:
                line[-1] = style, line[-1][1] + char
            else:
                line.append((style, char))
        self._column += cells
        self._word, self._cells, self._solid = [], 0, False
