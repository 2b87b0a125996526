"""`NeuroGenModel.listen`: the activity of a brain at each token of a text, as arrays with `repr` and `plot`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..brain.monitor import Recalled, recalled_words
from ..brain.recall import RecallTrace
from ..config import MODULES, counted, did_you_mean
from ..errors import ConfigError
from ..kernels.neuromodulation import TOKENS, WRITE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from ..brain.activity import Activity
    from ..brain.model import NeuroGenModel

MOST_SHARES = 2**28  # numbers that `Recording.recalled` returns at most: a gigabyte
SHOWN = 16  # latest tokens in the repr of a Recall
SURPRISING = 5  # tokens in the repr of a Surprise


@dataclass(frozen=True, repr=False, eq=False)
class Raster:
    """Events of neurons of one module.

    events: [T, n] bool, of T tokens and n neurons. neurons: [n] int64, their indices in the module, which has `size` neurons. tokens: the
    text of each token.
    """

    module: str
    events: np.ndarray
    neurons: np.ndarray
    size: int
    tokens: tuple[str, ...]

    def __repr__(self) -> str:
        shape = f"{counted(len(self.tokens), 'token')} x {len(self.neurons):,} of {counted(self.size, 'neuron')}"
        return f"Raster({self.module}: {shape}, {self.events.mean():.1%} with an event)"

    def plot(self) -> Figure:
        """A figure: a mark for each event, tokens from left to right."""
        from ..ui.recording_page import raster_page

        return raster_page(self)


@dataclass(frozen=True, repr=False, eq=False)
class Surprise:
    """-ln of the probability that the model gave each token before it read it, at temperature 1.

    nats: [T] float32; NaN for a first token that nothing came before. tokens: the text of each token.
    """

    nats: np.ndarray
    tokens: tuple[str, ...]

    @property
    def bits(self) -> np.ndarray:
        """[T] float32: -log2 of the probabilities."""
        return self.nats / np.float32(math.log(2))

    @property
    def mean(self) -> float:
        """Nats per token, over the tokens that are not NaN; NaN if there are none."""
        known = self.nats[np.isfinite(self.nats)]
        return float(known.mean(dtype=np.float64)) if known.size else math.nan

    def __repr__(self) -> str:
        order = [n for n in np.argsort(-self.nats, kind="stable") if np.isfinite(self.nats[n])][:SURPRISING]
        most = ", ".join(f"{self.tokens[n]!r} {self.nats[n]:.2f}" for n in order)
        return f"Surprise(mean {self.mean:.3f} nats = {self.mean / math.log(2):.3f} bits per token; most: {most or 'unknown'})"

    def plot(self) -> Figure:
        """A figure: a bar for each token, in nats."""
        from ..ui.recording_page import surprise_page

        return surprise_page(self)


@dataclass(frozen=True, repr=False, eq=False)
class Rates:
    """The share of all neurons of a module with an event, 0 to 1: `rates["wernicke"]`, [T] float32.

    modules: module -> these. tokens: the text of each token.
    """

    modules: dict[str, np.ndarray]
    tokens: tuple[str, ...]

    def __getitem__(self, module: str) -> np.ndarray:
        return self.modules[_module(module)]

    @property
    def mean(self) -> dict[str, float]:
        """Module -> its mean over the tokens."""
        return {name: float(rate.mean()) for name, rate in self.modules.items()}

    def __repr__(self) -> str:
        return f"Rates({', '.join(f'{name} {mean:.1%}' for name, mean in self.mean.items())})"

    def plot(self) -> Figure:
        """A figure: a line for each module."""
        from ..ui.recording_page import rates_page

        return rates_page(self)


@dataclass(frozen=True, repr=False, eq=False)
class Recall:
    """Readings of the associative memory, split into contributions of earlier tokens. Exact (brain/recall.py): nothing is estimated.

    shares: [n, heads, T] float32: the part of a head's reading at token first + i that token j of the text has written. Negative where a
    token takes away from it; 0 for tokens to come. before: [n, heads] float32, the part that was stored before the text. Together they are
    1, or less for a head that recalls almost nothing; a share may be above 1 where others are negative. tokens: the text of all T tokens.
    """

    shares: np.ndarray
    before: np.ndarray
    first: int
    tokens: tuple[str, ...]

    @property
    def mean(self) -> np.ndarray:
        """[n, T] float32: the mean of the shares over heads."""
        return self.shares.mean(1)

    def words(self, head: int | None = None) -> tuple[Recalled, ...]:
        """For each of the n tokens the words that it recalls, with their shares: the mean over heads, as the chat shows it, or one head.

        Raises ConfigError for a head that does not exist.
        """
        return recalled_words(self.tokens, self._read, self._of(head))

    def __repr__(self) -> str:
        n, heads, T = self.shares.shape
        lines = [f"Recall: {counted(n, 'reading')} by {counted(heads, 'head')}, of {counted(T, 'token')}"]
        if n == 1:
            lines[0] = f"Recall: the reading at {self._read[0]!r} by {counted(heads, 'head')}, of {counted(T, 'token')}"
            return "\n".join([*lines, *(f"  head {head:<5} <- {_sources(self.words(head)[0])}" for head in range(heads))])
        lines += [f"  ... {counted(n - SHOWN, 'token')} before these"] if n > SHOWN else []
        return "\n".join([*lines, *(f"  {recalled.token!r:10} <- {_sources(recalled)}" for recalled in self.words()[-SHOWN:])])

    def plot(self, head: int | None = None) -> Figure:
        """A figure: a row for each reading, a column for each token that it comes from. It shows the mean over heads, or one head; of one
        reading alone it shows all heads. Raises ConfigError for a head that does not exist."""
        from ..ui.recording_page import recall_page

        self._of(head)
        return recall_page(self, head)

    @property
    def _read(self):
        """The text of the n tokens."""
        return self.tokens[self.first : self.first + len(self.shares)]

    def _of(self, head):
        """[n, T]: the shares of one head, or their mean."""
        heads = self.shares.shape[1]
        if head is not None and head not in range(heads):
            raise ConfigError(f"heads are numbered from 0 to {heads - 1}; there is no head {head!r}")
        return self.mean if head is None else self.shares[:, head]


class States(dict[str, np.ndarray]):
    """name -> [T, n] float32. Raises ConfigError for a state that was not asked for."""

    def __missing__(self, name: str) -> np.ndarray:
        nearest = f"; {did_you_mean(name, self)}" if self else ""
        raise ConfigError(f"states: {name!r} was not recorded; ask for it, listen(text, states=[{name!r}]){nearest}")


@dataclass(frozen=True, repr=False, eq=False)
class Recording:
    """The activity of a brain at each of the T tokens of a text.

    ids: [T] int32; tokens: the text of each. surprise, rates: `Surprise`, `Rates`. states: the requested ones, name -> [T, n] float32, of
    the neurons in the rasters. final_state: the state after the last token, for `model.listen(more, state=recording.final_state)`.
    """

    ids: np.ndarray
    tokens: tuple[str, ...]
    surprise: Surprise
    rates: Rates
    states: States
    final_state: dict[str, np.ndarray]
    _rasters: dict[str, Raster]
    _recall: RecallTrace

    def raster(self, module: str) -> Raster:
        """The events of a module. Raises ConfigError for a module that does not exist."""
        return self._rasters[_module(module)]

    def recalled(self, first: int = 0, last: int | None = None) -> Recall:
        """Readings of the associative memory at tokens first ... last - 1 of the text, split by the tokens that wrote them; at all of them
        without arguments, negative numbers count from the end. Raises ConfigError where there are none, or too many for memory."""
        T = len(self.tokens)
        first, last, _ = slice(first, last).indices(T)
        if first >= last:
            raise ConfigError(f"recalled: no token lies from {first} to {last}; the recording has {counted(T, 'token')}")
        if (last - first) * self._recall.heads * T > MOST_SHARES:
            raise ConfigError(f"recalled: {last - first:,} readings of {T:,} tokens are too many at once; ask for recalled(first, last)")
        shares = self._recall.shares_of_heads(first, last)
        before = self._recall.lengths(first, last) - shares.sum(2)
        return Recall(np.ascontiguousarray(shares.swapaxes(0, 1)), before.T.copy(), first, self.tokens)

    def __repr__(self) -> str:
        mean = self.surprise.mean
        surprise = "" if math.isnan(mean) else f", {mean:.3f} nats = {mean / math.log(2):.3f} bits per token"
        lines = [f"Recording: {counted(len(self.tokens), 'token')}{surprise}"]
        lines += [f"  {name:14} {rate:6.1%} of {self._rasters[name].size:,} neurons per token" for name, rate in self.rates.mean.items()]
        lines += [f"  {name:14} {values.shape[1]:,} numbers per token" for name, values in self.states.items()]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A figure: surprise and the events of all modules, above the text."""
        from ..ui.recording_page import recording_page

        return recording_page(self)


