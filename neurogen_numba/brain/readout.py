"""Population readout: a learned sparse linear map of all traces of a module that has fewer outputs than neurons."""

from __future__ import annotations

from .component import Component


class Readout(Component):
    """The current of the readout projection as a signal, unchanged. The synapses have copied it already where others read it
    (`Brain.copied`)."""

    def __init__(self, module: str):
        self.name, self.stream = f"readout_{module}", module
        self.inputs, self.outputs = (f"readout_{module}.current",), (f"readout_{module}.out",)

    def allocate(self, act):
        act.signals[self.outputs[0]].x = act.currents[self.inputs[0]].value

    def forward(self, act, first, last):
        """Nothing: the signal is the current's array."""

    def backward(self, act, first, last):
        act.currents[self.inputs[0]].gradient[: last - first] = act.signals[self.outputs[0]].gradient[: last - first]
