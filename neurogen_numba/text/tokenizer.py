"""Text <-> token ids: SentencePiece, single characters, UTF-8 bytes, or words.

A tokenizer is a table of pieces: `pieces[id]` are the UTF-8 bytes of a token, and decoding concatenates them. For the tokenizers built
here, except "word", `decode(encode(text)) == text` exactly. This includes spaces, tabs, newlines and, except for "char", characters that
were not in the training text. A SentencePiece model from another source has its own normalisation, which may lose some of these.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..config import did_you_mean
from ..errors import CheckpointError, ConfigError, DataError

KINDS = ("sentencepiece", "char", "byte", "word")
SAMPLE = 5_000_000  # characters on which a SentencePiece model is trained, at most
WINDOWS = 100  # evenly spaced excerpts that make up such a sample
LINE = 4000  # bytes; SentencePiece silently skips training lines longer than 4192
UNKNOWN = "<unk>"  # replaces every unknown word
FEWEST = 259  # tokens of a SentencePiece model: 256 bytes, the unknown, the end of text and one piece
SPACE = "▁"  # U+2581, SentencePiece's symbol for a space


class UnknownCharacter(ConfigError):
    """A character of a text that has no token; index: its position."""

    def __init__(self, text: str, index: int):
        super().__init__(f"character {index} of the text, {text[index]!r}, does not occur in the training text; leave it out")
        self.index = index


class Tokenizer(ABC):
    """A table of pieces and a method that splits text into them.

    To write your own, subclass it with a new `kind`, `encode`, and, if it has settings, `settings` and `from_settings`. Checkpoints save it
    as plain JSON. Loading finds the class by its kind, so the class must be defined before.

    kind: sentencepiece, char, byte, word, or the kind of your own class.
    vocabulary: number of tokens.
    end_of_text: the id that ends a document and decodes to ""; None without one.
    byte_lengths: UTF-8 bytes of each piece [vocabulary] int32.
    unknown: the id of all unknown words; None if tokens are not words.
    """

    kind: str
    unknown: int | None = None

    def __init__(self, pieces: list[bytes], end_of_text: int | None):
        self.pieces = pieces
        self.vocabulary = len(pieces)
        self.end_of_text = end_of_text
        self.byte_lengths = np.array([len(piece) for piece in pieces], np.int32)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, [tokens] int32. Raises ConfigError for a character that has no token."""

    def decode(self, ids) -> str:
        """The text of token ids [tokens]. Invalid UTF-8 becomes U+FFFD. Raises ConfigError for an id outside the vocabulary."""
        return b"".join(self.pieces[i] for i in self._checked(ids)).decode("utf-8", errors="replace")

    def byte_count(self, ids) -> int:
        """UTF-8 bytes of the decoded ids [tokens]; an end of text has 0. Raises ConfigError as `decode`."""
        return int(self.byte_lengths[self._checked(ids)].sum())

    def measured(self, text: str, ends: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(token ids of a text, UTF-8 bytes of the text of each), both [tokens] int32. If `ends`, the end of text follows, with 0 bytes, if
        the tokenizer has one. Raises ConfigError as `encode`."""
        ids = self.encode(text)
        counts = self._byte_counts(text, ids)
        if ends and self.end_of_text is not None:
            ids, counts = np.append(ids, np.int32(self.end_of_text)), np.append(counts, np.int32(0))
        return ids, counts

    def _byte_counts(self, text, ids):
        return self.byte_lengths[ids]

    def stream(self) -> Stream:
        """Decodes one token at a time."""
        return Stream(self)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, and tokenizer.model for SentencePiece. Raises CheckpointError if the folder cannot be written."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self._files().items():
                part = folder / (name + ".part")
                part.write_bytes(content)
                os.replace(part, folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder}: the tokenizer cannot be written ({error.strerror})") from None

    @staticmethod
    def load(folder: str | Path) -> Tokenizer:
        """Inverse of `save`. Raises CheckpointError if a file is missing or damaged."""
        path = Path(folder) / "tokenizer.json"
        try:
            saved = json.loads(path.read_bytes())
            kind, vocabulary = saved["kind"], saved["vocabulary"]
            if kind == SentencePieceTokenizer.kind:
                path = Path(folder) / "tokenizer.model"
                tokenizer = SentencePieceTokenizer(path.read_bytes(), saved["documents"])
            elif found := next((known for known in _subclasses(Tokenizer) if known.kind == kind), None):
                tokenizer = found.from_settings(saved)
            elif isinstance(kind, str):
                raise CheckpointError(
                    f"{path}: its tokenizer is of the kind {kind!r}, a class that is not defined; import the module that defines it, "
                    "then load again"
                )
            else:
                raise ValueError(kind)
            if tokenizer.vocabulary != vocabulary:
                raise ValueError(f"{tokenizer.vocabulary} tokens instead of {vocabulary}")
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{path}: the saved tokenizer cannot be read ({error.strerror}); it belongs to the checkpoint") from None
        except (ValueError, KeyError, TypeError, RuntimeError):  # RuntimeError: SentencePiece, for a damaged model
            raise CheckpointError(f"{path}: not a tokenizer that this program saved, or damaged; restore it from a copy") from None
        return tokenizer

    def _files(self) -> dict[str, bytes]:
        """File name -> content; the last file is written last and makes the others valid."""
        return {"tokenizer.json": json.dumps(self._settings(), indent=1).encode()}

    def _settings(self) -> dict:
        return {"kind": self.kind, "documents": self.end_of_text is not None, "vocabulary": self.vocabulary} | self.settings()

    def settings(self) -> dict:
        """The arguments of `from_settings` that recreate this tokenizer, JSON-able, except `documents`."""
        return {}

    @classmethod
    def from_settings(cls, saved: dict) -> Tokenizer:
        """The tokenizer with these `settings`. saved["documents"]: whether it has an end of text."""
        return cls(saved["documents"])

    def _checked(self, ids) -> np.ndarray:
        ids = np.asarray(ids, np.int64)
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocabulary))
        if outside.size:
            index = int(outside[0])
            raise ConfigError(f"token {index}: id {ids[index]} is outside the vocabulary; use 0 to {self.vocabulary - 1}")
        return ids


def _subclasses(cls):
    for known in cls.__subclasses__():
        yield known
        yield from _subclasses(known)


class Stream:
    """Decodes a stream of tokens; it never returns part of a character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this token completes, usually its whole text; "" inside a character. Raises ConfigError as `Tokenizer.decode`."""
        self._tokenizer._checked([token])
        return self._decoder.decode(self._tokenizer.pieces[token])

    def finish(self) -> str:
        """U+FFFD if the last character is incomplete, else "". The texts of all pushes plus this equal the result of `decode`."""
        return self._decoder.decode(b"", final=True)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: ids 0 to 255."""

    kind = "byte"

    def __init__(self, documents: bool):
        super().__init__([bytes([value]) for value in range(256)] + [b""] * documents, 256 if documents else None)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)


