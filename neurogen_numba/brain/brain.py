"""The six modules over the chunks of a segment: forward, backward."""

from __future__ import annotations

import numpy as np

from ..backends.base import Lanes
from ..config import MODULES
from ..config import Brain as BrainConfig
from .activity import Activity
from .buffers import Parameters
from .connectome import arcs, check_bundles, has_readout
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

    senses: the component that drives the Thalamus; the embedding of tokens, if None. apart: parameters that are updated row by row and have
    no whole gradient.
    """

    def __init__(self, config: BrainConfig, backend, senses=None, apart: frozenset[str] = frozenset()):
        self.config, self.backend = config, backend
        self.arcs = arcs(config)
        self.projections = [Projection(arc, backend) for arc in self.arcs]
        self.components = [senses or Embedding(config, backend, "embedding.weight" in apart)]
        self.embedding = self.components[0]
        for name in MODULES:
            self.components += [AssociativeMemory(config, backend)] if name == "hippocampus" else []
            self.components += [WorkingMemory(config, backend)] if name == "pfc" else []
            self.components += [Population(name, config, backend, traced=name == "broca" or has_readout(config, name))]
            self.components += [Readout(name)] if has_readout(config, name) else []
        self.decoder = Decoder(config, backend, "decoder.weight" in apart)
        self.dense = [projection for projection in self.projections if projection.arc.dense]
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
        # component -> (signal that it hears, or current that hears it, and how many chunks later it does)
        late = {arc: arc.first_delay // config.chunk for arc in self.arcs}
        self._heard = {c: [(arc.source, late[arc]) for arc in self.arcs if arc.target in c.inputs] for c in self.components}
        self._hearers = {c: [(arc.target, late[arc]) for arc in self.arcs if arc.source in c.outputs] for c in self.components}
        # component -> signals whose senders, a chunk earlier on the way back, must have read the gradients that it is about to overwrite
        self._read_by = {c: [arc.source for arc in self.arcs if arc.dense and arc.target in c.inputs] for c in self.components}
        # currents of populations whose gradient nobody reads but the bundles that bring them; the Thalamus' is read by the embedding, too
        dense, bundled = ({arc.target for arc in self.arcs if arc.dense is kind} for kind in (True, False))
        self.own_gradients = frozenset(f"{name}.current" for name in MODULES[1:]) & bundled - dense
        # currents that bundles bring, and that are signals as they are
        readouts = [component for component in self.components if isinstance(component, Readout)]
        pairs = {readout.inputs[0]: readout.outputs[0] for readout in readouts}
        self.copied = {current: signal for current, signal in pairs.items() if current in bundled - dense and self.sparse_output(signal)}
        sparse = [projection for projection in self.projections if not projection.arc.dense]
        self.synapses = backend.synapses(sparse, self.parameters)
        self.drawn_anew = frozenset()  # projections that a checkpoint had in a form that is not read any more

    def initialise(self, seed: int):
        """Draw wiring and first weights."""
        for part in (*self.components, *self.projections, self.decoder):
            part.initialise(self.parameters, seed)
        self._wire()

    def _wire(self):
        with self.backend.part("synapses"):
            self.synapses.wire()
        self.refresh()

    def refresh(self):
        """Bring what is derived from the parameters up to date; after every update."""
        for part in (*self.populations, self.synapses, self.decoder):
            part.refresh()

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
        """What is fixed but not learned, as NumPy arrays: `{projection}.block`, `{projection}.delay` [tiles, bundles per tile] int32, and
        `{module}.input_scale` [N] float32. The structure of projections is not copied, and can only be read."""
        fixed = {f"{population.name}.input_scale": self.backend.to_numpy(population.input_scale) for population in self.populations}
        for projection in self.projections:
            if not projection.arc.dense:
                name = projection.arc.name
                fixed |= {f"{name}.block": projection.block, f"{name}.delay": projection.delay}
        return fixed

    def structure_shapes(self) -> dict[str, tuple]:
        """Shape and dtype of what `structure` returns: name -> (shape, dtype)."""
        shapes = {f"{population.name}.input_scale": ((population.size,), "float32") for population in self.populations}
        for arc in self.arcs:
            if not arc.dense:
                shapes |= {f"{arc.name}.{what}": ((arc.tiles, arc.bundles_per_tile), "int32") for what in ("block", "delay")}
        return shapes

    def load_structure(self, fixed: dict[str, np.ndarray]):
        """Inverse of `structure`. Raises CheckpointError where bundles lead to nowhere."""
        for population in self.populations:
            population.input_scale[...] = self.backend.asarray(fixed[f"{population.name}.input_scale"], "float32")
        for projection in self.projections:
            if not projection.arc.dense:
                block, delay = fixed[f"{projection.arc.name}.block"], fixed[f"{projection.arc.name}.delay"]
                check_bundles(projection.arc, block, delay)
                projection.set_structure(block, delay)
        self._wire()

    def forward(self, act: Activity, ids):
        """Run token ids [T', B] int32, T' at most act.tokens. Returns logits [T' B, V] float32, rows in the order of the ids."""
        act.hear(ids)
        self.think(act)
        return self.decoder.logits(act, 0, act.length)

    def backward(self, act: Activity, d_logits):
        """Add to the gradients of all parameters, for the segment that `forward` has just run; d_logits as the logits."""
        padded = self.backend.zeros((len(d_logits), self.decoder.rows))
        padded[:, : d_logits.shape[1]] = d_logits
        self.decoder.backward(act, 0, act.length, padded)
        self.think_back(act)

    def think(self, act: Activity):
        """Run the modules over the tokens heard."""
        lanes, marks = self._lanes(act), {}
        if act.keeping:
            act.keeping.begin()
        for chunk, (first, last) in enumerate(self._chunks(act.length)):
            if act.keeping:
                act.keeping.enter(chunk)
            for component in self.components:
                with lanes.on(component.lane, [marks.get((name, chunk - late)) for name, late in self._heard[component]]):
                    self._receive(act, component, first, last)
                    component.forward(act, first, last)
                mark = lanes.mark(component.lane)
                marks |= {(name, chunk): mark for name in component.outputs}
            if act.keeping:
                act.keeping.leave(chunk, first, last)
        lanes.join()

    def think_again(self, act: Activity, first, last):
        """Run the modules over the tokens of a chunk once more, from the state in which it began; all that was sent has been sent."""
        for component in self.components:
            self._receive(act, component, first, last)
            component.again(act, first, last)

    def _receive(self, act, component, first, last):
        """The currents of a component's inputs."""
        here = act.here(first, last)
        act.synapses.forward({name: act.currents[name].value[here] for name in component.inputs}, first, last)
        for projection in self.dense:
            if projection.arc.target in component.inputs:
                projection.forward(act, first, last)

    def broken_gradient(self) -> str:
        """Whose parameters are the first on the way back with a gradient that is no finite number; empty where there are none. What has no
        whole gradient is not looked at."""
        parts = [self.decoder]
        for component in reversed(self.components):
            parts += [component, *(projection for projection in self.projections if projection.arc.target in component.inputs)]
        for name in (parameter.name for part in parts for parameter in part.parameters()):
            if name in self.parameters.gradient and not bool(np.isfinite(self.parameters.gradient[name]).all()):
                return name.partition(".")[0]
        return ""

    def _lanes(self, act):
        """Modules at different chunks overlap only where there is room for more than one."""
        return Lanes() if act.keeping else self.backend.lanes()

    def think_back(self, act: Activity):
        """The way back, once the decoder has put the gradient of what it read into act.d_read."""
        for carry in (*act.dv.values(), *act.da.values(), *act.dy.values(), act.dS, act.d_key, act.dm):
            carry[...] = 0
        lanes, marks = self._lanes(act), {}
        for chunk, (first, last) in reversed(list(enumerate(self._chunks(act.length)))):
            if act.keeping:
                act.keeping.back(chunk, first, last)
            for component in reversed(self.components):
                owing = [marks.get((name, chunk + late)) for name, late in self._hearers[component]]
                read = [marks.get((name, chunk + 1)) for name in self._read_by[component]]
                with lanes.on(component.lane, owing + read):
                    self._hear_back(act, component.outputs, first, last)
                    component.backward(act, first, last)
                    for name in component.inputs:
                        if self.sparse_input(name) and name not in act.written:
                            act.synapses.set_current_grad(name, first, last, act.currents[name].gradient[: last - first])
                mark = lanes.mark(component.lane)
                marks |= {(name, chunk): mark for name in (*component.inputs, *component.outputs)}
        lanes.join()
        act.synapses.accumulate_weight_grad(act.length)
        for population in self.populations:
            population.finish()

    def _hear_back(self, act, signals, first, last):
        """Sum up the gradients that the decoder and all projections send back to a component's signals."""
        gradients = {signal: act.signals[signal].gradient[: last - first] for signal in signals}
        act.synapses.source_grad(gradients, first, last, act.length)
        for signal, gradient in gradients.items():
            for projection in self.dense:
                if projection.arc.source == signal:
                    projection.backward(act, first, last)
            if signal == self.decoder.source:
                np.add(gradient, act.d_read[first:last], out=gradient)

    def _chunks(self, length):
        return [(first, min(length, first + self.config.chunk)) for first in range(0, length, self.config.chunk)]