def record(
    model: NeuroGenModel, text: str | ArrayLike, state: Mapping[str, np.ndarray] | None, neurons: int | None, states: Iterable[str]
) -> Recording:
    """`NeuroGenModel.listen`, which documents the arguments."""
    ids, tokens = _tokens(model, text)
    if isinstance(states, str):
        raise ConfigError(f"states: names in a list are needed, as in [{states!r}]")
    states = tuple(states)
    act = model.activity(model.config.brain.chunk, 1)
    every = {name: _every(act.v[name].shape[2], neurons) for name in MODULES}
    rows = _state_rows(act, states, every)  # whose shapes are checked before anything runs
    memory = next(part for part in model.brain.components if part.name == "memory")
    rows |= {name: act.currents[name].value[:, 0] for name in memory.inputs}
    rows |= {f"{name}.events": act.v[name][1:, 0, :: every[name]] for name in MODULES}
    fetch, nats = model.backend.to_numpy, np.full(len(ids) + 1, np.nan, np.float32)
    if state is not None:
        _load(act, state)
    elif model.tokenizer is not None and model.tokenizer.end_of_text is not None:
        nats[0] = model.score(act, np.array([[model.tokenizer.end_of_text]], np.int32), ids[:1, None])[0][0, 0]
    key = fetch(act.key[0]).reshape(memory.heads, memory.width)
    recall = RecallTrace(fetch(act.S[0]), key, fetch(memory.decay), fetch(memory.write_bias), len(ids))
    targets = np.append(ids[1:], np.int32(-1))
    parts = {name: [] for name in (*rows, *MODULES)}
    first, into_chunk = 0, int(fetch(act.modulators[TOKENS])[0]) if act.brain.modulation else 0  # levels change where a chunk is full
    while first < len(ids):
        chunk = slice(first, min(len(ids), first + act.tokens - into_chunk))
        length = chunk.stop - first
        nats[first + 1 : chunk.stop + 1] = model.score(act, ids[chunk, None], targets[chunk, None])[0][:, 0]
        read = {name: fetch(row[:length]) for name, row in rows.items()}
        recall.write(*(read[name] for name in memory.inputs), np.full(length, fetch(act.factor(WRITE, 0))[0]))
        for name in rows:
            parts[name].append(read[name] > 1 if name.endswith(".events") else read[name])
        for name in MODULES:
            parts[name].append(fetch((act.v[name][1 : length + 1, 0] > 1).mean(axis=1)))
        first, into_chunk = chunk.stop, (into_chunk + length) % act.tokens
    whole = {name: np.concatenate(part) for name, part in parts.items()}
    sizes = {name: act.v[name].shape[2] for name in MODULES}
    rasters = {name: Raster(name, whole[f"{name}.events"], np.arange(0, sizes[name], every[name]), sizes[name], tokens) for name in MODULES}
    return Recording(
        ids,
        tokens,
        Surprise(nats[:-1].copy(), tokens),  # the last one belongs to the token after the text
        Rates({name: whole[name].astype(np.float32) for name in MODULES}, tokens),
        States({name: whole[name] for name in states}),
        act.state(),
        rasters,
        recall,
    )


