"""What a model and a trainer ask of the other ranks. A process that trains alone has a `Solo`, which asks nobody and costs nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from ..config import counted
from ..errors import ConfigError


def part(size: int, number: int, parts: int) -> slice:
    """The `number`-th of `parts` neighbouring parts of `size` things. The first parts have one more where they cannot be equal."""
    least, more = divmod(size, parts)
    first = number * least + min(number, more)
    return slice(first, first + least + (number < more))


class Solo:
    """The communicator of a process that trains alone, and the interface of the others (mpi.py, nccl.py).

    rank: number of this process, from 0; size: number of processes. shard: whether each keeps a part of the optimiser's state (ZeRO-1;
    Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models"). asked_to_stop: whether a signal asked
    this process to end the run; stopping: whether it asked any, as of the last `sum`. leads: whether the others wait for orders.
    """

    rank, size, shard = 0, 1, False
    asked_to_stop = stopping = leads = False

    def stop(self) -> None:
        """Ask all ranks to end the run after the next update. May be called from a signal handler."""
        self.asked_to_stop = True

    # Between host arrays and objects. Every rank makes the same calls in the same order.

    def sum(self, numbers: Sequence[float]) -> Sequence[float]:
        """The sums over all ranks of a few numbers, in float64."""
        return numbers

    def order(self, *what) -> Any:
        """Tell the others what to do next, on rank 0; on another rank, wait to be told. Returns the order."""
        return what

    def gather(self, thing) -> list:
        """The things of all ranks, on rank 0, in their order."""
        return [thing]

    def whole(self, part):
        """The parts of all ranks joined, on every rank: of an array [n], NumPy."""
        return part

    def agreed(self) -> contextlib.AbstractContextManager:
        """A context whose NeuroGenError, on whichever rank, is raised on all."""
        return contextlib.nullcontext()

    def together(self) -> contextlib.AbstractContextManager:
        """A context for work of all ranks: where this one leaves it by an exception, the others wait in vain, and are to be aborted."""
        return contextlib.nullcontext()

    def working(self, what: str) -> contextlib.AbstractContextManager:
        """A context for work whose length is known from before: where it takes far longer, this rank counts as hung."""
        return contextlib.nullcontext()

    # Between arrays of the device, as part of a step that a backend may record

    def begin(self, array) -> None:
        """Begin to replace an array, contiguous float32, by its sum over all ranks, beside the work that is queued later."""

    def join(self) -> None:
        """Let the work that is queued later wait for all sums that have begun."""

    def share_parts(self, array) -> None:
        """Replace each rank's part of an array (`numbers_of`) by what that rank has there."""

    def bind(self, backend) -> None:
        """Sum arrays of this backend from now on. Raises BackendError where ranks cannot; ConfigError where two have one card."""

    def columns(self, batch: int) -> slice:
        """The sequences of a batch that this rank trains."""
        return part(batch, self.rank, self.size)

    def most_columns(self, batch: int) -> int:
        """Sequences of the rank that trains the most."""
        return -(-batch // self.size)

    def numbers_of(self, size: int, rank: int | None = None) -> slice:
        """The numbers, of a flat array of `size`, whose optimiser state a rank (this one, if None) keeps: whole blocks."""
        from ..kernels.adamw import BLOCK  # Numba, which a rank imports once it knows its number of threads

        if not self.shard:
            return slice(0, size)
        blocks = part(size // BLOCK, self.rank if rank is None else rank, self.size)
        return slice(blocks.start * BLOCK, blocks.stop * BLOCK)


def check_batch(batch: int, ranks: int) -> None:
    """Raises ConfigError if a batch has fewer sequences than there are ranks."""
    if batch < ranks:
        raise ConfigError(f"a batch has {counted(batch, 'sequence')}, and {ranks} ranks share it; raise --batch-size, or start fewer")


SOLO = Solo()
_current = SOLO


def current() -> Solo:
    """The communicator of this process."""
    return _current


def become(communicator: Solo) -> None:
    """Make a communicator that of this process."""
    global _current
    _current = communicator
