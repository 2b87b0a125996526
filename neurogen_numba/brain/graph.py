"""A read-only view of a model's connectome: modules and projections, as a table and as a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import MODULES, did_you_mean
from ..errors import ConfigError
from .connectome import has_readout, real_weights

if TYPE_CHECKING:
    from .brain import Brain
    from .projection import Projection

EDGE_FACTS = ("signal", "current", "synapses", "fan_in", "bundle", "inhibitory", "mean_weight")


@dataclass(frozen=True)
class ProjectionView:
    """A projection: its facts, and its synapses as NumPy arrays.

    source, target: modules or memories; signal, current: what is read there and what is written. delays: (shortest, longest) in tokens;
    synapses: their number, without padding; fan_in: synapses of a target; bundle: neurons on a side of a bundle.
    """

    name: str
    source: str
    target: str
    signal: str
    current: str
    synapses: int
    fan_in: int
    delays: tuple[int, int]
    bundle: int
    inhibitory: bool
    _projection: Projection

    @property
    def weight(self) -> np.ndarray:
        """A copy of the weights, [bundles, sources, targets] float32; 0 in the padding of bundles at an edge."""
        return self._projection.dense()

    @property
    def block(self) -> np.ndarray:
        """The source block of each bundle, [tiles, bundles per tile] int32; [bundles] of a pruned projection."""
        return self._projection.block

    @property
    def tile(self) -> np.ndarray:
        """The tile of targets of each bundle, [bundles] int32."""
        return self._projection.tile

    @property
    def delay(self) -> np.ndarray:
        """The axonal delay of each bundle in tokens, shaped as `block`."""
        return self._projection.delay

    @property
    def mean_weight(self) -> float:
        """The mean of |w| over the synapses."""
        return float(np.abs(self.weight).sum(dtype="float64")) / self.synapses

    def __repr__(self) -> str:
        first, last = self.delays
        delays = f"delay {first}" if first == last else f"delays {first} to {last}"
        what = f"{self.synapses:,} {'inhibitory ' if self.inhibitory else ''}synapses, {self.fan_in:,} a target"
        return f"{self.name}: {self.signal} -> {self.current}, {what}, {delays}, bundles of {self.bundle}, mean |w| {self.mean_weight:.4f}"


class Connectome:
    """The projections of a model by name: `connectome["memory_broca"]`, or `connectome.memory_broca`.

    projections: name -> ProjectionView. Weights are those that the model has when they are asked for.
    """

    def __init__(self, brain: Brain):
        self._brain = brain
        self.projections = {projection.arc.name: _view(projection) for projection in brain.projections}

    def __getitem__(self, name: str) -> ProjectionView:
        if name not in self.projections:
            raise ConfigError(f"this brain has no projection {name!r}; {did_you_mean(name, self.projections)}")
        return self.projections[name]

    def __getattr__(self, name: str) -> ProjectionView:
        known = self.__dict__.get("projections", {})  # not there yet while it is copied
        if name not in known:
            raise AttributeError(f"this brain has no projection {name!r}; {did_you_mean(name, known)}")
        return known[name]

    def __iter__(self) -> Iterator[ProjectionView]:
        return iter(self.projections.values())

    def __len__(self) -> int:
        return len(self.projections)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.projections})

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.projections)

    def __repr__(self) -> str:
        head = f"Connectome: {sum(view.synapses for view in self):,} synapses in {len(self)} projections"
        rows = [("projection", "from", "to", "synapses", "delays", "bundle", "mean |w|")]
        for view in self:
            first, last = view.delays
            delays = f"{first}" if first == last else f"{first} to {last}"
            rows.append((view.name, view.signal, view.current, f"{view.synapses:,}", delays, f"{view.bundle}", f"{view.mean_weight:.4f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [  # words at the left of their column, numbers at the right
            "  ".join(cell.ljust(w) if n < 3 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        return "\n".join([head, *lines])

    def to_networkx(self) -> Any:
        """The connectome as a `networkx.MultiDiGraph`: modules and memories are nodes, projections are edges, with their name as key.

        Node attributes: kind ("module" or "memory"); of a module neurons, outputs (values of its readout, or else its neurons) and neuron
        (which kind); of a memory size, the numbers that it puts out. Edge attributes: signal, current, synapses, fan_in, bundle,
        inhibitory and mean_weight as in `ProjectionView`, first_delay and last_delay in tokens. A readout is an edge from a module to
        itself.

        Raises ConfigError where networkx is not installed.
        """
        try:
            import networkx
        except ImportError:
            raise ConfigError('to_networkx needs the package networkx: pip install -e ".[notebooks]", or pip install networkx') from None

        graph, brain = networkx.MultiDiGraph(), self._brain.config
        for name in MODULES:
            module = getattr(brain, name)
            outputs = module.output_size if has_readout(brain, name) else module.neurons
            graph.add_node(name, kind="module", neurons=module.neurons, outputs=outputs, neuron=module.neuron)
        graph.add_node("memory", kind="memory", size=brain.memory_heads * brain.memory_width)
        graph.add_node("working_memory", kind="memory", size=brain.pfc.output_size)
        for view in self:
            first, last = view.delays
            facts = {what: getattr(view, what) for what in EDGE_FACTS}
            graph.add_edge(view.source, view.target, view.name, **facts, first_delay=first, last_delay=last)
        return graph


def _view(projection: Projection) -> ProjectionView:
    arc = projection.arc
    sources, targets = real_weights(arc, projection.block, projection.tile)
    return ProjectionView(
        name=arc.name,
        source=_node(arc.source),
        target=_node(arc.target),
        signal=arc.source,
        current=arc.target,
        synapses=int((sources.sum(1) * targets.sum(1)).sum()),
        fan_in=arc.synapses_per_target,
        delays=(arc.first_delay, arc.longest_delay),
        bundle=arc.bundle,
        inhibitory=arc.inhibitory,
        _projection=projection,
    )


def _node(signal: str) -> str:
    """The module or memory that a signal or current belongs to."""
    return signal.partition(".")[0].removeprefix("readout_")
