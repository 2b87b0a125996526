"""NeuroGen: a spiking language model in Numba, on any machine."""

from pathlib import Path

__version__ = "0.1.0"

# A checkout keeps kernels/ beside this package, an installed copy inside it; resolving both
# lets a run started at the checkout's root import `neurogen_numba.kernels` too.
_PACKAGE = Path(__file__).resolve().parent
if not (_PACKAGE / "kernels").is_dir():
    __path__.append(str(_PACKAGE.parent))

__all__ = ["NeuroGenModel", "__version__"]


def __getattr__(name):  # the model brings Numba with it, which `neurogen --help` can do without
    if name == "NeuroGenModel":
        from .brain.model import NeuroGenModel

        return NeuroGenModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
