"""`swap`: a context in which a user's kernel replaces one of ours in every model."""

from __future__ import annotations

import contextlib
from functools import partial

from ..system.contexts import context
from . import bundles
from .vocabulary import bound, call, check_kernel, target


@context("ng.lab.swap")
def swap(name: str, kernel):
    """A context manager: models run `kernel` in the place of our kernel `name` (`kernels()` lists them and their arguments).

    kernel: a CPU loop (`numba.njit`) replaces ours on the CPU, a CUDA kernel (`cuda.jit`) ours on GPUs; a function of Python does so
    everywhere, and may call `lab.launch`. A CUDA kernel gets a thread for each entry of its first argument, unless it comes as
    `kernel[grid, threads]`. Arrays are the backend's own, NumPy or CuPy, bfloat16 as its bits (uint16).

    Inside, no step is repeated from a recording (a CUDA graph or a tape): the kernel runs at every call. That makes a model slower, and so
    do the copies of plain values for kernels of bundles. At the end, also after an exception, ours and the recordings are back.

    Raises ConfigError for an unknown name, and for a kernel that does not take the arguments of ours.
    """
    check_kernel(name, kernel)
    with contextlib.ExitStack() as stack:
        for backend, state in _classes(target(kernel)):
            stack.enter_context(_attribute(backend, "recording", False))
            if name in bundles.METHODS:
                method, make = bundles.METHODS[name]
                stack.enter_context(_attribute(state, method, make(partial(_run, kernel))))
            else:
                stack.enter_context(_attribute(backend, name, _operation(name, kernel)))
        yield


def _run(kernel, backend, given):
    call(backend, kernel, given)


def _operation(name, kernel):
    def operation(self, *given, **how):
        call(self, kernel, bound(name, given, how))

    return operation


def _classes(which):
    """(backend, synaptic state) classes of a backend, or of all."""
    if which != "cuda":
        from ..backends.cpu import CpuBackend
        from ..backends.cpu_synapses import CpuSynapticState

        yield CpuBackend, CpuSynapticState
    if which != "cpu":
        from ..backends.cuda import CudaBackend
        from ..backends.cuda_synapses import CudaSynapticState

        yield CudaBackend, CudaSynapticState


@contextlib.contextmanager
def _attribute(owner, name, value):
    """A context in which an attribute of a class has another value."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
