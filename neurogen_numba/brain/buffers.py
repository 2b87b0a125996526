"""The table of every learned array. Allocation, byte count, update and checkpoint are all made from it, so no list has to agree with
another."""

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

    name: str  # owner.what, such as "pfc.gain" or "wernicke_pfc.weight"
    shape: tuple[int, ...]
    meaning: str
    file: str = "brain"  # the checkpoint file that it is kept in: brain, embeddings or decoder
    decays: bool = False  # takes part in weight decay
    low: float = -math.inf  # an update never leaves [low, high]
    high: float = math.inf
    room: int = 0  # numbers kept free for it, where that is more than it has
    apart: bool = False  # its gradient is never whole: it is updated row by row (learning/low_memory_optim.py)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        """Of BLOCK numbers each."""
        return -(-max(self.size, self.room) // BLOCK)


@dataclass(frozen=True)
class Rows:
    """The gradient of some rows of a parameter: gradient [P, C] float32; where [P] int32, the row that each is for, negative: none. Room to
    sum its squares up: squares [ceil(P C / BLOCK)] float64, norm [1] float32."""

    name: str
    gradient: object
    where: object
    squares: object
    norm: object


class Parameters:
    """Values and gradients of all parameters: two flat arrays, and a view for each name. The gradients end where the parameters begin that
    are apart.

    Every parameter begins at a multiple of BLOCK numbers (`offset`), so that a block of the update belongs to one parameter; what is left
    over between them stays 0.
    """

    def __init__(self, table: Iterable[Parameter], backend: Backend):
        self.table = {parameter.name: parameter for parameter in sorted(table, key=lambda parameter: parameter.apart)}
        self.size = sum(parameter.size for parameter in self.table.values())  # numbers learned
        self.offset, end, whole = {}, 0, 0
        for name, parameter in self.table.items():
            self.offset[name] = end
            end += self.numbers(parameter)
            whole = whole if parameter.apart else end
        with backend.part("parameters"):
            self.flat_value, self.flat_gradient = backend.zeros(end), backend.zeros(whole)
        self.value, self.gradient = self.views(self.flat_value), self.views(self.flat_gradient)

    def views(self, flat) -> dict:
        """The parts of a flat array that belong to parameters, as far as it goes: name -> array of the parameter's shape."""
        start, table = self.offset, self.table.items()
        return {name: flat[start[name] : start[name] + own.size].reshape(own.shape) for name, own in table if start[name] < len(flat)}

    @staticmethod
    def numbers(own: Parameter) -> int:
        """So many numbers of a flat array are kept for a parameter."""
        return own.blocks * BLOCK

    def with_room(self, flat, name):
        """A parameter's part of a flat array, with the room that is kept for it."""
        start = self.offset[name]
        return flat[start : start + max(self.table[name].size, self.table[name].room)]

    def per_block(self, of) -> np.ndarray:
        """of(parameter) for the parameter of each block, float32."""
        return np.concatenate([np.full(own.blocks, of(own), np.float32) for own in self.table.values()])

    def clear_gradient(self, but: str = ""):
        """Gradients = 0, except for that of one parameter, if it has one."""
        if but not in self.gradient:
            self.flat_gradient[:] = 0
            return
        begin = self.offset[but]
        self.flat_gradient[:begin] = 0
        self.flat_gradient[begin + len(self.with_room(self.flat_gradient, but)) :] = 0
