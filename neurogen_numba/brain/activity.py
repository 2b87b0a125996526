"""Activity of a brain: the values of one segment of a batch of sequences, and the state that the next segment starts from."""

from __future__ import annotations

import zlib

import numpy as np

from ..config import FLOAT32, MODULES
from ..errors import CheckpointError, ConfigError
from ..kernels import rng
from ..kernels.adamw import BLOCK
from ..kernels.dropout import mask_offset
from ..kernels.neuromodulation import REWARD, ROWS
from .activation_checkpointing import CHECKPOINTING
from .eligibility import Eligibility
from .exploration import Exploration
from .learning_signal import SIGNALS
from .neuromodulation import LEVELS
from .projection import Current, Signal


class Dropout:
    """Keys of the dropout masks. A mask depends on seed, step, site and offset only, so the backward pass applies the same one.

    share: (first, among, most): the `batch` sequences begin with number `first` of a batch of `among`, which several ranks train, `most` of
    them on one.
    """

    drops = True  # while it is False, the rates are 0
    AXONS = tuple(f"{name}.axon" for name in MODULES)
    SEGMENT = "synapses", "words"  # sites with one mask for a segment
    SITES = ("embedding", "decoder", *AXONS, *SEGMENT)

    def __init__(
        self,
        backend,
        batch: int,
        dropout=0.0,
        axon_dropout=0.0,
        weight_drop=0.0,
        word_dropout=0.0,
        seed: int = 0,
        step: int = 0,
        share=None,
    ):
        self.batch, self.seed = batch, seed
        self.first, self.among, self.most = share or (0, batch, batch)
        self.rates = {"embedding": dropout, "decoder": dropout, "synapses": weight_drop, "words": word_dropout}
        self.rates = {site: np.float32(rate) for site, rate in (self.rates | dict.fromkeys(self.AXONS, axon_dropout)).items()}
        self.keys = backend.zeros(len(self.SITES), "uint64")
        self._backend = backend
        self.set_step(step)

    def set_step(self, step: int, part: int = 0):
        """Use the masks of this step; part: number of the part of its segment, where a segment is read in parts."""
        self.step = step
        if any(self.rates.values()):
            names = [f"{site} {part}" if part and site not in self.SEGMENT else site for site in self.SITES]
            keys = [rng.key(self.seed, step, zlib.crc32(name.encode())) for name in names]
            self.keys[...] = self._backend.asarray(keys, "uint64")

    def arguments(self, site: str, first: int, size: int):
        """(rate, key [1] uint64, offset) of the mask from token `first` on, for `size` numbers per column, as dropout kernels take them."""
        index = self.SITES.index(site)
        offset = mask_offset((first * self.among + self.first) * size, self.batch * size, (self.among - self.batch) * size)
        return self.rates[site] if self.drops else np.float32(0), self.keys[index : index + 1], offset


