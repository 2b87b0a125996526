"""Muon for bundles of synapses (kernels/muon.py), AdamW for all other parameters."""

from __future__ import annotations

from .optimizer import Optimizer
from .parameters import Parameters


class Muon(Optimizer):
    """One float32 moment per synapse, two per other parameter."""

    def __init__(self, parameters: Parameters, backend, *how, **settings):
        super().__init__(parameters, backend, *how, **settings)
        self.spans = bundle_spans(parameters)
        self.others = min((begin for begin, _ in self.spans.values()), default=parameters.flat_value.size)  # numbers before the bundles
        self.m, self.v = backend.zeros(parameters.flat_value.size), backend.zeros(self.others)

    def moments(self):
        return {"m": (self.m, 1), "v": (self.v, 1)}

    def apply(self):
        self.measure()
        self.update_numbers(self.backend.adamw, 0, self.others, (self.m, self.v))
        for side, (begin, end) in self.spans.items():
            self.update_numbers(self.backend.muon, begin, end, (self.m,), side)


def bundle_spans(parameters: Parameters) -> dict[int, tuple[int, int]]:
    """Neurons on a side of a bundle -> (first, end) of the numbers of all bundles of this size, neighbours in the flat arrays."""
    spans = {}
    for name, parameter in parameters.table.items():
        if parameter.bundle:
            begin, end = parameters.offset[name], parameters.offset[name] + parameters.numbers(parameter)
            spans[parameter.bundle] = spans.get(parameter.bundle, (begin, end))[0], end
    return spans
