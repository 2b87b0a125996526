"""How the CPU loops are compiled, and the typed constants of the physics.

Physics is written once, as scalar functions under `numba.extending.register_jitable`, which the CPU loops here and `@cuda.jit` kernels call
alike. A bare `1.0` in such a function is a float64 constant to Numba and promotes everything that it meets; hence the typed constants.
"""

from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

# Sums may be reordered and multiply-adds fused, which vector code needs; NaN and infinity keep their meaning. A compiled loop always adds
# in the same order, and no two threads ever add to the same number, so results do not depend on the number of threads. To that end a
# loop that sums into one number stores nothing: beside a store, LLVM looks at run time whether arrays lie close together, and where they do
# it adds one by one.
_MATH = {"contract", "reassoc", "nsz", "arcp"}

cpu = partial(numba.njit, parallel=True, fastmath=_MATH, cache=True)  # a loop over `prange`
cpu_serial = partial(numba.njit, fastmath=_MATH, cache=True)  # a loop too small to share

# A scan touches a dozen arrays; with its default limit LLVM gives up proving that they do not overlap and leaves the loop scalar (60 times
# slower).
llvm.set_option("neurogen", "--runtime-memory-check-threshold=128")


def _drop_stale_cache(folder: Path):
    """Numba renews a cached kernel when its own file changes, not when a file that it calls into does: a newer source here renews them
    all."""
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        if index.stat().st_mtime < newest:
            index.unlink(missing_ok=True)


_drop_stale_cache(Path(__file__).parent)
