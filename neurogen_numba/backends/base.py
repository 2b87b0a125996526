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


class Backend(ABC):
    """What a device must be able to do. The class attributes are the kernels, under the kernels' names."""

    name: str
    whole_rows: int  # the decoder's matrix and rows of logits have a multiple of so many rows, or numbers
    logits: int  # so many are held at a time
    product_dtype: str  # of the factors of the decoder's products; sums are float32

    mode = "sequential"  # or pipelined: modules may overlap
    parts = ()  # what arrays are being made for, from the whole to the part

    # kernels/neuron.py, normalize.py
    lif_forward: Callable
    lif_backward: Callable
    trace_forward: Callable
    trace_backward: Callable
    decay_forward: Callable
    decay_backward: Callable
    normalize_forward: Callable
    normalize_backward: Callable
    # kernels/memory.py, working_memory.py, gate.py
    memory_forward: Callable
    memory_backward: Callable
    working_memory_forward: Callable
    working_memory_backward: Callable
    gate_forward: Callable
    gate_backward: Callable
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
    def synapses(self, projections, index_dtype, parameters) -> Synapses:
        """The sparse synapses of a brain: its projections that are not dense (brain/projection.py)."""

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
    """The sparse synapses of a brain: structure and weights of its sparse projections (brain/projection.py), as the device wants them."""

    @abstractmethod
    def wire(self):
        """Take over the structure of the projections; after it was drawn or loaded."""

    @abstractmethod
    def refresh(self):
        """The weights have changed."""

    @abstractmethod
    def traffic(self, signals, currents, tokens, batch, chunk, learning) -> Traffic:
        """What goes through them in a batch of sequences. signals: name -> (size, history in tokens) of the signals that are sent as
        events or heard by sparse synapses; currents: name -> size of those that sparse synapses bring."""


class Traffic(ABC):
    """What B sequences send through the synapses of a brain during a segment of at most T tokens, and what is still under way from before.

    `first` and `last` count tokens of the segment. While learning, gradients flow back, chunk by chunk from the last to the first. Before
    `owed` is asked for a chunk of a signal, `owe` has told this chunk of the currents that hear it sooner than a chunk later, and the next
    chunk, or the one so many later, of the others. `settle` comes after all of them.
    """

    @abstractmethod
    def turn_back(self, length):
        """Before the gradients of a segment of `length` tokens flow back."""

    @abstractmethod
    def send_events(self, signal, first, last, v, dropout, graded, smooth):
        """The axons of membrane potentials v [C, B, M] fire; dropout: (rate, key, first place)."""

    @abstractmethod
    def send_values(self, signal, first, last, x):
        """Plain values x [C, B, M] are sent."""

    @abstractmethod
    def receive(self, values, first, last):
        """Overwrite values[current] [C, B, N] with what arrives there, of some currents."""

    @abstractmethod
    def owe(self, current, first, last, gradient):
        """The gradient [C, B, N] of a current is known."""

    @abstractmethod
    def owed(self, signal, first, last, gradient):
        """Overwrite gradient [C, B, M] with that of a signal, which is the sum over all synapses that heard it."""

    @abstractmethod
    def settle(self, length):
        """After the first chunk of a segment of `length` tokens: add what is owed for synapses to their gradients."""

    @abstractmethod
    def advance(self, length):
        """The segment ends after `length` tokens: its last ones are the past of the next one."""

    @abstractmethod
    def ring(self, signal) -> dict:
        """What a signal sent lately, as views of the lists that the synapses read; `Activity.rings` says what they mean."""

    @abstractmethod
    def past(self, signal):
        """What a signal sent in the `history` tokens before the segment, the newest last: [history, B, M] float32, NumPy."""

    @abstractmethod
    def set_past(self, signal, past):
        """Inverse of `past`."""

    @abstractmethod
    def forget(self, sequences):
        """Nothing is under way any more in the sequences where `sequences`, [B] uint8 on the device, is not 0."""
