"""Optimisers that save memory: AdamW with 8-bit moments, and Adafactor.

The largest matrices are updated row by row and never have a whole gradient. The decoder is updated in the backward pass, as soon as the
gradient of a block of its rows is known (brain/chunked_cross_entropy.py). Adafactor updates only those rows of the embedding whose tokens
occur in the segment.

Clipping: the norm of the whole gradient is known only after the backward pass. The decoder is therefore clipped by the norm of the previous
update, and in the first update not at all. All other parameters are clipped by the current norm, which includes the decoder's gradient.
If a loss is not finite, nothing is updated. If the losses are finite and a gradient is not, only the decoder has been updated.
"""

from __future__ import annotations

import numpy as np

from ..kernels import rng
from ..kernels.adamw8bit import GROUP_SIZE
from ..kernels.reduce import BLOCK
from .muon import Muon
from .optimizer import AdamW, Optimizer
from .parameters import Parameters, Rows


class AdamW8bit(Optimizer):
    """AdamW with 8-bit moments (kernels/adamw8bit.py)."""

    row_wise = frozenset({"decoder.weight"})
    byte_moments = True  # of row-wise parameters, too

    def __init__(self, parameters: Parameters, backend, weight_decay: float = 0.1, *how, **settings):
        super().__init__(parameters, backend, weight_decay, *how, **settings)
        self.weight_decay = weight_decay
        self.whole = parameters.flat_gradient.size  # numbers of parameters with a whole gradient
        size = parameters.flat_value.size if self.byte_moments else self.whole
        self.m, self.v = backend.zeros(size, "int8"), backend.zeros(size, "uint8")
        self.m_top, self.r_top = backend.zeros(size // GROUP_SIZE), backend.zeros(size // GROUP_SIZE)
        self.kept = slice(0, size)
        self.norm_before = backend.zeros(1)  # of the previous update
        self._clipping = backend.zeros(1)  # the norm that clips the decoder; not finite if the loss is not
        self._key = backend.zeros(1, "uint64")  # of the random numbers
        # per block: parameters with a whole gradient, then row-wise ones; then one number for `Rows`
        self._squares = backend.zeros(parameters.flat_value.size // BLOCK + 1, "float64")

    @property
    def updated(self):
        return self.parameters.flat_value if self.byte_moments else self.parameters.flat_value[: self.whole]

    def moments(self):
        return {"m": (self.m, 1), "v": (self.v, 1), "m_top": (self.m_top, GROUP_SIZE), "r_top": (self.r_top, GROUP_SIZE)}

    def stop_decay(self):
        super().stop_decay()
        self.weight_decay = 0.0

    def rescale(self, factor):
        super().rescale(factor)
        self.norm_before *= np.float32(factor)

    def tensors(self, moments=None):
        return {"norm": self.norm_before} | super().tensors(moments)

    def prepare(self, rate):
        super().prepare(rate)
        self._key[...] = self.backend.asarray([rng.key(self.steps)], "uint64")

    def begin(self, loss_norm):
        """Begin the row-wise updates of the decoder. loss_norm: [1], finite if all losses are."""
        with np.errstate(invalid="ignore"):
            np.multiply(loss_norm, np.float32(0), out=self._clipping)
        np.add(self._clipping, self.norm_before, out=self._clipping)

    def update_rows(self, name: str, first: int, rows: int, gradient):
        """Update rows first ... first + rows - 1 of a row-wise parameter from their gradient [a multiple of BLOCK], 0 after the rows.

        The first number of these rows must be at a multiple of BLOCK.
        """
        begin = self.parameters.offset[name] + first * self.parameters.table[name].shape[1]
        self.backend.sum_of_squares(self._squares[begin // BLOCK : begin // BLOCK + len(gradient) // BLOCK], gradient)
        self._bytes(begin, begin + len(gradient), gradient, self._clipping)

    def _bytes(self, begin, end, gradient, norm):
        """Update those of the numbers begin ... end - 1 of the flat array of parameters whose moments are here."""
        low, high = max(begin, self.kept.start), min(end, self.kept.stop)
        if low >= high:
            return
        gradient, begin, end, first = gradient[low - begin : high - begin], low, high, self.kept.start
        part, blocks = slice(begin, end), slice(begin // BLOCK, end // BLOCK)
        shares = slice((begin - first) // GROUP_SIZE, (end - first) // GROUP_SIZE)
        moments = self.m[begin - first : end - first], self.v[begin - first : end - first], self.m_top[shares], self.r_top[shares]
        bounds = self.decay[blocks], self.low[blocks], self.high[blocks]
        how = norm, self._numbers, self._key, np.uint64(begin)
        self.backend.adamw8bit(self.parameters.flat_value[part], gradient, *moments, *bounds, *how)

    def apply(self, rows: tuple[Rows, ...] = ()):
        gradient = self.parameters.flat_gradient
        self.backend.sum_of_squares(self._squares[: self.whole // BLOCK], gradient)
        for each in rows:
            self.backend.sum_of_squares(each.squares, each.gradient.reshape(-1))
            self.backend.norm(each.norm, each.squares)
            np.multiply(each.norm, each.norm, out=self._squares[-1:])
        self.backend.norm(self.norm, self._squares)
        self._bytes(0, self.whole, gradient, self.norm)

    def finish(self):
        norm = super().finish()
        if np.isfinite(norm):
            self.norm_before[...] = self.norm
        return norm


class Adafactor(AdamW8bit):
    """Adafactor for decoder and embedding: no first moment, factored second moment (kernels/adafactor.py). AdamW8bit for the rest, which is
    small or cannot be factored."""

    row_wise = frozenset({"decoder.weight", "embedding.weight"})
    byte_moments = False

    def __init__(self, parameters: Parameters, backend, *how, **settings):
        super().__init__(parameters, backend, *how, **settings)
        self.row, self.column, self._spread, self._total, self._value = {}, {}, {}, {}, {}
        for name in sorted(self.row_wise):
            columns = parameters.table[name].shape[1]
            value = parameters.with_room(parameters.flat_value, name).reshape(-1, columns)
            self._value[name], self.row[name] = value, backend.zeros(len(value))
            self.column[name], self._spread[name], self._total[name] = (backend.zeros(columns) for _ in range(3))
        self._row_index = backend.asarray(np.arange(max(map(len, self._value.values()))), "int32")

    def rescale(self, factor):
        super().rescale(factor)
        for name in self.row:
            self.row[name] *= np.float32(factor**2)
            self.column[name] *= np.float32(factor**2)

    def tensors(self, moments=None):
        tensors = super().tensors(moments)
        for name in sorted(self.row_wise):
            tensors |= {f"row.{name}": self.row[name][: self.parameters.table[name].shape[0]], f"column.{name}": self.column[name]}
        return tensors

    def begin(self, loss_norm):
        super().begin(loss_norm)
        self.backend.spread_columns(self._spread["decoder.weight"], self.column["decoder.weight"])

    def update_rows(self, name, first, rows, gradient):
        begin, columns = self.parameters.offset[name] // BLOCK, self.parameters.table[name].shape[1]
        squares = begin + first * columns // BLOCK
        self.backend.sum_of_squares(self._squares[squares : squares + len(gradient) // BLOCK], gradient)
        index = self._row_index[first : first + rows]
        self._factored(name, gradient[: rows * columns].reshape(rows, columns), index, self._clipping)

    def _factored(self, name, gradient, rows, norm):
        decay = np.float32(self.weight_decay if self.parameters.table[name].decays else 0)
        how = rows, decay, norm, self._numbers
        self.backend.adafactor(self._value[name], gradient, self.row[name], self._spread[name], *how)
        self.backend.column_squares(self._total[name], gradient, rows, norm, self._numbers)

    def apply(self, rows=()):
        super().apply(rows)
        self.backend.column_step(self.column["decoder.weight"], self._total["decoder.weight"], self._clipping)
        for each in rows:
            self.backend.spread_columns(self._spread[each.name], self.column[each.name])
            self._factored(each.name, each.gradient, each.rows, self.norm)
            self.backend.column_step(self.column[each.name], self._total[each.name], self.norm)


OPTIMIZERS = {"adamw": AdamW, "muon": Muon, "adamw8bit": AdamW8bit, "adafactor": Adafactor}  # by their names in the configuration
