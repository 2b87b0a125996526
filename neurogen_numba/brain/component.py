"""The interface of a brain's components: populations, memories, readouts and the embedding."""

# ruff: noqa: B027  methods without `abstractmethod` are no-op defaults

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..optim.parameters import Parameter, Parameters
    from .activity import Activity


class Component(ABC):
    """One step of a token's way through the brain: reads the currents in `inputs`, writes the signals in `outputs`.

    Call order:
    - once: `parameters`, `bind`; then `initialise`, unless the parameters come from a checkpoint;
    - `refresh` after every change of the parameters; `allocate` for every `Activity`;
    - forward pass: `forward` for each chunk of a segment, in order;
    - backward pass, chunks descending: `recompute`, if the chunk's values were not kept, then `backward`; `finish` after the last chunk.

    A chunk is the tokens first ... last - 1 of the segment, C = last - first of them. Its currents and signals are [C, B, N] float32:
    `act.currents[name].value` and `act.signals[name].x`, sliced by `act.buffer_slice(first, last)`. Their gradients are `.gradient[:C]`.
    """

    name: str  # what its parameters, currents and signals begin with
    stream: str  # the module whose stream runs it
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    eligible: tuple[str, ...] = ()  # currents whose synapses have eligibility traces (eligibility.py)
    eligible_parameters = 0  # number of its parameters per neuron that have one
    state_sizes: tuple[int, ...] = ()  # numbers per sequence of each array that `allocate` asks `Activity.state_rows` for

    def parameters(self) -> Iterable[Parameter]:
        """The learned arrays."""
        return ()

    def initialise(self, parameters: Parameters, seed: int) -> None:
        """Draw the initial values of its parameters, and of what is fixed; the same ones for the same seed."""

    def bind(self, parameters: Parameters) -> None:
        """Keep views of the values and gradients of its parameters."""

    def refresh(self) -> None:
        """Compute what is derived from the parameters."""

    def allocate(self, act: Activity) -> None:
        """Allocate its arrays for act.batch sequences, with room for act.buffered_tokens tokens."""

    def load_tokens(self, act: Activity, ids) -> None:
        """Prepare for the tokens [T, B] int32 (NumPy) of the next segment."""

    @abstractmethod
    def forward(self, act: Activity, first: int, last: int) -> None:
        """Compute the outputs of a chunk from its input currents, which Brain has written before. Overwrites the outputs."""

    def recompute(self, act: Activity, first: int, last: int) -> None:
        """Compute the values of a chunk again in the backward pass, as `forward` did, without writing to the synapses."""

    def backward(self, act: Activity, first: int, last: int) -> None:
        """Compute the gradients of the input currents of a chunk from those of its outputs, which Brain has written before.

        Overwrites the input gradients; accumulates into the gradients of the parameters.
        """

    def update_eligibility(self, act: Activity, length: int, to_currents: list, transition, traces) -> None:
        """After `backward` of a chunk of `length` tokens, the activity's only one: accumulate into the gradients of the parameters what it
        asks of the tokens before it; overwrite to_currents [K, C, B, N], one for each current of `eligible`, and transition [K, K, B, N];
        update traces [K, eligible_parameters, B, N] (kernels/population_eligibility.py)."""

    def finish(self) -> None:
        """End the backward pass: accumulate what is left of the gradients into those of the parameters."""
