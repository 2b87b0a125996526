"""Text of any length -> segments, tokenized while it is read: large files, parquet, JSON lines, data sets of the hub."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

import numpy as np

from ..config import Text, Training, counted
from ..errors import ConfigError, DataError
from ..system.waiting import watched
from .batches import HELD_OUT_TOKENS, Batches, Validation, check_position, end_to_stop_at, held_out_part, split
from .encoding import encoded, measured
from .sources import Piece, Source, open_source
from .tokenizer import SAMPLE, Tokenizer, build

HELD_OUT_BYTES = 200_000  # of held-out text, at most


class StreamCorpus:
    """A source that is read during training, in chunks of `text.chunk_tokens`, and repeated from its beginning after its end.

    Its beginning is held out and never trained on: the fraction `text.validation`, up to HELD_OUT_BYTES. A SentencePiece tokenizer is
    trained on the documents after it, as many as it can use.
    Raises DataError if the text cannot be used, ConfigError if the tokenizer cannot.
    """

    def __init__(self, text: Text, training: Training, tokenizer: Tokenizer | None = None):
        self._text, self._training = text, training
        self._source = open_source(text.data, text.field)
        pieces = self._source.read()
        held_out, ahead, self._start, ended = _hold_out(self._source, pieces, text.validation)
        self.tokenizer = tokenizer or tokenizer_for(text, self._source, chain(ahead, pieces), 1.0)[0]
        self._end = end_to_stop_at(text, self.tokenizer)
        ends = not self._source.single
        self._held_out = [measured(self.tokenizer, piece, ends) for piece in held_out]
        self._held_bytes = _bytes(held_out)
        self._training_bytes = _bytes(ahead) if ended else None

    @property
    def shares(self) -> str:
        """The sizes of the training and the held-out part, in a sentence."""
        training = "the rest" if self._training_bytes is None else f"{counted(self._training_bytes, 'byte')} of text"
        return f"{training} to train on, {self._held_bytes:,}{' bytes of text' if self._training_bytes is None else ''} held out"

    def batches(self, position: dict | None = None) -> StreamBatches:
        """The training part, repeated without end, from its start or from a saved position. Raises CheckpointError if that is of another
        source."""
        identity = {"held_out": self._held_bytes}
        return StreamBatches(self._source, self._start, self.tokenizer, self._text, self._training, position, self._end, identity)

    def validation(self, tokens_wanted: int | None = None) -> Validation:
        """The first `tokens_wanted` held-out targets (at least a segment), or 50,000. Raises DataError if there are too few."""
        limit = HELD_OUT_TOKENS if tokens_wanted is None else tokens_wanted
        return held_out_part(self._source.name, self._held_out, self._training, limit)


class StreamBatches(Batches):
    """B streams of documents. A stream that reaches the end of its document takes the next one.

    Documents arrive in chunks of at least `text.chunk_tokens` tokens, each shuffled with the seed, and are numbered in that order. A
    position contains the oldest chunk in use and the numbers of the documents of every stream; resuming reads the source from that chunk
    on. identity: further values that must match those of the saved position.
    Raises CheckpointError if a position is of another source or other settings.
    """

    def __init__(
        self,
        source: Source,
        start: dict,
        tokenizer: Tokenizer,
        text: Text,
        training: Training,
        position: dict | None = None,
        end: int | None = None,
        identity: dict | None = None,
    ):
        super().__init__(training.segment, end)
        self._source, self._start, self._tokenizer, self._text, self._seed = source, start, tokenizer, text, training.seed
        self._identity = (
            source.identity() | (identity or {}) | {"batch": training.batch, "seed": training.seed, "chunk_tokens": text.chunk_tokens}
        )
        if position is None:
            position = {"after": start, "first": 0, "next": 0, "streams": [[[], 0]] * training.batch}
        else:
            check_position(
                (identity or {}) | position, self._identity
            )  # positions of older versions held out more, and do not record how much
        self._chunks = deque([(position["first"], position["after"])])  # chunks in use: (number of the first document, position before it)
        self._next = position["first"]  # number of the next document
        self._documents = self._read(position["after"], position["first"])
        self._resume(position["next"], position["streams"])

    def position(self):
        number, after = self._chunks[0]
        streams = [[[number for number, _ in queue], offset] for queue, offset in zip(self._queues, self._offsets, strict=True)]
        return self._identity | {"after": after, "first": number, "next": self._next, "streams": streams}

    def _resume(self, until, streams):
        needed, found = {number for numbers, _ in streams for number in numbers}, {}
        while self._next < until:
            number, ids = self._take()
            if number in needed:
                found[number] = ids
        self._queues = [deque((number, found[number]) for number in numbers) for numbers, _ in streams]
        self._offsets = [offset for _, offset in streams]

    def _look(self):
        block = np.empty((self._length + 1, len(self._queues)), np.int32)
        for b, (queue, offset) in enumerate(zip(self._queues, self._offsets, strict=True)):
            filled = document = 0
            while filled <= self._length:
                if document == len(queue):
                    queue.append(self._take())
                ids = queue[document][1][offset : offset + self._length + 1 - filled]
                block[filled : filled + len(ids), b] = ids
                filled, document, offset = filled + len(ids), document + 1, 0
        return block

    def _move(self, moves):
        for b, tokens in enumerate(moves.tolist()):
            self._offsets[b] += tokens
            while self._offsets[b] >= len(self._queues[b][0][1]):
                self._offsets[b] -= len(self._queues[b].popleft()[1])
        oldest = min(queue[0][0] for queue in self._queues)
        while len(self._chunks) > 1 and self._chunks[1][0] <= oldest:
            self._chunks.popleft()

    def _take(self):
        """(number, ids) of the next document."""
        number, ids = next(self._documents)
        self._next = number + 1
        return number, ids

    def _read(self, after, number):
        """Numbers and ids of documents, from the first one of a chunk on, without end."""
        chunk, tokens = [], 0
        for piece, ids in encoded(self._pieces(after), self._tokenizer, not self._source.single, self._text.workers):
            chunk.append(ids)
            tokens += len(ids)
            if tokens >= self._text.chunk_tokens or piece.after == self._start:
                self._chunks.append((number, after))
                for index in np.random.default_rng([self._seed, number]).permutation(len(chunk)):
                    yield number, chunk[index]
                    number += 1
                chunk, tokens, after = [], 0, piece.after

    def _pieces(self, after):
        """The pieces after a position, repeated without end; the last piece of the source is marked."""
        while True:
            last = None
            for piece in _behind(self._source, after):
                if last:
                    yield last
                last = piece
            if last is None:
                raise DataError(f"{self._source.name}: there is no more text after {after}; restore it, then continue with --resume")
            yield last._replace(after=self._start)
            after = self._start


def tokenizer_for(text: Text, source: Source, pieces: Iterator[Piece], share: float) -> tuple[Tokenizer, Iterator[Piece]]:
    """The tokenizer for `text`, and all pieces again, including those on which it was trained.

    share: if the source ends with these pieces, the tokenizer is trained on this fraction of them only.
    Raises ConfigError for a char or word tokenizer that would need a separate pass through the source, else as `tokenizer.build`.
    """
    if text.tokenizer in ("char", "word"):
        if source.size is None:
            raise ConfigError(f"--tokenizer {text.tokenizer}: it would need a pass through all of {source.name}; use sentencepiece or byte")
        everything = watched(source.read(), f"reading {source.name} for its {text.tokenizer}s", source.size if source.plain else None)
        return build(text.tokenizer, (piece.text for piece in everything), text.vocabulary, not source.single), pieces
    sample, size = [], 0
    if text.tokenizer == "sentencepiece":
        for piece in pieces:
            sample.append(piece)
            size += len(piece.text)
            if size >= SAMPLE:
                break
    texts = [piece.text for piece in sample]
    seen = texts if size >= SAMPLE else split(texts, share)[0]
    return build(text.tokenizer, seen, text.vocabulary, not source.single), chain(sample, pieces)


def _hold_out(source, pieces, share):
    """(held-out pieces, further pieces read, position where the latter begin, whether the source ends with them). A piece may be split."""
    ahead, size, ended = [], 0, True
    for piece in pieces:
        ahead.append(piece)
        size += _bytes([piece])
        if size * share >= HELD_OUT_BYTES:
            ended = False
            break
    left, before = min(int(size * share), HELD_OUT_BYTES), None
    for count, piece in enumerate(ahead):
        content = piece.text.encode()
        cut = len(content[:left].decode(errors="ignore"))
        if cut < len(piece.text):
            start = before if not cut else {"before": before, "cut": cut}
            held_out = ahead[:count] + ([piece.part(0, cut)._replace(ends=False)] if cut else [])
            if not held_out:
                break
            return held_out, [piece.part(cut), *ahead[count + 1 :]], start, ended
        left, before = left - len(content), piece.after
    raise DataError(f"{source.name}: {counted(size, 'byte')} of text; too little to hold some out and train on the rest; give more text")


def _behind(source, position):
    """The pieces behind a position, which may lie within one."""
    if position is None or "cut" not in position:
        yield from source.read(position)
        return
    pieces = source.read(position["before"])
    for piece in pieces:
        yield piece.part(position["cut"])
        break
    yield from pieces


def _bytes(pieces):
    return sum(len(piece.text.encode()) for piece in pieces)
