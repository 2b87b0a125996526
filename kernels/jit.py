"""How the CPU loops are compiled, and the typed constants of the physics.

Physics is written once, as scalar functions under `numba.extending.register_jitable`, which the CPU loops here and `@cuda.jit` kernels call
alike. A bare `1.0` in such a function is a float64 constant to Numba and promotes everything that it meets; hence the typed constants.
"""

import os
import sys
import types
from functools import partial

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.extending import register_jitable

from .cache import keep

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

# Multiply-adds are fused; NaN and infinity keep their meaning. A compiled loop always adds in the same order, and no two threads ever add
# to the same number, so results do not depend on the number of threads.
_MATH = {"contract", "nsz"}

# A kernel that adds many numbers up may do so in another order, which vector code needs. LLVM picks between vector and scalar code by
# asking at run time how far apart the arrays of a loop lie in memory, and the two then round differently. So in these kernels a loop that
# sums stores nothing, and scratch arrays lie in one block, at fixed distances: the same run gives the same bits.
_SUMS = _MATH | {"reassoc"}


def _kept(parallel=False, **options):
    """Decorator: a loop, compiled at its first call and then kept. options are `numba.njit`'s. A division by 0 is infinite or NaN: to raise
    an exception instead takes a branch, which vector code cannot have. `serial` of a loop is compiled for one thread: to begin a parallel
    loop takes longer than many a loop of a single token."""

    def compiled(loop):
        shared = keep(numba.njit(error_model="numpy", parallel=parallel, **options)(loop))
        shared.serial = keep(numba.njit(error_model="numpy", **options)(loop)) if parallel else shared
        return shared

    return compiled


cpu = partial(_kept, parallel=True, fastmath=_MATH)  # a loop over `prange`
cpu_sums = partial(_kept, parallel=True, fastmath=_SUMS)  # one that adds many numbers up
cpu_serial = partial(_kept, fastmath=_MATH)  # a loop too small to share
cpu_serial_sum = partial(_kept, fastmath=_SUMS)  # one of those that adds many numbers up; loops over `prange` call it

# A scan touches a dozen arrays; with its default limit LLVM gives up proving that they do not overlap and leaves the loop scalar (60 times
# slower).
llvm.set_option("neurogen", "--runtime-memory-check-threshold=128")


# A thread that has done its part looks for more so many times and then sleeps, instead of keeping a core from whoever else wants it. GNU's
# OpenMP reads this when it is loaded, with the first loop.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


_MADE = sys.modules.setdefault(f"{__package__}.made", types.ModuleType(f"{__package__}.made", "Functions that were made at run time."))


def made(function, name: str):
    """Give a function that was made at run time a name of its own, by which it is pickled: kernels that call it are told apart on disk by
    that name, so equal names must mean equal code. Returns the function, which kernels may call."""
    function.__module__, function.__name__, function.__qualname__ = _MADE.__name__, name, name
    setattr(_MADE, name, function)
    return register_jitable(function)
