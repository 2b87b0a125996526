"""NeuroGen: a spiking language model in Numba, on any machine."""

from pathlib import Path

__version__ = "0.1.0"

# A checkout keeps kernels/ beside this package, an installed copy inside it; resolving both
# lets a run started at the checkout's root import `neurogen_numba.kernels` too.
_PACKAGE = Path(__file__).resolve().parent
if not (_PACKAGE / "kernels").is_dir():
    __path__.append(str(_PACKAGE.parent))
