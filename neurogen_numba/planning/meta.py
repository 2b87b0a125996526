"""The meta backend: counts the memory of a model on a GPU by running its code on arrays with a shape, a dtype and no data.

Every allocation goes through a backend, so a new array anywhere is counted without a list to maintain. The name is PyTorch's.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter

import numpy as np

from ..backends.base import Backend, Streams
from ..backends.cublas import WORKSPACE
from ..backends.cuda import LOGITS_FRACTION, CudaBackend, tile_product
from ..backends.cuda_synapses import CudaSynapses


class MetaArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array with shape and dtype but without data. Slicing and arithmetic compute shapes; writing does nothing."""

    def __init__(self, shape, dtype="float32"):
        self.shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(map(int, shape))
        named = isinstance(dtype, str) and dtype == "bfloat16"  # NumPy has no bfloat16; uint16 has the same size
        self.dtype = np.dtype("uint16" if named else dtype)
        self.size, self.ndim, self.itemsize = math.prod(self.shape), len(self.shape), self.dtype.itemsize
        self.nbytes = self.size * self.itemsize

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        one_byte = np.ndarray(self.shape, np.uint8, b"0", strides=(0,) * self.ndim)
        return MetaArray(one_byte[key].shape, self.dtype)

    def __setitem__(self, key, value):
        pass

    def reshape(self, *shape):
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        known = math.prod(n for n in shape if n != -1)
        return MetaArray([self.size // known if n == -1 else n for n in shape], self.dtype)

    def view(self, dtype):
        other = np.dtype(dtype)
        return MetaArray((*self.shape[:-1], self.shape[-1] * self.itemsize // other.itemsize), other)

    @property
    def T(self):
        return MetaArray(self.shape[::-1], self.dtype)

    @property
    def base(self):
        return self

    flags = np.zeros(1).flags  # contiguous

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **how):
        if out:
            return out[0]
        return MetaArray(np.broadcast_shapes(*(np.shape(x) for x in inputs)), "float32")


class MetaBackend(CudaBackend):
    """A CudaBackend that allocates and launches nothing.

    memory: bytes of the card; shared_memory: bytes per block. `used`: bytes allocated, by the outermost of the backend's `parts`.
    """

    def __init__(self, memory: int, product_dtype: str, shared_memory: int, multiprocessors: int):
        self._scratch_arrays, self.product_dtype = {}, product_dtype
        self.shared_memory, self.multiprocessors, self.logits = shared_memory, multiprocessors, memory // LOGITS_FRACTION
        self.tile_product = tile_product(product_dtype, 80)
        self._memory, self.used, self.stream = memory, Counter(), None  # the stream that work is queued on; None: the main one

    def zeros(self, shape, dtype="float32"):
        array = MetaArray(shape, dtype)
        self.used[(*self.parts, "other")[0]] += array.nbytes
        return array

    def asarray(self, values, dtype=None):
        if isinstance(values, MetaArray):
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
        key = name, shape, dtype, self.stream
        if key not in self._scratch_arrays:
            self._scratch_arrays[key] = array = MetaArray(shape, dtype)
            self.used["workspace"] += array.nbytes
        return self._scratch_arrays[key]

    def _whole_rows(self, x):
        return x

    def synapses(self, projections, parameters):
        return MetaSynapses(self, projections, parameters)

    def streams(self):
        return MetaStreams(self)

    beside = Backend.beside

    def record(self, step):
        return step

    def launch(self, kernel, grid, threads, *arguments, shared=0):
        pass

    def product(self, out, a, b, add=False, scale=1.0):
        if self.stream:  # that of the main stream is in the constant part of a plan
            self._scratch("cuBLAS", WORKSPACE, "uint8")

    def apply(self, function, *arguments, **how):
        pass

    def synchronize(self):
        pass


class MetaSynapses(CudaSynapses):
    def wire(self):
        """As CudaSynapses.wire, with zeros in the tables: their size does not depend on the wiring drawn."""
        for p in self.projections:
            tables = np.zeros(p.arc.structure_shape, np.int32)
            p.set_structure(tables, tables, np.zeros(p.arc.pruned, np.int32) if p.arc.pruned else None)
        super().wire()


class MetaStreams(Streams):
    """Notes which stream work is queued on: each has scratch arrays of its own."""

    def __init__(self, backend: MetaBackend):
        self._backend = backend

    @contextlib.contextmanager
    def on(self, stream, after=()):
        self._backend.stream = stream
        try:
            yield
        finally:
            self._backend.stream = None
