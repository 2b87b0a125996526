"""Muon for bundles of synapses (kernels/muon.py), AdamW for all other parameters."""

from __future__ import annotations

import itertools

from .optimizer import AdamW
from .parameters import Parameters


class Muon(AdamW):
    """One float32 moment per synapse, two per other parameter."""

    def __init__(self, parameters: Parameters, backend, *how, **settings):
        super().__init__(parameters, backend, *how, **settings)
        self.spans = bundle_spans(parameters)
        self.others = min((begin for begin, _ in self.spans.values()), default=parameters.flat_value.size)  # numbers before the bundles
        self.v = backend.zeros(self.others)

    def apply(self):
        self.measure()
        self._step(self.backend.adamw, 0, self.others, (self.m, self.v))
        for side, (begin, end) in self.spans.items():
            self._step(self.backend.muon, begin, end, (self.m,), side)


def bundle_spans(parameters: Parameters) -> dict[int, tuple[int, int]]:
    """Neurons on a side -> (first, end) of the numbers of all bundles of this size in the flat arrays."""
    bundled = [parameter for parameter in parameters.table.values() if parameter.bundle]
    spans = {}
    for side, group in itertools.groupby(bundled, key=lambda parameter: parameter.bundle):
        group = list(group)
        spans[side] = parameters.offset[group[0].name], parameters.offset[group[-1].name] + parameters.numbers(group[-1])
    return spans
