"""Backends: the CPU, or one NVIDIA GPU. `get` chooses."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..config import did_you_mean
from ..errors import BackendError, ConfigError
from ..system import environment
from . import probe

if TYPE_CHECKING:
    from .base import Backend

NAMES = ("auto", "cuda", "cpu")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_ALSO_CALLED = {"gpu": "cuda", "nvidia": "cuda"}  # else the nearest name to "gpu" is "cpu"
_made: dict[tuple, Backend] = {}


def get(name: str = "auto", device: int = 0, precision: str = "auto") -> Backend:
    """The backend of that name, the same object at each call. "auto" is "cuda" if the machine has a GPU, else "cpu". device: index of the
    GPU; precision: see cuda.py.

    Raises BackendError if "cuda" cannot run; if "auto" finds a GPU that does not work; or if device is not 0 and there is no GPU. "auto"
    never falls back to the CPU in these cases.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown backend {name!r}; {did_you_mean(_ALSO_CALLED.get(str(name).lower(), str(name).lower()), NAMES)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; {did_you_mean(str(precision), PRECISIONS)}")
    with contextlib.suppress(ImportError):  # if there is a GPU, `probe.problem` below explains it
        environment.check()
    if name == "cpu" or (name == "auto" and probe.simulated()):
        return _cpu(device, precision)
    if not probe.simulated() and ("cuda", device, precision) not in _made:
        found = probe.look()
        if name == "auto" and not found.present and device == 0:
            return _cpu(device, precision)
        _demand(probe.problem(found, device))
        if precision == "bf16" and found.gpus[device].capability < (8, 0):
            raise ConfigError(f"precision bf16: GPU {device} ({found.gpus[device].name}) has no bfloat16; leave it out, or use fp16")
    return _cuda(device, precision)


def arguments_of(backend: Backend) -> tuple:
    """The arguments from which `get` made a backend. Raises ConfigError if `get` did not make it."""
    for arguments, made in _made.items():
        if made is backend:
            return arguments
    raise ConfigError("a model on a backend that backends.get did not make cannot be pickled; save it as a checkpoint")


def _cpu(device, precision):
    if device:
        raise ConfigError(f"--gpu-device {device} cannot be combined with the CPU backend; drop it, or use --backend cuda")
    if precision not in ("auto", "fp32"):
        raise ConfigError(f"precision {precision}: the CPU backend computes in fp32; drop it, or use --backend cuda")
    if ("cpu",) not in _made:
        from .cpu import CpuBackend

        try:
            _made["cpu",] = CpuBackend()
        except (ValueError, RuntimeError) as error:  # from Numba, which starts its threads here
            cure = "correct or unset NUMBA_THREADING_LAYER and NUMBA_THREADING_LAYER_PRIORITY"
            raise BackendError(f"Numba cannot start its threads ({probe.first_line(error)}); {cure}") from None
    return _made["cpu",]


def _cuda(device, precision):
    if ("cuda", device, precision) not in _made:
        from .cuda import CudaBackend

        try:
            _made["cuda", device, precision] = CudaBackend(device, precision)
        except Exception as error:
            if probe.is_of_the_gpu(error):
                _demand(probe.explain(error, device))
            raise
    return _made["cuda", device, precision]


def _demand(problem):
    if problem:
        raise BackendError(f"{problem.what}. To use a GPU, {problem.mend}; to do without, use the backend cpu (--backend cpu).")
