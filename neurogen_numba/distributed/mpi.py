"""Ranks over MPI: objects and numbers of the host, and gradients on the CPU backend."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from ..errors import ConfigError, NeuroGenError
from .communicator import Solo
from .pulse import Pulse

if TYPE_CHECKING:
    from .nccl import Nccl

SPINS = 2000  # tests of a request before a wait sleeps between two
NAP = 1e-4  # seconds between two tests afterwards: ranks that share cores get them


class Mpi(Solo):
    """The ranks of MPI's world."""

    def __init__(self, pulse: Pulse):
        self._world, self._pulse = MPI.COMM_WORLD, pulse
        self.rank, self.size = self._world.rank, self._world.size
        node = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.rank, node.size  # among the ranks of this host
        self.host = socket.gethostname()
        self._arrays: HostArrays | Nccl | None = None  # how arrays of the backend are summed, once `bind` knows it
        pulse.joined = True
        self.broken = False  # whether ranks may wait for each other in different places, so that only an abort ends them

    def sum(self, numbers):
        local = np.array([*numbers, self.asked_to_stop], np.float64)
        everyone = np.empty((self.size, len(local)))
        self.wait(self._world.Iallgather(local, everyone))
        total = everyone.sum(axis=0)
        self.stopping = bool(total[-1])
        return total[:-1]

    def order(self, *what):
        message = pickle.dumps(what, 5) if self.rank == 0 else b""
        size = np.array([len(message)], np.int64)
        self.wait(self._world.Ibcast(size))
        message = bytearray(message) if self.rank == 0 else bytearray(int(size[0]))
        self.wait(self._world.Ibcast([message, MPI.BYTE]))
        return what if self.rank == 0 else pickle.loads(message)

    def gather(self, thing):
        return self._world.gather(thing) or [thing]

    def everyone(self, thing) -> list:
        """The things of all ranks, on every rank."""
        return self._world.allgather(thing)

    def whole(self, part):
        return np.concatenate(self.everyone(part))

    @contextlib.contextmanager
    def agreed(self):
        problem = None
        try:
            yield
        except NeuroGenError as error:
            problem = error
        except BaseException as error:
            self.broken = not isinstance(error, SystemExit)  # of --help, on every rank
            raise
        problems = [(rank, host, each) for rank, (host, each) in enumerate(self.everyone((self.host, problem))) if each]
        if problems:
            rank, host, first = problems[0]
            if len(problems) < self.size:
                first = type(first)(f"rank {rank} on {host}: {first}")
            raise first

    def working(self, what):
        return self._pulse.working(what)

    @contextlib.contextmanager
    def together(self):
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def bind(self, backend):
        logits = min(self.everyone(backend.logits))
        backend.logits = logits  # ranks compute a decoder that is updated row by row in the same blocks
        card = backend.card()
        if card is None:
            self._arrays = HostArrays(self, backend)
            return
        seen = {}
        for rank, where in enumerate(self.everyone((self.host, card))):
            if where in seen:
                sentence = f"ranks {seen[where]} and {rank} are both on the card {card} of {where[0]}; start one rank a GPU"
                raise ConfigError(f"{sentence}, or use --backend cpu")
            seen[where] = rank
        from . import nccl

        with self.agreed():
            nccl.check()
        with self.together():
            self._arrays = nccl.Nccl(self, backend)

    def begin(self, array):
        self._arrays.begin(array)

    def join(self):
        self._arrays.join()

    def share_parts(self, array):
        if self.shard:
            self._arrays.share_parts(array)

    def wait(self, request):
        """Wait for a request of MPI."""
        with self._pulse.waiting():
            spins = 0
            while not request.Test():
                spins += 1
                time.sleep(0 if spins < SPINS else NAP)

    def abort(self, code: int):
        """End all ranks now."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI's own words about it
        self._world.Abort(code)
        os._exit(code)

    def check_same(self, facts: dict) -> None:
        """Raises ConfigError on every rank if the facts, a value per name, differ between ranks."""
        everyone = self.everyone((self.host, facts))
        first = everyone[0][1]
        for rank, (host, other) in enumerate(everyone):
            for name in [*first, *(other.keys() - first.keys())]:
                if (value := other.get(name)) != (wanted := first.get(name)):
                    same = "start every rank with the same version, flags and settings"
                    raise ConfigError(f"rank {rank} on {host} has another {name} than rank 0, {value!r} instead of {wanted!r}; {same}")


class HostArrays:
    """Sums of NumPy arrays, at once. The order of a sum is that of the ranks, so its bits are the same on all, at every repetition."""

    def __init__(self, ranks: Mpi, backend):
        self._ranks, self._world, self._backend = ranks, MPI.COMM_WORLD, backend

    def begin(self, array):
        self._backend.apply(self._sum, array)

    def join(self):
        pass

    def share_parts(self, array):
        self._backend.apply(self._share_parts, array)

    def _sum(self, array):
        """Each rank adds one part of all ranks' arrays, and hands the sum round."""
        flat, size = array.reshape(-1), self._ranks.size
        numbers = -(-flat.size // size)
        whole, parts = np.zeros(size * numbers, flat.dtype), np.empty((size, numbers), flat.dtype)
        whole[: flat.size] = flat
        self._ranks.wait(self._world.Ialltoall(whole, parts))
        with np.errstate(over="ignore", invalid="ignore"):  # a diverging run is detected by its loss
            for other in parts[1:]:
                parts[0] += other
        self._ranks.wait(self._world.Iallgather(parts[0], whole))
        flat[:] = whole[: flat.size]

    def _share_parts(self, array):
        parts = [self._ranks.numbers_of(array.size, rank) for rank in range(self._ranks.size)]
        layout = [each.stop - each.start for each in parts], [each.start for each in parts]
        self._ranks.wait(self._world.Iallgatherv(MPI.IN_PLACE, [array, *layout, MPI.FLOAT]))
