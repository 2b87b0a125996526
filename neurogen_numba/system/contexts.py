"""Context managers that say what they are for when they are printed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec

P = ParamSpec("P")


class Context(contextlib.AbstractContextManager):
    """A context manager that prints as an instruction: alone in the cell of a notebook, it does nothing."""

    def __init__(self, made: contextlib.AbstractContextManager, name: str):
        self._made, self._name = made, name

    def __enter__(self):
        return self._made.__enter__()

    def __exit__(self, *error):
        return self._made.__exit__(*error)

    def __repr__(self) -> str:
        return f"{self._name}(...) does nothing by itself: use it in a `with` statement, as in `with {self._name}(...):`"


def context(name: str) -> Callable[[Callable[P, Iterator[None]]], Callable[P, Context]]:
    """As `contextlib.contextmanager`, for a public function; its result prints as `Context`. name: how a user writes it."""

    def decorated(function):
        make = contextlib.contextmanager(function)

        @functools.wraps(function)
        def made(*given, **how):
            return Context(make(*given, **how), name)

        return made

    return decorated