class CharTokenizer(Tokenizer):
    """One token per character of the corpus, in code point order."""

    kind = "char"

    def __init__(self, characters: Iterable[str], documents: bool):
        self._characters = "".join(sorted(set(characters)))
        self._code_points = _code_points(self._characters)
        pieces = [character.encode() for character in self._characters]
        super().__init__(pieces + [b""] * documents, len(pieces) if documents else None)

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        wanted = _code_points(text)
        ids = np.searchsorted(self._code_points, wanted).clip(max=len(self._code_points) - 1)
        unknown = np.flatnonzero(self._code_points[ids] != wanted)
        if unknown.size:
            raise UnknownCharacter(text, int(unknown[0]))
        return ids.astype(np.int32)

    def settings(self) -> dict:
        return {"characters": self._characters}

    @classmethod
    def from_settings(cls, saved):
        return cls(saved["characters"], saved["documents"])


class WordTokenizer(Tokenizer):
    """One token per word, where words are separated by spaces, and token 0 for the end of a line. For texts that are already split into
    words, as in word-level benchmarks (Merity et al. 2016, "Pointer sentinel mixture models"). An unknown word becomes <unk>.

    Each piece is a space and a word, or a space and a newline, as such texts are written. Other white space is lost.
    """

    kind = "word"

    def __init__(self, words: list[str], documents: bool):
        self._words = list(words)
        self._ids = {word: i for i, word in enumerate(self._words, 1)}
        if len(self._ids) < len(self._words) or not all(self._words) or UNKNOWN not in self._ids:
            raise ValueError("words that are empty, repeated, or lack <unk>")
        self.unknown = self._ids[UNKNOWN]
        pieces = [b" \n"] + [b" " + _utf8(word) for word in self._words]
        super().__init__(pieces + [b""] * documents, len(pieces) if documents else None)

    @classmethod
    def of(cls, texts: Iterable[str], vocabulary: int, documents: bool) -> WordTokenizer:
        """A tokenizer of the most frequent words of the texts, with at most `vocabulary` tokens; ties go to the word that occurs first."""
        counted = Counter(word for text in texts for word in text.split())
        counted.setdefault(UNKNOWN, 0)
        known = max(1, vocabulary - 1 - documents)
        words = [word for word, _ in counted.most_common(known)]
        return cls(words if UNKNOWN in words else [*words[: known - 1], UNKNOWN], documents)

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        ids = []
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            ids += [self._ids.get(word, self.unknown) for word in line.split()]
            if number < len(lines):
                ids.append(0)
        return np.array(ids, np.int32)

    def _byte_counts(self, text, ids):
        """Byte lengths from the text, not from the pieces: an unknown word has its own length, and white space that of the text."""
        ends = [token.end() for token in re.finditer(r"\n|\S+", text)]
        ends[-1:] = [len(text)] * bool(ends)
        return np.array([len(text[first:last].encode()) for first, last in pairwise([0, *ends])], np.int32)

    def settings(self) -> dict:
        return {"words": self._words}

    @classmethod
    def from_settings(cls, saved):
        return cls(saved["words"], saved["documents"])


