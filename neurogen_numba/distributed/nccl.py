"""Ranks over NCCL: gradients between GPUs, on a CUDA stream of their own. Everything else goes over MPI (mpi.py)."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.compiling import noted
from ..errors import BackendError

if TYPE_CHECKING:
    from .mpi import Mpi

INSTALL = 'pip install "nvidia-nccl-cu12>=2.18.1", or pip install -e ".[cuda,distributed]"'


def library():
    """CuPy's module of NCCL. Raises BackendError where NCCL is not installed."""
    package = importlib.util.find_spec("nvidia.nccl") if importlib.util.find_spec("nvidia") else None
    for folder in package.submodule_search_locations if package else ():
        for file in Path(folder).glob("lib/libnccl.so*"):
            ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)  # CuPy finds it by its name then
    import cupy_backends.cuda.libs.nccl as nccl

    return nccl


def check():
    """As `library`. Raises BackendError with the reason where NCCL cannot be loaded."""
    try:
        return library()
    except (ImportError, OSError) as error:
        raise BackendError(f"ranks on GPUs need NCCL, and it does not load ({str(error).splitlines()[0]}); {INSTALL}") from None


class Nccl:
    """Sums of arrays of cards, one a rank.

    `begin` queues a sum on a stream of its own, behind the work that the main stream has queued so far. In a recorded step it becomes a
    branch of the CUDA graph. Raises BackendError where NCCL is missing, or cannot connect the cards.
    """

    def __init__(self, ranks: Mpi, backend):
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # no sums in the switch: two runs then add in the same order
        self._ranks, self._backend, self._nccl, self._queued = ranks, backend, check(), False
        name = ranks.order(self._nccl.get_unique_id() if ranks.rank == 0 else None)[0]
        try:
            self._ring = self._nccl.NcclCommunicator(ranks.size, name, ranks.rank)
        except self._nccl.NcclError as error:
            raise BackendError(f"NCCL cannot connect the {ranks.size} cards ({error}); NCCL_DEBUG=INFO says why") from None

    def begin(self, array):
        if noted():
            return
        pointer, side = array.data.ptr, self._backend.fork("gradients")
        self._ring.allReduce(pointer, pointer, array.size, self._nccl.NCCL_FLOAT32, self._nccl.NCCL_SUM, side.ptr)
        self._queued = True

    def join(self):
        if self._queued and not noted():
            self._backend.join("gradients")
            self._queued = False

    def share_parts(self, array):
        if noted():
            return
        nccl, stream = self._nccl, self._backend.fork("gradients")
        nccl.groupStart()
        for rank in range(self._ranks.size):
            numbers = array[self._ranks.numbers_of(array.size, rank)]
            if numbers.size:
                self._ring.bcast(numbers.data.ptr, numbers.size, nccl.NCCL_FLOAT32, rank, stream.ptr)
        nccl.groupEnd()
        self._backend.join("gradients")
