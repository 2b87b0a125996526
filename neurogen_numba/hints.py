"""Command lines for a run that messages end with: they can be typed as they are printed."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from .config import Config


def hint(command: str, run: Path, config: Config | None) -> str:
    """`neurogen COMMAND RUN` for a run with this configuration (None: unknown), with --set for each neuron of the user's own.

    A neuron of a notebook or a script has no name for --set; loading it says what to do.
    """
    modules = {neuron: module for module, neuron in config.brain.own_neurons.items()} if config else {}
    named = [
        f"--set {shlex.quote(f'brain.{module}.neuron={neuron}')}"
        for neuron, module in modules.items()
        if not neuron.startswith("__main__:")
    ]
    return " ".join([program(), command, shlex.quote(str(typed(run))), *named])


def program() -> str:
    """The command `neurogen`; where PATH does not lead to one, as in an environment that is not active, with its path."""
    if shutil.which("neurogen"):
        return "neurogen"
    beside = shutil.which("neurogen", path=str(Path(sys.executable).parent))
    return shlex.quote(str(typed(Path(beside)))) if beside else f"{shlex.quote(sys.executable)} -m neurogen_numba"


def typed(path: Path) -> Path:
    """A path as it is typed: relative if it lies below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
