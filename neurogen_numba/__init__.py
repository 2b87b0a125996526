"""NeuroGen: a spiking language model in Numba, on any machine."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A checkout keeps kernels/ beside this package, an installed copy inside it; resolving both
# lets a run started at the checkout's root import `neurogen_numba.kernels` too.
_PACKAGE = Path(__file__).resolve().parent
if not (_PACKAGE / "kernels").is_dir():
    __path__.append(str(_PACKAGE.parent))

if TYPE_CHECKING:
    from . import lab, nir
    from .brain.model import NeuroGenModel
    from .config import Config
    from .inference.recording import Recording
    from .library import Run, load, train
    from .neurons import Learned, Neuron, TimeConstant, event, neuron, slope
    from .neurons.check import check_gradient
    from .presets import PRESETS, get_preset
    from .text.tokenizer import Tokenizer

__all__ = [
    "PRESETS",
    "Config",
    "Learned",
    "NeuroGenModel",
    "Neuron",
    "Recording",
    "Run",
    "TimeConstant",
    "Tokenizer",
    "__version__",
    "check_gradient",
    "event",
    "get_preset",
    "lab",
    "load",
    "neuron",
    "nir",
    "slope",
    "train",
]

_HOMES = {  # public name -> its module, imported at the first access, because importing Numba takes long
    "Config": "config",
    "Learned": "neurons",
    "Neuron": "neurons",
    "TimeConstant": "neurons",
    "check_gradient": "neurons.check",
    "event": "neurons",
    "neuron": "neurons",
    "slope": "neurons",
    "NeuroGenModel": "brain.model",
    "PRESETS": "presets",
    "Recording": "inference.recording",
    "Run": "library",
    "Tokenizer": "text.tokenizer",
    "get_preset": "presets",
    "load": "library",
    "train": "library",
}


def __getattr__(name: str):
    if name in ("lab", "nir"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
