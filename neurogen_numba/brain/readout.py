"""Population readout: what a module with fewer outputs than neurons says, a learned sparse linear map of all its traces."""

from __future__ import annotations


class Readout:
    """The current of the readout projection is the output itself."""

    kept = ()

    def __init__(self, module: str):
        self.lane = module
        self.inputs, self.outputs = (f"readout_{module}.current",), (f"readout_{module}.out",)

    def parameters(self):
        return ()

    def initialise(self, parameters, seed):
        pass

    def bind(self, parameters):
        pass

    def allocate(self, act):
        act.signals[self.outputs[0]].x = act.currents[self.inputs[0]].value

    def forward(self, act, first, last):
        if self.inputs[0] not in act.brain.copied:
            act.send(self.outputs[0], first, last)

    def again(self, act, first, last):
        pass  # the current has been received

    def backward(self, act, first, last):
        act.currents[self.inputs[0]].gradient[: last - first] = act.signals[self.outputs[0]].gradient[: last - first]
