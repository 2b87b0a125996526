"""A GPU on paper: what a model would allocate on a card, counted by running its code on arrays that have a shape and no memory.

Everything that asks for memory goes through a backend, so no list of arrays has to be kept for this: an array added anywhere is counted.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from .base import Backend, Lanes
from .cuda import LOGITS_SHARE, CudaBackend, tile_product
from .cuda_synapses import CudaSynapses


class Sheet(np.lib.mixins.NDArrayOperatorsMixin):
    """An array [shape] without content: it can be cut, reshaped, computed with and written to, and nothing happens."""

    def __init__(self, shape, dtype="float32"):
        self.shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
        self.dtype = np.dtype("uint16" if str(dtype) == "bfloat16" else dtype)  # a bfloat16 is as wide
        self.size, self.ndim, self.itemsize = math.prod(self.shape), len(self.shape), self.dtype.itemsize
        self.nbytes = self.size * self.itemsize

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        return Sheet(np.broadcast_to(np.uint8(0), self.shape)[key].shape, self.dtype)

    def __setitem__(self, key, value):
        pass

    def reshape(self, *shape):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        known = math.prod(n for n in shape if n != -1)
        return Sheet([self.size // known if n == -1 else n for n in shape], self.dtype)

    def view(self, dtype):
        other = np.dtype(dtype)
        return Sheet((*self.shape[:-1], self.shape[-1] * self.itemsize // other.itemsize), other)

    @property
    def T(self):
        return Sheet(self.shape[::-1], self.dtype)

    @property
    def base(self):
        return self

    @property
    def flags(self):
        return np.broadcast_to(np.uint8(0), (1,)).flags  # contiguous

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **how):
        if out:
            return out[0]
        return Sheet(np.broadcast_shapes(*(np.shape(x) for x in inputs)), "float32")


class Paper(CudaBackend):
    """A card with so many bytes of memory, and with shared memory and multiprocessors as given. `used` counts bytes by what they are for,
    the whole of it: the first of `parts`."""

    def __init__(self, memory: int, product_dtype: str, shared_memory: int, multiprocessors: int):
        self._kept, self.mode, self.product_dtype = {}, "sequential", product_dtype
        self.shared_memory, self.multiprocessors, self.logits = shared_memory, multiprocessors, memory // LOGITS_SHARE
        self.tile_product = tile_product(product_dtype, 80)
        self._memory, self.used = memory, Counter()

    def zeros(self, shape, dtype="float32"):
        sheet = Sheet(shape, dtype)
        self.used[(*self.parts, "other")[0]] += sheet.nbytes
        return sheet

    def asarray(self, values, dtype=None):
        if isinstance(values, Sheet):
            return values
        values = np.asarray(values, dtype)
        return self.zeros(values.shape, values.dtype)

    def to_numpy(self, array):
        return np.zeros(array.shape, array.dtype)

    def memory(self):
        return self._memory, self._memory

    def limit_memory(self, size):
        pass

    def _scratch(self, name, shape, dtype="float32"):
        if (name, shape, dtype) not in self._kept:
            self._kept[name, shape, dtype] = sheet = Sheet(shape, dtype)
            self.used["workspace"] += sheet.nbytes  # whoever asked for it
        return self._kept[name, shape, dtype]

    def _whole_rows(self, x):
        return x

    def synapses(self, projections, parameters):
        return PaperSynapses(self, projections, parameters)

    def lanes(self):
        return Lanes()

    beside = Backend.beside

    def record(self, step):
        return step

    def launch(self, kernel, grid, threads, *arguments, shared=0):
        pass

    def product(self, out, a, b, add=False, scale=1.0):
        pass

    def synchronize(self):
        pass


class PaperSynapses(CudaSynapses):
    def wire(self):
        """As CudaSynapses.wire: tables of a size that does not depend on what was drawn."""
        for p in self.projections:
            tables = np.zeros((p.arc.tiles, p.arc.bundles_per_tile), np.int32)
            p.set_structure(tables, tables)
        super().wire()
