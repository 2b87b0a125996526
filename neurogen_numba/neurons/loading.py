"""Which neurons a process has: importing those that its user names, and holding a checkpoint to the source that it was trained with.

A checkpoint names its neurons but never imports them: that would run code without the user's request.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
import textwrap

from ..config import NEURONS, Brain, Config
from ..errors import CheckpointError, ConfigError
from .definition import Neuron, defined, defined_with, get, numbered

LONGEST = 200  # characters of each source in a message


def import_named(reference: str, where: str) -> None:
    """Import the module of a neuron that the user has named, MODULE:NAME, also from the current folder. `where`: the setting, for messages.

    Raises ConfigError where the module cannot be imported, or defines no such neuron.
    """
    module, _, name = reference.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # the current folder
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: {module} cannot be imported: {why}; run from its folder, or name that in PYTHONPATH") from None
    if not isinstance(found, Neuron):
        raise ConfigError(f"{where}: {module} has no neuron {name!r}; decorate the step with @neurogen_numba.neuron")
    if found.reference != reference:
        raise ConfigError(f"{where}: this neuron is defined elsewhere; name it {found.reference}")


def compile_own(brain: Brain) -> None:
    """Derive and compile the neurons of a brain that do not ship with NeuroGen, before anything is written.

    Raises ConfigError for one that is not defined, or whose adjoint cannot be derived or compiled.
    """
    for reference in dict.fromkeys(brain.own_neurons.values()):
        get(reference).physics(brain.surrogate, brain.surrogate_width)


def match_sources(config: Config, saved: dict, where: str) -> Config:
    """The configuration of a trained brain, with the neurons that this process defines in the place of those that were trained.

    saved: module -> {"neuron": reference, "sha256": of its source, "source": its text}. Neurons that ship with NeuroGen are matched by
    their name, all others by the hash of their source: a neuron of another module with an equal source takes the place of one that is not
    defined, or is defined anew. Raises CheckpointError where a neuron is missing, or has another source.
    """
    for module, reference in config.brain.own_neurons.items():
        entry = saved.get(module) if isinstance(saved, dict) else None
        entry = entry if isinstance(entry, dict) else {}  # the file may be damaged
        found = defined_with(entry.get("sha256"), reference) if entry.get("neuron") == reference else None
        if found is None:
            raise CheckpointError(f"{where}: {_why_not(module, reference, entry.get('source', ''))}")
        config = config.with_neuron(found.reference, module)
    return config


def match_names(config: Config, where: str) -> Config:
    """The configuration of a run that has saved no checkpoint, so no source of its neurons either, with neurons of this process.

    A neuron of a notebook or script, __main__:NAME, is replaced by the one of that name that was defined last: nothing was trained yet.
    Raises ConfigError where a neuron is missing.
    """
    for module, reference in config.brain.own_neurons.items():
        home, _, name = reference.partition(":")
        names = [one.reference for one in defined()]
        if reference in names:
            continue
        namesakes = [each for each in names if home == "__main__" and each.partition(":")[2] == name]
        if not namesakes:
            raise ConfigError(f"{where}: {_missing(module, reference, 'run')}")
        config = config.with_neuron(namesakes[-1], module)
    return config


def _why_not(module, reference, source):
    """Why the neuron of a module does not match, and what to do. source: the text that it was trained with; it is shown, never executed."""
    name = reference.partition(":")[2]
    namesakes = [one for one in defined() if one.reference not in NEURONS and one.reference.partition(":")[2] == name]
    same = [one for one in namesakes if one.reference == reference]
    if namesakes:
        one = [*namesakes, *same][-1]
        which = "is defined now" if same else f"that of {one.reference}"
        return (
            f"{module} was trained with another source of the neuron {reference} than {which}{_difference(source, one.source)}; restore "
            "that source, or train a new model"
        )
    return _missing(module, reference, "checkpoint")


def _missing(module, reference, kind):
    """That the neuron of a module is not defined, and what to do. kind: a run or a checkpoint."""
    home, _, name = reference.partition(":")
    missing = f"{module} is made of the neuron {reference}, which no {kind} may import by itself"
    if home == "__main__":
        return (
            f"{missing}; run the cell or script that defines it, or put it in a file, for example mine.py, and name that: `import mine` "
            f"in Python, --set brain.{module}.neuron=mine:{name} on the command line"
        )
    return f"{missing}; name it: `import {home}` in Python, --set brain.{module}.neuron={reference} on the command line"


def _difference(then, now):
    """The lines that differ between two sources, as the rest of a sentence; empty if the older one is not known."""
    if not isinstance(then, str) or not then:
        return ""
    old, new = _statements(then), _statements(now)
    matcher = difflib.SequenceMatcher(None, [of for of, _ in old], [of for of, _ in new], autojunk=False)
    changes = [change[1:] for change in matcher.get_opcodes() if change[0] != "equal"]
    removed = " / ".join(line for first, last, _, _ in changes for _, line in old[first:last])
    added = " / ".join(line for _, _, first, last in changes for _, line in new[first:last])
    return f" (then: {textwrap.shorten(removed, LONGEST) or 'nothing'}; now: {textwrap.shorten(added, LONGEST) or 'nothing'})"


def _statements(source):
    """(a statement with numbered local variables, whose names do not count; the statement as it is written) of a source, in order."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the file may be damaged
        return [(line, line.strip()) for line in source.splitlines()]
    found = []
    for part in tree.body:
        inside = part.body if isinstance(part, ast.FunctionDef) else [part]
        written = [ast.unparse(statement) for statement in inside]
        if isinstance(part, ast.FunctionDef):
            head = f"def {part.name}({ast.unparse(part.args)})"
            numbered(part)
            found.append((f"def {part.name}({ast.unparse(part.args)})", head))
        found += zip(map(ast.unparse, inside), written, strict=True)
    return found
