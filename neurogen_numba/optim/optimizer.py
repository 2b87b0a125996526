"""The interface of optimisers, and AdamW with the gradient clipped to a global norm (kernels/adamw.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ..kernels.adamw import BETA1, BETA2
from ..kernels.reduce import BLOCK
from .parameters import Parameters

LONGEST_AVERAGE = 1 / 8  # share of the updates so far that an average covers at most, so that it fits a short run, too


class Optimizer(ABC):
    """Number of updates and optimiser state. An update is `prepare`, the backward pass, `apply`, `finish`."""

    row_wise: frozenset[str] = frozenset()  # parameters without a whole gradient (low_memory.py)

    def __init__(self, parameters: Parameters, backend, weight_decay: float = 0.1, clip: float = 1.0, average: int = 0):
        """average: updates that the weights are averaged over, but at most an eighth of those so far; 0: there is no average."""
        self.parameters, self.backend, self.clip, self.horizon = parameters, backend, clip, average
        self.steps = 0
        self.average = backend.zeros(parameters.flat_value.size) if average else None
        self._share = backend.zeros(1)
        self.decay = backend.asarray(parameters.per_block(lambda p: weight_decay if p.decays else 0.0))
        self.low = backend.asarray(parameters.per_block(lambda p: p.low))
        self.high = backend.asarray(parameters.per_block(lambda p: p.high))
        self.norm = backend.zeros(1)  # of the last gradient, before clipping
        self._numbers = backend.zeros(4)
        self._squares = backend.zeros(-(-parameters.flat_gradient.size // BLOCK), "float64")
        self.kept = slice(0, parameters.flat_value.size)  # numbers of the flat array whose moments are here

    @property
    def updated(self):
        """The values that moments update: a flat array, in whole blocks."""
        return self.parameters.flat_value

    def moments(self) -> dict[str, tuple]:
        """Letter -> (flat array of the moments of the numbers `kept`, how many numbers share one of its entries)."""
        return {}

    def keep(self, communicator):
        """Keep moments of this rank's numbers only, if the ranks share them (ZeRO-1)."""
        self.kept = kept = communicator.numbers_of(self.updated.size)
        if kept.stop - kept.start < self.updated.size:
            for letter, (array, unit) in self.moments().items():
                setattr(self, letter, array[kept.start // unit : kept.stop // unit].copy())

    def tensors(self, moments: dict | None = None) -> dict:
        """The optimiser state in a checkpoint: name -> array of the device. moments: letter -> those of all ranks, joined."""
        tensors = {}
        for letter, (array, unit) in self.moments().items():
            array = moments[letter] if moments else array
            for name, parameter in self.parameters.table.items():
                first = self.parameters.offset[name] // unit
                if first < len(array):
                    part = array[first : first + -(-parameter.size // unit)]
                    tensors[f"{letter}.{name}"] = part.reshape(parameter.shape) if unit == 1 else part
        return tensors | ({f"average.{name}": x for name, x in self.parameters.views(self.average).items()} if self.horizon else {})

    def begin_again(self, rows: np.ndarray, size: int):
        """Set the moments of some rows of `size` numbers of the flat array to 0, and their average to their values. rows: indices [n]; size
        divides BLOCK."""
        first = self.kept.start // size
        for array, unit in self.moments().values():
            moments = array.reshape(-1, size // unit)
            local = rows[(rows >= first) & (rows < first + len(moments))] - first
            if len(local):  # else another rank has them
                moments[self.backend.asarray(local, "int64")] = 0
        if self.horizon:
            index = self.backend.asarray(rows, "int64")
            self.average.reshape(-1, size)[index] = self.parameters.flat_value.reshape(-1, size)[index]

    def of(self, name: str) -> list:
        """The arrays of a checkpoint that belong to one parameter, for example its moments and its average."""
        return [array for key, array in self.tensors().items() if key.partition(".")[2] == name]

    def stop_decay(self):
        """Update without weight decay from now on."""
        self.decay[...] = 0

    def rescale(self, factor: float):
        """Make moments and clipping what they would be if all gradients so far had been `factor` times as large."""
        self.clip *= factor
        for letter, (array, _) in self.moments().items():
            if array.dtype == np.float32:  # codes of 8-bit moments stay, and their scales grow
                array *= np.float32(factor**2 if letter == "v" else factor)

    def prepare(self, rate: float):
        """Set the learning rate and bias corrections of the next update."""
        steps = self.steps + 1
        numbers = (rate, 1 / (1 - BETA1**steps), 1 / (1 - BETA2**steps), self.clip)
        self._numbers[...] = self.backend.asarray(numbers, "float32")
        if self.horizon:
            self._share[...] = np.float32(1 / min(1 + LONGEST_AVERAGE * (steps - 1), self.horizon))

    def measure(self):
        """Compute the norm of the gradient."""
        self.backend.sum_of_squares(self._squares, self.parameters.flat_gradient)
        self.backend.norm(self.norm, self._squares)

    def update_numbers(self, operation, begin, end, moments, *how):
        """Update those of the numbers begin ... end - 1 whose moments are here. moments: arrays of the numbers `kept`."""
        begin, end, first = max(begin, self.kept.start), min(end, self.kept.stop), self.kept.start
        if begin < end:  # more ranks than blocks leave one without
            part, blocks = slice(begin, end), slice(begin // BLOCK, end // BLOCK)
            arrays = self.parameters.flat_value[part], self.parameters.flat_gradient[part]
            local_moments = (moment[begin - first : end - first] for moment in moments)
            bounds = self.decay[blocks], self.low[blocks], self.high[blocks]
            operation(*arrays, *local_moments, *bounds, self.norm, self._numbers, *how)

    @abstractmethod
    def apply(self):
        """Update the parameters from their gradients, unless the norm of these is not finite."""

    def accumulate_average(self):
        """Move the average towards the parameters, after an update."""
        if self.horizon:
            self.backend.average(self.average, self.parameters.flat_value, self._share)

    def finish(self) -> float:
        """End the update: return the gradient norm before clipping, and count the update if it is finite."""
        norm = float(self.backend.to_numpy(self.norm)[0])
        self.steps += bool(np.isfinite(norm))
        return norm

    def update(self, rate: float) -> float:
        """`prepare`, `apply` and `finish`. Returns the gradient norm before clipping; if it is not finite, nothing changes."""
        self.prepare(rate)
        self.apply()
        self.accumulate_average()
        return self.finish()


class AdamW(Optimizer):
    """AdamW with two float32 moments per parameter (kernels/adamw.py)."""

    def __init__(self, parameters: Parameters, backend, *how, **settings):
        super().__init__(parameters, backend, *how, **settings)
        self.m, self.v = (backend.zeros(parameters.flat_value.size) for _ in range(2))

    def moments(self):
        return {"m": (self.m, 1), "v": (self.v, 1)}

    def apply(self):
        self.measure()
        self.update_numbers(self.backend.adamw, 0, self.parameters.flat_value.size, (self.m, self.v))
