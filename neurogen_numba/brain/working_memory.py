"""Working memory: a gated buffer in front of PFC; Go from the basal ganglia opens it for writing (kernels/working_memory.py)."""

from __future__ import annotations

import numpy as np

from ..config import Brain
from .buffers import Parameter, Parameters


class WorkingMemory:
    """As many slots as PFC has outputs."""

    inputs = ("working_memory.retain", "working_memory.store")
    outputs = ("working_memory.out",)
    lane = "pfc"

    def __init__(self, brain: Brain, backend):
        self.slots, self.backend = brain.pfc.output_size, backend
        self.kept = (self.slots,)

    def parameters(self):
        yield Parameter("working_memory.retain", (self.slots,), "bias of what a slot keeps per token, before the sigmoid")

    def initialise(self, parameters: Parameters, seed: int):
        parameters.value["working_memory.retain"][:] = self.backend.asarray(np.linspace(1, 5, self.slots), "float32")

    def bind(self, parameters: Parameters):
        self.retain, self.d_retain = parameters.value["working_memory.retain"], parameters.gradient["working_memory.retain"]

    def allocate(self, act):
        act.m = act.rows(self.slots)
        act.signals["working_memory.out"].x = act.m[1:]
        if act.learning:
            act.dm = self.backend.zeros((act.batch, self.slots))

    def forward(self, act, first, last):
        self._forward(act, first, last, act.synapses.axon("working_memory.out"))

    def again(self, act, first, last):
        """As `forward`, without sending."""
        self._forward(act, first, last, self.backend.nowhere)

    def _forward(self, act, first, last, axon):
        here = act.here(first, last)
        retain, store = (act.currents[name].value[here] for name in self.inputs)
        self.backend.working_memory_forward(act.m[here.start : here.stop + 1], retain, store, self.retain, axon, first)

    def backward(self, act, first, last):
        (retain, store), here = (act.currents[name] for name in self.inputs), act.here(first, last)
        self.backend.working_memory_backward(
            retain.gradient[: last - first],
            store.gradient[: last - first],
            act.dm,
            act.signals["working_memory.out"].gradient[: last - first],
            act.m[here.start : here.stop + 1],
            retain.value[here],
            store.value[here],
            self.retain,
        )
        self.backend.add_rows(self.d_retain, retain.gradient[: last - first].reshape(-1, self.slots))