class Activity:
    """Arrays of one batch of B sequences for segments of at most T tokens.

    learning: keep what the backward pass needs, as `memory` says (`training.activation_memory`). smooth: the test mode of the event
    function. eligibility: read the segments of a text chunk by chunk, with eligibility traces (eligibility.py); T is then one chunk.
    signal: the learning signal (learning_signal.py). explores: learn from dopamine, also chunk by chunk (exploration.py). dropout: the
    arguments of `Dropout`: what is dropped, how often, and the seed of the masks.
    """

    def __init__(
        self,
        brain,
        tokens: int,
        batch: int,
        learning: bool = False,
        smooth: bool = False,
        memory: str = "full",
        eligibility: bool = False,
        signal: str = "symmetric",
        explores: bool = False,
        **dropout,
    ):
        self.segment = tokens  # of the text; an update reads it in parts of `tokens`
        tokens = min(tokens, brain.config.chunk) if eligibility or explores else tokens
        self.brain, self.tokens, self.batch, self.learning, self.smooth = brain, tokens, batch, learning, smooth
        self.chunk = min(brain.config.chunk, tokens)
        self.length = tokens  # of the current segment
        checkpointing = CHECKPOINTING[memory] if learning and tokens > self.chunk else None  # one chunk: nothing to save
        self.buffered_tokens = self.chunk if checkpointing else tokens  # that the arrays of neurons and currents hold
        backend = brain.backend
        self.dropout = Dropout(backend, batch, **dropout)
        self.among = self.dropout.among  # sequences of the whole batch; other ranks may have some of them
        self.most_columns = self.dropout.most  # sequences of the rank that has the most
        self.columns = slice(self.dropout.first, self.dropout.first + batch)  # those that are here
        self.ids, self.targets = backend.zeros((tokens, batch), "int32"), backend.zeros((tokens, batch), "int32")
        self.losses, self.hits = backend.zeros((tokens, batch)), backend.zeros((tokens, batch), "uint8")
        self.surprise = np.zeros(batch)  # mean loss of each sequence in the last update, nats
        self.weight = backend.zeros(1)  # of a target in the mean: 1 / number of targets
        self.reset_mask = backend.zeros(batch, "uint8")  # sequences to reset before the segment
        self.neurons = {}  # module -> {name of a state: its rows}, the membrane potential first
        self.v, self.y, self.r = {}, {}, {}  # per module: membrane potential, trace, normalisation factor
        self.carries = {}  # per module: NeuronState, passed by the adjoint from chunk to chunk
        self.carry_rows = {}  # per component with eligibility traces: the same as one array [K, B, N]
        self.modulators = backend.zeros((0, batch))  # levels and their running means (kernels/neuromodulation.py); empty if they are off
        self.neutral = backend.zeros(batch)
        self.neutral[...] = 1
        if brain.modulation:
            brain.modulation.allocate(self)
        currents, signals = brain.current_sizes, brain.signal_sizes
        with backend.part("events in flight"):
            self.synapses = brain.synapses.state(
                {name: (size, brain.history(name)) for name, size in signals.items() if brain.is_read(name)},
                {arc.target: arc.targets for arc in brain.arcs},
                tokens,
                batch,
                learning,
                brain.copied,
            )
        # currents whose gradient populations write straight into the array of the synapses
        self.direct_gradients = brain.direct_gradients if self.synapses.direct_gradients else frozenset()
        with backend.part("currents and signals"):
            self.currents = {
                name: Current(backend, self.buffered_tokens, batch, size, self.chunk, learning and name not in self.direct_gradients)
                for name, size in currents.items()
            }
            self.signals = {name: Signal(backend, batch, size, self.chunk, learning) for name, size in signals.items()}
        if self.dropout.rates["synapses"]:
            with backend.part("synapses"):
                self.dropped_weight = backend.zeros((brain.synapses.weight.size // BLOCK, BLOCK))
        self.teacher = None  # whose predictions are learned too (learning/distillation.py)
        self.token_rows = None  # gradients of a row-wise embedding (`Rows`)
        self.recorded, self.wiring = {}, brain.wiring  # recorded steps on these arrays, and the wiring that they are of (model.py)
        sizes = [size for component in brain.components for size in component.state_sizes]
        with backend.part("state and traces of neurons"):
            self._rows, self._table = backend.zeros((self.buffered_tokens + 1) * batch * sum(sizes)), []
        for component in brain.components:
            with backend.part(component.name):
                component.allocate(self)
        with backend.part("decoder"):
            brain.decoder.allocate(self)
        self._table = backend.asarray(self._table, "int64")
        with backend.part("activation checkpoints"):
            self.checkpointing = checkpointing(self) if checkpointing else None
        with backend.part("eligibility traces"):
            self.eligibility = Eligibility(self) if eligibility else None
        self.learning_signal = SIGNALS[signal](self) if learning else None
        with backend.part("exploration"):
            self.exploration = Exploration(self) if explores else None

    def drop(self, drops: bool):
        """drops: whether values are dropped from now on. A change of it clears the recorded steps, which have the rates from before."""
        if drops != self.dropout.drops:
            self.dropout.drops = drops
            self.recorded.clear()

    def buffer_slice(self, first, last):
        """The slice of tokens first ... last - 1, those of a chunk, in arrays that hold `buffered_tokens` tokens."""
        return slice(first, last) if self.buffered_tokens == self.tokens else slice(0, last - first)

    def state_rows(self, size):
        """A state array [buffered_tokens + 1, B, size], once for each of a component's `state_sizes`. Row 0 is the token before the first;
        `advance` copies the row of the last token there."""
        row = self.batch * size
        begin = sum((self.buffered_tokens + 1) * other for _, other in self._table)
        self._table.append((begin, row))
        return self._rows[begin : begin + (self.buffered_tokens + 1) * row].reshape(self.buffered_tokens + 1, self.batch, size)

    def load_tokens(self, ids):
        """Load the tokens [T', B] int32 of the next segment, T' at most T; B: of the whole batch."""
        self.length = len(ids)
        self.ids[: self.length] = self.brain.backend.asarray(ids[:, self.columns], "int32")
        for component in self.brain.components:
            component.load_tokens(self, ids)

    @property
    def levels(self) -> dict:
        """Neuromodulator -> its level [B], an array of the device; empty where the brain has none."""
        return dict(zip(LEVELS, self.modulators, strict=False))

    def reward(self, x):
        """Add a reward, a number or [B], to the dopamine of the next change of levels. Raises ConfigError for anything else."""
        if not self.brain.modulation:
            raise ConfigError("this brain has no neuromodulators, which a reward is for; train one with brain.neuromodulation = true")
        try:
            given = np.asarray(x)
        except (TypeError, ValueError):  # an array of a device, lists of different lengths
            given = np.empty(0)
        if given.shape not in ((), (self.batch,)) or given.dtype.kind not in "biuf" or not (np.abs(given, dtype=float) <= FLOAT32).all():
            wanted = f"a finite number is needed, or one for each sequence, of shape [{self.batch}]"
            raise ConfigError(f"reward: {wanted}; not {x!r}")
        row = self.modulators[REWARD]
        np.add(row, self.brain.backend.asarray(np.broadcast_to(given, self.batch), "float32"), out=row)

    def factor(self, target: int, first: int):
        """[B]: what the neuromodulators multiply a target with (brain/neuromodulation.py) in the chunk of token `first`."""
        return self.factors[first // self.chunk, target] if self.brain.modulation else self.neutral

    def current_grad(self, current, first, last):
        """(array [lines, columns, numbers of a line], first column, scale): where the gradient of a current of the chunk, times scale, is
        to be written. Column token B + sequence; a gradient of its own is one line."""
        if current in self.direct_gradients:
            return self.synapses.current_grad(current, first, last)
        gradient = self.currents[current].gradient[: last - first]
        return gradient.reshape(1, -1, gradient.shape[2]), 0, 1

    def advance(self, length: int):
        """Roll the state over: the state after `length` tokens is the one before the next segment."""
        if self.checkpointing:
            self.checkpointing.load_boundary(-(-length // self.chunk))
        else:
            self.brain.backend.roll_state(self._rows, self._table, length)
        self.synapses.advance(length)

    def rates(self, length: int) -> dict[str, float]:
        """Fraction of each module's neurons that fire per token of the last segment, 0 to 1; with checkpointing, over one chunk only."""
        length = min(length, self.buffered_tokens)
        return {name: float((self.v[name][1 : length + 1] > 1).mean()) for name in MODULES}

    def non_finite(self) -> list[str]:
        """Modules with a state that is NaN or infinite, earliest token first; of one token, in the order of the forward pass."""
        found = []
        for name in MODULES:
            finite = [np.isfinite(rows).all(axis=(1, 2)) for rows in self.neurons[name].values()]  # of each token
            tokens = np.flatnonzero(~np.all([self.brain.backend.to_numpy(rows) for rows in finite], axis=0))
            found += [(tokens[0], name)] if len(tokens) else []
        return [name for _, name in sorted(found, key=lambda entry: entry[0])]

    def _carried(self):
        """The arrays of the state without the histories: name -> array."""
        arrays = {}
        for name in MODULES:
            arrays |= {f"{name}.{state}": rows[0] for state, rows in self.neurons[name].items()}
            arrays |= {f"{name}.y": self.y[name][0]} if name in self.y else {}
        return arrays | {"memory.S": self.S, "memory.key": self.key, "working_memory.m": self.m[0]} | self.levels | self._followed()

    def _followed(self):
        """What the levels of neuromodulators follow: state name -> array [B]."""
        return {f"neuromodulation.{name}": row for name, row in zip(ROWS[len(LEVELS) :], self.modulators[len(LEVELS) :], strict=False)}

    def _histories(self):
        """State name -> signal name, for each signal that delayed synapses read."""
        names = {
            name: name.replace(".axon", ".history") if name.endswith(".axon") else name.replace("readout_", "") + "_history"
            for name in self.signals
        }
        return {names[name]: name for name in self.signals if self.brain.history(name)}

    def views(self) -> dict:
        """The state arrays themselves, not copies: name -> array of the device (DLPack, and on a GPU `__cuda_array_interface__`).

        Names are those of `state`, without the histories (`rings`).
        """
        return self._carried()

    def rings(self) -> dict[str, dict]:
        """Ring buffers of the values that axons carried, as the synapses read them: the names of histories in `state` -> views, read-only.

        Token t of a segment is in row (start[0] + t) % rows; between segments the last token is t = -1. value [words, rows, B, 64], with
        neuron n in word n // 64, is float32 on the CPU and has the dtype of the products on a GPU. On the CPU, bit n % 64 of fired [words,
        rows, B] uint64 tells whether the neuron fired.
        """
        return {name: self.synapses.ring(signal) for name, signal in self._histories().items()}

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the state as NumPy arrays, float32.

        `{module}.STATE` for each state of its neuron, `.y` [B, N]; `{module}.history` [H, B, N], the values that the axons carried, newest
        token last; `{module}.out_history`; `memory.S` [B, heads, W, W]; `memory.key` [B, heads W]; `working_memory.m` [B, slots];
        neuromodulators [B], and what their levels follow.
        """
        state = {name: self.brain.backend.fetch(array) for name, array in self._carried().items()}
        return state | {name: self.synapses.past(signal) for name, signal in self._histories().items()}

    def load_state(self, state: dict[str, np.ndarray]):
        """Inverse of `state`. Raises CheckpointError where an array is missing or of another shape."""
        carried, histories = self._carried(), self._histories()
        expected = {name: array.shape for name, array in carried.items()}
        expected |= {name: (self.brain.history(s), self.batch, self.brain.signal_sizes[s]) for name, s in histories.items()}
        for name, shape in expected.items():
            found = state[name].shape if name in state else None
            if found != shape:
                raise CheckpointError(
                    f"state array {name!r}: shape {shape} expected, {found or 'nothing'} found; is it of another brain or batch size?"
                )
        for name, array in carried.items():
            array[...] = self.brain.backend.asarray(state[name], "float32")
        for name, signal in histories.items():
            self.synapses.set_past(signal, state[name])

    def reset(self, sequences=None):
        """Set the state to zero, of the sequences where `sequences` [B] uint8 (on the device) is not 0; of all without it."""
        if sequences is None:
            sequences = self.brain.backend.asarray(np.ones(self.batch), "uint8")
        for array in self._carried().values():
            self.brain.backend.reset(array.reshape(1, self.batch, -1), sequences)
        self.synapses.reset(sequences)
