"""Everything that happens in a batch of sequences during one segment, and the state that the next segment starts from."""

from __future__ import annotations

import zlib

import numpy as np

from ..config import MODULES
from ..errors import CheckpointError
from ..kernels import rng
from . import neuromodulation
from .activation_checkpointing import CHECKPOINTING
from .projection import Current, Signal


class Dropout:
    """Which numbers are dropped: a matter of seed, step and place alone, so that backward drops what forward dropped."""

    PLACES = ("embedding", "decoder", *(f"{name}.axon" for name in MODULES))

    def __init__(self, backend, batch: int, rate: float = 0.0, axon_rate: float = 0.0, seed: int = 0, step: int = 0):
        self.batch, self.rate, self.axon_rate, self.seed = batch, np.float32(rate), np.float32(axon_rate), seed
        self.keys = backend.zeros(len(self.PLACES), "uint64")
        self._backend = backend
        self.begin(step)

    def begin(self, step: int):
        """The masks of another step."""
        self.step = step
        if self.rate or self.axon_rate:
            keys = [rng.key(self.seed, step, zlib.crc32(what.encode())) for what in self.PLACES]
            self.keys[...] = self._backend.asarray(keys, "uint64")

    def at(self, what: str, first: int, size: int):
        """(rate, key [1] uint64, first place) for `size` numbers per column from token `first` on."""
        place = self.PLACES.index(what)
        rate = self.axon_rate if what.endswith(".axon") else self.rate
        return rate, self.keys[place : place + 1], np.uint64(first * self.batch * size)


