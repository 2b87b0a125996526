"""Token files: the ids of a corpus as a raw array, uint16 or uint32, little-endian, without a header: nanoGPT's format.

    tokens.bin            the ids
    tokens.json           dtype, how many tokens, documents and bytes of text they are, and the CRC-32 of tokens.bin
    tokens.tokenizer/     the tokenizer that wrote them

They are memory-mapped window by window, each only while it is copied, so the memory of a process does not grow with the file. (With one
mapping of the whole file, every page that was read would count as resident, with the neighbours that the system maps along.)
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Text, Training, counted
from ..errors import CheckpointError, ConfigError, DataError, MissingText
from ..storage.run_folder import make_folder
from .batches import FileBatches, Validation, end_to_stop_at, file_batches, held_out_part
from .sources import Piece
from .tokenizer import Tokenizer, build

TRAIN, VALIDATION = "train.bin", "val.bin"  # nanoGPT's names: of two files in one folder, the second is held out
TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model"}
PART = ".neurogen-part"  # suffix of a file until it is complete
FORMAT = "neurogen-tokens"
MAX_HELD_OUT = 200_000  # held-out tokens for "all"
HEADERS = (20240520, 20240801)  # of the token files of llm.c
WINDOWS, WINDOW = 64, 4096  # samples of a file, and bytes per sample, for detecting its format
CHECKED = 2**20  # bytes per step of a checksum
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class TokenFile:
    """The tokens `first` to `last` of a file."""

    path: Path
    dtype: np.dtype
    vocabulary: int
    first: int
    last: int

    @classmethod
    def open(cls, path: str | Path, tokenizer: Tokenizer) -> TokenFile:
        """All of a file that this tokenizer wrote. Raises DataError if it cannot be read, is cut short, or is another tokenizer's."""
        path = Path(path)
        size, entries = _size(path), description_of(path)
        dtype = DTYPES[entries["dtype"] if entries else _format_of(path, size, tokenizer.vocabulary)]
        if size % dtype.itemsize or not size or (entries and size != entries["tokens"] * dtype.itemsize):
            expected = f"{entries['tokens'] * dtype.itemsize:,} bytes" if entries else "an even number of bytes, and some"
            raise DataError(f"{path}: no whole token file, {size:,} bytes where {expected} are expected; write it again")
        if entries and _tokenizer_beside(path).pieces != tokenizer.pieces:
            raise DataError(f"{path}: another tokenizer wrote it than the model's; use the text itself, or a file of that tokenizer")
        return cls(path, dtype, tokenizer.vocabulary, 0, size // dtype.itemsize)

    def __len__(self) -> int:
        return self.last - self.first

    def between(self, first: int, last: int) -> TokenFile:
        """The tokens `first` to `last` of this part."""
        return TokenFile(self.path, self.dtype, self.vocabulary, self.first + first, self.first + last)

    def part(self, first: int, last: int) -> np.ndarray:
        """The tokens `first` to `last`, clipped to the file, [tokens] int32.

        Raises DataError for a token beyond the vocabulary, and if the file cannot be read.
        """
        with self._opened() as file:
            return self._checked(self._window(file, first, min(last, len(self))))

    def windows(self, heads: np.ndarray, length: int) -> np.ndarray:
        """`length` tokens from each of the positions `heads` [B] on, [length, B] int32, wrapping around at the end. Raises as `part`."""
        n = len(self)
        block = np.empty((length, len(heads)), self.dtype)
        with self._opened() as file:
            for b, head in enumerate(heads.tolist()):
                contiguous = min(length, n - head)
                block[:contiguous, b] = self._window(file, head, head + contiguous)
                block[contiguous:, b] = self._window(file, 0, length - contiguous)
        return self._checked(block)

    def _opened(self):
        try:
            return open(self.path, "rb", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read any more ({error.strerror}); restore it, then continue with --resume") from None

    def _window(self, file, first, last):
        """A copy of some tokens. Their pages are mapped only during the copy."""
        if first >= last:
            return np.empty(0, self.dtype)
        start = (self.first + first) * self.dtype.itemsize
        before = start % mmap.ALLOCATIONGRANULARITY  # a mapping begins at a multiple of it
        size = before + (last - first) * self.dtype.itemsize
        try:
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start - before) as mapped:
                return np.frombuffer(mapped[before:], self.dtype)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be read any more ({error}); restore it, then continue with --resume") from None

    def _checked(self, ids):
        if ids.size and ids.max() >= self.vocabulary:
            raise DataError(
                f"{self.path}: token {ids.max()} is beyond the vocabulary of {self.vocabulary}; it is of another tokenizer or number format"
            )
        return ids.astype(np.int32)


class MappedBatches(FileBatches):
    """Read heads in a TokenFile."""

    def _look(self):
        return self._tokens.windows(self._heads, self._length + 1)


class TokenFileCorpus:
    """A token file. Its last fraction `text.validation` is held out; or val.bin, beside a train.bin.

    Raises DataError if it cannot be used, ConfigError if its tokenizer cannot.
    """

    def __init__(self, text: Text, training: Training, tokenizer: Tokenizer | None = None):
        path = Path(text.data)
        self._path, self._training = text.data, training
        self.tokenizer = tokenizer or _tokenizer_of(path, text)
        self._end = end_to_stop_at(text, self.tokenizer)
        self._training_part = TokenFile.open(path, self.tokenizer)
        beside = path.with_name(VALIDATION)
        if path.name == TRAIN and beside.is_file():
            self._held_out = TokenFile.open(beside, self.tokenizer)
        else:
            n = len(self._training_part)
            cut = int(n * (1 - text.validation))
            self._training_part, self._held_out = self._training_part.between(0, cut), self._training_part.between(cut, n)

    def batches(self, position: dict | None = None) -> MappedBatches:
        """The training part, repeated without end, from its start or from a saved position. Raises as `file_batches`."""
        return file_batches(self._path, self._training_part, self._training, position, self._end, MappedBatches)

    def validation(self, tokens_wanted: int | None = None) -> Validation:
        """The first `tokens_wanted` held-out targets (at least a segment), or MAX_HELD_OUT. Raises DataError if there are too few."""
        expected = min(MAX_HELD_OUT, tokens_wanted or MAX_HELD_OUT)
        tokens = self._held_out.part(0, max(expected, self._training.segment) + 2)  # one more than is scored, to see whether there are more
        counts, estimated = byte_counts(self._held_out.path, tokens, self.tokenizer)
        return held_out_part(self._path, [(tokens, counts)], self._training, expected, estimated)

    @property
    def shares(self) -> str:
        """The sizes of the training and the held-out part, in a sentence."""
        return f"{counted(len(self._training_part), 'token')} to train on, {len(self._held_out):,} held out"


def byte_counts(path: Path, tokens: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, bool]:
    """(UTF-8 bytes of text per token [tokens], whether they are estimated).

    For words they are estimated by the mean of the file, because the length of unknown words is lost. Raises DataError if the .json beside
    the file does not contain the number of bytes.
    """
    if tokenizer.kind != "word":
        return tokenizer.byte_lengths[tokens], False
    entries = description_of(path) or {}
    if not isinstance(entries.get("bytes"), int):
        raise DataError(f"{path}: no .json beside it has the bytes of its text; write it again with `neurogen tokenize`")
    return np.full(len(tokens), entries["bytes"] / entries["tokens"]), True


def write(path: Path, encoded: Iterable[tuple[Piece, np.ndarray]], tokenizer: Tokenizer, made_of=None) -> dict:
    """Write a token file, its .json and its tokenizer, atomically. Returns the content of the .json.

    encoded: pieces with their ids, of which one at a time is in memory. made_of: a further entry of the .json, JSON-able.
    Raises DataError if there are no tokens, or the files cannot be written, or would replace others (`refuse_foreign`).
    """
    refuse_foreign(path)
    name = "uint16" if tokenizer.vocabulary <= 2**16 else "uint32"
    entries = {"format": FORMAT, "dtype": name, "vocabulary": tokenizer.vocabulary, "tokens": 0, "documents": 0, "bytes": 0, "crc32": 0}
    entries |= {} if made_of is None else {"made_of": made_of}
    part, description = path.with_name(path.name + PART), path.with_suffix(".json")
    description_part = description.with_name(description.name + PART)
    try:
        make_folder(path.parent)
        try:
            with open(part, "wb") as file:
                for piece, ids in encoded:
                    data = ids.astype(DTYPES[name]).tobytes()
                    file.write(data)
                    entries["crc32"] = zlib.crc32(data, entries["crc32"])
                    entries["tokens"] += len(ids)
                    entries["documents"] += piece.ends
                    entries["bytes"] += len(piece.text.encode())
                file.flush()
                os.fsync(file.fileno())
            if not entries["tokens"]:
                raise DataError(f"{path} was not written: there is no text to tokenize; give one with text in it")
            description_part.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
            description.unlink(missing_ok=True)  # the old one would describe other tokens
            os.replace(part, path)
            tokenizer.save(_tokenizer_folder(path))
            os.replace(description_part, description)
        finally:
            part.unlink(missing_ok=True)
            description_part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} was not written: {error.strerror}; make room, or choose another --out") from None
    return entries


