"""The interface of backends: all operations that a brain and its training run on a device.

Outputs come first and are overwritten, unless the docstring says accumulated or updated. Equations and their sources are in the docstrings
of the kernels. Arrays are NumPy's on the CPU and CuPy's on a GPU; float32 unless stated. C: tokens of a chunk, B: sequences, N: neurons.
Values that change from step to step (keys of random numbers, rates, counts) are passed in arrays, so that a recorded step can be replayed.
"""

# ruff: noqa: B027  the decorator `kernel` makes methods abstract

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import compiling

if TYPE_CHECKING:
    from ..kernels.population import Axon, NeuronParameters, NeuronState, Physics


def kernel(method):
    """An abstract method for a kernel whose bytes and operations `planning/costs.py` knows."""
    method.is_kernel = True
    return abstractmethod(method)


class Backend(ABC):
    """The operations of a device. A method for a kernel has the name of its function in `kernels/`; arguments without a type are arrays."""

    name: str
    whole_rows: int  # the decoder's rows are padded to a multiple of this
    logits: int  # maximum number of logits held at a time
    product_dtype: str  # of the factors of matrix products; sums are float32

    recording = True  # recorded steps replay their recording; False: they run in Python, and keep the recording
    parts = ()  # names of the enclosing `part` contexts, outermost first

    # Arrays and memory

    @contextlib.contextmanager
    def part(self, name: str):
        """A context manager: labels the arrays allocated in it with `name`, for out-of-memory messages and the memory budget."""
        before, self.parts = self.parts, (*self.parts, name)
        try:
            yield
        finally:
            self.parts = before

    @abstractmethod
    def zeros(self, shape, dtype="float32"):
        """A new array of zeros on the device. Raises OutOfMemory."""

    @abstractmethod
    def asarray(self, values, dtype=None):
        """A new array on the device from NumPy values, contiguous and writable."""

    @abstractmethod
    def to_numpy(self, array):
        """A NumPy copy of an array on the device."""

    def fetch(self, array):
        """As `to_numpy`, for large arrays that are copied repeatedly: into pinned memory on a GPU, reused once the copy is released."""
        return self.to_numpy(array)

    @functools.cached_property
    def no_axon(self) -> Axon:
        """The axon of a signal that no synapse reads: its ring has size 0."""
        from ..kernels.population import Axon

        none = self.zeros((1, 1, 1, 1))[:, :0]
        return Axon(none, self.zeros(1, "int32"), none[0], none[0])

    @abstractmethod
    def matrix(self, rows, columns, dtype="float32"):
        """Zeros [rows, columns], with rows aligned for matrix products."""

    @abstractmethod
    def memory(self) -> tuple[int, int] | None:
        """(free, total) bytes of the memory that a run must fit into; None for host memory, which is not planned."""

    def card(self) -> str | None:
        """A name of the card that no other card of this machine has; None for a backend that needs none."""
        return None

    @abstractmethod
    def limit_memory(self, size: int):
        """Limit this process to `size` bytes of that memory, excluding the driver's."""

    @abstractmethod
    def memory_used(self) -> int:
        """Bytes that this process holds on the device, as far as known."""

    # Queues of work

    @abstractmethod
    def streams(self) -> Streams:
        """Queues of work that may overlap: CUDA streams on a GPU, else one queue."""

    @contextlib.contextmanager
    def beside(self, work: Callable[[], None]):
        """A context whose body may overlap with `work`, which uses other arrays. Later work waits for both."""
        yield
        work()

    @abstractmethod
    def synchronize(self):
        """Wait until all queued work is done."""

    def working(self, work: int):
        """A context for a step of this much work: parameters times columns (tokens of sequences)."""
        return contextlib.nullcontext()

    @abstractmethod
    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that repeats `step`, which always runs the same operations on the same arrays. On a GPU, a CUDA graph.

        The first call compiles the kernels, as `compile_kernels` does.
        """

    def record_calls(self, step: Callable[[], None]) -> Callable[[], None]:
        """As `record`, for a step that changes arrays only through this backend's operations, its synapses, and `apply`."""
        return self.record(step)

    def compile_kernels(self, step: Callable[[], None], stopping: Callable[[], bool] = lambda: False):
        """Compile the kernels that `step` launches, and show the progress. End early if `stopping()` becomes true.

        The step runs in Python, but no kernel, no product and no `apply` is executed. All other changes of arrays must be harmless; a step
        copies and accumulates state by `apply`.
        """
        if compiling.noted():
            step()
            return
        launches = compiling.Launches()
        with launches.noting():
            step()
        launches.compile(stopping)

    def apply(self, function, *arguments, **how):
        """Call a function on arrays, one of NumPy's or with the same signature, as part of a step."""
        if not compiling.noted():
            function(*arguments, **how)

    @abstractmethod
    def device_name(self) -> str:
        """The name of the device, for display."""

    # Synapses and dense products

    @abstractmethod
    def synapses(self, projections, parameters) -> Synapses:
        """The synapses of a brain's projections (brain/projection.py)."""

    @abstractmethod
    def assign(self, out, x):
        """out = x float32, rounded to the dtype of out; both of one shape and contiguous."""

    @kernel
    def product(self, out, a, b, add=False, scale=1.0):
        """out [m, n] = scale a [m, k] @ b [k, n]; with `add` accumulated. a, b: one dtype, float32 or `product_dtype`; transposed views are
        allowed."""

    @kernel
    def quantized_product(self, out, x, stored, scale):
        """Overwrites out [M, R] float32 with x [M, K], of `product_dtype`, times the transposed weights [R, K] that the codes `stored` and
        `scale` [R] stand for (kernels/codes.py). All are contiguous."""

    # Neurons

    @kernel
    def population_forward(
        self,
        state: NeuronState,
        r,
        axon: Axon,
        trace: Axon,
        first: int,
        c,
        gate,
        parameters: NeuronParameters,
        gain_scale,
        beta_scale,
        hypercolumn: int,
        dropout: tuple,
        graded: bool,
        physics: Physics,
    ):
        """Forward pass of a population over the C tokens of a chunk, from current to axon.

        Overwrites rows 1 ... C of the state arrays, [C+1, B, N] each; r [C, B, hypercolumns], the normalisation factors; and in the rings
        of the axon and the trace the rows of the C tokens, which begin at token `first` of the segment. A ring of size 0 is not written.

        c [C, B, N]: current. gate [C, B, N]: gate current. gain_scale, beta_scale [B]: factors of the neuromodulators. hypercolumn: neurons
        normalised together, at most 1,024. dropout: (rate float32, key [1] uint64, offset as in kernels/dropout.py) of the axon. graded:
        the axon carries v at an event, else 1. physics: functions of the neuron (neurons/). Without a gate, `gate` has size 0; without a
        trace, `state.y` and `parameters.gamma` have size 0. Their number of dimensions stays the same.
        """

    @kernel
    def population_backward(
        self,
        d_current,
        d_gate,
        carry: NeuronState,
        d: NeuronParameters,
        ds,
        dy,
        state: NeuronState,
        r,
        c,
        gate,
        parameters: NeuronParameters,
        gain_scale,
        beta_scale,
        hypercolumn: int,
        dropout: tuple,
        graded: bool,
        physics: Physics,
        scale: float = 1,
        offset: int = 0,
        modulation: tuple = (),
    ):
        """Backward pass of `population_forward` over the same chunk; arguments of the same name are the same arrays.

        Overwrites d_current with `scale` times dL/dc, and d_gate, if there is a gate, with `scale` times the gradient of the gate current.
        Both [lines, columns, numbers per line]: neuron n is in line n // numbers, token t of sequence b in column offset + t B + b. On the
        CPU they have one line and no offset. On a GPU they may have 16 bits; float16 needs a scale. Numbers beyond N are not written.

        carry, arrays [B, N]: d_state of the neuron's adjoint, and dL/dy before its decay. On entry they belong to the token after the
        chunk, on return to the token before it. Accumulates into d, the gradients [N] of the parameters. ds, dy [C, B, N]: gradients of the
        axon, after dropout, and of the trace.

        modulation: of a neuromodulated population (gain_slope, beta_slope [B], to_gain, to_beta [N]): derivatives of the logarithms of the
        factors by their sensitivities, and the accumulated gradients of these, per neuron.
        """

    @kernel
    def population_eligibility(
        self,
        to_current,
        to_gate,
        transition,
        traces,
        h,
        d: NeuronParameters,
        state: NeuronState,
        r,
        c,
        gate,
        parameters: NeuronParameters,
        gain_scale,
        beta_scale,
        hypercolumn: int,
        graded: bool,
        physics: Physics,
    ):
        """How the currents of a chunk act on later tokens (kernels/population_eligibility.py); after `population_backward`, with the same
        arrays.

        Overwrites to_current, to_gate [K, C, B, N], the latter of size 0 without a gate, and transition [K, K, B, N]. Updates traces
        [K, P, B, N] of the P parameters. Accumulates into d, the gradients [N] of the parameters, what the chunk asks of the tokens before
        it. h [K, B, N]: the carry that `population_backward` returned.
        """

    @kernel
    def eligibility(self, traces, gradient, axon: Axon, first: int, block, delay, per_tile: int, size: int, to_current, transition, h):
        """Updates the eligibility traces [K, B, W] of the W synapses of a projection, in bundles [size, size], after a chunk, and
        accumulates into gradient [W] what the chunk asks of the tokens before it (kernels/eligibility.py).

        axon: of the sources; block, delay [bundles] int32; per_tile: bundles of a tile. to_current [K, C, B, N], transition [K, K, B, N],
        h [K, B, N]: of the targets.
        """

    @kernel
    def decay_forward(self, decayed, log_tau):
        """Overwrites decayed [N] with the decay per token of log_tau [N]."""

    @kernel
    def decay_backward(self, d_log_tau, d_decay, log_tau):
        """Accumulates into d_log_tau [N]. d_decay [N]: gradient of the decay, set to 0."""

    @kernel
    def gain_forward(self, scaled, gain, input_scale):
        """Overwrites scaled [N] with gain [N] times the fixed input_scale [N]."""

    @kernel
    def gain_backward(self, d_gain, d_scaled, input_scale):
        """Accumulates into d_gain [N]. d_scaled [N]: gradient of the product, set to 0."""

    @kernel
    def poisson(self, current, rate: float, strength: float, key: int, ticks):
        """Adds stimuli to current [C, B, N]. rate: probability per neuron and tick; ticks [1] uint64: ticks before this chunk."""

    # Memories

    @kernel
    def memory_forward(self, out, S, key, q_in, v, w_in, write_bias, decay, write_scale, axon: Axon, first: int, erase=1.0):
        """Forward pass of the associative memory over the C tokens of a chunk; H heads of width W. erase: 1 delta rule, 0 Hebbian rule.

        Overwrites out [C, B, H W], and writes it into the rows of the C tokens in the axon's ring. Updates S [B, H, W, W] and key [B, H W]
        in place. q_in, v [C, B, H W]; w_in [C, B, H]; write_bias, decay [H]; write_scale [B].
        """

    @kernel
    def memory_backward(
        self, dq_in, dv, dw_in, d_decay, dS, d_key, d_out, S_before, key_before, q_in, v, w_in, write_bias, decay, write_scale, erase=1.0
    ):
        """Backward pass of `memory_forward`. S_before, key_before: S and key before the chunk.

        Overwrites dq_in, dv, dw_in; accumulates into d_decay [B, H]. dS and d_key: on entry of the token after the chunk, on return of the
        token before it. d_out [C, B, H W].
        """

    @kernel
    def working_memory_forward(self, m, f_in, u_in, retain, axon: Axon, first: int):
        """Overwrites rows 1 ... C of m [C+1, B, M], and writes them into the rows of the C tokens in the axon's ring.

        Row 0 of m is the token before the chunk. f_in, u_in [C, B, M]; retain [M].
        """

    @kernel
    def working_memory_backward(self, df_in, du_in, dm_carry, dm, m, f_in, u_in, retain):
        """Overwrites df_in, du_in [C, B, M]. dm_carry [B, M]: on entry of the token after the chunk, on return of the token before it.
        dm [C, B, M]."""

    @kernel
    def working_memory_eligibility(self, to_retain, to_store, transition, traces, d_retain, h, m, f_in, u_in, retain):
        """As `population_eligibility`, for the slots of the working memory, whose h is dL/dm: overwrites to_retain, to_store [C, B, M] and
        transition [B, M], updates traces [B, M], accumulates into d_retain [M]. h [B, M]: as `working_memory_backward` returned it."""

    # Neuromodulators. rows [9, B]: ROWS of kernels/neuromodulation.py; sensitivity [14]

    @kernel
    def observe(self, rows, losses, targets, interval: float):
        """Updates rows [ROWS, B], the state of the neuromodulators, from losses [T, B] in nats; a token with a negative target, of targets
        [T, B] int32, does not count. Levels change after `interval` tokens."""

    @kernel
    def modulate(self, factors, slopes, rows, sensitivity):
        """Overwrites factors [14, B], the effects of the levels in rows [ROWS, B] with sensitivity [14], and slopes [14, B], their
        derivatives (kernels/neuromodulation.py)."""

    @kernel
    def sensitivity_backward(self, total, x, slope, logit, bias):
        """Accumulates the gradient of a sensitivity into total [1], from x [T, B, K], the gradient of logits, and slope [B]. logit
        [T, B, K], bias [K]: of a factor that multiplies a sigmoid; of size 0 otherwise."""

    # Embedding and dropout

    @kernel
    def embedding_forward(self, x, weight, tokens):
        """Overwrites x [C, B, E] with the rows of weight [V, E] of tokens [C, B] int32, which must be in range."""

    @kernel
    def code_rows(self, x, codes, tokens, scale):
        """As `embedding_forward`, with the weights that `codes` and `scale` [V] store (kernels/codes.py)."""

    @kernel
    def embedding_backward(self, d_weight, dx, tokens):
        """Accumulates dx [C, B, E] into the rows of d_weight [V, E] of tokens [C, B] int32, in a fixed order."""

    @kernel
    def scale_words(self, x, tokens, scale: float, rate: float, key):
        """Multiplies x [C, B, E] in place by `scale` and by a dropout factor per token id of tokens [C, B] int32 (whole words are
        dropped)."""

    @kernel
    def scaled_dropout(self, out, x, scale: float, rate: float, key, offset: tuple):
        """Overwrites out [R, N], of `product_dtype` or float32 or x itself, with `scale` times dropout of x [R, N]. key [1] uint64, offset
        (kernels/dropout.py): key and offset of the mask."""

    def dropout(self, x, rate, key, offset):
        """Applies dropout to x [R, N] in place, forward and backward."""
        self.scaled_dropout(x, x, 1.0, rate, key, offset)

    # Softmax and sampling. Logits come without their bias [W]; the first `size` of the W columns are tokens, the rest is padding

    @kernel
    def cross_entropy(self, loss, hit, d_logits, logits, bias, targets, weight, size: int):
        """Overwrites loss [R] in nats, hit [R] uint8, and d_logits [R, W], which is 0 in the padding and may be logits itself.

        targets [R] int32: for a negative target, loss, hit and gradient are 0. weight [1], or [R]: factor of the gradient. If the
        loss of a row is not finite, its gradient is NaN.
        """

    @kernel
    def soften(self, d_logits, d_teacher, share: float):
        """Subtracts `share` times d_teacher [R, W] float32 from d_logits [R, W] in place: gradients of hard targets become one of soft
        targets (kernels/distill.py)."""

    @kernel
    def softmax_part(self, top, best, total, picked, logits, bias, targets, first: int, size: int):
        """Updates the statistics of the rows from a block of logits [R, W], of the tokens first ... first + size - 1.

        top, total, picked [R], best [R] int32: see kernels/online_cross_entropy.py. targets [R] int32.
        """

    @kernel
    def softmax_end(self, loss, hit, factor, top, best, total, picked, targets, weight):
        """Overwrites loss [R], hit [R] uint8 and factor [R] from the statistics of all blocks."""

    @kernel
    def softmax_gradient(self, d_logits, logits, bias, top, factor, targets, weight, first: int, size: int):
        """Overwrites d_logits [R, W] of a block with the gradient, as `cross_entropy`."""

    @kernel
    def sample(self, tokens, logits, bias, temperature: float, top_k: int, top_p: float, key: int, step, size: int):
        """Overwrites tokens [B] int32 with one draw per row of logits [B, W]; adds 1 to step [B] uint64, the offset of the random
        numbers."""

    # Optimisers. norm [1]: of the whole gradient; if it is not finite, nothing changes. numbers [4]: rate, unbias1, unbias2, clip

    @kernel
    def average(self, mean, p, share):
        """Updates mean [K] in place: mean += share [1] (p [K] - mean)."""

    @kernel
    def exchange(self, x, y):
        """Exchanges the contents of x and y [K]."""

    @kernel
    def adamw(self, p, g, m, v, decay, low, high, norm, numbers):
        """Updates p, m, v [K] in place from the gradient g [K]. decay, low, high [K / BLOCK]: weight decay and bounds of each block."""

    @kernel
    def muon(self, p, g, m, decay, low, high, norm, numbers, side: int):
        """Updates p, m [K] in place from the gradient g [K], as `adamw`. p: bundles [side, side]; side: 16, 32 or 64."""

    @kernel
    def adamw8bit(self, p, g, m, v, m_top, r_top, decay, low, high, norm, numbers, key, first: int):
        """Updates p [K], m [K] int8, v [K] uint8 and m_top, r_top [K / GROUP_SIZE] in place. key [1] uint64, first: key and offset of the
        random numbers."""

    @kernel
    def adafactor(self, p, g, row, spread, where, decay: float, norm, numbers):
        """Updates rows where[k] of p [R, C] and row [R] in place from their gradient g[k], g [P, C]. where [P] int32: distinct row indices;
        negative ones are skipped. spread [C]: from `spread_columns`."""

    @kernel
    def spread_columns(self, spread, column):
        """Overwrites spread [C] from the column statistics [C]."""

    @kernel
    def column_squares(self, total, g, where, norm, numbers):
        """Accumulates the squares of the clipped gradient g [P, C] into total [C], by columns."""

    @kernel
    def column_step(self, column, total, norm):
        """Updates the column statistics [C] from total [C], and sets total to 0."""

    # Reductions in a fixed order

    @kernel
    def sum_of_squares(self, partial, x):
        """Overwrites partial [ceil(K / BLOCK)] float64 with the sum of squares of each block of x [K]."""

    @kernel
    def norm(self, norm, partial):
        """Overwrites norm [1] with the square root of the sum of partial [n] float64."""

    @kernel
    def add_rows(self, total, x):
        """Accumulates the rows of x [R, N], of any float type, into total [N]."""

    # State

    @abstractmethod
    def roll_state(self, x, table, length: int):
        """Overwrites row 0 of each state array in x with its row `length`. table [A, 2] int64: offset of each array, and its row size."""

    @abstractmethod
    def reset(self, x, sequences):
        """Sets x[:, b] of x [R, B, M] to 0 where sequences [B] uint8 is not 0."""


