"""Surprise as colour: the surprise of a token, in nats, as a style of its text."""

from __future__ import annotations

import functools

from rich.style import Style
from rich.text import Text

BOUNDS = (0.2, 1.0, 2.0, 4.0)  # nats; a token of probability 0.82, 0.37, 0.14, 0.02
COLORS = ("none", "cyan", "yellow", "red", "bold red reverse")  # from expected to surprising, in the terminal's own colours
MARKS = ("none", "underline", "bold", "bold underline", "bold reverse")  # the same without colours


@functools.cache
def styles(colors: bool) -> tuple[Style, ...]:
    """The styles, from expected to surprising."""
    return tuple(Style.parse(name) for name in (COLORS if colors else MARKS))


def style_of(nats: float | None, colors: bool) -> Style:
    """The style of a token with this surprise; None: not measured."""
    return styles(colors)[0 if nats is None else sum(nats >= bound for bound in BOUNDS)]


def legend(colors: bool) -> Text:
    """The legend of the styles."""
    text = Text().append("surprise ", "dim")
    names = [f"<{BOUNDS[0]:g}", *(f"{low:g}-{high:g}" for low, high in zip(BOUNDS, BOUNDS[1:], strict=False)), f">{BOUNDS[-1]:g}"]
    for name, style in zip(names, styles(colors), strict=True):
        text.append(name, style).append(" ")
    return text.append("nats", "dim")
