"""The operations that a backend offers: the seam between what the brain is and where it runs.

Operations write into arrays given to them, outputs first; shapes, units and sources of the equations stand with the kernels of the same
name in `kernels/`. A gradient that is *added to* is said so there. Arrays are the backend's own (NumPy arrays on the CPU, CuPy arrays on a
GPU), float32 unless said otherwise. What changes from step to step (keys of random numbers, rates, counts) is handed over in arrays, so
that a recorded step can be repeated.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..kernels.population import Axon, NeuronParameters, NeuronState


class Backend(ABC):
    """What a device must be able to do. The class attributes are the kernels, under the kernels' names."""

    name: str
    whole_rows: int  # the decoder's matrix and rows of logits have a multiple of so many rows, or numbers
    logits: int  # so many are held at a time
    product_dtype: str  # of the factors of the decoder's products; sums are float32

    mode = "sequential"  # or pipelined: modules may overlap
    parts = ()  # what arrays are being made for, from the whole to the part

    # kernels/neuron.py
    decay_forward: Callable
    decay_backward: Callable
    # kernels/memory.py, working_memory.py
    memory_forward: Callable
    memory_backward: Callable
    working_memory_forward: Callable
    working_memory_backward: Callable
    # kernels/embedding.py, dropout.py, softmax.py, sampling.py
    embedding_forward: Callable
    embedding_backward: Callable
    scaled_dropout: Callable
    cross_entropy: Callable
    sample: Callable
    # kernels/stimulus.py
    poisson: Callable
    # kernels/softmax_blocks.py
    softmax_part: Callable
    softmax_end: Callable
    softmax_gradient: Callable
    # kernels/adamw.py, adamw8bit.py, adafactor.py, reduce.py, carry.py, forget.py
    adamw: Callable
    adamw8bit: Callable
    adafactor: Callable
    spread_columns: Callable
    column_squares: Callable
    column_step: Callable
    sum_of_squares: Callable
    norm: Callable
    add_rows: Callable
    carry: Callable
    forget: Callable

    @contextlib.contextmanager
    def part(self, name: str):
        """A context: arrays made in it are for `name`. It is said where there is no room for one, and plans count by it
        (backends/paper.py)."""
        before, self.parts = self.parts, (*self.parts, name)
        try:
            yield
        finally:
            self.parts = before

    @abstractmethod
    def zeros(self, shape, dtype="float32"):
        """A new array of zeros on the device."""

    @abstractmethod
    def asarray(self, values, dtype=None):
        """NumPy values as an array of the device, contiguous and writable."""

    @abstractmethod
    def to_numpy(self, array):
        """A copy of a device's array as NumPy."""

    def fetch(self, array):
        """As `to_numpy`, for what is large and copied again and again: into memory that the device reaches directly, where there is such.
        It is used again once nobody holds the copy."""
        return self.to_numpy(array)

    @abstractmethod
    def population_forward(
        self,
        state: NeuronState,
        r,
        axon: Axon,
        first: int,
        c,
        gate,
        parameters: NeuronParameters,
        gain_scale,
        beta_scale,
        hypercolumn: int,
        dropout,
        graded: bool,
        smooth: bool,
    ):
        """The neurons of a population over the C tokens of a chunk, from current to axon (kernels/population.py).

        Overwrites rows 1 ... C of state, of [C+1, B, N] each; r [C, B, hypercolumns], the factors of the normalisation; and in the ring of
        the axon the rows of the C tokens, the first of which is token `first` of its segment. A ring of size 0 is left alone.
        c [C, B, N]: raw current. gate [C, B, N]: gate current. gain_scale, beta_scale [B]: the neuromodulators' factors.
        dropout: (rate float32, key [1] uint64, first place uint64) of the axon. hypercolumn: neurons that are normalised together, at most
        1,024. graded: the axon carries v with an event, not 1. smooth: the test mode of the event function.
        Without a gate or a trace, `gate`, or `state.y` and `parameters.gamma`, have size 0 and the usual number of dimensions.
        """

    @abstractmethod
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
        dropout,
        graded: bool,
        smooth: bool,
        scale: float = 1,
    ):
        """Backward pass of `population_forward` over the same chunk; the arguments of the same name are the same arrays.

        Overwrites d_current [C, B, N or more], dL/dc times `scale`, and d_gate [C, B, N]. On a GPU d_current may have 16 bits, and float16
        then needs a scale; its columns beyond N stay as they are. Carries carry, [B, N] each: dL/dv, dL/da, dL/dy of the token after the
        chunk (in) and before it (out), v and y still without their decay. Adds to d, the parameters' gradients [N]. ds, dy [C, B, N]:
        gradients of the axon, before dropout takes its part out, and of the trace. Sums have a fixed order.
        """

    @abstractmethod
    def matrix(self, rows, columns, dtype="float32"):
        """Zeros [rows, columns], with the rows spaced as products like them."""

    @abstractmethod
    def product(self, out, a, b, add=False, scale=1.0):
        """scale times the matrix product a [m, k] @ b [k, n] into out [m, n] float32, or added to it. a and b are of one dtype, float32 or
        `product_dtype`; either may be a transposed view."""

    def dropout(self, x, rate, key, first_place):
        """Mask x [R, N] float32 in place (kernels/dropout.py)."""
        self.scaled_dropout(x, x, 1.0, rate, key, first_place)

    @abstractmethod
    def synapses(self, projections, parameters) -> Synapses:
        """The synapses in bundles of a brain: its projections that are not dense (brain/projection.py)."""

    @abstractmethod
    def lanes(self) -> Lanes:
        """Lanes for work of which some parts may overlap."""

    @abstractmethod
    def device_name(self) -> str:
        """What a person calls the device."""

    @abstractmethod
    def memory(self) -> tuple[int, int] | None:
        """(free, total) bytes that a run has to fit into; None where it uses the host's memory, which is not planned."""

    @abstractmethod
    def limit_memory(self, size: int):
        """From now on this process takes at most so many bytes of the memory that is planned, but for what a driver keeps for itself."""

    @abstractmethod
    def memory_used(self) -> int:
        """Bytes that this process holds on the device, as far as they are known."""

    @abstractmethod
    def synchronize(self):
        """Wait until everything asked for is done."""

    def working(self, work: int):
        """A context for a step of so much work: numbers learned times columns (tokens of sequences)."""
        return contextlib.nullcontext()

    @abstractmethod
    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that does what `step` does: always the same operations on the same arrays."""


class Lanes:
    """Queues of work: what is done `on` one lane happens in order, and after the marks of other lanes that it was told to wait for. This
    one is for a backend that does everything in the order in which it is asked to."""

    def on(self, lane: str, after=()):
        """A context: what is done in it is done on a lane, after some marks (None is no mark)."""
        return contextlib.nullcontext()

    def mark(self, lane: str):
        """What has been asked of a lane so far."""
        return None

    def join(self):
        """All that follows comes after all that was done on the lanes."""


class Synapses(ABC):
    """The synapses in bundles of a brain: structure and weights of its projections (brain/projection.py), as the device wants them."""

    @abstractmethod
    def wire(self):
        """Take over the structure of the projections; after it was drawn or loaded."""

    @abstractmethod
    def refresh(self):
        """The weights have changed: renew what is derived from them."""

    @abstractmethod
    def state(self, signals: dict, currents: dict, tokens: int, batch: int, learning: bool) -> SynapticState:
        """Buffers for a batch of sequences. signals: name -> (size, history in tokens) of the signals that synapses read; currents: name ->
        size of those that they bring."""


class SynapticState(ABC):
    """What B sequences send through the synapses of a brain during a segment of at most T tokens, and what is still under way from before.

    `first` and `last` count tokens of the segment. Call order, forward, for each chunk: every signal that a current reads without delay is
    written before `forward` of that current. Backward, chunks descending: `set_current_grad` for every current that reads a signal comes
    before `source_grad(signal, chunk)`; `accumulate_weight_grad` comes after all of them.
    """

    @abstractmethod
    def axon(self, signal: str) -> Axon | None:
        """Where `population_forward` writes what the axons of a module carry; None where nobody reads it."""

    @abstractmethod
    def write_values(self, signal: str, first: int, last: int, x):
        """Write plain values x [C, B, M]."""

    @abstractmethod
    def forward(self, current: str, first: int, last: int, value):
        """Overwrite value [C, B, N] with what reaches a current."""

    direct_gradients = False  # whether there is `current_grad`

    def current_grad(self, current: str, first: int, last: int):
        """(array [C, B, N or more], scale): where the gradient of a current, times scale, may be written instead of calling
        `set_current_grad`. Only where `direct_gradients` is true; raises NotImplementedError elsewhere."""
        raise NotImplementedError

    @abstractmethod
    def set_current_grad(self, current: str, first: int, last: int, gradient):
        """Take over the gradient [C, B, N] of a current."""

    @abstractmethod
    def source_grad(self, signal: str, first: int, last: int, length: int, gradient):
        """Overwrite gradient [C, B, M] with that of a signal, the sum over all synapses that read it, in a segment of `length` tokens. On
        the CPU it means nothing for neurons that neither fired nor are near the threshold."""

    @abstractmethod
    def accumulate_weight_grad(self, length: int):
        """Add the gradient of all weights over a segment of `length` tokens; also from events before it. The gradient of those events
        themselves goes nowhere."""

    @abstractmethod
    def advance(self, length: int):
        """End a segment of `length` tokens: its last ones are the past of the next one."""

    @abstractmethod
    def ring(self, signal: str) -> dict:
        """What a signal sent lately, as views of the arrays that the synapses read; `Activity.rings` says what they mean."""

    @abstractmethod
    def past(self, signal: str):
        """What a signal sent in the `history` tokens before the segment, the newest last: [history, B, M] float32, NumPy."""

    @abstractmethod
    def set_past(self, signal: str, past):
        """Inverse of `past`."""

    @abstractmethod
    def forget(self, sequences):
        """Nothing is under way any more in the sequences where `sequences`, [B] uint8 on the device, is not 0."""