class Streams:
    """Named queues of work. Work on one stream runs in order; it may also wait for marks of other streams.

    This base class is for a backend that runs all work in the order of the calls.
    """

    def on(self, stream: str, after=()):
        """A context manager: queue the work in it on a stream, after the given marks. None in `after` is skipped."""
        return contextlib.nullcontext()

    def mark(self, stream: str):
        """A mark after the work queued on a stream so far."""
        return None

    def join(self):
        """Queue all later work after the work of all streams."""


class Synapses(ABC):
    """All synapses of a brain, in bundles, in the layout of the device: structure and weights of its projections (brain/projection.py)."""

    @abstractmethod
    def wire(self):
        """Build the tables from the structure of the projections, after it was drawn or loaded."""

    @abstractmethod
    def rewire(self) -> bool:
        """Rebuild the tables in the same arrays, after projections got the same number of other bundles. Returns whether recorded steps
        stay valid, that is, whether every table kept its shape."""

    weight = gradient = None  # of all synapses, flat, a multiple of the optimiser's BLOCK

    @abstractmethod
    def refresh(self, weight=None):
        """Compute the copies of the weights that kernels read. Call it after every change of the weights. weight: other values in the same
        layout."""

    @abstractmethod
    def state(self, signals: dict, currents: dict, tokens: int, batch: int, learning: bool, copied: dict) -> SynapticState:
        """Buffers for a batch of sequences. signals: name -> (size, history in tokens) of the signals that synapses read; currents: name ->
        size of the currents that they contribute to; copied: current -> signal, where a signal equals a current."""


