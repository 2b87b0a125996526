"""Evaluation on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import STREAMS, Training
from ..text.batches import Validation
from ..text.stories import Question
from ..text.tokenizer import Tokenizer

SHORTEST = 256  # targets of a piece, if there are several: a model starts each from a zero state


@dataclass(frozen=True)
class Score:
    """loss: nats per token; accuracy: 0 to 1; bits_per_byte, and the entropy of the text as its floor, if known."""

    loss: float
    accuracy: float
    bits_per_byte: float
    floor_bits_per_byte: float | None
    tokens: int


def streams_of(training: Training) -> int:
    """Texts evaluated in parallel: at most the training batch, so that evaluation takes less memory than training."""
    return min(STREAMS, training.batch)


def streams_for(tokens: int, most: int) -> int:
    """The number of pieces into which a text is split: `most`, or fewer, so that each has at least SHORTEST targets."""
    return min(most, max(1, tokens // SHORTEST))


class Plain:
    """Scores segments of `streams` texts side by side, with the state carried from segment to segment."""

    def __init__(self, model, streams: int, tokens: int | None = None):
        """tokens: of a segment, at most; a chunk if None."""
        self.model, self.act = model, model.activity(tokens or model.config.brain.chunk, streams)
        self.tokens = self.act.tokens

    def score(self, inputs, targets):
        """(nats [T, B], hits [T, B]) of time-major inputs and targets [T, B] int32, the next segment; 0 for a target below 0."""
        return self.model.score(self.act, inputs, targets)


def evaluate(
    model,
    validation: Validation,
    stopping: Callable[[], bool] = lambda: False,
    most_streams: int | None = None,
    tell: Callable[[int], None] = lambda done: None,
    scorer=Plain,
) -> Score | None:
    """Score held-out tokens. Every token but the first is a target, and the mean is over all of them. None if `stopping()` became true.

    The text is cut into `streams_for` pieces, read in parallel, each from a zero state with the state carried to its end.
    most_streams: `streams_of` training, if None. tell: called at intervals with the number of targets scored. scorer: `Plain`, or a class
    with the same methods (neural_cache.py, dynamic_evaluation.py, temperature.py).
    """
    ids, n = validation.tokens, len(validation.tokens) - 1
    streams = streams_for(n, most_streams or streams_of(model.config.training))
    length = -(-n // streams)
    starts = np.arange(streams) * length
    reader = scorer(model, streams)
    nats = hits = 0.0
    for first in range(0, length, reader.tokens):
        if stopping():
            return None
        index = starts + np.arange(first, min(first + reader.tokens, length))[:, None]  # [T, B]
        inputs = ids[np.minimum(index, n)].astype(np.int32)
        targets = np.where(index < n, ids[np.minimum(index + 1, n)], -1).astype(np.int32)
        losses, right = reader.score(inputs, targets)
        nats += losses.sum(dtype=np.float64)
        hits += right.sum()
        tell(min(n, (first + reader.tokens) * streams))
    floor = None if validation.floor_bits is None else validation.floor_bits / validation.bytes
    return Score(float(nats / n), float(hits / n), float(nats / math.log(2) / validation.bytes), floor, n)


def words_in(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """Number of words, separated by white space, in the text of tokens [n]. With a word tokenizer, ends of lines count, too."""
    if tokenizer.kind == "word":
        return len(tokens)
    ends = np.flatnonzero(tokens == tokenizer.end_of_text) if tokenizer.end_of_text is not None else []
    return sum(len(tokenizer.decode(document).split()) for document in np.split(tokens, ends))


def unknown_share(tokens: np.ndarray, tokenizer: Tokenizer) -> float:
    """Share of word tokens [n] that are <unk>, unknown or literal, 0 to 1."""
    return float((tokens == tokenizer.unknown).mean())


def answer_questions(
    model, questions: Sequence[Question], streams: int | None = None, tell: Callable[[int], None] = lambda done: None
) -> tuple[float, float]:
    """(share of questions answered right, expected share by chance), 0 to 1.

    An answer is right if each of its tokens is the most probable one, that is, if greedy generation writes it. Each question is read after
    the text that it is about, from a zero state. streams: questions in parallel; `streams_of` training, if None. All tokens are
    targets, because neuromodulators follow the loss of all tokens read. tell: called at intervals with the number of questions answered.
    """
    encode, right, streams = model.tokenizer.encode, 0, streams or streams_of(model.config.training)
    for first in range(0, len(questions), streams):
        asked = questions[first : first + streams]
        pairs = [(encode(question.prompt), encode(question.answer)) for question in asked]
        length = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
        inputs, targets = np.zeros((length, len(asked)), np.int32), np.full((length, len(asked)), -1, np.int32)
        answers = np.zeros(targets.shape, bool)
        for b, (prompt, answer) in enumerate(pairs):
            ids = np.concatenate([prompt, answer])
            inputs[: len(ids) - 1, b] = ids[:-1]
            targets[: len(ids) - 1, b] = ids[1:]
            answers[len(prompt) - 1 : len(ids) - 1, b] = True
        act = model.activity(model.config.brain.chunk, len(asked))
        parts = [model.score(act, inputs[t : t + act.tokens], targets[t : t + act.tokens])[1] for t in range(0, length, act.tokens)]
        right += int((np.concatenate(parts) | ~answers).all(0).sum())
        tell(first + len(asked))
    return right / len(questions), sum(question.chance for question in questions) / len(questions)
