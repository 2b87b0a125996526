"""How the CPU loops are compiled, and the typed constants of the physics.

Physics is written once, as scalar functions under `numba.extending.register_jitable`, which the CPU loops here and `@cuda.jit` kernels call
alike. A bare `1.0` in such a function is a float64 constant to Numba and promotes everything that it meets; hence the typed constants.
"""

import contextlib
import os
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

# Multiply-adds are fused; NaN and infinity keep their meaning. A compiled loop always adds in the same order, and no two threads ever add
# to the same number, so results do not depend on the number of threads.
_MATH = {"contract", "nsz"}

# A kernel that adds many numbers up may do so in another order, which vector code needs. LLVM picks between vector and scalar code by
# asking at run time how far apart the arrays of a loop lie in memory, and the two then round differently. So in these kernels a loop that
# sums stores nothing, and scratch arrays lie in one block, at fixed distances: the same run gives the same bits.
_SUMS = _MATH | {"reassoc"}

cpu = partial(numba.njit, parallel=True, fastmath=_MATH, cache=True)  # a loop over `prange`
cpu_sums = partial(numba.njit, parallel=True, fastmath=_SUMS, cache=True)  # one that adds many numbers up
cpu_serial = partial(numba.njit, fastmath=_MATH, cache=True)  # a loop too small to share
cpu_serial_sum = partial(numba.njit, fastmath=_SUMS, cache=True)  # one of those that adds many numbers up; loops over `prange` call it

# A scan touches a dozen arrays; with its default limit LLVM gives up proving that they do not overlap and leaves the loop scalar (60 times
# slower).
llvm.set_option("neurogen", "--runtime-memory-check-threshold=128")


# A thread that has done its part looks for more so many times and then sleeps, instead of keeping a core from whoever else wants it. GNU's
# OpenMP reads this when it is loaded, with the first loop.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _drop_stale_cache(folder: Path):
    """Numba renews a cached kernel when its own file changes, not when a file that it calls into does: a newer source here renews them
    all."""
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        with contextlib.suppress(OSError):  # another process was faster; or nothing may be written here, and nothing is renewed either
            if index.stat().st_mtime < newest:
                index.unlink()


_drop_stale_cache(Path(__file__).parent)
