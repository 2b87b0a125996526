"""Which neurons a process has: importing those that its user names, and holding a checkpoint to the source that it was trained with.

A checkpoint names its neurons but never imports them: that would run code without the user's request.
"""

from __future__ import annotations

import importlib
import sys

from ..config import MODULES, NEURONS, Brain
from ..errors import CheckpointError, ConfigError
from .definition import Neuron, get


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


def check_sources(brain: Brain, saved: dict, where: str) -> None:
    """Compare the neurons of a configuration with those that were trained; saved: module -> {"neuron": reference, "sha256": of its source}.
    Those that ship with NeuroGen are told by their name. Raises CheckpointError where one is missing, or has another source."""
    for module in MODULES:
        reference = getattr(brain, module).neuron
        if reference in NEURONS:
            continue
        try:
            current_hash = get(reference).source_hash
        except ConfigError:
            raise CheckpointError(
                f"{where}: {module} is made of the neuron {reference}, which no checkpoint may import by itself; name it: "
                f"--set brain.{module}.neuron={reference}, or import {reference.partition(':')[0]} before"
            ) from None
        if saved.get(module) != {"neuron": reference, "sha256": current_hash}:
            raise CheckpointError(
                f"{where}: {module} was trained with another source of the neuron {reference} than is defined now; restore that source, "
                "or train a new model"
            )
