"""Everything that happens in a batch of sequences during one segment, and the state that the next segment starts from."""

from __future__ import annotations

import math
import zlib

import numpy as np

from ..config import MODULES
from ..errors import CheckpointError
from ..kernels import rng
from ..kernels.lanes import LANES
from . import neuromodulation
from .projection import Current, Signal, groups


class Dropout:
    """Which numbers are dropped: a matter of seed, step and place alone, so that backward drops what forward dropped."""

    def __init__(self, batch: int, rate: float = 0.0, seed: int = 0, step: int = 0):
        self.batch, self.rate, self.seed, self.step = batch, np.float32(rate), seed, step

    def at(self, what: str, first: int, size: int):
        """(rate, key, first place) for `size` numbers per column from token `first` on."""
        return self.rate, rng.key(self.seed, self.step, zlib.crc32(what.encode())), np.uint64(first * self.batch * size)


class Activity:
    """Arrays of one batch of B sequences for segments of at most T tokens.

    learning: keep what the backward pass needs. smooth: the test mode of the event function.
    """

    def __init__(self, brain, tokens: int, batch: int, learning: bool = False, smooth: bool = False):
        self.brain, self.tokens, self.batch, self.learning, self.smooth = brain, tokens, batch, learning, smooth
        self.chunk = min(brain.config.chunk, tokens)
        backend = brain.backend
        self.dropout = Dropout(batch)
        # per module: membrane, adaptation, trace, normalised current and the factor that normalised it
        self.v, self.a, self.y, self.x, self.r = {}, {}, {}, {}, {}
        self.dv, self.da, self.dy = {}, {}, {}  # per module: gradients carried from chunk to chunk
        self.levels = {name: backend.zeros(batch) for name in neuromodulation.NAMES}
        self.currents = {
            name: Current(backend, tokens, batch, size, self.chunk, learning, brain.sparse_input(name))
            for name, size in brain.current_sizes.items()
        }
        self.signals = {
            name: Signal(
                backend, tokens, batch, size, brain.history(name), brain.index_dtype, self.chunk, learning, brain.sparse_output(name)
            )
            for name, size in brain.signal_sizes.items()
        }
        widest = max((*brain.current_sizes.values(), *brain.signal_sizes.values()))
        self._lanes = backend.zeros(self.chunk * groups(batch) * widest * LANES)
        for component in brain.components:
            component.allocate(self)
        self._modulate()

    def _modulate(self):
        self.gain_scale, self.beta_scale, self.write_scale = neuromodulation.scales(self.levels)

    def lanes(self, tokens: int, size: int):
        """Lane-ordered scratch [tokens, G, size, LANES], for what is summed up over several projections; shared by all of them."""
        shape = (tokens, groups(self.batch), size, LANES)
        return self._lanes[: math.prod(shape)].reshape(shape)

    def send(self, name, first, last):
        """Make the plain values of a signal's tokens into event lists, where sparse synapses listen."""
        signal = self.signals[name]
        if signal.lists:
            self.brain.backend.list_values(*signal.rows(first, last), signal.x[first:last])

    def advance(self, length: int):
        """Carry the state over: what `length` tokens left behind is what the next segment starts from."""
        for rows in (*self.v.values(), *self.a.values(), *self.y.values(), self.m):
            rows[0] = rows[length]
        for signal in self.signals.values():
            signal.roll(length)

    def rates(self, length: int) -> dict[str, float]:
        """Share of the neurons of each module with an event, per token of the segment just run."""
        return {name: float((self.v[name][1 : length + 1] > 1).mean()) for name in MODULES}

    def _carried(self):
        """The arrays that make the state, apart from histories: name -> array whose content is carried."""
        arrays = {}
        for letter, table in (("v", self.v), ("a", self.a), ("y", self.y)):
            arrays |= {f"{name}.{letter}": rows[0] for name, rows in table.items()}
        return arrays | {"memory.S": self.S, "memory.key": self.key, "working_memory.m": self.m[0]} | self.levels

    def _histories(self):
        """State name -> signal, for each signal whose past is heard."""
        names = {
            name: name.replace(".axon", ".history") if name.endswith(".axon") else name.replace("readout_", "") + "_history"
            for name in self.signals
        }
        return {names[name]: signal for name, signal in self.signals.items() if signal.history}

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the state as NumPy arrays: `{module}.v`, `.a`, `.y` [B, N], `{module}.history` [H, B, N] (what the axons carried, the
        newest token last), `{module}.out_history`, `memory.S` [B, heads, W, W], `memory.key` [B, heads W], `working_memory.m` [B, slots],
        and the neuromodulators [B]; float32."""
        backend = self.brain.backend
        state = {name: backend.to_numpy(array) for name, array in self._carried().items()}
        for name, signal in self._histories().items():
            index, value, fired, _ = signal.rows(-signal.history, 0)
            past = backend.zeros((signal.history, self.batch, index.shape[2]))
            backend.spread_events(past, index, value, fired)
            state[name] = backend.to_numpy(past)
        return state

    def load_state(self, state: dict[str, np.ndarray]):
        """Inverse of `state`. Raises CheckpointError where an array is missing or of another shape."""
        backend, carried, histories = self.brain.backend, self._carried(), self._histories()
        wanted = {name: array.shape for name, array in carried.items()}
        wanted |= {name: (signal.history, self.batch, signal.lists[0].shape[2]) for name, signal in histories.items()}
        for name, shape in wanted.items():
            found = state[name].shape if name in state else None
            if found != shape:
                raise CheckpointError(
                    f"state array {name!r}: shape {shape} wanted, {found or 'nothing'} found; was it saved by another brain or batch size?"
                )
        for name, array in carried.items():
            array[...] = backend.asarray(state[name], "float32")
        for name, signal in histories.items():
            past = np.zeros((signal.history, groups(self.batch) * LANES, state[name].shape[2]), np.float32)
            past[:, : self.batch] = state[name]
            past = past.reshape(signal.history, -1, LANES, past.shape[2]).swapaxes(2, 3)  # lane order
            index, value, fired, listed = (np.zeros(array.shape, array.dtype) for array in signal.rows(-signal.history, 0))
            for r, g in np.ndindex(fired.shape):
                heard = np.flatnonzero(past[r, g].any(1))
                fired[r, g] = listed[r, g] = heard.size
                index[r, g, : heard.size], value[r, g, : heard.size] = heard, past[r, g, heard]
            for array, values in zip(signal.rows(-signal.history, 0), (index, value, fired, listed), strict=True):
                array[...] = backend.asarray(values)
        self._modulate()

    def forget(self, sequences: np.ndarray):
        """Put some sequences, [B] bool, into the fresh state; the others go on."""
        for array in self._carried().values():
            array[sequences] = 0
        group, lane = np.divmod(np.flatnonzero(sequences), LANES)
        for signal in self._histories().values():
            _, value, _, _ = signal.rows(-signal.history, 0)
            value[:, group, :, lane] = 0
        self._modulate()

    def reset(self):
        """Forget everything: the fresh state, all zeros."""
        for array in self._carried().values():
            array[...] = 0
        for signal in self._histories().values():
            _, _, fired, listed = signal.rows(-signal.history, 0)
            fired[...] = 0
            listed[...] = 0
        self._modulate()