class SynapticState(ABC):
    """Source values of B sequences over a segment of at most T tokens and the history before it, and the gradients of the currents.

    `first` and `last` count tokens of the segment. Call order, forward, for each chunk: every signal that a current reads without delay is
    written before `forward` of that current: through its `axon`, or by `forward` itself if it is a copied current.
    Backward, chunks descending: call `set_current_grad` for every current that reads a signal before `source_grad(signal, chunk)`. Call
    `accumulate_weight_grad` after all chunks.
    """

    @abstractmethod
    def axon(self, signal: str) -> Axon:
        """The ring buffer of a signal, for the operation that computes it; the backend's `no_axon` if no synapse reads it."""

    @abstractmethod
    def forward(self, values: dict, first: int, last: int):
        """Overwrite values, current -> [C, B, N], with the sums of these currents over their synapses. Copied currents are also written
        into the ring of their signal."""

    direct_gradients = False  # whether there is `current_grad`

    def current_grad(self, current: str, first: int, last: int):
        """(array [lines, columns, numbers per line], first column, scale): a caller may write the gradient of a current, times scale, there
        instead of calling `set_current_grad`. None without `direct_gradients`."""
        return None

    @abstractmethod
    def set_current_grad(self, current: str, first: int, last: int, gradient):
        """Store the gradient [C, B, N] of a current."""

    @abstractmethod
    def source_grad(self, gradients: dict, first: int, last: int, length: int):
        """Overwrite gradients, signal -> [C, B, M], with the sums over all synapses that read these signals, in a segment of `length`
        tokens.

        On the CPU they are undefined for neurons that need no gradient (`Axon.needs_grad`).
        """

    @abstractmethod
    def accumulate_weight_grad(self, length: int):
        """Accumulate the gradient of all weights over a segment of `length` tokens, from events in the segment and in the history.

        Events in the history get no gradient: back-propagation through time is truncated there.
        """

    @abstractmethod
    def bundle_grad(self, projection, tile, block, delay, length: int):
        """A new array [K, BS BT]: the gradient of the weights that K bundles would have, whether they are wired or not, as
        `accumulate_weight_grad` computes it. NumPy [K]: projection: index of its projection, all of one bundle size; its tile, block and
        delay."""

    @abstractmethod
    def advance(self, length: int):
        """End a segment of `length` tokens: its last tokens become the history of the next segment."""

    @abstractmethod
    def ring(self, signal: str) -> dict:
        """Views of the ring buffer of a signal, as `Activity.rings` describes."""

    @abstractmethod
    def past(self, signal: str):
        """Values of a signal in the history, newest token last: [history, B, M] float32, NumPy."""

    @abstractmethod
    def set_past(self, signal: str, past):
        """Inverse of `past`."""

    @abstractmethod
    def reset(self, sequences):
        """Set the history to zero in the sequences where `sequences` [B] uint8, on the device, is not 0."""
