"""Text generation: sampling tokens one at a time, from the state of the neurons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..config import FLOAT32, plain_types
from ..errors import CheckpointError, ConfigError
from ..kernels import rng

SCORES = "scores"  # of the next token, in the state of a session
TOGETHER = 16  # tokens of a recorded step; single tokens follow for the rest. A GPU waits for the host between two steps


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
    """Generation of a batch of B sequences. Their past is in the state of the neurons, not in a growing context.

    monitor: records the activity of the brain at each token of the first sequence (brain/monitor.py), or None.
    """

    def __init__(self, model, sampling: Sampling, batch: int = 1):
        self.model, self.sampling = model, sampling
        self.monitor = None
        self.act = model.activity(model.config.brain.chunk, batch)
        self._drawn = model.backend.zeros(batch, "uint64")  # tokens drawn per sequence
        self._latest = model.backend.zeros((TOGETHER, batch), "int32")  # tokens of the last recorded step
        self.last_tokens = ()  # of the first sequence, from the last call
        self.written = 0  # tokens drawn per sequence, also before a reset
        self._modulation, self._vocabulary = model.brain.modulation, model.config.brain.vocabulary
        self._into_chunk = 0  # tokens read since neuromodulators could change last, which they do between chunks

    def reset(self):
        """Reset to the state before the first token."""
        self.act.reset()
        self._drawn[...] = 0
        self.last_tokens, self._into_chunk = (), 0

    def state(self) -> dict[str, np.ndarray]:
        """A copy of all that the next message's answer depends on, but for the sampling: as `Activity.state`, with `drawn` [B] uint64, the
        tokens drawn, and `last_tokens` [T] int32; with neuromodulators `scores` [B, V], the logits of the next token without their bias."""
        drawn = self.model.backend.to_numpy(self._drawn)
        state = self.act.state() | {"drawn": drawn, "last_tokens": np.array(self.last_tokens, np.int32)}
        return state | ({SCORES: self.model.backend.to_numpy(self._scores())} if self._modulation else {})

    def _scores(self):
        """[B, V]: the logits of the next token, without their bias."""
        return self.act.logits[: self.act.batch, : self._vocabulary]

    def load_state(self, state: dict[str, np.ndarray]):
        """Inverse of `state`. Raises CheckpointError where an array is missing or of another shape."""
        expected = {"drawn": self._drawn.shape, "last_tokens": np.shape(state.get("last_tokens"))[:1] or None}
        expected |= {SCORES: self._scores().shape} if self._modulation else {}
        for name, shape in expected.items():
            if name not in state or state[name].shape != shape:
                raise CheckpointError(f"state array {name!r} is missing or of another shape; was it saved by another brain or batch size?")
        self.act.load_state(state)
        if self._modulation:
            self._scores()[...] = self.model.backend.asarray(state[SCORES], "float32")
            noted = int(state["neuromodulation.tokens"][0])  # a token is taken note of when the next one is read
            self._into_chunk = (noted + 1) % self.act.tokens if len(state["last_tokens"]) else 0
        self._drawn[...] = self.model.backend.asarray(state["drawn"], "uint64")
        self.last_tokens = state["last_tokens"]

    def feed(self, ids):
        """Read tokens [T, B] int32."""
        first = 0
        while first < len(ids):
            part = ids[first : first + self.act.tokens - (self._into_chunk if self._modulation else 0)]
            self.act.load_tokens(part)
            begun = bool(self._modulation) and len(self.last_tokens) > 0
            self.model.run(self.act, ("read", len(part), begun), partial(self._read, begun), self.model.backend.record_calls)
            self._passed(len(part))
            self.last_tokens = part[:, 0]
            if self.monitor:
                self.monitor.record(len(part), drawn=False)
            first += len(part)

    def _passed(self, tokens):
        """So many tokens more have been read."""
        self._into_chunk = (self._into_chunk + tokens) % self.act.tokens

    def draw(self):
        """Draw the next token of each sequence, [B] int32, and read it. Requires a call of `feed` before."""
        return self.write(1)[0]

    def write(self, count: int):
        """Draw and read `count` tokens: [count, B] int32. They stay on the device until all are drawn."""
        act, backend = self.act, self.model.backend
        written, first, act.length = backend.zeros((count, act.batch), "int32"), 0, 1
        while first < count:
            tokens = TOGETHER if count - first >= TOGETHER and not self.monitor else 1
            measured = self.monitor is not None
            self.model.run(act, ("draw", self.sampling, tokens, measured), partial(self._draw, tokens, measured), backend.record_calls)
            written[first : first + tokens] = self._latest[:tokens]
            if self.monitor:
                self.monitor.record(1, drawn=True)
            first += tokens
        self._passed(count)
        written = backend.to_numpy(written)
        self.written += count
        self.last_tokens = written[-1:, 0] if count else self.last_tokens
        return written

    def _read(self, begun):
        """Run the brain over the loaded tokens. begun: neuromodulators wait for the surprise of the first of them."""
        if begun:
            self._judge()
            self._modulation.observe(self.act, self.act.losses[:1], self.act.ids[:1])
        self._forward()

    def _judge(self):
        """Overwrite act.losses[0] with the surprise of the first loaded token, in nats."""
        act, decoder, logits = self.act, self.model.brain.decoder, self.act.logits[: self.act.batch]
        # the gradient is not needed; it goes where the next token's logits will be
        how = logits, logits, decoder.bias, act.ids[0], act.weight, decoder.shape[0]
        self.model.backend.cross_entropy(act.losses[0], act.hits[0], *how)

    def _forward(self, read=None):
        """Run the brain over the loaded tokens. read: [B] int32, overwritten with the first of them."""
        act, brain = self.act, self.model.brain
        brain.forward(act)
        if self._modulation and act.length > 1:
            judged = act.length - 1
            self.model.backend.apply(np.copyto, act.targets[:judged], act.ids[1 : act.length])
            brain.decoder.losses(act, 0, judged)
            self._modulation.observe(act, act.losses[:judged], act.targets[:judged])

        def end_segment():
            act.advance(act.length)
            if read is not None:
                self.model.backend.apply(np.copyto, read, act.ids[0])

        with self.model.backend.beside(end_segment):
            brain.decoder.scores(act, act.length - 1, act.length)  # of the next token, into the first rows of act.logits

    def _draw(self, tokens, measured):
        """Draw and read tokens. measured: also overwrite act.losses[0] with the surprise of the last one, in nats."""
        act, how, decoder = self.act, self.sampling, self.model.brain.decoder
        key = rng.key(how.seed & 0xFFFFFFFF, how.seed >> 32)
        numbers = np.float32(how.temperature), how.top_k, np.float32(how.top_p)
        logits = act.logits[: act.batch], decoder.bias
        for t in range(tokens):
            self.model.backend.sample(act.ids[0], *logits, *numbers, key, self._drawn, decoder.shape[0])
            if measured or self._modulation:
                self._judge()
            if self._modulation:
                self._modulation.observe(act, act.losses[:1], act.ids[:1])
            self._forward(self._latest[t])


def stream(session: Session, tokenizer, prompt: str, length: int, stop: str = "") -> Iterator[str]:
    """Feed `prompt` to a session of one sequence and yield the text that follows, piece by piece, as it is drawn.

    A new session reads an end of text first, if the tokenizer has one, because documents begin after it. Without one, and without a prompt,
    it reads token 0. Stops after `length` tokens, at an end of text, or before the string `stop`.
    """
    ids = tokenizer.encode(prompt)
    if not len(session.last_tokens) and tokenizer.end_of_text is not None:
        ids = np.append(tokenizer.end_of_text, ids)
    elif not len(ids) and not len(session.last_tokens):
        ids = np.zeros(1)
    if len(ids):
        session.feed(ids.astype(np.int32)[:, None])
    text = tokenizer.stream()
    held = ""  # text that may be the beginning of `stop`
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
