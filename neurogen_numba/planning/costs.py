"""The cost model: bytes moved and arithmetic operations of each backend operation. `neurogen bench` compares measured times with it.

Bytes: each array argument counts once, or twice if the operation reads and writes it. Synapses count their weights once, in the product
dtype; the source values, once per projection; and the currents or gradients written.
Operations: two per multiply-add of a matrix product (decoder, Muon), plus the equations of the associative memory. A GPU multiplies whole
bundles, so each synapse counts two per token. The CPU does so in the backward pass only: forward, and for the weight gradient, only
synapses of neurons that fired count. Elementwise arithmetic on values in flight is not counted. Zeros, copies, conversions and rolling the
state over have no cost here.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial

from ..backends.base import Backend
from ..backends.compiling import noted
from ..kernels.muon import STEPS
from ..kernels.population import Axon

OPERATIONS = tuple(name for name, method in vars(Backend).items() if hasattr(method, "is_kernel"))
SYNAPTIC = ("forward", "set_current_grad", "source_grad", "accumulate_weight_grad")
# Operations that write to axons -> position or name of the argument with as many values as they write to each: only the chunk's rows.
WRITERS = {"population_forward": "c", "memory_forward": 0, "working_memory_forward": 1}
READ_AND_WRITTEN = {  # operation: position or name of arguments that it reads and writes
    "population_backward": ("carry", "d"),
    "decay_backward": (0, 1),
    "gain_backward": (0, 1),
    "memory_forward": (1, 2),
    "memory_backward": (3, 4, 5),
    "working_memory_backward": (2,),
    "population_eligibility": ("traces", "d"),
    "eligibility": (0, 1),
    "working_memory_eligibility": (3, 4),
    "soften": (0,),
    "softmax_part": (0, 2),
    "scale_words": (0,),
    "average": (0,),
    "exchange": (0, 1),
    "adamw": (0, 2, 3),
    "muon": (0, 2),
    "adamw8bit": (0, 2, 3, 4, 5),
    "adafactor": (2,),
    "column_squares": (0,),
    "column_step": (0, 1),
    "add_rows": (0,),
    "poisson": (0,),
}
OF_ROWS = {
    "embedding_forward": 1,
    "code_rows": 1,
    "embedding_backward": 0,
    "adafactor": 0,
}  # position of the table, of which only the rows of the tokens are moved
MEMORY = {"memory_forward": 7, "memory_backward": 20}  # arithmetic operations per entry of S and token


@dataclass(frozen=True)
class Call:
    """A recorded call of an operation; `repeat()` makes it again."""

    name: str
    repeat: partial

    def arguments(self) -> dict:
        """(position or name, index in its tuple) -> argument, axons left out; arrays may come in tuples, and these in tuples."""
        return {(name, n): x for name, value in self._given() if not isinstance(value, Axon) for n, x in enumerate(_entries(value))}

    def rings(self) -> list:
        """The ring buffers of the axons that it writes to."""
        return [value.ring for _, value in self._given() if isinstance(value, Axon) and value.ring.size]

    def _given(self):
        return (*enumerate(self.repeat.args), *self.repeat.keywords.items())


def _entries(value):
    return [entry for part in value for entry in _entries(part)] if isinstance(value, tuple) else [value]


@contextlib.contextmanager
def recorded(backend, synapses=None):
    """A context manager that records the calls of a backend's operations, and of its synapses, in a list. Nested calls are not listed."""
    calls, inside = [], False

    def noting(name, do):
        def note(*arguments, **how):
            nonlocal inside
            if inside or noted():
                return do(*arguments, **how)
            inside = True
            calls.append(Call(name, partial(do, *arguments, **how)))
            try:
                return do(*arguments, **how)
            finally:
                inside = False

        return note

    asked = [(backend, name) for name in OPERATIONS] + [(synapses, name) for name in SYNAPTIC if synapses]
    for owner, name in asked:
        setattr(owner, name, noting(name, getattr(owner, name)))  # on the instance
    try:
        yield calls
    finally:
        for owner, name in asked:
            delattr(owner, name)


