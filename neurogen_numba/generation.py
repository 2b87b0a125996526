"""Tokens out, one at a time, from a state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

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
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature: 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top-k: 0 (all) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p: above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed: from 0 to 2^64 - 1, not {self.seed}")


class Session:
    """A batch of B sequences under way: what they have heard is in the state of the neurons, not in a growing context."""

    def __init__(self, model, sampling: Sampling, batch: int = 1):
        self.model, self.sampling = model, sampling
        self._act = model.activity(model.config.brain.chunk, batch)
        self._logits = None  # [B, V], for the token to come
        self._drawn = 0
        self.heard = ()  # the tokens heard last, of the first sequence

    def reset(self):
        """Forget everything heard and said."""
        self._act.reset()
        self._logits, self._drawn, self.heard = None, 0, ()

    def feed(self, ids):
        """Hear tokens [T, B] int32."""
        for first in range(0, len(ids), self._act.tokens):
            part = ids[first : first + self._act.tokens]
            logits = self.model.brain.forward(self._act, part)
            self._logits = logits[-self._act.batch :]
            self._act.advance(len(part))
            self.heard = part[:, 0]

    def draw(self):
        """Draw the next token of each sequence, [B] int32, and hear it. Something must have been fed before."""
        tokens = np.zeros(self._act.batch, np.int32)
        how = self.sampling
        key = rng.key(how.seed & 0xFFFFFFFF, how.seed >> 32)
        numbers = np.float32(how.temperature), np.int64(how.top_k), np.float32(how.top_p)
        self.model.backend.sample(tokens, self._logits, *numbers, key, np.uint64(self._drawn))
        self._drawn += 1
        self.feed(tokens[None])
        return tokens


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