class SentencePieceTokenizer(Tokenizer):
    """Sub-word pieces (Kudo & Richardson 2018, "SentencePiece"), from the bytes of a `.model` file.

    The model's end-of-sentence token ends a document; without one, an id is added if `documents` is set.
    Raises RuntimeError, as SentencePiece does, if the bytes are not a model.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, documents: bool):
        import sentencepiece

        if not model:  # SentencePiece accepts empty bytes and loads nothing
            raise RuntimeError("no model")
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces = [self._piece(token) for token in range(self._processor.get_piece_size())]
        end_of_text = self._processor.eos_id()
        if end_of_text < 0:
            end_of_text = len(pieces) if documents else None
            pieces += [b""] * documents
        super().__init__(pieces, end_of_text)
        # A U+2581 in the text itself would be decoded as a space, so it is encoded as its three bytes.
        spelled = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space_symbol = spelled if all(map(self._processor.is_byte, spelled)) else None

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        parts = text.split(SPACE) if self._space_symbol else [text]
        ids = self._processor.encode(parts[0])
        for part in parts[1:]:
            ids += self._space_symbol + self._processor.encode(part)
        return np.array(ids, np.int32)

    def _files(self) -> dict[str, bytes]:
        return {"tokenizer.model": self._model} | super()._files()

    def _piece(self, token: int) -> bytes:
        name = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(name[3:5], 16)])  # "<0x0A>"
        if self._processor.is_control(token) or self._processor.is_unused(token):
            return b""
        if self._processor.is_unknown(token):
            return "⁇".encode()  # SentencePiece's symbol; only models without byte fallback use it
        return name.replace(SPACE, " ").encode()


def build(kind: str, texts: Iterable[str], vocabulary: int, documents: bool) -> Tokenizer:
    """A tokenizer for these texts.

    kind: sentencepiece (trained on the texts), char, byte, word, or the path of a SentencePiece `.model`.
    vocabulary: maximum number of tokens of a SentencePiece model that is trained here, including bytes and end of text, or of words. Other
    kinds have a fixed size.
    documents: whether a token that ends a document is needed.

    SentencePiece is trained on all text up to 5 million characters; of a longer text, on 100 evenly spaced excerpts of that total length.
    The same texts give the same model, byte for byte. `excerpts` makes such a sample of texts that do not fit into memory.
    Raises ConfigError for an unknown kind, a path that is not a model, or a vocabulary that does not fit; DataError for texts without
    words.
    """
    if kind == "byte":
        return ByteTokenizer(documents)
    if kind == "char":
        characters = set()
        for text in texts:  # one at a time: together they may exceed the memory
            characters.update(text)
        if not characters:
            raise DataError("the text is empty: a char tokenizer needs at least one character; give a file with text in it")
        return CharTokenizer(characters, documents)
    if kind == "word":
        return WordTokenizer.of(texts, vocabulary, documents)
    if kind == "sentencepiece":
        return SentencePieceTokenizer(_train(texts, vocabulary, documents), documents)
    return _given(kind, documents)


def _given(path: str, documents: bool) -> Tokenizer:
    """The SentencePiece model of a file."""
    path = Path(path)
    if path.suffix != ".model" and not os.path.isfile(path):
        raise ConfigError(f"--tokenizer {path}: neither a kind nor a SentencePiece .model; {did_you_mean(str(path), KINDS)}")
    try:
        return SentencePieceTokenizer(path.read_bytes(), documents)
    except OSError as error:
        raise ConfigError(f"--tokenizer {path}: cannot be read ({error.strerror}); give the path of a SentencePiece .model") from None
    except RuntimeError:
        raise ConfigError(f"--tokenizer {path}: not a SentencePiece model; give the path of a SentencePiece .model") from None


def _train(texts: Iterable[str], vocabulary: int, documents: bool) -> bytes:
    """The bytes of a byte-pair model. Unigram models take 20 times as long to train, and split 1.1 MB of plays into 2 % more pieces."""
    import sentencepiece

    if vocabulary < FEWEST:
        raise ConfigError(f"--vocab-size {vocabulary}: too few for SentencePiece; use --vocab-size {FEWEST} or more, or --tokenizer byte")
    # Newlines, tabs and U+2581 are encoded as bytes, so that no piece spans two lines and a prompt may end anywhere in a line.
    text = "\n".join(texts)
    sample = "\n".join(excerpts([text], len(text)))
    lines = [line for line in re.split(f"[\n\t{SPACE}]", sample) if line]
    if not sample:
        raise DataError("there is no text to train a tokenizer on; give one with text in it")
    if not lines:
        raise DataError("the text has no words to train a tokenizer on; use --tokenizer byte")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in lines for part in _cut(line)),
            model_writer=model,
            model_type="bpe",
            vocab_size=min(
                vocabulary, 2 * len(sample) + FEWEST
            ),  # SentencePiece allocates this; a short text has fewer characters and merges
            hard_vocab_limit=False,  # a small text has fewer pieces
            character_coverage=0.9995,  # the rarest characters are encoded as bytes
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=-1,
            eos_id=1 if documents else -1,
            pad_id=-1,
            num_threads=1,  # it is stored in the model, and the result depends on it
            minloglevel=3,  # errors are exceptions
        )
    except (RuntimeError, OSError, ValueError) as error:
        if needed := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise ConfigError(
                f"--vocab-size {vocabulary}: too few for the characters of the text; use --vocab-size {needed[1]} or more"
            ) from None
        raise DataError(f"SentencePiece cannot be trained on this text ({error}); use --tokenizer char or byte") from None
    return model.getvalue()


def excerpts(parts: Iterable[str], length: int) -> list[str]:
    """The sample of a text on which a SentencePiece model is trained. The text arrives in parts, `length` characters in total; up to SAMPLE
    characters, the sample is the whole text."""
    if length <= SAMPLE:
        return ["".join(parts)]
    size = SAMPLE // WINDOWS - 1  # and the newline between two
    starts = np.linspace(0, length - size, WINDOWS).astype(int).tolist()
    found, index = [""] * WINDOWS, 0
    for part in parts:
        for number, start in enumerate(starts):
            if index < start + size and start < index + len(part):
                found[number] += part[max(0, start - index) : start + size - index]
        index += len(part)
    return found


def _cut(line: str) -> list[str]:
    size = LINE if line.isascii() else LINE // 4  # a character has up to 4 bytes
    return [line[index : index + size] for index in range(0, len(line), size)]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"character {error.start} of the text, {text[error.start]!r}, is half of a surrogate pair, not a character; leave it out"
        ) from None