def cost(call: Call) -> tuple[float, float]:
    """(bytes, operations) of a call of the backend."""
    arguments, twice = call.repeat.args, READ_AND_WRITTEN.get(call.name, ())
    arrays = {key: x for key, x in call.arguments().items() if hasattr(x, "nbytes") and x.ndim}
    moved = sum(x.nbytes * (2 if name in twice else 1) for (name, _), x in arrays.items())
    moved += sum(ring.itemsize * arrays[WRITERS[call.name], 0].size for ring in call.rings() if call.name in WRITERS)
    for name in ("d_current", "d_gate"):  # arrays of a segment; a call writes those of its chunk
        if (name, 0) in arrays:
            moved += arrays[name, 0].itemsize * arrays["c", 0].size - arrays[name, 0].nbytes
    if call.name in OF_ROWS:
        table = arguments[OF_ROWS[call.name]]
        rows = arguments[4 if call.name == "adafactor" else 2].size
        moved += rows * table.itemsize * table.shape[1] * (1 if call.name in ("embedding_forward", "code_rows") else 2) - table.nbytes
    operations = 0
    if call.name in ("product", "quantized_product"):
        out, a = arguments[:2]
        operations = 2 * out.size * a.shape[1]
        moved += out.nbytes if call.repeat.keywords.get("add") else 0
    elif call.name == "muon":
        operations = 6 * len(STEPS) * arguments[-1] * arguments[0].size  # three products of bundles [side, side] a step
    elif call.name in MEMORY:
        operations = MEMORY[call.name] * arguments[0].size * arguments[4 if call.name == "memory_backward" else 1].shape[-1]
    return moved, operations


class SynapseCosts:
    """Costs of the synapses of a brain, at the activity of the last segment, of `length` tokens."""

    def __init__(self, brain, act, length: int):
        self.arcs = brain.arcs
        self.batch, self.weight_bytes = act.batch, 4 if brain.backend.product_dtype == "float32" else 2
        self.sizes = brain.current_sizes | brain.signal_sizes
        self.fired = act.rates(length) if brain.backend.name == "cpu" else {}

    def passed(self, arcs, columns: int, rates: dict[str, float]) -> float:
        """Synapses computed in `columns` columns, at these firing rates of the modules; signals without a rate count in full."""
        rate = [rates.get(arc.source.removesuffix(".axon"), 1.0) for arc in arcs]
        return sum(columns * arc.targets * arc.synapses_per_target * r for arc, r in zip(arcs, rate, strict=True))

    def _cost(self, arcs, columns, rates, read, written):
        """(bytes, operations); read: values per column that an arc reads; written: bytes."""
        weights = sum(arc.targets * arc.synapses_per_target for arc in arcs)
        moved = self.weight_bytes * (weights + columns * sum(map(read, arcs))) + written
        return moved, 2 * self.passed(arcs, columns, rates)

    def forward(self, current: str, value) -> tuple[float, float]:
        """(bytes, operations) of a current [C, B, N]."""
        arcs = [arc for arc in self.arcs if arc.target == current]
        return self._cost(arcs, len(value) * self.batch, self.fired, lambda arc: arc.sources, value.nbytes)

    def backward(self, signal: str, gradient) -> tuple[float, float]:
        """(bytes, operations) of the gradient of a signal [C, B, M]."""
        arcs = [arc for arc in self.arcs if arc.source == signal]
        return self._cost(arcs, len(gradient) * self.batch, {}, lambda arc: arc.targets, gradient.nbytes)

    def weights(self, length: int) -> tuple[float, float]:
        """(bytes, operations) of the gradient of all weights over a segment."""
        weights = sum(arc.targets * arc.synapses_per_target for arc in self.arcs)
        return self._cost(self.arcs, length * self.batch, self.fired, lambda arc: arc.sources + arc.targets, 8 * weights)

    def cost(self, call: Call) -> tuple[float, float]:
        """(bytes, operations) of a call of the backend or its synapses."""
        arguments = call.repeat.args
        if call.name in ("forward", "source_grad"):
            cost_of = self.forward if call.name == "forward" else self.backward
            each = [cost_of(name, array) for name, array in arguments[0].items()]
            return sum(moved for moved, _ in each), sum(operations for _, operations in each)
        if call.name == "accumulate_weight_grad":
            return self.weights(arguments[0])
        if call.name == "set_current_grad":
            return arguments[3].nbytes * (1 + self.weight_bytes / 4), 0
        return cost(call)

    def total(self, calls: list[Call]) -> tuple[float, float]:
        """(bytes, operations) of all of them."""
        each = [self.cost(call) for call in calls]
        return sum(moved for moved, _ in each), sum(operations for _, operations in each)
