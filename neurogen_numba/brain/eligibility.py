"""e-prop: gradients of a segment without its past (Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of
spiking neurons", Nature Communications 11:3625).

The brain reads a segment chunk by chunk. After a chunk its learning signals are known, and a backward pass over the chunk alone gives their
gradient within it. The gradient of earlier chunks comes from eligibility traces: one vector per synapse and sequence, the effect of its
past inputs on its target (kernels/eligibility.py). So memory does not grow with the segment.

Dropped are gradients from a chunk to earlier ones through the synapses between neurons, the associative memory and the embedding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .activity import Activity
    from .component import Component


class Target:
    """A component whose neurons or slots have eligibility traces.

    h [K, B, N]: the gradient that its adjoint passes to the tokens before the chunk. transition [K, K, B, N]: of the present chunk
    (kernels/population_eligibility.py). traces [K, P, B, N]: of its P parameters.
    """

    def __init__(self, component: Component, act: Activity):
        self.component, self.act, zeros = component, act, act.brain.backend.zeros
        self.h = act.carry_rows[component.name]
        K, B, N = self.h.shape
        self.transition, self.traces = zeros((K, K, B, N)), zeros((K, component.eligible_parameters, B, N))
        self._to = {current: zeros(K * act.tokens * B * N) for current in component.eligible}

    def to_current(self, current: str, length: int):
        """[K, length, B, N]: how a current of the present chunk acts on later tokens."""
        K, B, N = self.h.shape
        shape = K, length, B, N
        return self._to[current][: math.prod(shape)].reshape(shape)

    def update(self, length: int):
        to = [self.to_current(current, length) for current in self._to]
        self.component.update_eligibility(self.act, length, to, self.transition, self.traces)


class Eligibility:
    """The eligibility traces of an activity that reads a segment chunk by chunk."""

    def __init__(self, act: Activity):
        brain, self._backend, self._axon = act.brain, act.brain.backend, act.synapses.axon
        self._targets = [Target(component, act) for component in brain.components if component.eligible]
        self._target = {current: target for target in self._targets for current in target.component.eligible}
        self._projections = [p for p in brain.projections if p.arc.target in self._target]
        self._traces, self._structure, self._known = {}, {}, {}
        for p in self._projections:
            name, zeros = p.arc.name, self._backend.zeros
            self._traces[name] = zeros((len(self._target[p.arc.target].h), act.batch, math.prod(p.arc.weight_shape)))
            self._structure[name] = tuple(zeros(p.arc.tiles * p.arc.bundles_per_tile, "int32") for _ in range(2))

    def begin(self):
        """Begin a segment, without traces of what was before."""
        for array in (*self._traces.values(), *(target.traces for target in self._targets)):
            array[...] = 0
        for p in self._projections:
            if self._known.get(p.arc.name) is not p.block:  # the wiring is new
                for array, values in zip(self._structure[p.arc.name], (p.block, p.delay), strict=True):
                    array[...] = self._backend.asarray(values.reshape(-1), "int32")
                self._known[p.arc.name] = p.block

    def update(self, length: int):
        """After the backward pass over a chunk of `length` tokens: accumulate the gradient of what was before it, and add the chunk to the
        traces."""
        for target in self._targets:
            target.update(length)
        for p in self._projections:
            arc, target = p.arc, self._target[p.arc.target]
            bundles = self._axon(arc.source), 0, *self._structure[arc.name], arc.bundles_per_tile, arc.bundle
            influence = target.to_current(arc.target, length), target.transition, target.h
            self._backend.eligibility(self._traces[arc.name], p.d_weight.reshape(-1), *bundles, *influence)
