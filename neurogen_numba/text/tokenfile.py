"""Token files: the ids of a whole corpus one after the other, uint16 or uint32, little-endian, and nothing else: nanoGPT's layout.

    tokens.bin            the ids
    tokens.json           dtype, how many tokens, documents and bytes of text they are, and the CRC-32 of tokens.bin
    tokens.tokenizer/     the tokenizer that wrote them

They are mapped into memory window by window, each for as long as it is copied: what a process holds does not grow with the file. (A
mapping of the whole file would count every page read for as long as it lasts, and neighbours that the system maps along.)
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

TRAIN, VALIDATION = "train.bin", "val.bin"  # nanoGPT's names: of two files beside each other, the second is held out
TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model"}
PART = ".neurogen-part"  # ends the name of a file until it is whole
FORMAT = "neurogen-tokens"
MOST = 200_000  # held-out tokens that "all" means here
HEADERS = (20240520, 20240801)  # of the token files of llm.c
WINDOWS, WINDOW = 64, 4096  # parts of a file, and bytes of each, that tell its format
CHECKED = 2**20  # bytes of a file that are summed up at a time
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
        size, said = _size(path), description_of(path)
        dtype = DTYPES[said["dtype"] if said else _format_of(path, size, tokenizer.vocabulary)]
        if size % dtype.itemsize or not size or (said and size != said["tokens"] * dtype.itemsize):
            wanted = f"{said['tokens'] * dtype.itemsize:,} bytes" if said else "an even number of bytes, and some"
            raise DataError(f"{path}: no whole token file, {size:,} bytes where {wanted} are wanted; write it again")
        if said and _tokenizer_beside(path).pieces != tokenizer.pieces:
            raise DataError(f"{path}: another tokenizer wrote it than the model's; use the text itself, or a file of that tokenizer")
        return cls(path, dtype, tokenizer.vocabulary, 0, size // dtype.itemsize)

    def __len__(self) -> int:
        return self.last - self.first

    def between(self, first: int, last: int) -> TokenFile:
        """The tokens `first` to `last` of these."""
        return TokenFile(self.path, self.dtype, self.vocabulary, self.first + first, self.first + last)

    def part(self, first: int, last: int) -> np.ndarray:
        """The tokens `first` to `last`, as far as there are so many, [tokens] int32.

        Raises DataError for one beyond the vocabulary, and where the file cannot be read.
        """
        with self._opened() as file:
            return self._checked(self._window(file, first, min(last, len(self))))

    def windows(self, heads: np.ndarray, length: int) -> np.ndarray:
        """`length` tokens from each of the places `heads` [B] on, [length, B] int32; the first follows the last. Raises as `part`."""
        n = len(self)
        block = np.empty((length, len(heads)), self.dtype)
        with self._opened() as file:
            for b, head in enumerate(heads.tolist()):
                here = min(length, n - head)
                block[:here, b] = self._window(file, head, head + here)
                block[here:, b] = self._window(file, 0, length - here)
        return self._checked(block)

    def _opened(self):
        try:
            return open(self.path, "rb", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read any more ({error.strerror}); put it back, then go on with --resume") from None

    def _window(self, file, first, last):
        """A copy of some tokens. The pages that they are on are mapped for no longer than it takes."""
        if first >= last:
            return np.empty(0, self.dtype)
        at = (self.first + first) * self.dtype.itemsize
        before = at % mmap.ALLOCATIONGRANULARITY  # a mapping begins at a multiple of it
        size = before + (last - first) * self.dtype.itemsize
        try:
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=at - before) as mapped:
                return np.frombuffer(mapped[before:], self.dtype)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be read any more ({error}); put it back, then go on with --resume") from None

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
    """A token file; its last `text.validation` is held out, or val.bin beside a train.bin.

    Raises DataError if it cannot be used, ConfigError if its tokenizer cannot.
    """

    def __init__(self, text: Text, training: Training, tokenizer: Tokenizer | None = None):
        path = Path(text.data)
        self._path, self._training = text.data, training
        self.tokenizer = tokenizer or _tokenizer_of(path, text)
        self._end = end_to_stop_at(text, self.tokenizer)
        self._kept = TokenFile.open(path, self.tokenizer)
        beside = path.with_name(VALIDATION)
        if path.name == TRAIN and beside.is_file():
            self._held_out = TokenFile.open(beside, self.tokenizer)
        else:
            n = len(self._kept)
            cut = int(n * (1 - text.validation))
            self._kept, self._held_out = self._kept.between(0, cut), self._kept.between(cut, n)

    def batches(self, position: dict | None = None) -> MappedBatches:
        """The training part, endlessly, from its start or from a saved position. Raises as `file_batches`."""
        return file_batches(self._path, self._kept, self._training, position, self._end, MappedBatches)

    def validation(self, tokens_wanted: int | None = None) -> Validation:
        """The first `tokens_wanted` held-out targets (at least a segment), or MOST. Raises DataError if there are too few."""
        wanted = min(MOST, tokens_wanted or MOST)
        tokens = self._held_out.part(0, max(wanted, self._training.segment) + 2)  # one more than is scored tells whether there are more
        counts, estimated = byte_counts(self._held_out.path, tokens, self.tokenizer)
        return held_out_part(self._path, [(tokens, counts)], self._training, wanted, estimated)

    @property
    def shares(self) -> str:
        """How much is trained on and how much held out, in a sentence."""
        return f"{counted(len(self._kept), 'token')} to train on, {len(self._held_out):,} held out"


def byte_counts(path: Path, tokens: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, bool]:
    """(UTF-8 bytes of the text that each of these tokens of a file stands for [tokens], whether they are estimated).

    Words do not tell: what was no known word is lost, so each token counts as many bytes as one of the file does on average.
    Raises DataError where the .json beside the file does not say how many these are.
    """
    if tokenizer.kind != "word":
        return tokenizer.byte_lengths[tokens], False
    said = description_of(path) or {}
    if not isinstance(said.get("bytes"), int):
        raise DataError(f"{path}: nothing beside it says how many bytes of text its words were; write it again by `neurogen tokenize`")
    return np.full(len(tokens), said["bytes"] / said["tokens"]), True


def write(path: Path, encoded: Iterable[tuple[Piece, np.ndarray]], tokenizer: Tokenizer, made_of=None) -> dict:
    """Write a token file, whole or not at all, and what belongs beside it. Returns what its .json says.

    encoded: pieces with their ids; one at a time is held in memory. made_of: said in the .json besides, JSON-able.
    Raises DataError if there are no tokens, or the files cannot be written, or would replace others (`refuse_foreign`).
    """
    refuse_foreign(path)
    name = "uint16" if tokenizer.vocabulary <= 2**16 else "uint32"
    said = {"format": FORMAT, "dtype": name, "vocabulary": tokenizer.vocabulary, "tokens": 0, "documents": 0, "bytes": 0, "crc32": 0}
    said |= {} if made_of is None else {"made_of": made_of}
    part, description = path.with_name(path.name + PART), path.with_suffix(".json")
    description_part = description.with_name(description.name + PART)
    try:
        make_folder(path.parent)
        try:
            with open(part, "wb") as file:
                for piece, ids in encoded:
                    data = ids.astype(DTYPES[name]).tobytes()
                    file.write(data)
                    said["crc32"] = zlib.crc32(data, said["crc32"])
                    said["tokens"] += len(ids)
                    said["documents"] += piece.ends
                    said["bytes"] += len(piece.text.encode())
                file.flush()
                os.fsync(file.fileno())
            if not said["tokens"]:
                raise DataError(f"{path} was not written: there is no text to tokenize; give one with text in it")
            description_part.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
            description.unlink(missing_ok=True)  # until the new one is there, the old one would speak of other tokens
            os.replace(part, path)
            tokenizer.save(_tokenizer_folder(path))
            os.replace(description_part, description)
        finally:
            part.unlink(missing_ok=True)
            description_part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} was not written: {error.strerror}; make room, or choose another --out") from None
    return said


def intact(path: Path, said: dict) -> bool:
    """Whether a token file holds, byte for byte, what its .json, which says `said`, was written with. Raises OSError."""
    found = 0
    with open(path, "rb") as file:
        while data := file.read(CHECKED):
            found = zlib.crc32(data, found)
    return found == said.get("crc32")


def refuse_foreign(path: Path, instead: str = "choose another --out") -> None:
    """Raises DataError where writing a token file would replace a file that `neurogen tokenize` did not write. instead: what to do."""
    description, folder = path.with_suffix(".json"), _tokenizer_folder(path)
    names = {each.name.removesuffix(".part") for each in folder.iterdir()} if folder.is_dir() else set()
    described = _entry(description, "format") == FORMAT
    killed = _entry(description.with_name(description.name + PART), "format") == FORMAT  # before the description had its name
    ours = {
        path: (described or killed) and path.is_file(),
        description: described,
        folder: names <= TOKENIZER_FILES and bool(names) and bool(_entry(folder / "tokenizer.json", "kind")),
    }
    if foreign := [str(each) for each, own in ours.items() if os.path.lexists(each) and not own]:
        listed = " and ".join(foreign)
        raise DataError(f"{path} was not written: `neurogen tokenize` did not write {listed}, which it would replace; {instead}")


def _entry(path, name):
    """One entry of a JSON file that holds an object, else None."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return values.get(name) if isinstance(values, dict) else None


