"""The CPU: NumPy arrays, the kernels' CPU twins, BLAS."""

from __future__ import annotations

import contextlib
import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import threadpoolctl

from ..kernels import (
    adafactor,
    adamw,
    adamw8bit,
    bundles_cpu,
    dropout,
    embedding,
    memory,
    neuron,
    online_cross_entropy,
    population,
    reduce,
    reset,
    roll_state,
    sampling,
    softmax,
    stimulus,
    working_memory,
)
from .base import Backend, Streams
from .cpu_synapses import CpuSynapses

WORTH_SHARING = 10_000_000  # multiply-adds
WORTH_WAKING = 5_000_000  # numbers learned times columns
SHARE = 512  # rows. How rows are cut must not depend on the number of threads: BLAS rounds a row by its place in the block that it is given


def resident_bytes() -> int:
    """Most memory that this process has held, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class CpuBackend(Backend):
    """Every operation of `Backend` on NumPy arrays."""

    name = "cpu"
    whole_rows, logits = 1, 2**26
    product_dtype = "float32"

    def __init__(self):
        # BLAS threads wait for work in a busy loop, on the cores that the kernels' threads need: half the speed of one BLAS thread.
        # Large products are shared out by rows instead.
        threadpoolctl.threadpool_limits(1, "blas")
        self._pool = ThreadPoolExecutor(numba.get_num_threads())

    decay_forward = staticmethod(neuron.decay_forward_cpu)
    decay_backward = staticmethod(neuron.decay_backward_cpu)
    memory_backward = staticmethod(memory.memory_backward_cpu)
    working_memory_backward = staticmethod(working_memory.working_memory_backward_cpu)
    embedding_forward = staticmethod(embedding.embedding_forward_cpu)
    embedding_backward = staticmethod(embedding.embedding_backward_cpu)
    scaled_dropout = staticmethod(dropout.scaled_dropout_cpu)
    cross_entropy = staticmethod(softmax.cross_entropy_cpu)
    sample = staticmethod(sampling.sample_cpu)
    poisson = staticmethod(stimulus.poisson_cpu)
    softmax_part = staticmethod(online_cross_entropy.softmax_part_cpu)
    softmax_end = staticmethod(online_cross_entropy.softmax_end_cpu)
    softmax_gradient = staticmethod(online_cross_entropy.softmax_gradient_cpu)
    adamw = staticmethod(adamw.adamw_cpu)
    adamw8bit = staticmethod(adamw8bit.adamw8bit_cpu)
    spread_columns = staticmethod(adafactor.spread_columns_cpu)
    column_squares = staticmethod(adafactor.column_squares_cpu)
    column_step = staticmethod(adafactor.column_step_cpu)
    adafactor = staticmethod(adafactor.adafactor_cpu)  # last: it hides the module
    sum_of_squares = staticmethod(reduce.sum_of_squares_cpu)
    norm = staticmethod(reduce.norm_cpu)
    add_rows = staticmethod(reduce.add_rows_cpu)
    roll_state = staticmethod(roll_state.roll_state_cpu)
    reset = staticmethod(reset.reset_cpu)

    def population_forward(
        self, state, r, axon, trace, first, c, gate, parameters, gain_scale, beta_scale, hypercolumn, dropout, graded, smooth
    ):
        population.population_forward_cpu(state, r, c, gate, parameters, gain_scale, beta_scale, hypercolumn, graded, smooth)
        if axon.ring.size:
            row = int(axon.start[0]) + first
            population.write_events_cpu(axon.ring, axon.fired, axon.wanted, row, state.v[1:], *dropout, graded, smooth)
        self._write(trace, first, state.y[1:])

    def memory_forward(self, out, S, key, q_in, v, w_in, write_bias, decay, write_scale, axon, first):
        memory.memory_forward_cpu(out, S, key, q_in, v, w_in, write_bias, decay, write_scale)
        self._write(axon, first, out)

    def working_memory_forward(self, m, f_in, u_in, retain, axon, first):
        working_memory.working_memory_forward_cpu(m, f_in, u_in, retain)
        self._write(axon, first, m[1:])

    @staticmethod
    def _write(axon, first, x):
        """Write plain values x [C, B, M] of tokens from `first` on, where somebody reads them."""
        if axon.ring.size:
            bundles_cpu.write_values_cpu(axon.ring, axon.fired, int(axon.start[0]) + first, x)

    def population_backward(
        self,
        d_current,
        d_gate,
        carry,
        d,
        ds,
        dy,
        state,
        r,
        c,
        gate,
        parameters,
        gain_scale,
        beta_scale,
        hypercolumn,
        dropout,
        graded,
        smooth,
        scale=1,
        offset=0,
    ):
        d_current, d_gate = (d.reshape(*ds.shape[:2], -1) for d in (d_current, d_gate if gate.size else d_current))
        chunk = d_current, d_gate, carry, d, ds, dy, state, r, c, gate
        how = hypercolumn, np.float32(scale), *dropout, graded, smooth
        population.population_backward_cpu(*chunk, parameters, gain_scale, beta_scale, *how)

    def zeros(self, shape, dtype="float32"):
        return np.zeros(shape, dtype)

    def asarray(self, values, dtype=None):
        return np.array(values, dtype, order="C", copy=True)

    def to_numpy(self, array):
        return np.array(array)

    def matrix(self, rows, columns, dtype="float32"):
        return np.zeros((rows, columns), dtype)

    def assign(self, out, x):
        out[...] = x

    def product(self, out, a, b, add=False, scale=1.0):
        if out.size * a.shape[1] < WORTH_SHARING:
            self._rows(out, a, b, add, scale)
            return
        parts = max(2, len(out) // SHARE)
        bounds = [part * len(out) // parts for part in range(parts + 1)]
        list(self._pool.map(lambda first, last: self._rows(out[first:last], a[first:last], b, add, scale), bounds, bounds[1:]))

    @staticmethod
    def _rows(out, a, b, add, scale):
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges shows in its loss
            if add:
                out += a @ b if scale == 1 else np.float32(scale) * (a @ b)
                return
            np.matmul(a, b, out=out)
            if scale != 1:
                out *= np.float32(scale)

    def synapses(self, projections, parameters):
        return CpuSynapses(self, projections, parameters)

    def streams(self):
        return Streams()

    def device_name(self):
        return f"{platform.processor() or platform.machine()}, {numba.get_num_threads()} threads"

    def memory(self):
        return None

    def limit_memory(self, size):
        pass  # a run that was begun on a GPU goes on here without its limit

    def memory_used(self):
        return resident_bytes()

    def synchronize(self):
        pass  # nothing is done later

    @contextlib.contextmanager
    def working(self, work):
        """A small step has one thread: to wake others takes longer, some 20 us for each of its loops."""
        threads = numba.get_num_threads()
        numba.set_num_threads(1 if work < WORTH_WAKING else threads)
        try:
            yield
        finally:
            numba.set_num_threads(threads)

    def record(self, step):
        return step  # there is nothing to save: calling is cheap
