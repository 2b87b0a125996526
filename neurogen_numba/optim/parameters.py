"""The table of all learned arrays. Allocation, memory budget, optimisers and checkpoints are derived from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..backends.base import Backend
from ..kernels.adamw import BLOCK
from ..kernels.codes import DTYPE, Codes
from .quantization import dequantize

ALIGN = 16  # bytes: alignment of a row of codes


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
    bundle: int = 0  # neurons on a side of its bundles of synapses; 0: it has none
    row_wise: bool = False  # updated row by row, without a whole gradient (optim/low_memory.py)
    quantizable: bool = False  # in a quantised model it is stored as codes, with a scale per entry of its first dimension

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        """The number of blocks of BLOCK numbers that it occupies."""
        return -(-max(self.size, self.room) // BLOCK)

    @property
    def rows(self) -> int:
        """The number of scales of its codes, those of the padding in `room` included."""
        return max(self.size, self.room) // (self.size // self.shape[0])


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
    """Values and gradients of all parameters: two flat arrays, and a view for each name. Bundles of synapses come after other parameters,
    by size; row-wise parameters come last, without gradients.

    Every parameter begins at a multiple of BLOCK numbers (`offset`), so that a block of the update belongs to one parameter. The padding
    stays 0.

    bits: 8 or 4 in a quantised model, which is not trained: its quantizable parameters are in `quantized` instead of `table`, and only
    stored as codes and scales, in two flat arrays with a view for each name, `codes`. 0: all parameters are float32.
    """

    def __init__(self, table: Iterable[Parameter], backend: Backend, bits: int = 0):
        parameters = {
            parameter.name: parameter for parameter in sorted(table, key=lambda parameter: (parameter.row_wise, parameter.bundle))
        }
        self.bits, self._backend, self.size = bits, backend, sum(parameter.size for parameter in parameters.values())  # numbers learned
        self.quantized = {name: parameter for name, parameter in parameters.items() if bits and parameter.quantizable}
        self.table = {name: parameter for name, parameter in parameters.items() if name not in self.quantized}
        self.offset, end, whole = {}, 0, 0
        for name, parameter in self.table.items():
            self.offset[name] = end
            end += self.numbers(parameter)
            whole = whole if parameter.row_wise else end
        with backend.part("parameters"):
            self.flat_value, self.flat_gradient = backend.zeros(end), backend.zeros(whole)
            self.codes = self._allocate_codes()
        self.value, self.gradient = self.views(self.flat_value), self.views(self.flat_gradient)

    @property
    def nbytes(self) -> int:
        """Bytes of all values, without padding: float32, codes and scales."""
        stored = sum(p.shape[0] * (4 + p.size // p.shape[0] * self.bits // 8) for p in self.quantized.values())
        return 4 * sum(p.size for p in self.table.values()) + stored

    def _allocate_codes(self):
        """name -> Codes, views of `flat_codes` and `flat_scale`. A row begins at a multiple of ALIGN bytes."""
        self.scale_offset, size, rows = {}, 0, 0
        for name, p in self.quantized.items():
            self.offset[name], self.scale_offset[name] = size, rows
            size, rows = size + p.rows * self._row_bytes(p), rows + p.rows
        self.flat_codes, self.flat_scale, views = self._backend.zeros(size, DTYPE.get(self.bits, "int8")), self._backend.zeros(rows), {}
        for name, p in self.quantized.items():
            code, row, width = self.offset[name], self.scale_offset[name], self._row_bytes(p)
            views[name] = Codes(self.flat_codes[code : code + p.rows * width].reshape(-1, width), self.flat_scale[row : row + p.rows])
        return views

    def _row_bytes(self, parameter):
        """Bytes of the codes of a row, padding included."""
        return -(-parameter.size // parameter.shape[0] * self.bits // (8 * ALIGN)) * ALIGN

    def together(self, names: list[str]) -> tuple:
        """(weight, gradient, scale, offsets of the weights, offsets of the scales) of parameters that follow one another: parts of the flat
        arrays. weight: float32, or codes; then gradient has size 0. scale: of size 0 for float32. Offsets count numbers."""
        of, bits = (self.quantized, self.bits) if self.bits else (self.table, 8)
        sizes = [of[name].rows * self._row_bytes(of[name]) if self.bits else self.numbers(of[name]) for name in names]
        first = min(self.offset[name] for name in names)
        end = max(self.offset[name] + size for name, size in zip(names, sizes, strict=True))
        offsets = [(self.offset[name] - first) * 8 // bits for name in names]
        if not self.bits:
            return self.flat_value[first:end], self.flat_gradient[first:end], self.flat_scale, offsets, [0] * len(names)
        rows = [self.scale_offset[name] for name in names]
        return self.flat_codes[first:end], self.flat_gradient[:0], self.flat_scale, offsets, rows

    def stored_shapes(self, name: str) -> dict[str, tuple]:
        """Name of a tensor in a checkpoint -> (shape, dtype), of the codes and the scales of a quantised parameter."""
        p = self.quantized[name]
        width = -(-p.size // p.shape[0] * self.bits // 8)
        return {f"{name}.codes": ((p.shape[0], width), DTYPE[self.bits]), f"{name}.scale": (p.shape[:1], "float32")}

    def stored(self, name: str) -> dict[str, np.ndarray]:
        """These tensors, NumPy, without the padding."""
        arrays, shapes = map(self._backend.to_numpy, self.codes[name]), self.stored_shapes(name).items()
        return {key: array[tuple(map(slice, shape))] for (key, (shape, _)), array in zip(shapes, arrays, strict=True)}

    def load_stored(self, name: str, tensors: dict[str, np.ndarray]):
        """Inverse of `stored`."""
        for (key, (shape, _)), array in zip(self.stored_shapes(name).items(), self.codes[name], strict=True):
            array[tuple(map(slice, shape))] = self._backend.asarray(tensors[key])

    def strength(self, name: str):
        """The array of a parameter that makes it 0 where it is set to 0: its values, or the scales of its codes."""
        return self.codes[name].scale if name in self.codes else self.value[name]

    def dense(self, name: str) -> np.ndarray:
        """A NumPy copy of a parameter, float32, also of a quantised one."""
        if name not in self.codes:
            return self._backend.to_numpy(self.value[name])
        p, (codes, scale) = self.quantized[name], map(self._backend.to_numpy, self.codes[name])
        return dequantize(codes, scale, p.size // p.shape[0])[: p.shape[0]].reshape(p.shape)

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