def _tokens(model, text):
    """(ids [T] int32, the text of each)."""
    tokenizer = model.tokenizer
    if isinstance(text, str):
        if tokenizer is None:
            raise ConfigError("this model has no tokenizer, so it cannot read text; listen takes token ids, too")
        text = tokenizer.encode(text)
        if not len(text):
            raise ConfigError("listen: the text has no token; at least one is needed")
    columns = model._columns(text, "listen")
    if columns.shape[1] != 1:
        raise ConfigError(f"listen: one sequence of tokens is needed, not {columns.shape[1]}")
    ids = columns[:, 0].copy()
    return ids, tuple(tokenizer.pieces[n].decode(errors="replace") if tokenizer else str(n) for n in ids.tolist())


def _sources(recalled):
    """The words that were recalled, in one line. Equal words after equal ones have the index of their token."""
    words = [(before, word) for before, word, _ in recalled.sources]
    parts = []
    for (before, word, share), token in zip(recalled.sources, recalled.tokens, strict=True):
        where = [f"after {before!r}"] if before else []
        where += [f"token {token}"] if words.count((before, word)) > 1 else []
        parts.append(f"{word!r} {share:.0%}" + (f" ({', '.join(where)})" if where else ""))
    return ", ".join(parts) or "nothing"


def _every(size, neurons):
    """The stride at which neurons are sampled."""
    if neurons is None:
        return 1
    if isinstance(neurons, bool) or not isinstance(neurons, (int, np.integer)) or neurons < 1:
        raise ConfigError(f"neurons: how many of each module are kept, at least 1, or None for all, not {neurons!r}")
    return -(-size // int(neurons))


def _state_rows(act: Activity, states, every):
    """name -> view [act.tokens, n] of the state arrays that are asked for."""
    known = {f"{name}.{state}": rows[1:, 0, :: every[name]] for name in MODULES for state, rows in act.neurons[name].items()}
    known |= {f"{name}.y": rows[1:, 0, :: every[name]] for name, rows in act.y.items()}
    known |= {"working_memory.m": act.m[1:, 0], "memory.out": act.signals["memory.out"].x[:, 0]}
    for name in states:
        if name not in known:
            raise ConfigError(f"states: there is no {name!r} in this brain; {did_you_mean(name, known)}")
    return {name: known[name] for name in states}


def _load(act, state):
    if not isinstance(state, Mapping):
        raise ConfigError(f"state: a table of arrays is needed, as Recording.final_state, not {type(state).__name__}")
    act.load_state(dict(state))


def _module(name):
    if name not in MODULES:
        raise ConfigError(f"there is no module {name!r}; {did_you_mean(name, MODULES)}")
    return name
