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
    from . import lab
    from .brain.model import NeuroGenModel
    from .config import Config
    from .library import Run, load, train
    from .presets import PRESETS, get_preset
    from .text.tokenizer import Tokenizer

__all__ = ["PRESETS", "Config", "NeuroGenModel", "Run", "Tokenizer", "__version__", "get_preset", "lab", "load", "train"]

_HOMES = {  # public name -> its module: imported when it is first asked for, since Numba takes a while
    "Config": "config",
    "NeuroGenModel": "brain.model",
    "PRESETS": "presets",
    "Run": "library",
    "Tokenizer": "text.tokenizer",
    "get_preset": "presets",
    "load": "library",
    "train": "library",
}


def __getattr__(name: str):
    if name == "lab":
        return importlib.import_module(".lab", __name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