def intact(path: Path, entries: dict) -> bool:
    """Whether a token file matches the checksum in its .json, whose entries are given. Raises OSError."""
    found = 0
    with open(path, "rb") as file:
        while data := file.read(CHECKED):
            found = zlib.crc32(data, found)
    return found == entries.get("crc32")


def refuse_foreign(path: Path, instead: str = "choose another --out") -> None:
    """Raises DataError if a new token file would replace a file that `neurogen tokenize` did not write. instead: advice for the message."""
    description, folder = path.with_suffix(".json"), _tokenizer_folder(path)
    names = {each.name.removesuffix(".part") for each in folder.iterdir()} if folder.is_dir() else set()
    described = _entry(description, "format") == FORMAT
    killed = _entry(description.with_name(description.name + PART), "format") == FORMAT  # killed before the .json was renamed
    ours = {
        path: (described or killed) and path.is_file(),
        description: described,
        folder: names <= TOKENIZER_FILES and bool(names) and bool(_entry(folder / "tokenizer.json", "kind")),
    }
    if foreign := [str(each) for each, written in ours.items() if os.path.lexists(each) and not written]:
        listed = " and ".join(foreign)
        raise DataError(f"{path} was not written: `neurogen tokenize` did not write {listed}, which it would replace; {instead}")


