"""Numba's CUDA simulator in a third of its time.

- The simulator runs all threads of a block at once: they and a loop that polls them compete for Python's lock. Here they are greenlets and
  take turns. One runs until it waits at a barrier or ends, then the next one does. Every second block begins with its last thread, so that
  a missing barrier shows, whether it protects what later or what earlier threads write.
- The simulator replaces `cuda` in a module's globals at every call of a device function. Here that is done once for each launch.
- An element of an array passes through three wrappers there, and through one here.
"""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray, FakeWithinKernelCUDAArray
from numba.cuda.simulator.kernelapi import Dim3, FakeCUDAShared

begun = itertools.count()  # blocks
numbas_shared_array = FakeCUDAShared.array


class Thread(greenlet):
    """A thread of a block. `switch` runs it until it waits at a barrier or ends, and raises what it raises."""

    def __init__(self, manager, function, block, point):
        super().__init__(function)
        self._manager, self.blockIdx, self.threadIdx = manager, Dim3(*block), Dim3(*point)

    def syncthreads(self):
        self.parent.switch()

    syncthreads_count, syncthreads_or = kernel.BlockThread.syncthreads_count, kernel.BlockThread.syncthreads_or


def run_block(manager, block, *arguments):
    """Run the threads of a block to their ends; replaces BlockManager.run."""
    points = list(np.ndindex(*manager._block_dim))[:: 1 if next(begun) % 2 else -1]
    threads = [Thread(manager, manager._f, block, point) for point in points]
    for thread in threads:
        thread.switch(*arguments)
    while threads := [thread for thread in threads if not thread.dead]:
        for thread in threads:
            thread.switch()


class Swapped:
    """A context in which the globals of a function name the module of a launch where they named `cuda`; replaces swapped_cuda_module. The
    first context of a launch is that of the kernel, and at its end all globals are as before."""

    changed = {}  # id of globals: (globals, names in them)

    def __init__(self, function, module):
        self.globals, self.module = function.__globals__, module

    def __enter__(self):
        self.first = not self.changed
        if id(self.globals) not in self.changed:
            names = [name for name, thing in self.globals.items() if thing is cuda]
            self.changed[id(self.globals)] = self.globals, names
            self.globals.update(dict.fromkeys(names, self.module))

    def __exit__(self, *_):
        if self.first:
            for changed, names in self.changed.values():
                changed.update(dict.fromkeys(names, cuda))
            self.changed.clear()


def element(array, index):
    """An element of an array in a kernel, or a view on a part of it; replaces FakeWithinKernelCUDAArray.__getitem__."""
    found = array._item._ary[index]
    return FakeWithinKernelCUDAArray(FakeCUDAArray(found)) if isinstance(found, np.ndarray | np.void) else found


def set_element(array, index, value):
    array._item._ary[index] = value


def shared_array(shared, shape, dtype, alignment=None):
    """An array for all that ask from one line; replaces FakeCUDAShared.array, which reads the whole stack to know the line."""
    if shape == 0 or alignment is not None:  # dynamic: there from the beginning, or an error
        return numbas_shared_array(shared, shape, dtype, alignment)
    caller = sys._getframe(1)
    line = caller.f_code.co_filename, caller.f_lineno
    if line not in shared._allocations:
        shared._allocations[line] = np.empty(shape, dtype)
    return shared._allocations[line]


def install():
    """Replace these parts of the simulator."""
    kernel.BlockManager.run, kernel.swapped_cuda_module, FakeCUDAShared.array = run_block, Swapped, shared_array
    FakeWithinKernelCUDAArray.__getitem__, FakeWithinKernelCUDAArray.__setitem__ = element, set_element
    kernelapi.threading = SimpleNamespace(current_thread=getcurrent)
