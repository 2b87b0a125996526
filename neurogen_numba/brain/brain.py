"""The brain: its components over the chunks of a segment, forward and backward."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable

import numpy as np

from ..backends.base import Streams
from ..config import MODULES
from ..config import Brain as BrainConfig
from ..kernels.adamw import BLOCK
from ..optim.parameters import Parameters
from .activity import Activity
from .component import Component
from .connectome import all_arcs, arcs, check_bundles, has_readout
from .decoder import Decoder
from .embedding import Embedding
from .hippocampus import AssociativeMemory
from .lesion import Lesions
from .neuromodulation import Neuromodulation
from .population import Population
from .projection import Projection
from .readout import Readout
from .working_memory import WorkingMemory

living: weakref.WeakSet[Brain] = weakref.WeakSet()  # every brain of this process, for changes of the code of kernels


def refresh_all(recordings: bool = False):
    """Let every brain compute again what it derives from its parameters. recordings: and record its steps anew."""
    for brain in list(living):
        if brain.wiring:  # else it is not drawn yet
            brain.wiring += recordings
            brain.refresh()


class Brain:
    """Parameters and wiring of a brain on a backend. The values of its neurons are in an `Activity`.

    A component reads the currents in its `inputs` and writes the signals in its `outputs`; projections lead from signals to currents.
    Within a chunk the components run in the order of `components` forward, and in reverse order backward. Every feedback synapse has a
    delay of at least one chunk, so no component waits for itself.

    senses: the component that drives the Thalamus, in place of the token embedding. row_wise: parameters that the optimiser updates row by
    row, without a whole gradient. bits: 8 or 4 of a quantised brain, which is loaded and not trained (optim/quantization.py).
    """

    def __init__(
        self, config: BrainConfig, backend, senses: Component | None = None, row_wise: frozenset[str] = frozenset(), bits: int = 0
    ):
        self.config, self.backend = config, backend
        self.arcs = arcs(config)
        self.projections = [Projection(arc, backend) for arc in self.arcs]
        self.components: list[Component] = [senses or Embedding(config, backend, "embedding.weight" in row_wise)]
        self.populations, readouts = [], []
        for name in MODULES:
            self.components += [AssociativeMemory(config, backend)] if name == "hippocampus" else []
            self.components += [WorkingMemory(config, backend)] if name == "pfc" else []
            self.populations.append(Population(name, config, backend, traced=name == "broca" or has_readout(config, name)))
            self.components.append(self.populations[-1])
            if has_readout(config, name):
                readouts.append(Readout(name))
                self.components.append(readouts[-1])
        self.decoder = Decoder(config, backend, "decoder.weight" in row_wise)
        self.modulation = Neuromodulation(config, backend) if config.neuromodulation else None
        self.current_sizes = {arc.target: arc.targets for arc in all_arcs(config)} | {
            f"{name}.current": getattr(config, name).neurons for name in MODULES
        }
        self.signal_sizes = {arc.source: arc.sources for arc in all_arcs(config)} | {
            f"{name}.axon": getattr(config, name).neurons for name in MODULES
        }
        self.signal_sizes[self.decoder.source] = config.broca.output_size
        self.parts = (*self.components, *self.projections, self.decoder, *([self.modulation] if self.modulation else []))
        self.parameters = Parameters((parameter for part in self.parts for parameter in part.parameters()), backend, bits)
        for part in self.parts:
            part.bind(self.parameters)
        # dependencies of a component, where modules overlap: signals that it reads, currents that read it; each with its delay in chunks
        late = {arc: arc.first_delay // config.chunk for arc in self.arcs}
        self._sources = {c: [(arc.source, late[arc]) for arc in self.arcs if arc.target in c.inputs] for c in self.components}
        self._targets = {c: [(arc.target, late[arc]) for arc in self.arcs if arc.source in c.outputs] for c in self.components}
        self.fed = frozenset(arc.target for arc in self.arcs)  # currents that synapses contribute to
        # currents of populations whose gradient only synapses read; that of the Thalamus goes to the embedding, too
        direct = {f"{name}.current" for name in MODULES[1:]} | ({"broca.gate"} if "broca.current" in self.fed else set())
        self.direct_gradients = self.fed & direct  # a kernel writes the gradients of a current and of its gate in one layout
        # currents of readouts that synapses read again: they are copied to the signals that they are
        pairs = {readout.inputs[0]: readout.outputs[0] for readout in readouts}
        self.copied = {current: signal for current, signal in pairs.items() if self.is_read(signal)}
        self.synapses = backend.synapses(self.projections, self.parameters)
        self.wiring = 0  # how often it was wired: a recorded step is one of a wiring
        self.lesions = Lesions(self)
        self.drawn_anew = frozenset()  # projections that a checkpoint had in an older form
        living.add(self)

    def initialise(self, seed: int):
        """Draw wiring and initial parameters."""
        for part in self.parts:
            part.initialise(self.parameters, seed)
        self.wire()
        self.refresh()

    def wire(self):
        """Build what the backend reads of the wiring, after every change of it."""
        with self.backend.part("synapses"):
            self.synapses.wire()
        self.wiring += 1

    def rewire(self):
        """The same after projections got as many other bundles: steps that are recorded go on where they can."""
        self.wiring += not self.synapses.rewire()

    def refresh(self):
        """Compute what is derived from the parameters, after every change of them."""
        for part in (*self.components, self.synapses, self.decoder):  # nothing is derived from the sensitivities of neuromodulation
            part.refresh()

    def drop_weights(self, act: Activity):
        """Let the synapses compute without a random share of the weights, until `refresh` (Wan et al. 2013, "Regularization of neural
        networks using DropConnect"; as in Merity et al. 2018, "Regularizing and optimizing LSTM language models", for a whole segment)."""
        mask = act.dropout.arguments("synapses", 0, 0)
        if mask[0]:
            self.backend.scaled_dropout(act.dropped_weight, self.synapses.weight.reshape(-1, BLOCK), 1.0, *mask)
            self.synapses.refresh(act.dropped_weight.reshape(-1))

    def mask_weight_grad(self, act: Activity):
        """The gradient of the weights from that of what `drop_weights` made of them."""
        mask = act.dropout.arguments("synapses", 0, 0)
        if mask[0]:
            self.backend.dropout(self.synapses.gradient.reshape(-1, BLOCK), *mask)

    def history(self, signal: str) -> int:
        """How many past tokens of a signal its synapses read."""
        return max((arc.longest_delay for arc in self.arcs if arc.source == signal), default=0)

    def is_read(self, signal: str) -> bool:
        """Whether synapses read a signal."""
        return any(arc.source == signal for arc in self.arcs)

    def structure(self) -> dict[str, np.ndarray]:
        """The wiring and other fixed arrays, NumPy: `{projection}.block`, `{projection}.delay` [tiles, bundles per tile] int32, and
        `{module}.input_scale` [N] float32. Of a pruned projection they are [bundles], and `{projection}.tile` too. Those of projections are
        read-only views."""
        fixed = {f"{population.name}.input_scale": self.backend.to_numpy(population.input_scale) for population in self.populations}
        for projection in self.projections:
            name = projection.arc.name
            fixed |= {f"{name}.{what}": getattr(projection, what) for what in _structure_of(projection.arc)}
        return fixed

    def structure_shapes(self) -> dict[str, tuple]:
        """name -> (shape, dtype) of the arrays that `structure` returns."""
        shapes = {f"{population.name}.input_scale": ((population.size,), "float32") for population in self.populations}
        for arc in self.arcs:
            shapes |= {f"{arc.name}.{what}": (arc.structure_shape, "int32") for what in _structure_of(arc)}
        return shapes

    def load_structure(self, fixed: dict[str, np.ndarray]):
        """Inverse of `structure`. Raises CheckpointError if a bundle is out of range."""
        for population in self.populations:
            population.input_scale[...] = self.backend.asarray(fixed[f"{population.name}.input_scale"], "float32")
        for projection in self.projections:
            structure = [fixed[f"{projection.arc.name}.{what}"] for what in _structure_of(projection.arc)]
            check_bundles(projection.arc, *structure)
            projection.set_structure(*structure)
        self.wire()
        self.refresh()

    def forward_logits(self, act: Activity, ids, following=None):
        """Logits [T' B, V] float32 of token ids [T', B] int32, T' at most act.tokens; rows in the order of the ids. Neuromodulators do not
        know the loss of the last token: it is that of the next one, which is told in `following` [B] int32, if anywhere."""
        act.load_tokens(ids)
        if self.modulation:
            targets = np.full((act.length, act.batch), -1, np.int32)
            targets[:-1] = ids[1:]
            targets[-1] = targets[-1] if following is None else following
            act.targets[: act.length] = self.backend.asarray(targets)
        self.forward(act, functools.partial(self.decoder.losses, act) if self.modulation else None)
        return self.decoder.logits(act, 0, act.length)

    def backward_logits(self, act: Activity, d_logits):
        """Accumulate the gradients of all parameters over the segment of the last `forward_logits`; d_logits: shaped as the logits."""
        padded = self.backend.zeros((len(d_logits), self.decoder.rows))
        padded[:, : d_logits.shape[1]] = d_logits
        self.decoder.backward(act, 0, act.length, padded)
        self.backward(act)

    def forward(self, act: Activity, judge: Callable[[int, int], None] | None = None):
        """Run the components over the loaded tokens, chunk by chunk.

        judge(first, last) computes act.losses of tokens first ... last - 1: of a chunk each, after it, where neuromodulators wait for them,
        else once, of all. Without it levels stay as they are.
        """
        streams, marks = self._streams(act), {}
        if act.checkpointing:
            act.checkpointing.begin_segment()
        for chunk, (first, last) in enumerate(self._chunks(act.length)):
            if act.checkpointing:
                act.checkpointing.load_boundary(chunk)
            if self.modulation:
                with streams.on("decoder"):
                    self.modulation.begin(act, chunk)
                marks["levels", chunk] = streams.mark("decoder")
            for component in self.components:
                sources = [("levels", 0), *self._sources[component]]
                with streams.on(component.stream, [marks.get((name, chunk - late)) for name, late in sources]):
                    self._gather_currents(act, component, first, last)
                    component.forward(act, first, last)
                mark = streams.mark(component.stream)
                marks |= {(name, chunk): mark for name in component.outputs}
            if act.checkpointing:
                act.checkpointing.save_chunk(chunk, first, last)
            if self.modulation and judge:
                with streams.on("decoder", [marks.get((self.decoder.source, chunk))]):
                    judge(first, last)
                    self.modulation.observe(act, act.losses[first:last], act.targets[first:last])
        streams.join()
        if judge and not self.modulation:
            judge(0, act.length)

    def recompute(self, act: Activity, first: int, last: int):
        """Run the components over tokens first ... last - 1, a chunk, again, from the state before it.

        Signals are not written again, except copied currents, which get the same values.
        """
        for component in self.components:
            self._gather_currents(act, component, first, last)
            component.recompute(act, first, last)

    def _gather_currents(self, act, component, first, last):
        """Overwrite the currents in a component's inputs."""
        chunk = act.buffer_slice(first, last)
        act.synapses.forward({name: act.currents[name].value[chunk] for name in component.inputs}, first, last)

    def non_finite_gradient(self) -> str:
        """The first component or projection in the backward pass with a gradient that is NaN or infinite; empty if all are finite.

        Row-wise parameters have no whole gradient, and are skipped.
        """
        parts = [self.decoder, *([self.modulation] if self.modulation else [])]
        for component in reversed(self.components):
            parts += [component, *(projection for projection in self.projections if projection.arc.target in component.inputs)]
        for name in (parameter.name for part in parts for parameter in part.parameters()):
            if name in self.parameters.gradient and not bool(np.isfinite(self.parameters.gradient[name]).all()):
                return name.partition(".")[0]
        return ""

    def _streams(self, act):
        """Modules overlap where there are several chunks. With checkpointing, buffers hold one."""
        return Streams() if act.checkpointing or act.tokens <= self.config.chunk else self.backend.streams()

    def backward(self, act: Activity, known: Callable[[str], None] = lambda bucket: None):
        """Accumulate the gradients of all parameters but the decoder's, from that of the decoder's input, act.d_decoder_input.

        known(bucket): called as soon as the gradients of a bucket (distributed/buckets.py) are complete.
        """
        neurons = (array for carry in act.carries.values() for array in (*carry.values, carry.y))
        for carried in (*neurons, act.dS, act.d_key, act.dm):
            carried[...] = 0
        streams, marks = self._streams(act), {}
        for chunk, (first, last) in reversed(list(enumerate(self._chunks(act.length)))):
            if act.checkpointing:
                act.checkpointing.begin_backward(chunk, first, last)
            for component in reversed(self.components):
                with streams.on(component.stream, [marks.get((name, chunk + late)) for name, late in self._targets[component]]):
                    self._source_grads(act, component, first, last)
                    component.backward(act, first, last)
                    for name in component.inputs:
                        if name in self.fed and name not in act.direct_gradients:
                            act.synapses.set_current_grad(name, first, last, act.currents[name].gradient[: last - first])
                mark = streams.mark(component.stream)
                marks |= {(name, chunk): mark for name in (*component.inputs, *component.outputs)}
        streams.join()
        known("embedding")
        act.synapses.accumulate_weight_grad(act.length)
        if act.eligibility:
            act.eligibility.update(act.length)
        for component in self.components:
            component.finish()

    def _source_grads(self, act, component, first, last):
        """Overwrite the gradients of a component's outputs."""
        act.learning_signal.write({signal: act.signals[signal].gradient[: last - first] for signal in component.outputs}, first, last)

    def _chunks(self, length):
        return [(first, min(length, first + self.config.chunk)) for first in range(0, length, self.config.chunk)]


def _structure_of(arc):
    return ("block", "delay", "tile") if arc.pruned else ("block", "delay")
