"""The CPU: NumPy arrays, the kernels' CPU twins, BLAS."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import threadpoolctl

from ..kernels import (
    adamw,
    dropout,
    embedding,
    events,
    gate,
    lanes,
    memory,
    neuron,
    normalize,
    reduce,
    sampling,
    softmax,
    synapse,
    working_memory,
)
from .base import Backend

WORTH_SHARING = 10_000_000  # multiply-adds
SHARE = 128  # rows. How rows are cut must not depend on the number of threads: BLAS rounds a row by its place in the block that it is given


class CpuBackend(Backend):
    """Every operation of `Backend` on NumPy arrays."""

    name = "cpu"

    def __init__(self):
        # BLAS threads wait for work in a busy loop, on the cores that the kernels' threads need: half the speed of one BLAS thread.
        # Large products are shared out by rows instead.
        threadpoolctl.threadpool_limits(1, "blas")
        self._pool = ThreadPoolExecutor(self.tasks)

    lif_forward = staticmethod(neuron.lif_forward_cpu)
    lif_backward = staticmethod(neuron.lif_backward_cpu)
    trace_forward = staticmethod(neuron.trace_forward_cpu)
    trace_backward = staticmethod(neuron.trace_backward_cpu)
    normalize_forward = staticmethod(normalize.normalize_forward_cpu)
    normalize_backward = staticmethod(normalize.normalize_backward_cpu)
    list_events = staticmethod(events.list_events_cpu)
    list_values = staticmethod(events.list_values_cpu)
    spread_events = staticmethod(events.spread_events_cpu)
    to_lanes = staticmethod(lanes.to_lanes_cpu)
    add_from_lanes = staticmethod(lanes.add_from_lanes_cpu)
    synapse_forward = staticmethod(synapse.synapse_forward_cpu)
    synapse_backward = staticmethod(synapse.synapse_backward_cpu)
    memory_forward = staticmethod(memory.memory_forward_cpu)
    memory_backward = staticmethod(memory.memory_backward_cpu)
    working_memory_forward = staticmethod(working_memory.working_memory_forward_cpu)
    working_memory_backward = staticmethod(working_memory.working_memory_backward_cpu)
    gate_forward = staticmethod(gate.gate_forward_cpu)
    gate_backward = staticmethod(gate.gate_backward_cpu)
    embedding_forward = staticmethod(embedding.embedding_forward_cpu)
    embedding_backward = staticmethod(embedding.embedding_backward_cpu)
    dropout = staticmethod(dropout.dropout_cpu)
    cross_entropy = staticmethod(softmax.cross_entropy_cpu)
    sample = staticmethod(sampling.sample_cpu)
    adamw = staticmethod(adamw.adamw_cpu)

    def zeros(self, shape, dtype="float32"):
        return np.zeros(shape, dtype)

    def asarray(self, values, dtype=None):
        return np.array(values, dtype, order="C", copy=True)

    def to_numpy(self, array):
        return np.array(array)

    def product(self, out, a, b, add=False):
        if out.size * a.shape[1] < WORTH_SHARING:
            self._rows(out, a, b, add)
            return
        parts = max(2, len(out) // SHARE)
        bounds = [part * len(out) // parts for part in range(parts + 1)]
        list(self._pool.map(lambda first, last: self._rows(out[first:last], a[first:last], b, add), bounds, bounds[1:]))

    @staticmethod
    def _rows(out, a, b, add):
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges shows in its loss
            if add:
                out += a @ b
            else:
                np.matmul(a, b, out=out)

    def norm(self, x):
        partial = np.empty(-(-x.size // reduce.BLOCK), np.float64)
        reduce.sum_of_squares_cpu(partial, x)
        return math.sqrt(partial.sum())

    @property
    def tasks(self):
        return numba.get_num_threads()
