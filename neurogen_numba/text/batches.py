"""Documents -> segments [T tokens, B sequences], in streams whose position can be saved and resumed.

Sequence b of a segment continues sequence b of the previous segment, so that the state of the network can be carried over. With
`text.reset_at_documents`, a sequence ends with its document: the rest of the segment after an end of text has no targets. The next segment
begins with that end of text, from which the first token of the next document is predicted.
"""

from __future__ import annotations

import bisect
import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..config import Config, Text, Training, counted
from ..errors import CheckpointError, ConfigError, DataError
from ..storage.run_folder import TOKENS
from ..system.waiting import watched
from . import sources
from .encoding import encoded, joined, measured
from .stories import Question, stories, story
from .tokenizer import Tokenizer, build, excerpts

STORIES_FOR_TOKENIZER = 2000
HELD_OUT_SEED = 0  # the same held-out stories for every training seed, so that runs can be compared
HELD_OUT_TOKENS = 50_000  # the meaning of "all" for a text without end


@dataclass(frozen=True)
class Validation:
    """Held-out text: predict tokens[1:], each from the tokens before it.

    tokens: [n + 1] int32.
    bytes: UTF-8 bytes of the text of the n targets, counted in the text itself.
    floor_bits: entropy of the n targets in bits, if the process that generates them is known: no model needs fewer bits on average.
    questions: about the content, if it consists of stories.
    whole: whether it is all of the text that was to be scored.
    estimated: whether `bytes` is estimated from a mean, because the text is not available (a token file of words).
    """

    tokens: np.ndarray
    bytes: int
    floor_bits: float | None = None
    questions: tuple[Question, ...] = ()
    whole: bool = True
    estimated: bool = False


