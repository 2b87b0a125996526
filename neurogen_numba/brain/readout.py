"""Population readout: a learned sparse linear map of all traces of a module that has fewer outputs than neurons."""

from __future__ import annotations

from .component import Component


class Readout(Component):
    """Writes the current of the readout projection as a signal, unchanged."""

    def __init__(self, module: str):
        self.name, self.stream = f"readout_{module}", module
        self.inputs, self.outputs = (f"readout_{module}.current",), (f"readout_{module}.out",)

    def allocate(self, act):
        act.signals[self.outputs[0]].x = act.currents[self.inputs[0]].value

    def forward(self, act, first, last):
        if self.inputs[0] not in act.brain.copied:
            act.write_signal(self.outputs[0], first, last)

    def backward(self, act, first, last):
        act.currents[self.inputs[0]].gradient[: last - first] = act.signals[self.outputs[0]].gradient[: last - first]
