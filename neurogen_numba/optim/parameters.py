"""The table of all learned arrays. Allocation, memory budget, optimisers and checkpoints are derived from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..backends.base import Backend
from ..kernels.adamw import BLOCK


@dataclass(frozen=True)
class Parameter:
    """One learned array, float32."""

    name: str  # component.array, for example "pfc.gain" or "wernicke_pfc.weight"
    shape: tuple[int, ...]
    meaning: str
    file: str = "brain"  # of the checkpoint: brain, embeddings or decoder
    decays: bool = False  # takes part in weight decay
    low: float = -math.inf  # an update never leaves [low, high]
    high: float = math.inf
    room: int = 0  # numbers allocated for it, if more than its size
    row_wise: bool = False  # updated row by row, without a whole gradient (optim/low_memory.py)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        """The number of blocks of BLOCK numbers that it occupies."""
        return -(-max(self.size, self.room) // BLOCK)


@dataclass(frozen=True)
class Rows:
    """Gradients of some rows of a parameter: gradient [P, C] float32; rows [P] int32, the row index of each, negative if unused.

    Buffers for its norm: squares [ceil(P C / BLOCK)] float64, norm [1] float32.
    """

    name: str
    gradient: object
    rows: object
    squares: object
    norm: object


class Parameters:
    """Values and gradients of all parameters: two flat arrays, and a view for each name. Row-wise parameters come last, without gradients.

    Every parameter begins at a multiple of BLOCK numbers (`offset`), so that a block of the update belongs to one parameter. The padding
    stays 0.
    """

    def __init__(self, table: Iterable[Parameter], backend: Backend):
        self.table = {parameter.name: parameter for parameter in sorted(table, key=lambda parameter: parameter.row_wise)}
        self.size = sum(parameter.size for parameter in self.table.values())  # numbers learned
        self.offset, end, whole = {}, 0, 0
        for name, parameter in self.table.items():
            self.offset[name] = end
            end += self.numbers(parameter)
            whole = whole if parameter.row_wise else end
        with backend.part("parameters"):
            self.flat_value, self.flat_gradient = backend.zeros(end), backend.zeros(whole)
        self.value, self.gradient = self.views(self.flat_value), self.views(self.flat_gradient)

    def views(self, flat) -> dict:
        """Views of the parameters in a flat array that holds all of them or the first ones: name -> array of the parameter's shape."""
        start, table = self.offset, self.table.items()
        return {name: flat[start[name] : start[name] + p.size].reshape(p.shape) for name, p in table if start[name] < len(flat)}

    @staticmethod
    def numbers(parameter: Parameter) -> int:
        """Numbers of a flat array that a parameter takes, padding included."""
        return parameter.blocks * BLOCK

    def with_room(self, flat, name):
        """A parameter's part of a flat array, with the `room` allocated for it."""
        start = self.offset[name]
        return flat[start : start + max(self.table[name].size, self.table[name].room)]

    def per_block(self, of) -> np.ndarray:
        """of(parameter) for the parameter of each block, float32."""
        return np.concatenate([np.full(p.blocks, of(p), np.float32) for p in self.table.values()])

    def clear_gradient(self, but: str = ""):
        """Set all gradients to 0 but that of one parameter."""
        if but not in self.gradient:
            self.flat_gradient[:] = 0
            return
        begin = self.offset[but]
        self.flat_gradient[:begin] = 0
        self.flat_gradient[begin + len(self.with_room(self.flat_gradient, but)) :] = 0
