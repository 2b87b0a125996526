"""Tokens out, one at a time, from a state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .config import FLOAT32, plain_types
from .errors import ConfigError
from .kernels import rng


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn (kernels/sampling.py)."""

    temperature: float = 1.0  # 0: the most probable token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        plain_types(self, "")
        if not 0 <= self.temperature <= FLOAT32:
            raise ConfigError(f"temperature: 0 or more, not {self.temperature}")
        if not 0 <= self.top_k < 2**63:
            raise ConfigError(f"top-k: 0 (all) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p: above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed: from 0 to 2^64 - 1, not {self.seed}")


class Session:
    """A batch of B sequences under way: what they have heard is in the state of the neurons, not in a growing context."""

    def __init__(self, model, sampling: Sampling, batch: int = 1):
        self.model, self.sampling = model, sampling
        self.act = model.activity(model.config.brain.chunk, batch)
        self._drawn = model.backend.zeros(batch, "uint64")  # how many tokens each sequence has drawn
        self.heard = ()  # the tokens heard last, of the first sequence

    def reset(self):
        """Forget everything heard and said."""
        self.act.reset()
        self._drawn[...] = 0
        self.heard = ()

    def feed(self, ids):
        """Hear tokens [T, B] int32."""
        for first in range(0, len(ids), self.act.tokens):
            part = ids[first : first + self.act.tokens]
            self.act.hear(part)
            self.model.run(self.act, ("hear", len(part)), self._hear)
            self.heard = part[:, 0]

    def draw(self):
        """Draw the next token of each sequence, [B] int32, and hear it. Something must have been fed before."""
        return self.write(1)[0]

    def write(self, count: int):
        """`count` tokens, each drawn and heard: [count, B] int32. A drawn token goes straight on to the neurons; all of them are looked at
        in the end."""
        act, backend = self.act, self.model.backend
        written = backend.zeros((count, act.batch), "int32")
        for t in range(count):
            act.length = 1
            self.model.run(act, ("draw", self.sampling), self._draw)
            written[t] = act.ids[0]
        written = backend.to_numpy(written)
        self.heard = written[-1:, 0] if count else self.heard
        return written

    def _hear(self):
        act, brain = self.act, self.model.brain
        brain.think(act)
        with self.model.backend.beside(lambda: act.advance(act.length)):
            brain.decoder.scores(act, act.length - 1, act.length)  # of the token to come, the first rows of act.logits

    def _draw(self):
        act, how, decoder = self.act, self.sampling, self.model.brain.decoder
        key = rng.key(how.seed & 0xFFFFFFFF, how.seed >> 32)
        numbers = np.float32(how.temperature), how.top_k, np.float32(how.top_p)
        logits = act.logits[: act.batch], decoder.bias
        self.model.backend.sample(act.ids[0], *logits, *numbers, key, self._drawn, decoder.shape[0])
        self._hear()


def stream(session: Session, tokenizer, prompt: str, length: int, stop: str = "") -> Iterator[str]:
    """Say `prompt` to a session of one sequence and yield the text that follows, piece by piece, as it is drawn.

    A session that has heard nothing yet hears an end of text first, where the tokenizer has one: that is what documents begin after.
    Ends after `length` tokens, at the end of text, or before the string `stop`. Without anything to hear it starts from token 0.
    """
    ids = tokenizer.encode(prompt)
    if not len(session.heard) and tokenizer.end_of_text is not None:
        ids = np.append(tokenizer.end_of_text, ids)
    elif not len(ids) and not len(session.heard):
        ids = np.zeros(1)
    if len(ids):
        session.feed(ids.astype(np.int32)[:, None])
    text = tokenizer.stream()
    held = ""  # what may turn out to be the beginning of `stop`
    for _ in range(length):
        token = int(session.draw()[0])
        if token == tokenizer.end_of_text:
            break
        held += text.push(token)
        if stop and stop in held:
            yield held[: held.index(stop)]
            return
        keep = max((n for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    yield held + text.finish()
