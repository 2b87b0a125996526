"""Working memory: a gated buffer in front of PFC; Go from the basal ganglia opens it for writing (kernels/working_memory.py)."""

from __future__ import annotations

import numpy as np

from ..config import Brain
from ..optim.parameters import Parameter, Parameters
from .component import Component
from .neuromodulation import GO


class WorkingMemory(Component):
    """Computes the slots m [T, B, M] from what to retain and what to store; one slot per output of PFC."""

    name, stream = "working_memory", "pfc"
    inputs = ("working_memory.retain", "working_memory.store")
    outputs = ("working_memory.out",)
    eligible, eligible_parameters = inputs, 1

    def __init__(self, brain: Brain, backend):
        self.slots, self.backend = brain.pfc.output_size, backend
        self.state_sizes = (self.slots,)

    def parameters(self):
        yield Parameter("working_memory.retain", (self.slots,), "bias of what a slot keeps per token, before the sigmoid")

    def initialise(self, parameters: Parameters, seed: int):
        parameters.value["working_memory.retain"][:] = self.backend.asarray(np.linspace(1, 5, self.slots), "float32")

    def bind(self, parameters: Parameters):
        self.retain, self.d_retain = parameters.value["working_memory.retain"], parameters.gradient["working_memory.retain"]

    def allocate(self, act):
        act.m = act.state_rows(self.slots)
        act.signals["working_memory.out"].x = act.m[1:]
        if act.learning:
            act.carry_rows[self.name] = self.backend.zeros((1, act.batch, self.slots))
            act.dm = act.carry_rows[self.name][0]

    def forward(self, act, first, last):
        self._forward(act, first, last, act.synapses.axon("working_memory.out"))

    def recompute(self, act, first, last):
        self._forward(act, first, last, self.backend.no_axon)

    def _forward(self, act, first, last, axon):
        chunk = act.buffer_slice(first, last)
        retain, store = (act.currents[name].value[chunk] for name in self.inputs)
        if act.brain.modulation:
            self.backend.apply(np.subtract, retain, act.factor(GO, first)[:, None], out=retain)
        self.backend.working_memory_forward(act.m[chunk.start : chunk.stop + 1], retain, store, self.retain, axon, first)

    def backward(self, act, first, last):
        (retain, store), chunk = (act.currents[name] for name in self.inputs), act.buffer_slice(first, last)
        self.backend.working_memory_backward(
            retain.gradient[: last - first],
            store.gradient[: last - first],
            act.dm,
            act.signals["working_memory.out"].gradient[: last - first],
            act.m[chunk.start : chunk.stop + 1],
            retain.value[chunk],
            store.value[chunk],
            self.retain,
        )
        self.backend.add_rows(self.d_retain, retain.gradient[: last - first].reshape(-1, self.slots))
        if modulation := act.brain.modulation:
            modulation.backward(act, GO, first, retain.gradient[: last - first])

    def update_eligibility(self, act, length, to_currents, transition, traces):
        retain, store = (act.currents[name].value[:length] for name in self.inputs)
        to_retain, to_store = (to[0] for to in to_currents)
        arrays = to_retain, to_store, transition[0, 0], traces[0, 0], self.d_retain, act.dm, act.m[: length + 1], retain, store
        self.backend.working_memory_eligibility(*arrays, self.retain)
