"""Decorators for the CPU loops, and the typed constants of the physics.

Physics is written once, as scalar functions under `numba.extending.register_jitable`. CPU loops and `@cuda.jit` kernels both call them.
Numba types a bare `1.0` as float64, which promotes the whole expression; hence the typed constants.
"""

import os
import sys
import types
from functools import partial

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.extending import register_jitable

from .cache import cached
from .compiler import LoopCompiler

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

# Fast-math flags: multiply-adds are fused; NaN and infinity keep their meaning. A compiled loop always adds in the same order, and no two
# threads add to the same number, so results do not depend on the number of threads.
_MATH = {"contract", "nsz"}

# A vectorised sum needs another order of additions ("reassoc"). LLVM chooses between vector and scalar code at run time, by a test of
# whether the arrays of a loop overlap, and the two round differently. To give the same bits in every run, a loop of these kernels that sums
# stores nothing, and scratch arrays lie in one allocation at fixed distances.
_SUMS = _MATH | {"reassoc"}


def _compile(parallel=False, **options):
    """Decorator: compile a loop at its first call and save it on disk. options: of `numba.njit`.

    A division by 0 gives infinity or NaN, because the branch that would raise an exception prevents vectorisation. The attribute `serial`
    of a loop is the same loop compiled for one thread: starting a parallel loop takes longer than many loops over a single token run.
    """

    jit = partial(numba.njit, error_model="numpy", pipeline_class=LoopCompiler)

    def compiled(loop):
        shared = cached(jit(parallel=parallel, **options)(loop))
        shared.serial = cached(jit(**options)(loop)) if parallel else shared
        return shared

    return compiled


cpu = partial(_compile, parallel=True, fastmath=_MATH)  # a loop over `prange`
cpu_sums = partial(_compile, parallel=True, fastmath=_SUMS)  # a loop over `prange` with long sums
cpu_serial = partial(_compile, fastmath=_MATH)  # a loop too small for several threads
cpu_serial_sum = partial(_compile, fastmath=_SUMS)  # a serial loop with long sums, which loops over `prange` call

# A scan reads and writes a dozen arrays. With the default limit LLVM emits no overlap checks for that number of arrays and leaves the loop
# scalar, which is 60 times slower.
llvm.set_option("neurogen", "--runtime-memory-check-threshold=128")


# An idle OpenMP thread spins 1,000 times and then sleeps, so that it does not occupy a core that another thread needs. GNU's OpenMP reads
# this variable when it is loaded, with the first loop.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


_MADE = sys.modules.setdefault(f"{__package__}.made", types.ModuleType(f"{__package__}.made", "Functions that are created at run time."))


def made(function, name: str):
    """Register a function that was created at run time under a unique name, by which it is pickled. Returns it, ready for kernels to call.

    The cache on disk distinguishes kernels by the names of the functions that they call, so equal names must mean equal code.
    """
    function.__module__, function.__name__, function.__qualname__ = _MADE.__name__, name, name
    setattr(_MADE, name, function)
    return register_jitable(function)
