"""A monitor of a brain while it reads and writes: events, surprise and recall of one sequence, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import MODULES
from .neuromodulation import WRITE
from .recall import RecallTrace

BUFFERED = 64  # tokens whose values stay on the device until they are fetched
SAMPLED = 4096  # neurons of a module at most, evenly taken, of which its rate is the mean
RASTER = 32  # of these, neurons in the raster
SHOWN = 256  # tokens of the raster
WINDOW = 512  # tokens back that recall is traced to
RATE_TOKENS = 8  # that a rate is the mean over
READINGS = 16  # latest tokens whose recall is shown
SOURCES = 4  # words that a token recalls
LEAST = 0.02  # share of a reading below which a word is left out


@dataclass(frozen=True)
class Recalled:
    """A token, and the earlier words that the associative memory answered it with.

    sources: (words before it, the word, its share of the reading from 0 to 1), largest share first. tokens: for each of these the index of
    its first token in the text.
    """

    token: str
    sources: tuple[tuple[str, str, float], ...]
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class BrainFrame:
    """The brain after a number of tokens.

    rates: module -> share of its neurons with an event per token, over the last RATE_TOKENS tokens. raster: module -> [T, neurons] bool,
    the latest tokens, at most SHOWN, of a sample of its neurons. levels: of the neuromodulators, where the brain has them. recalls: of the
    latest tokens, newest last.
    """

    tokens: int
    rates: dict[str, float]
    raster: dict[str, np.ndarray]
    levels: dict[str, float]
    recalls: tuple[Recalled, ...]


class BrainMonitor:
    """Records sequence 0 of a session. `record` copies on the device and waits for nothing; `frame` and `surprise` fetch and compute."""

    def __init__(self, model, act):
        self.act, self.tokenizer, self._fetch = act, model.tokenizer, model.backend.to_numpy
        zeros, memory = model.backend.zeros, next(part for part in model.brain.components if part.name == "memory")
        self._memory = memory
        rows = {f"{name}.v": act.v[name][1:, 0, :: -(-act.v[name].shape[2] // SAMPLED)] for name in MODULES}
        rows |= {name: act.currents[name].value[:, 0] for name in memory.inputs}
        rows |= {"nats": act.losses[:, 0], "ids": act.ids[:, 0]}
        self._write_scale = zeros(BUFFERED)
        self._rows = {name: (zeros((BUFFERED, *row.shape[1:]), str(row.dtype)), row) for name, row in rows.items()}
        self._single = [(buffer, row[0:1]) for buffer, row in self._rows.values()]
        self.restart()

    def restart(self):
        """Begin anew from the state of the neurons as it is now, which another one has taken the place of."""
        self.tokens, self._buffered, self._drawn = 0, 0, []
        self._nats: list[float] = []  # of the tokens that were drawn
        self._pieces: list[str] = []  # the text of the latest tokens
        self._raster = {name: np.zeros((0, -(-self._rows[f"{name}.v"][0].shape[1] // self._every(name))), bool) for name in MODULES}
        self._rates = {name: np.zeros(0) for name in MODULES}  # of the latest tokens
        memory, fetch = self._memory, self._fetch
        S, key = fetch(self.act.S[0]), fetch(self.act.key[0]).reshape(memory.heads, memory.width)
        self._recall = RecallTrace(S, key, fetch(memory.decay), fetch(memory.write_bias), WINDOW)

    def forget(self):
        """The associative memory has been wiped."""
        self._drain()
        self._recall.forget()

    def record(self, tokens: int, drawn: bool):
        """The session has read `tokens` tokens, at most its chunk; drawn: it drew them itself, and act.losses has their surprise."""
        if self._buffered + tokens > BUFFERED:
            self._drain()
        offset = self._buffered
        if tokens == 1:
            for buffer, row in self._single:
                buffer[offset : offset + 1] = row
        else:
            for buffer, row in self._rows.values():
                buffer[offset : offset + tokens] = row[:tokens]
        self._write_scale[offset : offset + tokens] = self.act.factor(WRITE, 0)[:1]
        self._buffered += tokens
        self._drawn += [drawn] * tokens

    @property
    def drawn(self) -> int:
        """Tokens drawn since `restart`."""
        return len(self._nats) + sum(self._drawn)

    def surprise(self, first: int) -> list[float]:
        """Of the tokens drawn since `restart`, from number `first` on: -ln of the probability at temperature 1, in nats."""
        self._drain()
        return self._nats[first:]

    def _drain(self):
        """Take what the device holds."""
        count = self._buffered
        if not count:
            return
        values = {name: self._fetch(buffer[:count]) for name, (buffer, _) in self._rows.items()}
        for name in MODULES:
            events = values[f"{name}.v"] > 1
            self._rates[name] = np.append(self._rates[name], events[-RATE_TOKENS:].mean(1))[-RATE_TOKENS:]
            self._raster[name] = np.concatenate([self._raster[name], events[:, :: self._every(name)]])[-SHOWN:]
        self._recall.write(*(values[name] for name in self._memory.inputs), self._fetch(self._write_scale[:count]))
        self._nats += values["nats"][np.array(self._drawn)].tolist()
        self._pieces = (self._pieces + [self.tokenizer.pieces[token].decode(errors="replace") for token in values["ids"]])[-2 * WINDOW :]
        self.tokens += count
        self._buffered, self._drawn = 0, []

    def frame(self) -> BrainFrame:
        """The brain as it is now."""
        self._drain()
        levels = {name: float(self._fetch(level)[0]) for name, level in self.act.levels.items()}
        return BrainFrame(
            self.tokens,
            {name: float(rates.mean()) if len(rates) else 0.0 for name, rates in self._rates.items()},
            dict(self._raster),
            levels,
            self._recalls(),
        )

    def _every(self, name):
        """Of how many neurons recorded of a module one is in the raster."""
        return -(-self._rows[f"{name}.v"][0].shape[1] // RASTER)

    def _recalls(self):
        """What the latest tokens recall."""
        known = self._recall.tokens
        if not known:
            return ()
        pieces, tokens = self._pieces[-known:], min(READINGS, known)
        return recalled_words(pieces, pieces[-tokens:], self._recall.shares(tokens))


def recalled_words(pieces: Sequence[str], tokens: Sequence[str], shares: np.ndarray) -> tuple[Recalled, ...]:
    """What each of `tokens` recalls of the text `pieces`: shares [tokens, pieces], which are added up over the tokens of a word."""
    spans = words_of(pieces)
    words = ["".join(pieces[first:last]).strip() for first, last in spans]
    shares = np.add.reduceat(shares, [first for first, _ in spans], axis=1)
    recalls = []
    for token, row in zip(tokens, shares, strict=True):
        best = [int(word) for word in np.argsort(-row)[:SOURCES] if row[word] >= LEAST and words[word]]
        sources = tuple((" ".join(words[max(0, n - 2) : n]), words[n], float(row[n])) for n in best)
        recalls.append(Recalled(token, sources, tuple(spans[n][0] for n in best)))
    return tuple(recalls)


def words_of(pieces: Sequence[str]) -> list[tuple[int, int]]:
    """(first, last + 1) of the tokens of each word, in order: a word begins with a space, after one, or where letters and others meet."""
    starts = [0]
    for n in range(1, len(pieces)):
        before, piece = pieces[n - 1], pieces[n]
        if piece[:1].isspace() or before[-1:].isspace() or piece[:1].isalnum() != before[-1:].isalnum():
            starts.append(n)
    return list(zip(starts, [*starts[1:], len(pieces)], strict=True))
