"""Where text comes from: files here or on a server, a data set of the Hugging Face hub, standard input -> pieces of documents.

A source can be read from the position of any of its pieces on, which JSON can hold. What comes over a network is asked for again where
the connection breaks, from the piece after the last one that arrived, so that none is lost and none comes twice.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, NeuroGenError
from .remote import RemoteFile, pause

LOG = logging.getLogger(__name__)
TEXT = (".txt", ".md")
LINES = (".jsonl", ".ndjson", ".json")  # one JSON object per line
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst")
SUFFIXES = (*TEXT, ".jsonl", ".ndjson", *PARQUET)  # of what is taken from a folder, compressed or not
PIECE = 2**20  # bytes of a text file that are read at once
ROWS = 256  # of a parquet file that are read at once
IN_MEMORY = 100_000_000  # bytes of text files that are held in memory; larger ones are streamed


class Piece(NamedTuple):
    """text: of a document, or of a part of one; ends: whether the document ends with it; after: the position behind it, JSON-able."""

    text: str
    ends: bool
    after: dict


class Source(ABC):
    """name: for messages; single: whether it is one document, which nothing has to end.

    size: bytes of its files, where all are here and can be read as often as one likes, else None; plain: whether they are text only.
    """

    name: str
    single = False
    size: int | None = None
    plain = False

    @abstractmethod
    def read(self, position: dict | None = None) -> Iterator[Piece]:
        """Its pieces in order, from the first or from a position on; blank documents are left out.

        Raises DataError for what cannot be read, or is no text.
        """

    def identity(self) -> dict:
        """What tells a changed source from the one that a position was saved for, JSON-able."""
        return {"source": self.name}


def open_source(data: str, field: str) -> Source:
    """The source that `data` names: a file, folder, glob or URL, "hf:NAME[:CONFIG][@SPLIT]", or "-" for standard input.

    field: the name of the text in JSON lines, parquet and on the hub. Raises DataError where there is nothing of that name.
    """
    if data == "-":
        return Stdin()
    return Hub(data, field) if data.startswith("hf:") else Files(find(data), field)


def absolute(data: str) -> str:
    """The same source, for a process in another folder. Raises ValueError for what is no path."""
    if data.startswith("hf:"):
        name = data.removeprefix("hf:").partition("@")[0].partition(":")[0]
        return f"hf:{Path(name).resolve()}{data[3 + len(name) :]}" if name and Path(name).is_dir() else data
    return data if data in ("", "-") or _remote(data) else str(Path(data).resolve())


def find(data: str) -> list[str]:
    """The files that a path, a folder, a glob or a URL stands for; those of a folder and of a glob sorted by path.

    Raises DataError if there are none.
    """
    if _remote(data):
        return [data]
    path = Path(data)
    if path.is_dir():
        found = sorted(
            (file for file in path.rglob("*") if _stem(file.name).endswith(SUFFIXES) and file.is_file()),
            key=lambda file: file.relative_to(path).as_posix(),  # the same order on every system
        )
        if not found:
            raise DataError(f"{path}: the folder has no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; give one that has, or a file")
        return [str(file) for file in found]
    if glob.has_magic(data) and not path.exists():
        matching = sorted(file for file in glob.glob(data, recursive=True) if os.path.isfile(file))
        if not matching:
            raise DataError(f"{data}: no file matches; check the pattern")
        return matching
    return [data]


def in_memory(data: str) -> bool:
    """Whether all of it is plain text, and little enough to be held in memory."""
    if data == "-":
        return True
    if data.startswith("hf:") or _remote(data):
        return False
    files = find(data)
    return _plain(files) and _size(files) <= IN_MEMORY


def documents(data: str | Path) -> list[str]:
    """The text of each file of a path, folder or glob that holds text only, or of standard input; empty files are left out.

    A byte order mark is dropped and Windows line ends become "\\n".
    Raises DataError if there is nothing there, it cannot be read, is not UTF-8 text, or is empty.
    """
    data = str(data)
    texts = [_decoded(_stdin().read(), Stdin.name)] if data == "-" else [_whole(Path(file)) for file in find(data)]
    kept = [text for text in texts if text.strip()]
    if not kept:
        what = "every text file in the folder is" if Path(data).is_dir() else "the file is" if Path(data).exists() else "what is there is"
        if data == "-":
            raise DataError("-: standard input is empty; give the text again: neurogen ... < FILE")
        raise DataError(f"{data}: {what} empty; give one with text in it")
    return kept


def read_text(path: str | Path) -> str:
    """All documents of `path` as one text, a newline between them. Raises DataError as `documents`."""
    return "\n".join(documents(path))


class Files(Source):
    """Text, JSON lines and parquet, in the order of the list; text files of any length, in pieces that end with a line.

    A position is the number of a file and a place in it: the byte where the next piece begins, in a parquet file the row.
    """

    def __init__(self, files: list[str], field: str):
        self.files, self._field = files, field
        self.name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        self.single = len(files) == 1 and _kind(files[0]) is _text
        self.size, self.plain = None if any(map(_remote, files)) else _size(files), _plain(files)

    def read(self, position=None):
        first, at = (position["file"], position["at"]) if position else (0, 0)
        for number in range(first, len(self.files)):
            path = self.files[number]
            try:
                for text, ends, behind in _kind(path)(path, at if number == first else 0, self._field):
                    yield Piece(text, ends, {"file": number, "at": behind})
            except NeuroGenError:
                raise
            except FileNotFoundError:
                raise DataError(f"{path}: no such file or folder; check the path") from None
            except Exception as error:  # of file systems and decoders: each has its own
                reason = getattr(error, "strerror", None) or " ".join(f"{type(error).__name__}: {error}".split())
                raise DataError(f"{path}: cannot be read ({reason}); check that it is whole and its permissions, or give another") from None

    def identity(self):
        return {"files": len(self.files), "bytes": self.size}


class Hub(Source):
    """A data set of the Hugging Face hub, or a folder in the form of one, streamed by `datasets`: "hf:NAME[:CONFIG][@SPLIT]".

    A position is what `datasets` says of its own.
    """

    def __init__(self, data: str, field: str):
        self.name, self._field = data, field
        rest, _, split = data.removeprefix("hf:").partition("@")
        self._repository, _, config = rest.partition(":")
        self._config, self._split = config or None, split or "train"
        if not self._repository:
            raise DataError(f"{data}: hf:NAME[:CONFIG][@SPLIT] is wanted, such as hf:cerebras/SlimPajama-627B")

    def read(self, position=None):
        failures = 0
        while True:
            try:
                for piece in self._rows(position):
                    failures, position = 0, piece.after
                    yield piece
                return
            except NeuroGenError:
                raise
            except Exception as error:  # of sockets, file systems and decoders: each has its own
                failures = pause(self.name, failures, error)

    def _rows(self, state):
        import datasets
        import huggingface_hub

        huggingface_hub.logging.set_verbosity_error()  # what they have to say would break into the live view
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        for patience in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
            setattr(datasets.config, patience, 1)  # `pause` says when to give up: 20 tries for each of its own would take hours
        stream = datasets.load_dataset(self._repository, self._config, split=self._split, streaming=True)
        if stream.column_names:
            _check_field(self._field, stream.column_names, self.name)
            stream = stream.select_columns([self._field])
        if state:
            stream.load_state_dict(state)
        for row in stream:
            _check_field(self._field, row, self.name)
            if (text := _text_of(row[self._field], self.name, "a row")) is not None:
                yield Piece(text, True, stream.state_dict())


class Stdin(Source):
    """Standard input: one text, read once."""

    name = "standard input"
    single = True

    def read(self, position=None):
        for number, (text, ends, at) in enumerate(_pieces(_stdin(), 0, self.name)):
            if number == 0 and _is_object(text.partition("\n")[0]):
                LOG.warning(
                    "%s looks like JSON lines, and is read as one text, braces and all; for its documents name a .jsonl file", self.name
                )
            yield Piece(text, ends, {"at": at})


# How each kind of file is read: (path, where in it, name of the text) -> (text, whether a document ends, where the next one begins)


def _text(path, at, field):
    with _opened(path, at) as file:
        yield from _pieces(file, at, path)


def _pieces(file, at, name):
    """A text in pieces of PIECE bytes and the rest of a line, or of PIECE bytes where a line has no end."""
    first, block = at == 0, _block(file)
    while block:
        behind, following = at + len(block), _block(file)
        text = _decoded(block, name, at)
        if text.strip() or following or not first:
            yield text, not following, behind
        first, at, block = False, behind, following


def _block(file):
    block = file.read(PIECE)
    if len(block) == PIECE:
        block += file.readline(PIECE)
        while not block.endswith(b"\n") and (byte := file.peek(1)[:1]) and (byte == b"\n" or byte[0] & 0xC0 == 0x80):
            block += file.read(1)  # no character is cut, nor a Windows line end
    return block


def _json_lines(path, at, field):
    with _opened(path, at) as file:
        for line in file:
            place, at = f"the line at byte {at:,}", at + len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line.removeprefix(codecs.BOM_UTF8))
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: {place} is no JSON object; one on each line is wanted, and the file must be whole")
            _check_field(field, row, path)
            if (text := _text_of(row[field], path, place)) is not None:
                yield text, True, at


def _is_object(line):
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parquet(path, at, field):
    import pyarrow.parquet

    with _opened(path) as file:
        table = pyarrow.parquet.ParquetFile(file)
        _check_field(field, table.schema_arrow.names, path)
        group = row = 0  # the group of rows that the position lies in, and its first row
        while group < table.num_row_groups and row + table.metadata.row_group(group).num_rows <= at:
            row += table.metadata.row_group(group).num_rows
            group += 1
        for batch in table.iter_batches(ROWS, row_groups=list(range(group, table.num_row_groups)), columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                if row > at and (text := _text_of(value, path, f"row {row:,}")) is not None:
                    yield text, True, row


def _stdin():
    if sys.stdin.isatty():
        raise DataError(f"{Stdin.name} is a terminal; pipe the text in: neurogen ... < FILE")
    return sys.stdin.buffer


def _opened(path, at=0):
    """A file, or what a compressed one holds, from its byte `at` on."""
    file = io.BufferedReader(RemoteFile(path), PIECE) if _remote(path) else open(path, "rb")  # noqa: SIM115  closed by who asked for it
    name = _name(path)
    if name.endswith(".gz"):
        file = io.BufferedReader(gzip.GzipFile(fileobj=file), PIECE)
    elif name.endswith(".zst"):
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        file = io.BufferedReader(zstd.ZstdFile(file), PIECE)
    file.seek(at)
    return file


def _name(path):
    return (path.partition("?")[0] if _remote(path) else path).lower()


def _kind(path):
    stem = _stem(_name(path))
    return _json_lines if stem.endswith(LINES) else _parquet if stem.endswith(PARQUET) else _text


def _stem(name):
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSED if name.endswith(suffix)), name)


def _remote(data):
    return data.startswith(("http://", "https://"))


def _plain(files):
    return all(_kind(file) is _text and not _name(file).endswith(COMPRESSED) for file in files)


def _size(files):
    return sum(os.path.getsize(file) for file in files if os.path.exists(file))


def _check_field(field, names, where):
    if field not in names:
        raise DataError(
            f"{where}: there is no field {field!r}, but {', '.join(map(str, names))}; name the one with the text by --text-field"
        )


def _text_of(value, where, place):
    """The text of a field; None for an empty one."""
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {place} has {type(value).__name__} where text is wanted; name another field by --text-field")
    return value.encode(errors="replace").decode() if value and value.strip() else None  # half a surrogate pair becomes "?"


def _whole(path: Path) -> str:
    try:
        return _decoded(path.read_bytes(), path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions, or give another file") from None


def _decoded(content: bytes, name, at: int = 0) -> str:
    """Bytes of a text from its byte `at` on, as text."""
    zero = content.find(b"\0")
    if zero >= 0:
        raise DataError(f"{name}: not a text file, byte {at + zero} is NUL; give a UTF-8 text file")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        wrong = f"byte {at + error.start} is {content[error.start]:#04x}"
        raise DataError(f"{name}: not UTF-8 text, {wrong}; convert the file to UTF-8") from None
    return (text if at else text.removeprefix("\ufeff")).replace("\r\n", "\n")
