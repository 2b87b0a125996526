"""The operations that a backend offers: the seam between what the brain is and where it runs.

Operations write into arrays given to them, outputs first; shapes, units and sources of the equations stand with the kernels of the same
name in `kernels/`. A gradient that is *added to* is said so there. Arrays are the backend's own (NumPy arrays on the CPU), float32 unless
said otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable


class Backend(ABC):
    """What a device must be able to do. The class attributes are the kernels, under the kernels' names."""

    name: str

    # kernels/neuron.py, normalize.py
    lif_forward: Callable
    lif_backward: Callable
    trace_forward: Callable
    trace_backward: Callable
    normalize_forward: Callable
    normalize_backward: Callable
    # kernels/events.py, lanes.py, synapse.py
    list_events: Callable
    list_values: Callable
    spread_events: Callable
    to_lanes: Callable
    add_from_lanes: Callable
    synapse_forward: Callable
    synapse_backward: Callable
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
    dropout: Callable
    cross_entropy: Callable
    sample: Callable
    # kernels/adamw.py
    adamw: Callable

    @abstractmethod
    def zeros(self, shape, dtype="float32"):
        """A new array of zeros on the device."""

    @abstractmethod
    def asarray(self, values, dtype=None):
        """NumPy values as an array of the device, contiguous and writable."""

    @abstractmethod
    def to_numpy(self, array):
        """A copy of a device's array as NumPy."""

    @abstractmethod
    def product(self, out, a, b, add=False):
        """Matrix product a [m, k] @ b [k, n] into out [m, n], or added to it. Either may be a transposed view."""

    @abstractmethod
    def norm(self, x) -> float:
        """Euclidean norm of x [K], summed in a fixed order."""

    @property
    @abstractmethod
    def tasks(self) -> int:
        """How many workers share a kernel's work. No result depends on it."""
