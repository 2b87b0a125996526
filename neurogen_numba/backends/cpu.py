"""The CPU backend: NumPy arrays, the CPU loops of kernels/, BLAS."""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import threadpoolctl

from ..kernels import (
    adafactor,
    adamw,
    adamw8bit,
    average,
    bundles_cpu,
    codes,
    distill,
    dropout,
    eligibility,
    embedding,
    memory,
    muon,
    neuromodulation,
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
from ..kernels.population_eligibility import make_population_eligibility_cpu
from ..kernels.tape import Tape
from .base import Backend, Streams
from .compiling import noted
from .cpu_synapses import CpuSynapses

MIN_PARALLEL_PRODUCT = 10_000_000  # multiply-adds, from which a product runs on several threads
MIN_PARALLEL_STEP = 5_000_000  # parameters times columns, from which a step runs on several threads
# Rows of a product per task. It must not depend on the number of threads: BLAS rounds a row differently at another position of its block.
ROWS_PER_TASK = 512


def resident_bytes() -> int:
    """Peak resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _operation(function):
    """A method of CpuBackend that is just a compiled loop, or a NumPy function."""
    compiled = hasattr(function, "py_func")

    @functools.wraps(function.py_func if compiled else function)
    def operation(self, *arguments):
        self.launch(function, *arguments) if compiled else self.apply(function, *arguments)

    return operation


class CpuBackend(Backend):
    """Every operation of `Backend` on NumPy arrays."""

    name = "cpu"
    whole_rows, logits = 1, 2**26
    product_dtype = "float32"

    def __init__(self):
        # Idle BLAS threads spin on the cores that the kernels' threads need, which halves the speed. So BLAS gets one thread, and this
        # class splits large products by rows.
        threadpoolctl.threadpool_limits(1, "blas")
        self._pool = ThreadPoolExecutor(numba.get_num_threads())
        self._recording = threading.local()  # `tape`: of the thread that records

    def launch(self, loop, *arguments):
        """Run a loop of kernels/. While a step is recorded, the call goes on the tape; with one thread, in its serial version."""
        tape = getattr(self._recording, "tape", None)
        if tape and numba.get_num_threads() == 1:
            loop = loop.serial
        if launches := noted():
            launches.add(loop, tuple(map(numba.typeof, arguments)))
        elif tape:
            tape.call(loop, arguments)
        else:
            loop(*arguments)

    def apply(self, function, *arguments, **how):
        tape = getattr(self._recording, "tape", None)
        if tape and not noted():
            tape.apply(function, arguments, how)
        else:
            super().apply(function, *arguments, **how)

    decay_forward = _operation(neuron.decay_forward_cpu)
    decay_backward = _operation(neuron.decay_backward_cpu)
    gain_forward = _operation(neuron.gain_forward_cpu)
    gain_backward = _operation(neuron.gain_backward_cpu)
    observe = _operation(neuromodulation.observe_cpu)
    modulate = _operation(neuromodulation.modulate_cpu)
    sensitivity_backward = _operation(neuromodulation.sensitivity_backward_cpu)
    working_memory_backward = _operation(working_memory.working_memory_backward_cpu)
    working_memory_eligibility = _operation(working_memory.working_memory_eligibility_cpu)
    embedding_forward = _operation(embedding.embedding_forward_cpu)
    code_rows = _operation(codes.code_rows_cpu)
    embedding_backward = _operation(embedding.embedding_backward_cpu)
    scale_words = _operation(embedding.scale_words_cpu)
    scaled_dropout = _operation(dropout.scaled_dropout_cpu)
    cross_entropy = _operation(softmax.cross_entropy_cpu)
    soften = _operation(distill.soften_cpu)
    sample = _operation(sampling.sample_cpu)
    poisson = _operation(stimulus.poisson_cpu)
    softmax_part = _operation(online_cross_entropy.softmax_part_cpu)
    softmax_end = _operation(online_cross_entropy.softmax_end_cpu)
    softmax_gradient = _operation(online_cross_entropy.softmax_gradient_cpu)
    exchange = _operation(average.exchange_cpu)
    average = _operation(average.average_cpu)  # last: it shadows the module
    adamw = _operation(adamw.adamw_cpu)
    muon = _operation(muon.muon_cpu)
    adamw8bit = _operation(adamw8bit.adamw8bit_cpu)
    spread_columns = _operation(adafactor.spread_columns_cpu)
    column_squares = _operation(adafactor.column_squares_cpu)
    column_step = _operation(adafactor.column_step_cpu)
    adafactor = _operation(adafactor.adafactor_cpu)  # last: it shadows the module
    sum_of_squares = _operation(reduce.sum_of_squares_cpu)
    norm = _operation(reduce.norm_cpu)
    add_rows = _operation(reduce.add_rows_cpu)
    roll_state = _operation(roll_state.roll_state_cpu)
    reset = _operation(reset.reset_cpu)

    def population_forward(
        self, state, r, axon, trace, first, c, gate, parameters, gain_scale, beta_scale, hypercolumn, dropout, graded, physics
    ):
        forward = population.make_population_forward_cpu(physics)
        self.launch(forward, state, r, c, gate, parameters, gain_scale, beta_scale, hypercolumn, graded)
        if axon.ring.size:
            write_events = population.make_write_events_cpu(physics.surrogate)
            self.launch(write_events, axon, first, state.values[0][1:], *dropout, graded)
        self._write(trace, first, state.y[1:])

    def memory_forward(self, out, S, key, q_in, v, w_in, write_bias, decay, write_scale, axon, first, erase=1.0):
        self.launch(memory.memory_forward_cpu, out, S, key, q_in, v, w_in, write_bias, decay, write_scale, np.float32(erase))
        self._write(axon, first, out)

    def memory_backward(
        self, dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale, erase=1.0
    ):
        gradients, inputs = (dq_in, dv, dw_in, d_decay, dS, d_key, d_out), (q_in, v, w_in, write_bias, decay, write_scale)
        self.launch(memory.memory_backward_cpu, *gradients, S_before, key_before, *inputs, np.float32(erase))

    def working_memory_forward(self, m, f_in, u_in, retain, axon, first):
        self.launch(working_memory.working_memory_forward_cpu, m, f_in, u_in, retain)
        self._write(axon, first, m[1:])

    def _write(self, axon, first, x):
        """Write plain values x [C, B, M] of tokens from `first` on into an axon's ring, if it has one."""
        if axon.ring.size:
            self.launch(bundles_cpu.write_values_cpu, axon.ring, axon.fired, axon.start, first, x)

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
        physics,
        scale=1,
        offset=0,
        modulation=(),
    ):
        d_current, d_gate = (d.reshape(*ds.shape[:2], -1) for d in (d_current, d_gate if gate.size else d_current))
        gain_slope, beta_slope, *to_sensitivities = modulation or (gain_scale, beta_scale)  # without one they are not read
        chunk = d_current, d_gate, carry, (*population.flat(d), *to_sensitivities), ds, dy, state, r, c, gate
        factors, how = (gain_scale, beta_scale, gain_slope, beta_slope), (hypercolumn, np.float32(scale), *dropout, graded)
        self.launch(population.make_population_backward_cpu(physics, bool(modulation)), *chunk, parameters, *factors, *how)

    def population_eligibility(
        self,
        to_current,
        to_gate,
        transition,
        traces,
        h,
        d,
        state,
        r,
        c,
        gate,
        parameters,
        gain_scale,
        beta_scale,
        hypercolumn,
        graded,
        physics,
    ):
        kernel, chunk = make_population_eligibility_cpu(physics), (state, r, c, gate, parameters, gain_scale, beta_scale)
        self.launch(kernel, to_current, to_gate, transition, traces, h, population.flat(d), *chunk, hypercolumn, graded)

    def eligibility(self, traces, gradient, axon, first, block, delay, per_tile, size, to_current, transition, h):
        bundles = axon.ring, axon.fired, axon.start, first, block, delay, per_tile, size
        self.launch(eligibility.eligibility_cpu, traces, gradient, *bundles, to_current, transition, h)

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
        if out.size * a.shape[1] < MIN_PARALLEL_PRODUCT:
            self.apply(self._rows, out, a, b, add, scale)
            return
        parts = max(2, len(out) // ROWS_PER_TASK)
        bounds = [part * len(out) // parts for part in range(parts + 1)]
        self.apply(self._parallel, lambda first, last: self._rows(out[first:last], a[first:last], b, add, scale), bounds)

    def _parallel(self, work, bounds):
        """Call work(first, last) for each part, in parallel."""
        list(self._pool.map(work, bounds, bounds[1:]))

    @staticmethod
    def _rows(out, a, b, add, scale):
        with np.errstate(over="ignore", invalid="ignore"):  # a diverging run is detected by its loss
            if add:
                out += a @ b if scale == 1 else np.float32(scale) * (a @ b)
                return
            np.matmul(a, b, out=out)
            if scale != 1:
                out *= np.float32(scale)

    def quantized_product(self, out, x, stored, scale):
        if len(x) <= codes.MAX_COLUMNS:
            self.launch(codes.quantized_product_cpu, out, x, stored, scale)
            return
        weight = self.zeros((min(len(scale), ROWS_PER_TASK), x.shape[1]))
        for first in range(0, len(scale), ROWS_PER_TASK):
            rows = slice(first, first + ROWS_PER_TASK)
            part = weight[: len(scale[rows])]
            self.launch(codes.expand_cpu, part, stored[rows], scale[rows])
            self.product(out[:, rows], x, part.T)

    def synapses(self, projections, parameters):
        return CpuSynapses(self, projections, parameters)

    def streams(self):
        return Streams()

    def device_name(self):
        return f"{platform.processor() or platform.machine()}, {numba.get_num_threads()} threads"

    def memory(self):
        return None

    def limit_memory(self, size):
        pass  # a run that started on a GPU continues here without its limit

    def memory_used(self):
        return resident_bytes()

    def synchronize(self):
        pass  # no work is queued

    @contextlib.contextmanager
    def working(self, work):
        """A small step runs on one thread: waking others costs some 20 us per loop, more than they save."""
        threads = numba.get_num_threads()
        numba.set_num_threads(1 if work < MIN_PARALLEL_STEP else threads)
        try:
            yield
        finally:
            numba.set_num_threads(threads)

    def record(self, step):
        """The step itself, after compiling its kernels: for training and scoring, calls from Python are cheap compared with their loops."""
        compiled = False

        def run():
            nonlocal compiled
            if self.recording and not compiled and not noted():
                self.compile_kernels(step)
                compiled = True
            step()

        return run

    def record_calls(self, step):
        """The first call runs the step and records its calls on a tape; later calls replay it. If the step raises, the recording is
        dropped."""
        tape = None

        def run():
            nonlocal tape
            if not self.recording:
                step()
                return
            if tape and not noted():
                tape.run()
                return
            self._recording.tape = Tape()
            try:
                self.compile_kernels(step)
                if not noted():
                    step()
                    tape = self._recording.tape.close()
            finally:
                self._recording.tape = None

        return run