def description_of(path):
    """What the .json of a token file says; None where there is none."""
    description = path.with_suffix(".json")
    try:
        said = json.loads(description.read_bytes())
        if said["dtype"] not in DTYPES or not isinstance(said["tokens"], int):
            raise ValueError
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{description}: cannot be read ({error.strerror}); it belongs to {path.name}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{description}: not what `neurogen tokenize` writes beside {path.name}; write both again") from None
    return said


def _format_of(path, size, vocabulary):
    """The dtype of a file that nothing describes, by its ids: where every second uint16 is as small as the upper halves of uint32 ids are,
    they are that. Raises DataError for a format that is neither."""
    if size < 16:
        return "uint16"
    blocks = min(WINDOWS, size // 8)
    with open(path, "rb") as file:
        if int.from_bytes(file.read(4), "little") in HEADERS:
            raise DataError(f"{path}: begins with the header of llm.c; cut off its 1,024 bytes, or write it again by `neurogen tokenize`")
        parts = []
        for at in np.linspace(0, size // 8 - 1, blocks).astype(np.int64).tolist():  # in all of the file, at multiples of 8 bytes
            file.seek(8 * at)
            part = file.read(WINDOW)
            parts.append(np.frombuffer(part[: len(part) // 8 * 8], "<u2").reshape(-1, 4))
    ids = np.concatenate(parts)  # columns: what would be the four quarters of an uint64
    upper = max(1, -(-vocabulary // 2**16))  # above all upper halves of ids
    if not ids.any() or (ids[:, 1::2] >= upper).any():
        return "uint16"
    if not ids[:, 2:].any():
        raise DataError(f"{path}: token ids of 64 bits; 16 or 32 are read: write it again, such as by ids.astype('uint16').tofile(...)")
    return "uint32"


def _tokenizer_of(path, text):
    """The tokenizer beside a token file, or for one from elsewhere the one that --tokenizer names."""
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