def _entry(path, name):
    """One entry of the object in a JSON file, or None."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return values.get(name) if isinstance(values, dict) else None


def description_of(path):
    """The content of the .json of a token file; None if there is none."""
    description = path.with_suffix(".json")
    try:
        entries = json.loads(description.read_bytes())
        if entries["dtype"] not in DTYPES or not isinstance(entries["tokens"], int):
            raise ValueError
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{description}: cannot be read ({error.strerror}); it belongs to {path.name}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{description}: not a description of {path.name} by `neurogen tokenize`; write both again") from None
    return entries


def _format_of(path, size, vocabulary):
    """The dtype of a token file without a .json, from its ids: if every second uint16 is as small as the upper half of a uint32 id, the ids
    are uint32. Raises DataError for any other format."""
    if size < 16:
        return "uint16"
    blocks = min(WINDOWS, size // 8)
    with open(path, "rb") as file:
        if int.from_bytes(file.read(4), "little") in HEADERS:
            raise DataError(f"{path}: begins with the header of llm.c; cut off its 1,024 bytes, or write it again by `neurogen tokenize`")
        parts = []
        for start in (
            np.linspace(0, size // 8 - 1, blocks).astype(np.int64).tolist()
        ):  # evenly spaced over the file, at multiples of 8 bytes
            file.seek(8 * start)
            part = file.read(WINDOW)
            parts.append(np.frombuffer(part[: len(part) // 8 * 8], "<u2").reshape(-1, 4))
    ids = np.concatenate(parts)  # columns: the four quarters of a uint64
    upper = max(1, -(-vocabulary // 2**16))  # above all upper halves of ids
    if not ids.any() or (ids[:, 1::2] >= upper).any():
        return "uint16"
    if not ids[:, 2:].any():
        raise DataError(f"{path}: token ids of 64 bits; 16 or 32 are read: write it again, for example by ids.astype('uint16').tofile(...)")
    return "uint32"


def _tokenizer_of(path, text):
    """The tokenizer beside a token file; if there is none, the one that --tokenizer names."""
    _size(path)
    if description_of(path):
        return _tokenizer_beside(path)
    if text.tokenizer in ("sentencepiece", "char", "word"):
        raise ConfigError(f"{path}: no {path.stem}.json beside it says which tokenizer wrote it; name it: --tokenizer FILE.model, or byte")
    return build(text.tokenizer, [], text.vocabulary, True)


def _size(path):
    try:
        return path.stat().st_size
    except OSError as error:
        raise MissingText(f"{path}: cannot be read ({error.strerror}); `neurogen tokenize TEXT --out {path.name}` writes one") from None


def _tokenizer_beside(path):
    try:
        return Tokenizer.load(_tokenizer_folder(path))
    except CheckpointError:
        raise DataError(f"{path}: its tokenizer, {_tokenizer_folder(path).name} beside it, is gone or damaged; write both again") from None


def _tokenizer_folder(path):
    return path.with_suffix(".tokenizer")
