"""What the operations of a backend move and compute: the measure that `neurogen bench` holds their times to.

Bytes: an array that an operation is given counts once, and twice where it is read and written. A synapse that is passed counts as 6 (index
and weight; 4 where they share a word), and as 8 more for the gradient of its weight. Forward synapses are passed by events, back also for
neurons that are near the threshold; plain values are never silent.
Operations: two for every pair of factors of a product and for every synapse that is passed, back two more for its weight, and those of the
associative memory's equations. The few that are made for a number on its way through memory are not counted, nor is what has no row here:
zeros, copies, conversions, the handing on of the state.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial

from .backends.base import Backend

STATE = ("carry", "forget")  # move some rows of what they are given
OPERATIONS = (*(name for name, kind in Backend.__annotations__.items() if kind == "Callable" and name not in STATE), "product")
TRAFFIC = ("send_events", "send_values", "receive", "owe", "owed")
READ_AND_WRITTEN = {  # operation: places of its arguments that are both
    "lif_backward": (1, 2, 3, 4, 5, 6, 7),
    "trace_backward": (0, 1, 2),
    "decay_backward": (0, 1),
    "normalize_forward": (0,),
    "normalize_backward": (0,),
    "memory_forward": (1, 2),
    "memory_backward": (3, 4, 5),
    "working_memory_backward": (2,),
    "softmax_part": (0, 2),
    "adamw": (0, 2, 3),
    "adamw8bit": (0, 2, 3, 4, 5),
    "adafactor": (2,),
    "column_squares": (0,),
    "column_step": (0, 1),
    "add_rows": (0,),
    "poisson": (0,),
}
OF_ROWS = {
    "embedding_forward": 1,
    "embedding_backward": 0,
    "adafactor": 0,
}  # the table of which only as many rows are moved as it is asked for
MEMORY = {"memory_forward": 7, "memory_backward": 20}  # operations for an entry of S and a token


@dataclass(frozen=True)
class Call:
    """An operation that was asked for; `again()` does the same once more."""

    name: str
    again: partial


@contextlib.contextmanager
def noted(backend, traffic=None):
    """A context: the list of the operations that a backend, and what its synapses carry, is asked for in it. What an operation asks for
    itself belongs to it."""
    calls, inside = [], False

    def noting(name, do):
        def note(*arguments, **how):
            nonlocal inside
            if inside:
                return do(*arguments, **how)
            inside = True
            calls.append(Call(name, partial(do, *arguments, **how)))
            try:
                return do(*arguments, **how)
            finally:
                inside = False

        return note

    asked = [(backend, name) for name in OPERATIONS] + [(traffic, name) for name in TRAFFIC if traffic]
    for owner, name in asked:
        setattr(owner, name, noting(name, getattr(owner, name)))  # hides the class's own
    try:
        yield calls
    finally:
        for owner, name in asked:
            delattr(owner, name)


def cost(call: Call) -> tuple[float, float]:
    """(bytes, operations) of an operation of the backend."""
    arguments, twice = call.again.args, READ_AND_WRITTEN.get(call.name, ())
    arrays = {place: x for place, x in enumerate(arguments) if hasattr(x, "nbytes") and x.ndim}
    moved = sum(x.nbytes * (2 if place in twice else 1) for place, x in arrays.items())
    if call.name in OF_ROWS:
        table = arrays[OF_ROWS[call.name]]
        rows = arguments[4 if call.name == "adafactor" else 2].size
        moved += rows * table.itemsize * table.shape[1] * (1 if call.name == "embedding_forward" else 2) - table.nbytes
    operations = 0
    if call.name == "product":
        out, a = arguments[:2]
        operations = 2 * out.size * a.shape[1]
        moved += out.nbytes if call.again.keywords.get("add") else 0
    elif call.name in MEMORY:
        operations = MEMORY[call.name] * arguments[0].size * arguments[4 if call.name == "memory_backward" else 1].shape[-1]
    return moved, operations


class Passing:
    """Synapses of a brain, and how many are passed at the activity that the last segment, of `length` tokens, left behind."""

    def __init__(self, brain, act, length: int):
        self.arcs = [projection.arc for projection in brain.projections if not projection.arc.dense]
        self.batch, self.synapse = act.batch, 4 if getattr(brain.synapses, "packed", False) else 6
        self.fired = act.rates(length)
        self.heard = {name: float((v[1 : length + 1] > 0).mean()) for name, v in act.v.items()}  # there the slope is above 0

    def passed(self, arcs, tokens: int, rates: dict[str, float]) -> float:
        """Synapses of some arcs in so many tokens of all sequences. What is no axon has no rate: it is never silent."""
        rate = [rates.get(arc.source.removesuffix(".axon"), 1.0) for arc in arcs]
        return sum(tokens * self.batch * arc.targets * arc.synapses_per_target * own for arc, own in zip(arcs, rate, strict=True))

    def forward(self, current: str, value) -> tuple[float, float]:
        """(bytes, operations) of what arrives at a current [C, B, N]."""
        passed = self.passed([arc for arc in self.arcs if arc.target == current], len(value), self.fired)
        return self.synapse * passed + value.nbytes, 2 * passed

    def back(self, signal: str, gradient) -> tuple[float, float]:
        """(bytes, operations) of the gradient of a signal [C, B, M], and of what it is owed for."""
        arcs = [arc for arc in self.arcs if arc.source == signal]
        passed, walked = (self.passed(arcs, len(gradient), rates) for rates in (self.fired, self.heard))
        return self.synapse * walked + 8 * passed + gradient.nbytes, 2 * (walked + passed)

    def cost(self, call: Call) -> tuple[float, float]:
        """(bytes, operations) of what a backend or its synapses were asked for."""
        arguments = call.again.args
        if call.name == "receive":
            each = [self.forward(*item) for item in arguments[0].items()]
            return sum(moved for moved, _ in each), sum(operations for _, operations in each)
        if call.name == "owed":
            return self.back(arguments[0], arguments[3])
        if call.name in TRAFFIC:  # what is sent, or told, is laid down
            return 2 * arguments[3].nbytes, 0
        return cost(call)

    def total(self, calls: list[Call]) -> tuple[float, float]:
        """(bytes, operations) of all of them."""
        each = [self.cost(call) for call in calls]
        return sum(moved for moved, _ in each), sum(operations for _, operations in each)
