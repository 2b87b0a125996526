"""The six modules over the chunks of a segment: forward, backward."""

from __future__ import annotations

import numpy as np

from ..config import MODULES
from ..config import Brain as BrainConfig
from .activity import Activity
from .buffers import Parameters
from .connectome import arcs, check_synapses, has_readout
from .decoder import Decoder
from .embedding import Embedding
from .hippocampus import AssociativeMemory
from .population import Population
from .projection import Projection
from .readout import Readout
from .working_memory import WorkingMemory


class Brain:
    """Parameters and wiring of a brain on a backend. What its neurons are doing is in an `Activity`.

    A component (population, memory, readout) reads the currents in its `inputs` and sends the signals in its `outputs`; projections carry
    signals to currents. In a chunk the components run in the order that a token passes them, and backwards in the opposite one: every
    synapse that leads back has a delay of at least a chunk, so inside it nothing waits for itself.
    """

    def __init__(self, config: BrainConfig, backend):
        self.config, self.backend = config, backend
        self.arcs = arcs(config)
        sizes = [size for arc in self.arcs for size in (arc.sources, arc.targets)]
        self.index_dtype = "uint16" if max(sizes) <= 2**16 else "uint32"
        self.projections = [Projection(arc, backend, self.index_dtype) for arc in self.arcs]
        self.components = [Embedding(config, backend)]
        for name in MODULES:
            self.components += [AssociativeMemory(config, backend)] if name == "hippocampus" else []
            self.components += [WorkingMemory(config, backend)] if name == "pfc" else []
            self.components += [Population(name, config, backend, traced=name == "broca" or has_readout(config, name))]
            self.components += [Readout(name)] if has_readout(config, name) else []
        self.decoder = Decoder(config, backend)
        self.populations = [component for component in self.components if isinstance(component, Population)]
        self.current_sizes = {arc.target: arc.targets for arc in self.arcs} | {
            f"{name}.current": getattr(config, name).neurons for name in MODULES
        }
        self.signal_sizes = {arc.source: arc.sources for arc in self.arcs} | {
            f"{name}.axon": getattr(config, name).neurons for name in MODULES
        }
        self.signal_sizes[self.decoder.source] = config.broca.output_size
        parts = (*self.components, *self.projections, self.decoder)
        self.parameters = Parameters((parameter for part in parts for parameter in part.parameters()), backend)
        for part in parts:
            part.bind(self.parameters)

    def initialise(self, seed: int):
        """Draw wiring and first weights."""
        for part in (*self.components, *self.projections, self.decoder):
            part.initialise(self.parameters, seed)
        self.refresh()

    def refresh(self):
        """Bring what is derived from the parameters up to date; after every update."""
        for population in self.populations:
            population.refresh()

    def history(self, signal: str) -> int:
        """How many past tokens of a signal are heard."""
        return max((arc.longest_delay for arc in self.arcs if arc.source == signal), default=0)

    def sparse_output(self, signal: str) -> bool:
        """Whether a signal is sent as events: all axons are, and the values that sparse synapses hear."""
        return signal.endswith(".axon") or any(not arc.dense for arc in self.arcs if arc.source == signal)

    def sparse_input(self, current: str) -> bool:
        """Whether sparse synapses bring a current."""
        return any(not arc.dense for arc in self.arcs if arc.target == current)

    def structure(self) -> dict[str, np.ndarray]:
        """What is fixed but not learned, as NumPy arrays: `{projection}.row_start`, `{projection}.target`, `{module}.input_scale`."""
        fixed = {f"{population.name}.input_scale": population.input_scale for population in self.populations}
        for projection in self.projections:
            if not projection.arc.dense:
                fixed |= {f"{projection.arc.name}.row_start": projection.row_start, f"{projection.arc.name}.target": projection.target}
        return {name: self.backend.to_numpy(array) for name, array in fixed.items()}

    def structure_shapes(self) -> dict[str, tuple]:
        """Shape and dtype of what `structure` returns: name -> (shape, dtype)."""
        shapes = {f"{population.name}.input_scale": ((population.size,), "float32") for population in self.populations}
        for arc in self.arcs:
            if not arc.dense:
                shapes[f"{arc.name}.row_start"] = ((arc.delays * arc.sources + 1,), "uint32")
                shapes[f"{arc.name}.target"] = ((arc.targets * arc.synapses_per_target,), self.index_dtype)
        return shapes

    def load_structure(self, fixed: dict[str, np.ndarray]):
        """Inverse of `structure`. Raises CheckpointError where synapses lead to nowhere."""
        for population in self.populations:
            population.input_scale = self.backend.asarray(fixed[f"{population.name}.input_scale"], "float32")
        for projection in self.projections:
            if not projection.arc.dense:
                row_start, target = fixed[f"{projection.arc.name}.row_start"], fixed[f"{projection.arc.name}.target"]
                check_synapses(projection.arc, row_start, target)
                projection.set_structure(row_start, target)
        self.refresh()

    def forward(self, act: Activity, ids):
        """Run token ids [T', B] int32, T' at most act.tokens. Returns logits [T' B, V], rows in the order of the ids."""
        act.ids, act.length = ids, ids.shape[0]
        for first, last in self._chunks(act.length):
            for current in act.currents.values():
                current.value[first:last] = 0
            for component in self.components:
                for name in component.inputs:
                    self._receive(act, name, first, last)
                component.forward(act, first, last)
        return self.decoder.forward(act, act.length)

    def backward(self, act: Activity, d_logits):
        """Add to the gradients of all parameters, for the segment that `forward` has just run; d_logits as the logits."""
        d_read = self.decoder.backward(act, d_logits)
        for carry in (*act.dv.values(), *act.da.values(), *act.dy.values(), act.dS, act.d_key, act.dm):
            carry[...] = 0
        for first, last in reversed(self._chunks(act.length)):
            for component in reversed(self.components):
                for name in component.outputs:
                    self._hear_back(act, name, first, last)
                    if name == self.decoder.source:
                        act.signals[name].gradient[: last - first] += d_read[first:last]
                component.backward(act, first, last)
                for name in component.inputs:
                    if self.sparse_input(name):
                        current = act.currents[name]
                        self.backend.to_lanes(current.lanes[first:last], current.gradient[: last - first])
        for projection in self.projections:
            projection.backward_before(act)
        for population in self.populations:
            population.finish()

    def _receive(self, act, current, first, last):
        """Sum up what all projections bring to a current."""
        arriving = act.lanes(last - first, self.current_sizes[current])
        arriving[...] = 0
        for projection in self.projections:
            if projection.arc.target == current:
                projection.forward(act, first, last)
        if self.sparse_input(current):
            self.backend.add_from_lanes(act.currents[current].value[first:last], arriving)

    def _hear_back(self, act, signal, first, last):
        """Sum up the gradients that all projections send back to a signal."""
        gradient = act.signals[signal].gradient[: last - first]
        gradient[...] = 0
        arriving = act.lanes(last - first, self.signal_sizes[signal])
        arriving[...] = 0
        for projection in self.projections:
            if projection.arc.source == signal:
                projection.backward(act, first, last)
        if self.sparse_output(signal):
            self.backend.add_from_lanes(gradient, arriving)

    def _chunks(self, length):
        return [(first, min(length, first + self.config.chunk)) for first in range(0, length, self.config.chunk)]