class Activity:
    """Arrays of one batch of B sequences for segments of at most T tokens.

    learning: keep what the backward pass needs, `memory` says how. smooth: the test mode of the event function. dropout,
    axon_dropout: shares of what is dropped, and seed of the masks.
    """

    def __init__(
        self,
        brain,
        tokens: int,
        batch: int,
        learning: bool = False,
        smooth: bool = False,
        dropout: float = 0.0,
        axon_dropout: float = 0.0,
        seed: int = 0,
        memory: str = "full",
    ):
        self.brain, self.tokens, self.batch, self.learning, self.smooth = brain, tokens, batch, learning, smooth
        self.chunk = min(brain.config.chunk, tokens)
        self.length = tokens  # of the segment under way
        keep = CHECKPOINTING[memory] if learning and tokens > self.chunk else None  # else there is nothing to save
        self.span = self.chunk if keep else tokens  # tokens that neurons and currents have room for
        backend = brain.backend
        self.dropout = Dropout(backend, batch, dropout, axon_dropout, seed)
        self.ids, self.targets = backend.zeros((tokens, batch), "int32"), backend.zeros((tokens, batch), "int32")
        self.losses, self.hits = backend.zeros((tokens, batch)), backend.zeros((tokens, batch), "uint8")
        self.weight = backend.zeros(1)  # of a target in the mean: 1 / number of targets
        self.fresh = backend.zeros(batch, "uint8")  # sequences that begin the segment in the fresh state
        self.v, self.a, self.y, self.r = {}, {}, {}, {}  # per module: membrane, adaptation, trace, factor that normalised the current
        self.dv, self.da, self.dy = {}, {}, {}  # per module: gradients carried from chunk to chunk
        self.levels = {name: backend.zeros(batch) for name in neuromodulation.NAMES}
        self.gain_scale, self.beta_scale, self.write_scale = (backend.zeros(batch) for _ in range(3))
        with backend.part("currents and signals"):
            currents, signals, form = brain.current_sizes, brain.signal_sizes, (self.chunk, learning)
            self.currents = {name: Current(backend, self.span, batch, size, *form) for name, size in currents.items()}
            self.signals = {name: Signal(backend, batch, size, *form) for name, size in signals.items()}
        with backend.part("events under way"):
            self.synapses = brain.synapses.state(
                {name: (size, brain.history(name)) for name, size in signals.items() if brain.sparse_output(name)},
                {name: size for name, size in currents.items() if brain.sparse_input(name)},
                tokens,
                batch,
                learning,
            )
        # currents whose gradient populations write straight into the synapses' own array
        self.written = brain.own_gradients if self.synapses.direct_gradients else frozenset()
        self.token_rows = None  # of the embedding, where these have a gradient and the rest has none
        self.recorded = {}  # what was recorded of the steps on these arrays (model.py)
        kept = [size for component in brain.components for size in component.kept]
        with backend.part("membranes, adaptation, traces"):
            self._rows, self._table = backend.zeros((self.span + 1) * batch * sum(kept)), []
        for component in brain.components:
            with backend.part(component.lane):
                component.allocate(self)
        with backend.part("decoder"):
            brain.decoder.allocate(self)
        self._table = backend.asarray(self._table, "int64")
        with backend.part("kept for the way back"):
            self.keeping = keep(self) if keep else None
        self._modulate()

    def here(self, first, last):
        """Where tokens first ... last - 1 of the segment, those of a chunk, stand in arrays that have room for `span` of them."""
        return slice(first, last) if self.span == self.tokens else slice(0, last - first)

    def rows(self, size):
        """Room for what `size` neurons keep: [span + 1, B, size], row 0 for the token before them; what stands in the row of the last
        token is carried there in the end. Asked for by whoever announced it as `kept`."""
        row = self.batch * size
        begin = sum((self.span + 1) * own for _, own in self._table)
        self._table.append((begin, row))
        return self._rows[begin : begin + (self.span + 1) * row].reshape(self.span + 1, self.batch, size)

    def hear(self, ids):
        """Take the tokens [T', B] int32 of the next segment, T' at most T."""
        self.length = len(ids)
        self.ids[: self.length] = self.brain.backend.asarray(ids, "int32")
        if self.token_rows:
            self.brain.embedding.hear(self, ids)

    def _modulate(self):
        neuromodulation.modulate(self.gain_scale, self.beta_scale, self.write_scale, self.levels)

    def gradient_of(self, current, first, last):
        """(where the gradient of a current of the chunk is written, times what)."""
        if current in self.written:
            return self.synapses.current_grad(current, first, last)
        return self.currents[current].gradient[: last - first], 1

    def send(self, name, first, last):
        """Send the plain values of a signal's tokens, where sparse synapses listen."""
        if self.brain.sparse_output(name):
            self.synapses.write_values(name, first, last, self.signals[name].x[self.here(first, last)])

    def advance(self, length: int):
        """Carry the state over: what `length` tokens left behind is what the next segment starts from."""
        if self.keeping:
            self.keeping.enter(-(-length // self.chunk))
        else:
            self.brain.backend.roll_state(self._rows, self._table, length)
        self.synapses.advance(length)

    def rates(self, length: int) -> dict[str, float]:
        """Share of the neurons of each module with an event, per token of the segment just run, or of what is still there of it."""
        length = min(length, self.span)
        return {name: float((self.v[name][1 : length + 1] > 1).mean()) for name in MODULES}

    def broken(self) -> list[str]:
        """The modules with a membrane potential that is no finite number, in the order that a token passes them."""
        return [name for name in MODULES if not bool(np.isfinite(self.v[name]).all())]

    def _carried(self):
        """The arrays that make the state, apart from histories: name -> array whose content is carried."""
        arrays = {}
        for letter, table in (("v", self.v), ("a", self.a), ("y", self.y)):
            arrays |= {f"{name}.{letter}": rows[0] for name, rows in table.items()}
        return arrays | {"memory.S": self.S, "memory.key": self.key, "working_memory.m": self.m[0]} | self.levels

    def _histories(self):
        """State name -> name of the signal, for each signal whose past is heard."""
        names = {
            name: name.replace(".axon", ".history") if name.endswith(".axon") else name.replace("readout_", "") + "_history"
            for name in self.signals
        }
        return {names[name]: name for name in self.signals if self.brain.history(name)}

    def views(self) -> dict:
        """The arrays of the state themselves, not copies: name -> array of the device (DLPack, and on a GPU `__cuda_array_interface__`),
        as `state` names them, without the histories (`rings`). Whoever changes `levels` calls `load_state` or `reset` to be heard."""
        return self._carried()

    def rings(self) -> dict[str, dict]:
        """What was sent lately and may still be on its way, as the synapses read it: the names of histories in `state` -> views.

        Token t of a segment is in row (start[0] + t) % rows, and between segments the last token is t = -1. On a GPU value [rows, B, M] is
        what each neuron's axon carried, in the type that products multiply. On the CPU value is [words, rows, B, 64] float32, neuron n in
        word n // 64, and bit n % 64 of fired [words, rows, B] uint64 says whether it carried anything. To be read, not to be written.
        """
        return {name: self.synapses.ring(signal) for name, signal in self._histories().items()}

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the state as NumPy arrays: `{module}.v`, `.a`, `.y` [B, N], `{module}.history` [H, B, N] (what the axons carried, the
        newest token last), `{module}.out_history`, `memory.S` [B, heads, W, W], `memory.key` [B, heads W], `working_memory.m` [B, slots],
        and the neuromodulators [B]; float32."""
        state = {name: self.brain.backend.fetch(array) for name, array in self._carried().items()}
        return state | {name: self.synapses.past(signal) for name, signal in self._histories().items()}

    def load_state(self, state: dict[str, np.ndarray]):
        """Inverse of `state`. Raises CheckpointError where an array is missing or of another shape."""
        carried, histories = self._carried(), self._histories()
        wanted = {name: array.shape for name, array in carried.items()}
        wanted |= {name: (self.brain.history(s), self.batch, self.brain.signal_sizes[s]) for name, s in histories.items()}
        for name, shape in wanted.items():
            found = state[name].shape if name in state else None
            if found != shape:
                raise CheckpointError(
                    f"state array {name!r}: shape {shape} wanted, {found or 'nothing'} found; was it saved by another brain or batch size?"
                )
        for name, array in carried.items():
            array[...] = self.brain.backend.asarray(state[name], "float32")
        for name, signal in histories.items():
            self.synapses.set_past(signal, state[name])
        self._modulate()

    def forget(self, sequences):
        """Put some sequences, those where `sequences` [B] uint8 (on the device) is not 0, into the fresh state; the others go on."""
        for array in self._carried().values():
            self.brain.backend.reset(array.reshape(1, self.batch, -1), sequences)
        self.synapses.reset(sequences)
        self._modulate()

    def reset(self):
        """Forget everything: the fresh state, all zeros."""
        self.forget(self.brain.backend.asarray(np.ones(self.batch), "uint8"))
