"""The table of every learned array. Allocation, byte count, update and checkpoint are all made from it, so no list has to agree with
another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..backends.base import Backend


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

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Parameters:
    """Values, gradients and Adam's two moments of all parameters: four flat arrays, and a view for each name."""

    def __init__(self, table: Iterable[Parameter], backend: Backend):
        self.table = {parameter.name: parameter for parameter in table}
        self.size = sum(parameter.size for parameter in self.table.values())  # numbers learned
        self.flat_value, self.flat_gradient, self.flat_m, self.flat_v = (backend.zeros(self.size) for _ in range(4))
        self.value, self.gradient, self.m, self.v = (
            self._views(flat) for flat in (self.flat_value, self.flat_gradient, self.flat_m, self.flat_v)
        )

    def _views(self, flat):
        views, start = {}, 0
        for name, parameter in self.table.items():
            views[name] = flat[start : start + parameter.size].reshape(parameter.shape)
            start += parameter.size
        return views

    def clear_gradient(self):
        self.flat_gradient[:] = 0
