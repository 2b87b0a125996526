"""`swap`: a context in which a user's kernel replaces one of ours in every model."""

from __future__ import annotations

import contextlib
from functools import partial

from ..brain.brain import refresh_all
from ..errors import ConfigError
from ..system.contexts import context
from . import bundles
from .checks import in_range, indices_checked, with_checks
from .vocabulary import arguments, bound, call, check_kernel, function_of, target

active: list[str] = []  # kernels that are swapped now


@context("ng.lab.swap")
def swap(name: str, kernel, check: bool = True):
    """A context manager: models run `kernel` in the place of our kernel `name` (`kernels()` lists them and their arguments).

    kernel: a CPU loop (`numba.njit`) replaces ours on the CPU, a CUDA kernel (`cuda.jit`) ours on GPUs; a function of Python does so
    everywhere, and may call `lab.launch`. A CUDA kernel gets a thread for each entry of its first argument, unless it comes as
    `kernel[grid, threads]`. Arrays are the backend's own, NumPy or CuPy, bfloat16 as its bits (uint16).

    check: a CPU loop runs on one thread and checks its indices; one beyond an array raises ConfigError, which without the check can end the
    process. A negative index counts from the end, as in NumPy; functions that the loop calls are not checked. CUDA kernels are checked in
    Numba's simulator alone. Tokens that a kernel in the place of `sample` draws are always checked.

    Inside, no step is repeated from a recording (a CUDA graph or a tape): the kernel runs at every call. That makes a model slower, and so
    do the copies of plain values for kernels of bundles. Models derive their decays again, inside and at the end.
    At the end, also after an exception, ours and the recordings are back.

    Raises ConfigError for an unknown name, a kernel that does not take the arguments of ours, and an index beyond an array.
    """
    if not isinstance(name, str):
        raise ConfigError("swap: the name of ours comes first, then the kernel, for example swap('bundles_forward', mine)")
    check_kernel(name, kernel)
    label = getattr(function_of(kernel), "__name__", "yours")
    which = target(kernel)
    kernel = with_checks(kernel) if check and which == "cpu" else kernel
    run = partial(_run, name, label, kernel)
    with contextlib.ExitStack() as stack:
        stack.callback(refresh_all)
        for backend, state in _classes(which):
            stack.enter_context(_attribute(backend, "recording", False))
            if name in bundles.METHODS:
                method, make = bundles.METHODS[name]
                stack.enter_context(_attribute(state, method, make(run)))
            else:
                stack.enter_context(_attribute(backend, name, _operation(name, run)))
        active.append(name)
        stack.callback(active.remove, name)
        refresh_all()
        yield


def _run(name, label, kernel, backend, given):
    inputs = dict(zip(arguments(name), given, strict=True))
    with indices_checked(name, label, inputs):
        call(backend, kernel, given)
    if name == "sample":  # the next step reads the embedding of these tokens
        in_range(f"swap sample: {label}", "tokens", backend.to_numpy(inputs["tokens"]), 0, inputs["size"], "size")


def _operation(name, run):
    def operation(self, *given, **how):
        run(self, bound(name, given, how))

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
