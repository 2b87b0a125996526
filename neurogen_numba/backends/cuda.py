"""The CUDA backend: CuPy arrays, kernel launches, streams and graphs, cuBLAS. In Numba's CUDA simulator, NumPy arrays replace CuPy's."""

from __future__ import annotations

import contextlib
import math

import numpy as np

from ..config import size_in_words
from ..errors import BackendError, ConfigError, OutOfMemory
from ..kernels import (
    adafactor,
    adamw,
    adamw8bit,
    average,
    codes,
    distill,
    dropout,
    eligibility,
    embedding,
    half,
    memory,
    mma,
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
from ..kernels.launch import SHARED, SIMULATED, THREADS, WARP, allow_shared, blocks, cuda  # Numba's, once its variables are checked
from ..kernels.population_eligibility import make_population_eligibility
from .base import Backend, Streams
from .compiling import noted
from .cublas import Cublas
from .cuda_synapses import CudaSynapses

if SIMULATED:
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

DTYPES = {"auto": None, "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_MAIN = {}  # device -> the stream that all backends on it share, CuPy's current stream
LOGITS_FRACTION = 256  # bytes of GPU memory per logit that is held at a time
OUTSIDE = 88 * 2**20  # bytes that cuBLAS and the kernels' code allocate outside CuPy's pool: 86 to 100 MB on an H200
RESERVED_SHARED = 1024  # bytes of a block's shared memory reserved for static arrays and the driver
STATIC = 8 * 2**10  # bytes of static shared memory that a kernel may declare
EXPANDED_ROWS = 4096  # rows of a quantised matrix that are expanded at a time
ALIGN = 64  # numbers: row alignment for tensor cores, which need 16-byte boundaries and whole tiles


def tile_product(dtype: str, capability: int) -> int | None:
    """The kind of factors (kernels/mma.py) for a dtype on a card of this compute capability; None: float32, without tensor cores."""
    if dtype == "bfloat16":
        return mma.BFLOAT16
    if dtype == "float16":
        return mma.FLOAT16 if capability >= 80 else mma.FLOAT16_TURING
    return None


def _dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return name


class CudaBackend(Backend):
    """Every operation of `Backend` as a kernel launch on one card.

    precision: dtype of the factors of the decoder's products and of the synapses' weights: fp32, fp16 or bf16. auto: bf16 on cards of
    compute capability 8.0 or newer, else fp32. Sums and parameters are float32.
    Modules overlap: each has a stream of its own, which waits for what it reads.
    """

    name = "cuda"
    whole_rows = ALIGN
    shared_memory: int  # bytes per block, at most
    multiprocessors: int

    def __init__(self, device: int = 0, precision: str = "auto"):
        self._scratch_arrays = {}  # scratch arrays by name
        self._streams = {}
        if SIMULATED:
            self._xp, self._stream, self.product_dtype, self.tile_product = np, 0, "float32", None
            self.shared_memory, self.multiprocessors, self.logits = 2**14, 1, 2**16
            return
        import cupy

        self._xp, self._device = cupy, device
        cupy.cuda.Device(device).use()
        cuda.select_device(device)
        attributes = cupy.cuda.Device(device).attributes
        self.shared_memory = attributes["MaxSharedMemoryPerBlockOptin"] - RESERVED_SHARED
        self.multiprocessors = attributes["MultiProcessorCount"]
        self.logits = self.memory()[1] // LOGITS_FRACTION
        capability = int(cupy.cuda.Device(device).compute_capability)
        self.product_dtype = DTYPES[precision] or ("bfloat16" if capability >= 80 else "float32")
        self.tile_product = tile_product(self.product_dtype, capability)
        if device not in _MAIN:
            _MAIN[device] = cupy.cuda.Stream(non_blocking=True)
        self._cupy_stream = _MAIN[device]
        self._go_to(self._cupy_stream)
        self._cublas = Cublas(lambda size: self._scratch("cuBLAS", size, "uint8"), tf32=self.product_dtype == "bfloat16")

    def _go_to(self, stream):
        """Queue all later work on a CuPy stream."""
        stream.use()
        self._current, self._stream = stream, cuda.external_stream(stream.ptr)

    def launch(self, kernel, grid, threads, *arguments, shared=0):
        """grid: a number of blocks or a tuple of up to three; shared: bytes of dynamic shared memory, at most `shared_memory`."""
        if SIMULATED:  # the simulator would copy each array, and two views of one array would become independent
            arguments = [FakeCUDAArray(x) if isinstance(x, np.ndarray) else x for x in arguments]
        self._on_card()
        if launches := noted():
            launches.add(kernel, tuple(map(kernel.typeof_pyval, arguments)))
            return
        if shared > SHARED - STATIC and not SIMULATED:
            allow_shared(kernel, arguments, shared)
        kernel[grid, threads, self._stream, shared](*arguments)

    def _on_card(self):
        """Make this backend's card current for CuPy and Numba, if other code has changed it. The query is cheap, the change is not."""
        if not SIMULATED and self._xp.cuda.runtime.getDevice() != self._device:
            self._xp.cuda.runtime.setDevice(self._device)

    def _make_current(self):
        """Make this backend's card and stream current for CuPy, if another user of CuPy has changed them."""
        if not SIMULATED:
            self._on_card()
            self._current.use()

    def apply(self, function, *arguments, **how):
        self._make_current()
        super().apply(function, *arguments, **how)

    def _pool(self):
        """CuPy's memory pool of this card."""
        self._on_card()
        return self._xp.get_default_memory_pool()

    def zeros(self, shape, dtype="float32"):
        self._make_current()
        try:
            return self._xp.zeros(shape, _dtype(dtype))
        except MemoryError as error:  # CuPy's OutOfMemoryError is one
            raise self._no_room(shape, dtype) from error

    def _no_room(self, shape, dtype):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(shape) * np.dtype(_dtype(dtype)).itemsize
        free, total = self.memory()
        what = ", ".join((*self.parts, f"an array {list(shape)} {dtype}"))
        sizes = f"{size_in_words(size)}, {size_in_words(free)} of {size_in_words(total)} are free"
        return OutOfMemory(f"out of GPU memory: {what} needs {sizes}")

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the card, or of the limit. Unused blocks in CuPy's pool count as free."""
        if SIMULATED:
            return 2**30, 2**30
        pool = self._pool()
        free, total = self._xp.cuda.runtime.memGetInfo()
        free += pool.free_bytes()
        if not pool.get_limit():
            return free, total
        limit = pool.get_limit() + OUTSIDE
        return min(free, limit - pool.used_bytes()), min(total, limit)

    def limit_memory(self, size: int):
        if SIMULATED:
            return
        self._pool().set_limit(size=max(1, size - OUTSIDE))
        self.logits = min(self.logits, size // LOGITS_FRACTION)

    def device_name(self):
        if SIMULATED:
            return "Numba's CUDA simulator"
        return self._xp.cuda.runtime.getDeviceProperties(self._device)["name"].decode()

    def memory_used(self):
        return 0 if SIMULATED else self._pool().total_bytes()

    def asarray(self, values, dtype=None):
        self._make_current()
        values = np.ascontiguousarray(values, dtype)
        try:
            return self._xp.array(values)
        except MemoryError as error:
            raise self._no_room(values.shape, values.dtype) from error

    def to_numpy(self, array):
        self._make_current()
        self.synchronize()
        return np.array(array) if SIMULATED else self._xp.asnumpy(array)

    def fetch(self, array):
        if SIMULATED:
            return self.to_numpy(array)
        import cupyx

        self._make_current()
        self.synchronize()
        try:
            room = cupyx.empty_pinned(array.shape, array.dtype)
        except self._xp.cuda.runtime.CUDARuntimeError:  # the system allows no more pinned memory
            room = None
        return self._xp.asnumpy(array, out=room)

    def bits(self, array):
        """An array as kernels take it: bfloat16, which Numba does not support, as a view of uint16 (kernels/half.py)."""
        return array.view("uint16") if str(array.dtype) == "bfloat16" else array

    def synchronize(self):
        """Wait until everything queued is done."""
        if not SIMULATED:
            self._cupy_stream.synchronize()

    def _scratch(self, name, shape, dtype="float32"):
        """A scratch array for a kernel: the same array for the same name, shape and stream."""
        key = (name, shape, dtype, None if SIMULATED else self._current.ptr)
        if key not in self._scratch_arrays:
            with self.part(f"workspace, {name}"):
                self._scratch_arrays[key] = self.zeros(shape, dtype)
        return self._scratch_arrays[key]

    def matrix(self, rows, columns, dtype="float32"):
        return self.zeros((rows, -(-columns // ALIGN) * ALIGN), dtype)[:, :columns]

    def assign(self, out, x):
        threads, (flat_out, flat) = 8 if SIMULATED else THREADS, self._flat(self.bits(out), x)
        self.launch(half.assign, blocks(x.size, 16 * threads), threads, flat_out[None], flat)

    def product(self, out, a, b, add=False, scale=1.0):
        if noted():
            return
        if SIMULATED:
            out[...] = (out if add else 0) + np.float32(scale) * (a @ b)
        else:
            self._on_card()
            self._cublas.product(self._current, out, a, b, add, scale)

    def quantized_product(self, out, x, stored, scale):
        if len(x) <= codes.MAX_COLUMNS:
            columns = 1 if len(x) == 1 else codes.MAX_COLUMNS // 2
            kernel = codes.make_quantized_product(8 if stored.dtype == np.int8 else 4, columns)
            grid = blocks(len(scale), codes.ROWS_PER_WARP * codes.WARPS), blocks(len(x), columns)
            words = stored.reshape(-1).view("uint32")
            self.launch(kernel, grid, codes.WARPS * WARP, out, self.bits(x), words, scale)
            return
        K, threads = x.shape[1], 8 if SIMULATED else THREADS
        weight = self._scratch("expanded codes", (EXPANDED_ROWS, K), self.product_dtype)
        for first in range(0, len(scale), EXPANDED_ROWS):
            rows = slice(first, first + EXPANDED_ROWS)
            part = weight[: len(scale[rows])]
            self.launch(codes.expand, len(part), threads, self.bits(part), stored[rows], scale[rows])
            self.product(out[:, rows], x, part.T)

    def stream(self, name):
        """The CUDA stream of this name, the same at each call."""
        if name not in self._streams:
            self._streams[name] = self._xp.cuda.Stream(non_blocking=True)
        return self._streams[name]

    def fork(self, name):
        """The CUDA stream of this name, behind all that the main stream has queued so far."""
        stream = self.stream(name)
        stream.wait_event(self.mark(self._cupy_stream))
        return stream

    def join(self, name):
        """Let the main stream wait for all that the stream of this name has queued."""
        self._cupy_stream.wait_event(self.mark(self.stream(name)))

    def mark(self, stream):
        """An event behind all that a CUDA stream has queued so far."""
        event = self._xp.cuda.Event(disable_timing=True)
        event.record(stream)
        return event

    def card(self):
        return None if SIMULATED else self._xp.cuda.runtime.deviceGetPCIBusId(self._device)

    def streams(self):
        return Streams() if SIMULATED else CudaStreams(self)

    @contextlib.contextmanager
    def beside(self, work):
        streams = self.streams()
        yield
        with streams.on("beside"):
            work()
        streams.join()

    def synapses(self, projections, parameters):
        return CudaSynapses(self, projections, parameters)

    def compile_kernels(self, step, stopping=lambda: False):
        if not SIMULATED:  # which compiles nothing
            super().compile_kernels(step, stopping)

    def record(self, step):
        """The first call runs the step, which compiles its kernels. The second captures it as a CUDA graph. Later calls launch the graph.
        If the step raises during capture, the capture is dropped and the next call captures again."""
        if SIMULATED:
            return step
        graph, warm = None, False

        def run():
            nonlocal graph, warm
            self._make_current()
            if not self.recording or noted():
                step()
                return
            if not warm:
                self.compile_kernels(step)
                step()
                warm = True
                return
            if graph is None:
                self._cupy_stream.begin_capture()
                try:
                    step()
                except BaseException:
                    with contextlib.suppress(Exception):  # ending an invalidated capture raises as well
                        self._cupy_stream.end_capture()
                    raise
                graph = self._cupy_stream.end_capture()
            graph.launch(self._cupy_stream)

        return run

    # kernels/neuron.py, population.py

    @staticmethod
    def _flat(*arrays):
        """The arrays as 1-D views. Raises ValueError if one is not contiguous."""
        if not all(array.flags.c_contiguous for array in arrays):
            raise ValueError("a kernel needs arrays that are contiguous in memory")
        return [array.reshape(-1) for array in arrays]

    def _flat_state(self, state):
        return population.NeuronState(tuple(self._flat(*state.values)), *self._flat(state.y))

    @staticmethod
    def _across(size):
        """(blocks, threads) of a launch with one thread for each of `size` numbers; threads is a multiple of the warp size."""
        threads = min(THREADS, -(-size // WARP) * WARP)
        return blocks(size, threads), threads

    def _strided(self, size):
        """(blocks, threads) of a grid-stride loop over `size` numbers: at most 4,096 blocks, several times what the largest card runs
        concurrently."""
        across, threads = self._across(size)
        return min(across, 1 if SIMULATED else 4096), threads

    def population_forward(
        self, state, r, axon, trace, first, c, gate, parameters, gain_scale, beta_scale, hypercolumn, dropout, graded, physics
    ):
        C, B, N = c.shape
        across, threads, columns = self._hypercolumns(N, hypercolumn)
        tokens = max(1, min(C, population.TILE_BYTES // (4 * threads)))  # as many as fit into shared memory
        rows = self._flat_state(state)
        rings = *self._ring(axon, B), *self._ring(trace, B)
        arrays = rows, *self._flat(r), *rings, first, *self._flat(c, gate), parameters, gain_scale, beta_scale
        kernel = population.make_population_forward(physics, graded, parameters.gamma.size > 0, gate.size > 0)
        shared = 4 * tokens * (threads + columns)
        self.launch(kernel, (across, B), threads, *arrays, hypercolumn, columns, tokens, *dropout, shared=shared)

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
        C, B, N = c.shape
        across, threads, columns = self._hypercolumns(N, hypercolumn)
        gain_slope, beta_slope, *to_sensitivities = modulation or (gain_scale, beta_scale)  # without one they are not read
        groups = B if modulation else self._sequence_groups(B, across, threads)
        gradients_of_neurons = *population.flat(d), *to_sensitivities
        partial = self._scratch("gradients of neurons", (groups * len(gradients_of_neurons), N))
        tokens = max(1, min(C, population.TILE_BYTES // (8 * threads)))  # as many as fit into shared memory with dx and x
        rows, carried = self._flat_state(state), self._flat_state(carry)
        shift = 31 if len(d_current) == 1 else d_current.shape[2].bit_length() - 1  # neuron n is in line n >> shift
        gradients = self.bits(d_current), shift, offset, self.bits(d_gate if gate.size else d_current)
        arrays = *gradients, carried, partial, *self._flat(ds, dy), rows, *self._flat(r, c, gate)
        how = hypercolumn, columns, tokens, np.float32(scale), *dropout
        shared = 4 * tokens * (2 * threads + columns)
        several = bool(dropout[0] and dropout[2][2])
        kernel = population.make_population_backward(physics, graded, parameters.gamma.size > 0, gate.size > 0, bool(modulation), several)
        factors = gain_scale, beta_scale, gain_slope, beta_slope
        self.launch(kernel, (across, groups), threads, *arrays, parameters, *factors, *how, shared=shared)
        across, threads = self._across(N)
        self.launch(population.add_parameter_gradients, (across, len(gradients_of_neurons)), threads, gradients_of_neurons, partial)

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
        (_, B, N), K, gradients, traced = c.shape, len(h), population.flat(d), parameters.gamma.size > 0
        partial = self._scratch("gradients of neurons", (B * len(gradients), N))
        arrays = to_current.reshape(K, -1), to_gate.reshape(K, -1), transition.reshape(K, K, -1), traces.reshape(K, len(gradients), -1)
        rows = partial, h.reshape(K, -1), self._flat_state(state), *self._flat(r, c, gate), parameters, gain_scale, beta_scale
        kernel = make_population_eligibility(physics, len(gradients) - 3, graded, traced, gate.size > 0)
        across, threads = self._across(N)
        self.launch(kernel, (across, B), threads, *arrays, *rows, hypercolumn)
        self.launch(population.add_parameter_gradients, (across, len(gradients)), threads, gradients, partial)

    def eligibility(self, traces, gradient, axon, first, block, delay, per_tile, size, to_current, transition, h):
        kernel, ring = eligibility.make_eligibility(size, len(h)), self._ring(axon, traces.shape[1])
        groups = min(traces.shape[1], blocks(eligibility.BLOCKS_PER_SM * self.multiprocessors, len(block)))
        partial, bundles = self._scratch("gradients of synapses", (groups, gradient.size)), (*ring, first, block, delay, per_tile)
        grid = len(block), groups
        self.launch(kernel, grid, eligibility.threads_of(size), traces, partial, *bundles, to_current, transition, h)
        self.launch(population.add_parameter_gradients, (blocks(gradient.size, THREADS), 1), THREADS, (gradient,), partial)

    def _sequence_groups(self, batch, across, threads):
        """The number of groups of sequences with the shortest estimated run time. A group has `across` blocks. The estimate is the number
        of waves of blocks, times the sequences per block plus one for its start and end."""
        wave = self.multiprocessors * max(1, population.RESIDENT // threads)
        return min(range(1, batch + 1), key=lambda groups: blocks(across * groups, wave) * (blocks(batch, groups) + 1))

    def _ring(self, axon, batch):
        """(ring [words, rows B, WORD], start), the arguments of a kernel for an axon."""
        words, rows, _, word = axon.ring.shape
        return self.bits(axon.ring).reshape(words, rows * batch, word), axon.start

    @staticmethod
    def _hypercolumns(neurons, hypercolumn):
        """(blocks, threads, hypercolumns per block) of a launch with one thread per neuron and whole hypercolumns per block."""
        size = min(hypercolumn, neurons)
        columns = max(1, population.BLOCK_DIM // size)
        return blocks(neurons, columns * hypercolumn), -(-columns * size // WARP) * WARP, columns

    def decay_forward(self, decayed, log_tau):
        self.launch(neuron.decay_forward, *self._across(log_tau.size), decayed, log_tau)

    def decay_backward(self, d_log_tau, d_decay, log_tau):
        self.launch(neuron.decay_backward, *self._across(log_tau.size), d_log_tau, d_decay, log_tau)

    def gain_forward(self, scaled, gain, input_scale):
        self.launch(neuron.gain_forward, *self._across(gain.size), scaled, gain, input_scale)

    def gain_backward(self, d_gain, d_scaled, input_scale):
        self.launch(neuron.gain_backward, *self._across(d_gain.size), d_gain, d_scaled, input_scale)

    # kernels/memory.py, working_memory.py

    def memory_forward(self, out, S, key, q_in, v, w_in, write_bias, decay, write_scale, axon, first, erase=1.0):
        ring = self._ring(axon, len(S))
        for part in self._memory_parts(w_in, S):
            arrays = out[part], S, key, q_in[part], v[part], w_in[part], write_bias, decay, write_scale, *ring, first + part.start
            self.launch(memory.memory_forward, S.shape[1::-1], memory.BLOCK_DIM, *arrays, np.float32(erase))

    def memory_backward(
        self, dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale, erase=1.0
    ):
        parts, before, inputs = self._memory_parts(w_in, S_before), [(S_before, key_before)], (write_bias, decay, write_scale)
        for number, part in enumerate(parts[:-1]):  # S and key before the next part, by recomputing this one
            S, key = (self._scratch(f"memory, after part {number}", array.shape) for array in before[0])
            S[...], key[...] = before[-1]
            out, tokens = self._scratch("memory, out", q_in[part].shape), (q_in[part], v[part], w_in[part])
            self.memory_forward(out, S, key, *tokens, *inputs, self.no_axon, 0, erase)
            before.append((S, key))
        for part, (S, key) in reversed(list(zip(parts, before, strict=True))):
            gradients = dq_in[part], dv[part], dw_in[part], d_decay, dS, d_key, d_out[part]
            tokens = q_in[part], v[part], w_in[part]
            self.launch(memory.memory_backward, S.shape[1::-1], memory.BLOCK_DIM, *gradients, S, key, *tokens, *inputs, np.float32(erase))

    @staticmethod
    def _memory_parts(w_in, S):
        """The tokens of a chunk, in slices of at most MAX_TOKENS per launch."""
        if S.shape[2] > memory.BLOCK_DIM:
            raise ConfigError(f"brain.memory_width: at most {memory.BLOCK_DIM} on a GPU, not {S.shape[2]}")
        return [slice(first, first + memory.MAX_TOKENS) for first in range(0, len(w_in), memory.MAX_TOKENS)]

    def working_memory_forward(self, m, f_in, u_in, retain, axon, first):
        _, B, M = f_in.shape
        across, threads = self._across(M)
        arrays = *self._flat(m, f_in, u_in), retain, *self._ring(axon, B), first
        self.launch(working_memory.working_memory_forward, (across, B), threads, *arrays)

    def working_memory_backward(self, df_in, du_in, dm_carry, dm, m, f_in, u_in, retain):
        _, B, M = f_in.shape
        across, threads = self._across(M)
        arrays = self._flat(df_in, du_in, dm_carry, dm, m, f_in, u_in)
        self.launch(working_memory.working_memory_backward, (across, B), threads, *arrays, retain)

    def working_memory_eligibility(self, to_retain, to_store, transition, traces, d_retain, h, m, f_in, u_in, retain):
        _, B, M = f_in.shape
        across, threads = self._across(M)
        partial = self._scratch("gradients of slots", (B, M))
        arrays = self._flat(to_retain, to_store, transition, traces)
        self.launch(
            working_memory.working_memory_eligibility, (across, B), threads, *arrays, partial, *self._flat(h, m, f_in, u_in), retain
        )
        self.add_rows(d_retain, partial)

    # kernels/neuromodulation.py

    def observe(self, rows, losses, targets, interval):
        self.launch(neuromodulation.observe, *self._across(rows.shape[1]), rows, losses, targets, interval)

    def modulate(self, factors, slopes, rows, sensitivity):
        self.launch(neuromodulation.modulate, *self._across(rows.shape[1]), factors, slopes, rows, sensitivity)

    def sensitivity_backward(self, total, x, slope, logit, bias):
        threads = 8 if SIMULATED else neuromodulation.THREADS
        self.launch(neuromodulation.sensitivity_backward, 1, threads, total, x, slope, logit, bias)

    # kernels/embedding.py, dropout.py, softmax.py, sampling.py

    def _whole_rows(self, x):
        """A matrix as kernels take it: with the padding between its rows, contiguous, bfloat16 as bits."""
        if x.strides[1] != x.itemsize and x.shape[1] > 1:
            raise ValueError("a kernel needs rows that are contiguous in memory")
        lead = max(x.strides[0] // x.itemsize, x.shape[1])
        return self._xp.lib.stride_tricks.as_strided(self.bits(x), (len(x), lead), (lead * x.itemsize, x.itemsize))

    def embedding_forward(self, x, weight, tokens):
        E = x.shape[-1]
        threads = self._across(E)[1] if not SIMULATED else 4
        self.launch(embedding.embedding_forward, tokens.size, threads, x.reshape(-1, E), weight, *self._flat(tokens))

    def code_rows(self, x, stored, tokens, scale):
        E = x.shape[-1]
        threads = self._across(E)[1] if not SIMULATED else 4
        self.launch(codes.code_rows, tokens.size, threads, x.reshape(-1, E), stored, *self._flat(tokens), scale)

    def embedding_backward(self, d_weight, dx, tokens):
        E = dx.shape[-1]
        grid, threads = (tokens.size, blocks(E, embedding.COLUMNS)), 4 if SIMULATED else THREADS
        self.launch(embedding.embedding_backward, grid, threads, d_weight, dx.reshape(-1, E), *self._flat(tokens))

    def scale_words(self, x, tokens, scale, rate, key):
        E = x.shape[-1]
        threads, how = self._across(E)[1] if not SIMULATED else 4, (np.float32(scale), np.float32(rate), key)
        self.launch(embedding.scale_words, tokens.size, threads, x.reshape(-1, E), *self._flat(tokens), *how)

    def scaled_dropout(self, out, x, scale, rate, key, offset):
        flat_out, flat = self._flat(self.bits(out), x)
        how = np.float32(scale), np.float32(rate), key, offset
        self.launch(dropout.scaled_dropout, *self._strided(x.size), flat_out[None], flat, *how)

    def cross_entropy(self, loss, hit, d_logits, logits, bias, targets, weight, size):
        threads = 8 if SIMULATED else min(softmax.THREADS, -(-size // 256) * 32)  # about eight logits per thread
        rows = self.bits(d_logits), logits
        self.launch(softmax.cross_entropy, len(loss), threads, loss, hit, *rows, bias, targets, weight, size)

    def soften(self, d_logits, d_teacher, share):
        flat, teacher = self._flat(self.bits(d_logits), d_teacher)
        self.launch(distill.soften, *self._strided(teacher.size), flat[None], teacher, np.float32(share))

    def sample(self, tokens, logits, bias, temperature, top_k, top_p, key, step, size):
        if size > sampling.MAX_TOKENS:
            raise BackendError(f"sampling on a GPU: a vocabulary of at most {sampling.MAX_TOKENS:,} tokens, not {size:,}")
        rows, groups = len(tokens), sampling.GROUPS
        largest, places = self._scratch("largest logits", (rows, groups)), self._scratch("their tokens", (rows, groups), "int32")
        self.launch(
            sampling.find_largest, (groups // sampling.FIND_BLOCK_DIM, rows), sampling.FIND_BLOCK_DIM, largest, places, logits, bias, size
        )
        how = np.float32(temperature), top_k, np.float32(top_p), np.uint64(key), step
        self.launch(sampling.sample, rows, sampling.BLOCK_DIM, tokens, logits, bias, *how, largest, places, size)

    # kernels/online_cross_entropy.py

    def softmax_part(self, top, best, total, picked, logits, bias, targets, first, size):
        rows, threads = self._whole_rows(logits), 8 if SIMULATED else softmax.THREADS
        self.launch(online_cross_entropy.softmax_part, len(targets), threads, top, best, total, picked, rows, bias, targets, first, size)

    def softmax_end(self, loss, hit, factor, top, best, total, picked, targets, weight):
        arrays = loss, hit, factor, top, best, total, picked, targets, weight
        self.launch(online_cross_entropy.softmax_end, blocks(len(loss)), THREADS, *arrays)

    def softmax_gradient(self, d_logits, logits, bias, top, factor, targets, weight, first, size):
        rows, threads = (self._whole_rows(d_logits), self._whole_rows(logits)), 8 if SIMULATED else softmax.THREADS
        arrays = *rows, bias, top, factor, targets, weight
        self.launch(online_cross_entropy.softmax_gradient, len(targets), threads, *arrays, first, size)

    # kernels/stimulus.py

    def poisson(self, current, rate, strength, key, ticks):
        (tokens, batch, size), threads = current.shape, 8 if SIMULATED else THREADS
        self.launch(stimulus.poisson, (blocks(size, threads), batch, tokens), threads, current, rate, strength, key, ticks)

    # kernels/adamw.py, muon.py, adamw8bit.py, adafactor.py, reduce.py, roll_state.py, reset.py

    def adamw(self, p, g, m, v, decay, low, high, norm, numbers):
        self.launch(adamw.adamw, len(decay), 8 if SIMULATED else THREADS, p, g, m, v, decay, low, high, norm, numbers)

    def muon(self, p, g, m, decay, low, high, norm, numbers, side):
        self.launch(muon.make_muon(side), len(decay), muon.THREADS, p, g, m, decay, low, high, norm, numbers)

    def average(self, mean, p, share):
        self.launch(average.average, *self._strided(mean.size), mean, p, share)

    def exchange(self, x, y):
        self.launch(average.exchange, *self._strided(x.size), x, y)

    def adamw8bit(self, p, g, m, v, m_top, r_top, decay, low, high, norm, numbers, key, first):
        arrays = p, g, m, v, m_top, r_top, decay, low, high, norm, numbers, key
        self.launch(adamw8bit.adamw8bit, len(m_top), 8 if SIMULATED else adamw8bit.GROUP_SIZE, *arrays, first)

    def adafactor(self, p, g, row, spread, where, decay, norm, numbers):
        self.launch(adafactor.adafactor, len(where), 8 if SIMULATED else THREADS, p, g, row, spread, where, decay, norm, numbers)

    def spread_columns(self, spread, column):
        self.launch(adafactor.spread_columns, 1, 8 if SIMULATED else reduce.MAX_BLOCK_DIM, spread, column)

    def column_squares(self, total, g, where, norm, numbers):
        threads = (2, 4) if SIMULATED else (32, reduce.MAX_BLOCK_DIM // 32)
        self.launch(adafactor.column_squares, blocks(total.size, threads[0]), threads, total, g, where, norm, numbers)

    def column_step(self, column, total, norm):
        self.launch(adafactor.column_step, *self._across(total.size), column, total, norm)

    def sum_of_squares(self, partial, x):
        self.launch(reduce.sum_of_squares, len(partial), 2 if SIMULATED else THREADS, partial, x)

    def norm(self, norm, partial):
        self.launch(reduce.norm, 1, 8 if SIMULATED else reduce.MAX_BLOCK_DIM, norm, partial)

    def add_rows(self, total, x):
        # With few columns, more threads reduce each column.
        threads = (2, 4) if SIMULATED else (32, 8) if total.size >= 8192 else (8, reduce.MAX_BLOCK_DIM // 8)
        self.launch(reduce.add_rows, blocks(total.size, threads[0]), threads, total, self._whole_rows(x))

    def roll_state(self, x, table, length):
        self.launch(roll_state.roll_state, (roll_state.BLOCKS, len(table)), 8 if SIMULATED else THREADS, x, table, length)

    def reset(self, x, sequences):
        (across, threads), (rows, batch, _) = self._across(x.shape[2]), x.shape
        self.launch(reset.reset, (rows, batch, across), threads, x, sequences)


class CudaStreams(Streams):
    """One CUDA stream per name. Each starts after the work queued on the main stream so far."""

    def __init__(self, backend):
        self._backend, self._main, self._streams = backend, backend._cupy_stream, {}
        self._begin = backend.mark(self._main)

    def _stream(self, name):
        if name not in self._streams:
            self._streams[name] = self._backend.stream(name)
            self._streams[name].wait_event(self._begin)
        return self._streams[name]

    @contextlib.contextmanager
    def on(self, stream, after=()):
        stream = self._stream(stream)
        for mark in after:
            if mark is not None:
                stream.wait_event(mark)
        self._backend._go_to(stream)
        try:
            yield
        finally:
            self._backend._go_to(self._main)

    def mark(self, stream):
        return self._backend.mark(self._stream(stream))

    def join(self):
        for name in self._streams:
            self._main.wait_event(self.mark(name))
