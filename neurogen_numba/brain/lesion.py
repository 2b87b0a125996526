"""Lesions: projections, modules or memories that are silent for as long as a context lasts.

A projection is silent when its weights are 0. A module or a memory is silent when the weights of all projections that read it are 0; the
neurons of a module then also get no drive: gain and bias are 0. All of these are parameters, so after `Brain.refresh` every backend
computes with the lesion, in steps that were recorded before it too.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..config import MODULES, did_you_mean
from ..errors import ConfigError

if TYPE_CHECKING:
    from .brain import Brain

MEMORIES = ("memory", "working_memory")


class Lesions:
    """The lesions of a brain. They may overlap: a parameter comes back when the last lesion of it ends, in whatever order they end."""

    def __init__(self, brain: Brain):
        self.brain = brain
        self._count: dict[str, int] = {}  # parameter -> lesions that silence it
        self._intact: dict[str, np.ndarray] = {}  # parameter -> its values before the first of them

    def __bool__(self) -> bool:
        return bool(self._count)

    @contextlib.contextmanager
    def silence(self, names: tuple[str, ...]) -> Iterator[None]:
        """A context in which these projections, modules and memories are silent. Raises ConfigError as `silenced` does."""
        parameters = silenced(self.brain, names)
        strength, backend = self.brain.parameters.strength, self.brain.backend
        for name in parameters:
            if name not in self._count:
                self._intact[name] = backend.to_numpy(strength(name))
            self._count[name] = self._count.get(name, 0) + 1
        try:
            for name in parameters:
                strength(name)[...] = 0
            self.brain.refresh()
            yield
        finally:
            for name in parameters:
                self._count[name] -= 1
                if not self._count[name]:
                    del self._count[name]
                    strength(name)[...] = backend.asarray(self._intact.pop(name), "float32")
            self.brain.refresh()


def silenced(brain: Brain, names: tuple[str, ...]) -> list[str]:
    """The parameters that a lesion of `names` sets to 0.

    A name is that of a projection, a module or a memory; shell patterns (`memory_*`) name projections, as in `brain.without`. Raises
    ConfigError without names, and for a name that is not in this brain.
    """
    projections = [arc.name for arc in brain.arcs]
    known = (*projections, *MODULES, *MEMORIES)
    found = {}  # in order, each once
    for name in names or ("",):
        if not isinstance(name, str) or not name:
            raise ConfigError(f"lesion: the name of a projection, a module or a memory is needed, not {name!r}; known: {', '.join(known)}")
        if name in MODULES or name in MEMORIES:
            outputs = (f"{name}.axon", f"{name}.trace", f"readout_{name}.out", f"{name}.out")
            found |= dict.fromkeys(f"{arc.name}.weight" for arc in brain.arcs if arc.source in outputs)
            found |= dict.fromkeys([f"{name}.gain", f"{name}.bias"] if name in MODULES else [])
        elif matching := fnmatch.filter(projections, name):
            found |= dict.fromkeys(f"{projection}.weight" for projection in matching)
        else:
            raise ConfigError(f"lesion: nothing in this brain is called {name!r}; {did_you_mean(name, known)}")
    return list(found)