class Batches(ABC):
    """B streams of tokens in segments of `length`, without end.

    end: the end-of-text token, if each document begins a new segment; None if a segment may contain several documents.
    """

    def __init__(self, length: int, end: int | None = None):
        self._length, self._end = length, end

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), each [T, B] int32; targets are the inputs one token on, or -1 for none.

        Raises DataError if the text can no longer be read.
        """
        block = self._look()
        inputs, targets = block[:-1], block[1:]
        moves = np.full(block.shape[1], self._length)
        if self._end is not None:
            ends = targets == self._end
            moves = np.where(ends.any(0), ends.argmax(0) + 1, moves)
            beyond = np.arange(self._length)[:, None] >= moves
            inputs, targets = np.where(beyond, np.int32(self._end), inputs), np.where(beyond, np.int32(-1), targets)
        self._move(moves)
        return inputs, targets

    @abstractmethod
    def position(self) -> dict:
        """The start of the next segment, JSON-able; `batches` of the corpus resumes from it."""

    @abstractmethod
    def _look(self) -> np.ndarray:
        """The next `length` tokens of each stream and the one after them, [T + 1, B] int32."""

    @abstractmethod
    def _move(self, moves: np.ndarray) -> None:
        """Advance the streams by `taken` tokens [B], each at most `length`."""


class FileCorpus:
    """The text of files, tokenized once. Its end, the fraction `text.validation` of its characters, is held out and never trained on.

    Documents of a folder each end with the tokenizer's end of text, if it has one.
    A tokenizer is trained on the training part only. A char tokenizer knows the characters of the whole text, and a word tokenizer has the
    vocabulary of the whole file.
    folder: for a token file, which is reused as long as the text does not change; without a folder, the tokens stay in memory.

    The text is read piece by piece, so memory does not grow with its size.
    Raises DataError if the text cannot be used, ConfigError if the tokenizer cannot.
    """

    def __init__(self, text: Text, training: Training, tokenizer: Tokenizer | None = None, folder: Path | None = None):
        self._text, self._training, self._folder, self._tokens = text, training, folder, None
        source = sources.open_source(text.data, text.field)
        self._source = sources.Spooled(source) if isinstance(source, sources.Pipe) else source
        self._survey()
        self._cut = int(self._characters * (1 - text.validation))
        self._training_bytes = self._bytes_before(self._cut)
        self.tokenizer = tokenizer or self._build()
        self._end = end_to_stop_at(text, self.tokenizer)

    def batches(self, position: dict | None = None) -> FileBatches:
        """The training part, repeated without end, from its start or from a saved position.

        Raises DataError if it is too short, CheckpointError if the position is of another text or batch.
        """
        from .tokenfile import MappedBatches

        if self._tokens is None:
            self._tokens = self._encoded() if self._folder and self._cut else self._in_memory()
        kind = FileBatches if isinstance(self._tokens, np.ndarray) else MappedBatches
        return file_batches(self._text.data, self._tokens, self._training, position, self._end, kind)

    def validation(self, tokens_wanted: int | None = None) -> Validation:
        """The held-out text: its first `tokens_wanted` targets (at least a segment), or all. Raises DataError if too short."""
        parts = (measured(self.tokenizer, piece, self._several) for piece in self._between(self._cut, self._characters))
        return held_out_part(self._text.data, parts, self._training, tokens_wanted)

    @property
    def shares(self) -> str:
        """The sizes of the training and the held-out part, in a sentence."""
        return f"{counted(self._training_bytes, 'byte')} of text to train on, {self._bytes - self._training_bytes:,} held out"

    def _survey(self):
        """Count characters, bytes and documents, and index the pieces."""
        self._piece_starts = []  # (characters before a piece, its position, bytes before it)
        self._characters = self._bytes = documents = 0
        before = None
        for piece in watched(self._source.read(), f"reading {self._source.name}", self._source.size):
            self._piece_starts.append((self._characters, before, self._bytes))
            self._characters += len(piece.text)
            self._bytes += len(piece.text.encode())
            documents += piece.ends
            before = piece.after
        if not self._characters:
            raise sources.nothing_in(self._text.data, self._source.size)
        self._several = documents > 1

    def _between(self, first, last):
        """The pieces of the characters `first` to `last`; a document that is cut ends at the cut."""
        piece_start, position, _ = self._find_piece(first)
        for piece in self._source.read(position):
            part, piece_start = piece.part(max(0, first - piece_start), last - piece_start), piece_start + len(piece.text)
            if part.text:
                yield part._replace(ends=piece.ends or piece_start >= last)
            if piece_start >= last:
                return

    def _find_piece(self, character):
        """The entry of the index for the piece that contains a character."""
        return self._piece_starts[bisect.bisect_right(self._piece_starts, character, key=lambda piece_index: piece_index[0]) - 1]

    def _bytes_before(self, character):
        first, _, size = self._find_piece(character)
        return size + sum(len(piece.text.encode()) for piece in self._between(first, character))

    def _build(self):
        kind = self._text.tokenizer
        whole = kind in ("char", "word")
        last = self._characters if whole else self._cut
        texts = (piece.text + "\n" * (piece.ends and not whole) for piece in self._watched("a tokenizer is made of", last))
        if kind == "sentencepiece":
            texts = excerpts(texts, last + len(self._piece_starts))
        return build(kind, texts, self._text.vocabulary, self._several)

    def _watched(self, what, last):
        total = self._training_bytes if last == self._cut else self._bytes
        return watched(self._between(0, last), f"{what} {self._source.name}", total)

    def _pieces(self):
        """The tokens of the training part."""
        pieces = self._watched("encoding", self._cut)
        return encoded(pieces, self.tokenizer, self._several, self._text.workers)

    def _in_memory(self):
        return np.concatenate([np.empty(0, np.int32), *(ids for _, ids in self._pieces())])

    def _encoded(self):
        """The token file of the training part: the existing one if it is intact and of this text, else a new one."""
        from .tokenfile import TokenFile, description_of, intact, refuse_foreign, write

        path = self._folder / TOKENS
        made_of = {"text": self._source.fingerprint(), "characters": self._cut}
        with contextlib.suppress(DataError, OSError):
            description = description_of(path) or {}
            if description.get("made_of") == made_of and intact(path, description):
                return TokenFile.open(path, self.tokenizer)
        refuse_foreign(path, "move that away")
        write(path, self._pieces(), self.tokenizer, made_of)
        return TokenFile.open(path, self.tokenizer)


def file_batches(path: str, tokens, training: Training, position: dict | None, end: int | None, kind=None) -> FileBatches:
    """Read heads in tokens [n], FileBatches or another kind. Raises DataError if they are too few, CheckpointError as FileBatches."""
    segment, batch = training.segment, training.batch
    needed = segment * batch + 1
    if len(tokens) < needed:
        raise DataError(
            f"{path}: {len(tokens)} tokens to train on; --seq-length {segment} times --batch-size {batch} needs {needed}; "
            "lower either, or give more text"
        )
    return (kind or FileBatches)(tokens, training, position, end)


def held_out_part(
    path: str, parts: Iterable[tuple[np.ndarray, np.ndarray]], training: Training, limit: int | None, estimated: bool = False
) -> Validation:
    """The first `limit` targets (at least a segment) of held-out text, or all. Raises DataError if there are too few.

    parts: its tokens [n] int32 and the UTF-8 bytes of text of each [n]; a mean if `estimated`.
    """
    held_out = _first(parts, sys.maxsize if limit is None else max(limit, training.segment), estimated)
    needed = training.segment + 1
    if len(held_out.tokens) < needed:
        many = counted(len(held_out.tokens), "token")
        raise DataError(f"{path}: {many} held out, but --seq-length {training.segment} needs {needed}; lower it, or give more text")
    return held_out


def _first(parts, limit, estimated=False):
    """The first `limit` targets of tokens that arrive in parts; reads no more parts than necessary."""
    taken, count, size = [np.empty(0, np.int32)], 0, 0.0
    for ids, byte_counts in parts:
        size += byte_counts[count == 0 : limit + 1 - count].sum(dtype=np.float64)  # the very first token is no target
        taken.append(ids[: limit + 1 - count])
        count += len(ids)
        if count > limit + 1:
            break
    return Validation(np.concatenate(taken), round(size), whole=count <= limit + 1, estimated=estimated)


def text_to_score(text: Text, tokenizer: Tokenizer, limit: int = 0) -> Validation:
    """The text that `text.data` names, for scoring: all of it, or its first `limit` targets.

    Raises DataError if it cannot be read or has fewer than two tokens; ConfigError for a data set of the hub without a limit, because it
    may have no end.
    """
    from . import tokenfile

    if text.data.startswith("hf:") and not limit:
        raise ConfigError(f"--data {text.data}: a data set of the hub may have no end; limit it with --max-tokens")
    estimated = False
    if sources.is_token_file(text.data):
        file = tokenfile.TokenFile.open(text.data, tokenizer)
        tokens = file.part(0, limit + 2 if limit else len(file))  # one more than is scored, to see whether the text goes on
        byte_counts, estimated = tokenfile.byte_counts(file.path, tokens, tokenizer)
        parts = [(tokens, byte_counts)]
    else:
        source = sources.open_source(text.data, text.field)
        several = not source.single
        if several and sources.encoded_once(text.data):
            several = sum(piece.ends for piece in source.read()) > 1  # as in training, empty files do not count
        pieces = watched(source.read(), f"reading {source.name}", source.size if source.plain else None)
        parts = (measured(tokenizer, piece, several) for piece in pieces)
    score = _first(parts, limit or sys.maxsize, estimated)
    if len(score.tokens) < 2:
        raise DataError(f"{text.data}: {counted(len(score.tokens), 'token')}; scoring needs at least 2")
    return score


class FileBatches(Batches):
    """B read heads that move through a text [n tokens]. Head b starts at a random position in the b-th of B equal parts.

    They wrap around: the first token follows the last, also as a target.

    Raises CheckpointError if the position is of another text or batch.
    """

    def __init__(self, tokens, training: Training, position: dict | None, end: int | None = None):
        super().__init__(training.segment, end)
        self._tokens = tokens
        n, batch = len(tokens), training.batch
        if position is None:
            within = np.random.default_rng(training.seed).random(batch)
            self._heads = ((np.arange(batch) + within) * n / batch).astype(np.int64) % n
            return
        check_position(position, {"tokens": n, "batch": batch})
        self._heads = np.array(position["heads"], np.int64)

    def position(self):
        return {"tokens": len(self._tokens), "batch": len(self._heads), "heads": self._heads.tolist()}

    def _look(self):
        return self._tokens.take(self._heads + np.arange(self._length + 1)[:, None], mode="wrap")

    def _move(self, moves):
        self._heads = (self._heads + moves) % len(self._tokens)


class StoryCorpus:
    """The built-in stories: training never repeats one, and held-out stories come from a separate split.

    Raises ConfigError if the tokenizer has no end of text, which ends each story.
    """

    shares = "built-in stories without end to train on, and others held out"

    def __init__(self, text: Text, training: Training, tokenizer: Tokenizer | None = None):
        self._training = training
        self.tokenizer = tokenizer or build(text.tokenizer, self._sample(), text.vocabulary, True)
        if self.tokenizer.end_of_text is None:
            raise ConfigError("the built-in stories need a tokenizer with an end of text, and this one has none; use --data")
        self._end = end_to_stop_at(text, self.tokenizer)

    def batches(self, position: dict | None = None) -> StoryBatches:
        """Training stories without end, from the first or from a saved position. Raises CheckpointError if that is of another run."""
        return StoryBatches(self._read, self._training, position, self._end)

    def validation(self, tokens_wanted: int | None = None) -> Validation:
        """Whole held-out stories, until there are `tokens_wanted` targets (at least a segment; 50,000 for None).

        The first token is an end of text, so that every token of every story is a target.
        """
        limit = max(self._training.segment, HELD_OUT_TOKENS if tokens_wanted is None else tokens_wanted)
        parts, bits, targets, questions = [], 0.0, 0, []
        for held_out in stories(HELD_OUT_SEED, split="held-out"):
            if targets >= limit:
                break
            parts.append(self.tokenizer.measured(held_out.text, ends=True))
            bits += held_out.bits
            targets += len(parts[-1][0])
            questions += held_out.questions
        tokens, byte_counts = joined(parts)
        tokens = np.append(np.int32(self.tokenizer.end_of_text), tokens)
        return Validation(tokens, int(byte_counts.sum()), bits, tuple(questions), whole=False)

    def _read(self, index: int) -> np.ndarray:
        return self._encode(story(self._training.seed, index).text)

    def _encode(self, text: str) -> np.ndarray:
        return np.append(self.tokenizer.encode(text), np.int32(self.tokenizer.end_of_text))

    def _sample(self) -> list[str]:
        """Enough stories to contain every word of the vocabulary."""
        return [mentioned.text for mentioned in islice(stories(self._training.seed), STORIES_FOR_TOKENIZER)]


class StoryBatches(Batches):
    """B streams of stories; stream b reads the stories b, b + B, b + 2B ..."""

    def __init__(self, read, training: Training, position: dict | None, end: int | None = None):
        super().__init__(training.segment, end)
        self._seed = training.seed
        batch = training.batch
        if position is None:
            position = {"story": list(range(batch)), "token": [0] * batch}
        else:
            check_position(position, {"seed": training.seed, "batch": batch})
        self._streams = [
            _Stream(read, piece_start, token, batch) for piece_start, token in zip(position["story"], position["token"], strict=True)
        ]

    def position(self):
        return {
            "seed": self._seed,
            "batch": len(self._streams),
            "story": [stream.story for stream in self._streams],
            "token": [stream.token for stream in self._streams],
        }

    def _look(self):
        return np.stack([stream.look(self._length + 1) for stream in self._streams], axis=1)

    def _move(self, moves):
        for stream, tokens in zip(self._streams, moves.tolist(), strict=True):
            stream.move(tokens)


class _Stream:
    """The concatenated tokens of the stories `story`, `story + step` ..., from token `token` of the first on."""

    def __init__(self, read, story: int, token: int, step: int):
        self._read, self._step = read, step
        self.story, self.token = story, token
        self._story_tokens = []  # tokens of the stories from `story` on, as far as needed

    def look(self, length: int) -> np.ndarray:
        """The next `length` tokens, [length]."""
        while sum(map(len, self._story_tokens)) < self.token + length:
            self._story_tokens.append(self._read(self.story + len(self._story_tokens) * self._step))
        return np.concatenate(self._story_tokens)[self.token : self.token + length]

    def move(self, tokens: int) -> None:
        """Advance by `taken` of the tokens that `next` returned."""
        self.token += tokens
        while self.token >= len(self._story_tokens[0]):
            self.token -= len(self._story_tokens.pop(0))
            self.story += self._step


def open_corpus(config: Config, tokenizer: Tokenizer | None = None, folder: Path | None = None):
    """The corpus that `config.text` names, with a tokenizer built for it, or the given one, which must then match the brain's vocabulary.

    Token files are memory-mapped. Text files of up to sources.ENCODED_ONCE bytes are tokenized once, into a file in `folder`. Anything else
    is streamed.
    Raises DataError if the text cannot be used, ConfigError if the tokenizer cannot.
    """
    if tokenizer and tokenizer.vocabulary > config.brain.vocabulary:
        raise ConfigError(
            f"brain.vocabulary: the brain knows {config.brain.vocabulary} tokens, the tokenizer has {tokenizer.vocabulary}; "
            "use the tokenizer that the brain was trained with"
        )
    from .stream import StreamCorpus
    from .tokenfile import TokenFileCorpus

    data = config.text.data
    if data and not sources.is_token_file(data) and sources.encoded_once(data):
        return FileCorpus(config.text, config.training, tokenizer, folder)
    corpus = TokenFileCorpus if sources.is_token_file(data) else StreamCorpus if data else StoryCorpus
    return corpus(config.text, config.training, tokenizer)


def end_to_stop_at(text: Text, tokenizer: Tokenizer) -> int | None:
    """The end-of-text token if `text.reset_at_documents` is set, else None. Raises ConfigError if the tokenizer has none."""
    if text.reset_at_documents and tokenizer.end_of_text is None:
        raise ConfigError("--reset-at-documents: this text is a single document without an end; drop the flag")
    return tokenizer.end_of_text if text.reset_at_documents else None


def split(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """The first fraction `share` of all characters, and the rest; a document at the cut is split."""
    left = int(sum(map(len, documents)) * share)
    first, rest = [], []
    for document in documents:
        first.append(document[:left])
        rest.append(document[left:])
        left = max(0, left - len(document))
    return [part for part in first if part], [part for part in rest if part]


def check_position(position: dict, expected: dict) -> None:
    """Raises CheckpointError if a saved position does not match the `expected` values."""
    for name, value in expected.items():
        if position.get(name) != value:
            raise CheckpointError(
                f"the saved place in the text is for {name} {position.get(name)}, not {value}; resume with the same text and settings"
            )
