"""Sources of text: local files, files on a server, data sets of the Hugging Face hub, pipes -> pieces of documents.

A source can be read from the position of any of its pieces; positions are JSON-able. If a network connection breaks, reading resumes after
the last piece received, so that no piece is lost or repeated.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import fnmatch
import glob
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, MissingText, NeuroGenError
from ..storage import run_folder
from .remote import RemoteFile, pause

LOG = logging.getLogger(__name__)
TEXT = (".txt", ".md")
LINES = (".jsonl", ".ndjson", ".json")  # one JSON object per line
TOKENS = ".bin"
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
SUFFIXES = (*TEXT, ".jsonl", ".ndjson", *PARQUET)  # of the files that a folder contributes, compressed or not
PIECE = 2**20  # bytes per read of a text file
ROWS = 256  # rows per read of a parquet file
ENCODED_ONCE = 100_000_000  # bytes of text files up to which they are tokenized before training; larger ones are streamed
LONGEST = 200  # characters of the name of a data set; the hub allows at most 193
WITHOUT_FIELD = 100  # JSON lines without the text field, at the beginning of a file, after which reading fails
FORMATS = {  # first bytes of files that are not UTF-8 text -> (what they are, what to do)
    b"\xff\xfe\0\0": ("UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"PK\x03\x04": ("a zip archive, as .docx and .epub are too", "unpack it, and give the text in it"),
    b"%PDF": ("a PDF document", "convert it to text"),
    b"PAR1": ("parquet", "give it a name that ends with .parquet"),
    b"\x1f\x8b": ("compressed by gzip", "give it a name that ends with .gz, or of a .tgz the files in it"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "give it a name that ends with .zst"),
    b"BZh": ("compressed by bzip2", "give it a name that ends with .bz2"),
    b"\xfd7zXZ\x00": ("compressed by xz", "give it a name that ends with .xz"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it, and give the text in it"),
    b"Rar!": ("a RAR archive", "unpack it, and give the text in it"),
}


class Piece(NamedTuple):
    """text: a document, or a part of one; ends: whether the document ends with it; after: the position after it, JSON-able.

    where, line: for messages: the file, with the position in it from which lines are counted, and the number of the first line.
    """

    text: str
    ends: bool
    after: dict
    where: str = ""
    line: int = 1

    def part(self, first: int, last: int | None = None) -> Piece:
        """The part with the characters `first` to `last`."""
        line = self.line + self.text.count("\n", 0, first)
        return self._replace(text=self.text[first:last], line=line)


class Source(ABC):
    """name: for messages; single: whether it is one document, without an end of text.

    size: bytes of its files, if all are local and can be read repeatedly, else None; plain: whether all are text files.
    """

    name: str
    single = False
    size: int | None = None
    plain = False

    @abstractmethod
    def read(self, position: dict | None = None) -> Iterator[Piece]:
        """Its pieces in order, from the first or from a position on; blank documents are skipped.

        Raises DataError if it cannot be read, or is not text.
        """

    def identity(self) -> dict:
        """Values that change when the source changes, JSON-able; saved with a position."""
        return {"source": self.name}


def open_source(data: str, field: str) -> Source:
    """The source that `data` names: a file, folder, glob or URL, "hf:NAME[:CONFIG][@SPLIT]", a pipe, or "-" for standard input.

    field: the name of the text in JSON lines, parquet and on the hub. Raises DataError if it does not exist.
    """
    if data.startswith("hf:"):
        return Hub(data, field)
    return Pipe(data) if is_pipe(data) else Files(find(data), field)


def absolute(data: str) -> str:
    """The same source, named by an absolute path. Raises ValueError for an invalid path."""
    if "\0" in data:
        raise ValueError("a NUL character in it")
    if data.startswith("hf:"):
        name = data.removeprefix("hf:").partition("@")[0].partition(":")[0]
        return f"hf:{Path(name).absolute()}{data[3 + len(name) :]}" if name and os.path.isdir(name) else data
    if data in ("", "-") or _remote(data):
        return data
    if os.path.isfile(data) and data.startswith(("/dev/", "/proc/")):
        return os.path.realpath(data)  # /dev/stdin may be another file later
    return str(Path(data).absolute())


def is_token_file(data: str) -> bool:
    """Whether `data` names a token file (tokenfile.py)."""
    return data.lower().endswith(TOKENS) and not data.startswith("hf:") and not _remote(data) and not os.path.isdir(data)


def is_pipe(data: str) -> bool:
    """Whether `data` can be read only once: standard input, a named pipe or a device, for example /dev/stdin."""
    return data == "-" or (os.path.exists(data) and not os.path.isfile(data) and not os.path.isdir(data))


def read_again(data: str) -> bool:
    """Whether `data` names text that can be read more than once and without a network; "", the built-in stories, can."""
    return not (data.startswith("hf:") or _remote(data) or is_pipe(data))


def find(data: str) -> list[str]:
    """The files of a path, a folder, a glob or a URL; those of a folder and of a glob sorted by path, each once.

    In a folder, hidden files and folders and the folders of runs are skipped. Links are followed.
    Raises DataError if there are none, or if a folder cannot be read.
    """
    if _remote(data):
        return [data]
    if not data:
        raise DataError("the name of the text is empty; give a file, a folder or a URL")
    if os.path.isdir(data):
        if run_folder.is_run(data):
            raise DataError(f"{data}: a run, whose files are no text; give a file or a folder of text")
        found = _in_folder(data)
        if not found:
            kinds = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            raise MissingText(f"{data}: the folder has no {kinds} file, hidden ones and runs left out; give one that has, or a file")
        return sorted(found, key=lambda file: Path(file).relative_to(data).as_posix())  # the same order on every system
    if glob.has_magic(data) and not os.path.lexists(data):
        matching = _in_pattern(data)
        if not matching:
            raise MissingText(f"{data}: no file matches; check the pattern")
        return sorted(matching)
    return [data]


def _in_folder(folder):
    return _each_once(file for file in _walk(folder) if _stem(file.lower()).endswith(SUFFIXES))


def _in_pattern(data):
    """The files that a glob matches. If a leading folder of the pattern exists literally, brackets included, it is taken literally."""
    pattern, fixed = list(Path(data).parts), ""
    while len(pattern) > 1 and os.path.lexists(os.path.join(fixed, pattern[0])):
        fixed = os.path.join(fixed, pattern.pop(0))
    folder = fixed or "."

    def names(path):
        return Path(path).relative_to(folder).parts

    found = (file for file in _walk(folder, lambda path: _matches(names(path), pattern, begins=True)) if _matches(names(file), pattern))
    return [file if fixed else file[2:] for file in _each_once(found)]


def _matches(names, pattern, begins=False):
    """Whether the parts of a path match a glob. begins: whether a path below it could match."""
    if not names or not pattern:
        return not names and (begins or not pattern)
    if pattern[0] == "**":
        return begins or any(_matches(names[skipped:], pattern[1:]) for skipped in range(len(names)))
    return fnmatch.fnmatch(names[0], pattern[0]) and _matches(names[1:], pattern[1:], begins)


def _walk(folder, selected=lambda path: True):
    """The files in a folder and, recursively, in the selected folders; hidden ones and runs are skipped, and each folder is visited once.

    (`glob` would follow circular links.) Raises DataError for a folder that cannot be read.
    """

    def refuse(error):
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); allow it, or move it out of {folder}")

    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        inside = [os.path.join(parent, name) for name in folders if not name.startswith(".")]
        folders.clear()
        for path in sorted(inside, key=lambda path: (os.path.islink(path), path)):
            if selected(path) and (real := os.path.realpath(path)) not in seen and not run_folder.is_run(path):
                seen.add(real)
                folders.append(os.path.basename(path))
        for path in (os.path.join(parent, name) for name in files if not name.startswith(".")):
            if os.path.isfile(path):
                yield path
            elif os.path.islink(path) and _stem(path.lower()).endswith(SUFFIXES) and not os.path.exists(path):
                raise DataError(f"{path}: a broken link; fix it, or remove it")


def _each_once(files):
    """The files, without links to other files of the list."""
    real = {os.path.realpath(file): file for file in sorted(files, key=lambda file: (file == os.path.realpath(file), -len(file), file))}
    return list(real.values())


def encoded_once(data: str) -> bool:
    """Whether it is plain text and small enough to be tokenized before training."""
    if data.startswith("hf:") or _remote(data):
        return False
    if is_pipe(data):
        return True
    files = find(data)
    return _plain(files) and _size(files) <= ENCODED_ONCE


def nothing_in(data: str, size: int | None) -> DataError:
    """The error for text files without text, which have `size` bytes together."""
    why = "has only white space" if size else "is empty"
    if data == "-":
        return DataError(f"-: standard input {why}; give the text again: neurogen ... < FILE")
    what = "every text file in the folder" if os.path.isdir(data) else "the file" if os.path.exists(data) else "it"
    return DataError(f"{data}: {what} {why}; give one with text in it")


class Files(Source):
    """Text, JSON lines and parquet, in the order of the list; text files of any length, in pieces that end with a line.

    A position is the number of a file and an offset: the byte where the next piece begins, or the row in a parquet file.
    """

    def __init__(self, files: list[str], field: str):
        self.files, self._field = files, field
        self.name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        self.single = len(files) == 1 and _kind(files[0]) is _text
        self.size, self.plain = None if any(map(_remote, files)) else _size(files), _plain(files)

    def read(self, position=None):
        first, offset = (position["file"], position["at"]) if position else (0, 0)
        for number in range(first, len(self.files)):
            path = self.files[number]
            try:
                for text, ends, behind, *location in _kind(path)(path, offset if number == first else 0, self._field):
                    yield Piece(text, ends, {"file": number, "at": behind}, *location)
            except NeuroGenError:
                raise
            except FileNotFoundError:
                what = "only http://, https:// and hf: are read; fetch it, and name the file" if "://" in str(path) else None
                raise MissingText(f"{path}: {what or 'no such file or folder; check the path'}") from None
            except Exception as error:  # file systems and decoders have their own exceptions
                reason = getattr(error, "strerror", None) or " ".join(f"{type(error).__name__}: {error}".split())
                raise DataError(f"{path}: cannot be read ({reason}); check that it is whole and its permissions, or give another") from None

    def identity(self):
        return {"files": len(self.files), "bytes": self.size}

    def fingerprint(self):
        stats = [(os.path.basename(file), os.stat(file)) for file in self.files]
        return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


class Hub(Source):
    """A data set of the Hugging Face hub, or a local folder in its form, streamed by `datasets`: "hf:NAME[:CONFIG][@SPLIT]".

    A position is the state of `datasets`.
    """

    def __init__(self, data: str, field: str):
        self.name, self._field = data, field
        rest, _, split = data.removeprefix("hf:").partition("@")
        self._repository, _, config = rest.partition(":")
        self._config, self._split = config or None, split or "train"
        if not self._repository:
            raise DataError(f"{data}: not of the form hf:NAME[:CONFIG][@SPLIT], for example hf:cerebras/SlimPajama-627B")
        self._local = os.path.exists(self._repository)
        if len(self._repository) > LONGEST and not self._local:
            raise MissingText(f"hf:{self._repository[:LONGEST]}...: no data set has so long a name; check the name")
        if os.path.isfile(self._repository) or (not self._local and self._repository.startswith((".", "/", "~"))):
            what = "is a local file" if self._local else "there is no such folder"
            raise MissingText(f"{data}: {what}; hf: is for data sets of the hub; name a file or folder without it")

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
            except Exception as error:  # sockets, file systems and decoders have their own exceptions
                try:
                    failures = pause(self.name, failures, error)
                except DataError as refused:
                    if self._local:
                        raise DataError(f"{refused}; {self._repository} is a folder: where text lies in it, name it without hf:") from None
                    raise

    def _rows(self, state):
        import datasets
        import huggingface_hub

        huggingface_hub.logging.set_verbosity_error()  # its messages would disturb the live view
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        for patience in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
            setattr(datasets.config, patience, 1)  # `pause` limits the tries; 20 tries of `datasets` for each of them would take hours
        stream = datasets.load_dataset(self._repository, self._config, split=self._split, streaming=True)
        if stream.column_names:
            _check_field(self._field, stream.column_names, self.name)
            stream = stream.select_columns([self._field])
        if state:
            stream.load_state_dict(state)
        for row in stream:
            _check_field(self._field, row, self.name)
            if (text := _text_of(row[self._field], self.name, "a row", self._field)) is not None:
                yield Piece(text, True, stream.state_dict())


class Pipe(Source):
    """Standard input ("-"), or a pipe by its name: one text, read once."""

    single = True

    def __init__(self, path: str = "-"):
        self._path = path
        self.name = "standard input" if path == "-" else path

    def read(self, position=None):
        try:
            with self.opened() as file:
                for number, (text, ends, offset, *location) in enumerate(_pieces(file, 0, self.name)):
                    if number == 0 and _is_object(text.partition("\n")[0]):
                        LOG.warning(
                            "%s looks like JSON lines, and is read as one text with its braces; to read its documents, name a .jsonl file",
                            self.name,
                        )
                    yield Piece(text, ends, {"at": offset}, *location)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror}); give a file, or pipe the text in") from None

    @contextlib.contextmanager
    def opened(self):
        """The pipe as a binary file. Raises DataError if it is a terminal, OSError if it cannot be opened."""
        if self._path == "-" and (sys.stdin is None or sys.stdin.closed):
            raise DataError(f"{self.name} is closed; pipe the text in: neurogen ... < FILE")
        with contextlib.nullcontext(sys.stdin.buffer) if self._path == "-" else open(self._path, "rb") as file:
            if sys.stdin.isatty() if self._path == "-" else file.isatty():
                raise DataError(f"{self.name} is a terminal; pipe the text in: neurogen ... < FILE")
            yield file


class Spooled(Source):
    """The content of a pipe in a temporary file, which exists as long as this object, so that it can be read again from any position."""

    single = plain = True

    def __init__(self, pipe: Pipe):
        self.name, hashed = pipe.name, hashlib.sha256()
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  as long as the source
            with pipe.opened() as file:
                while block := file.read(PIECE):
                    hashed.update(block)
                    self._file.write(block)
            self.size = self._file.tell()
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read and stored ({error.strerror}); make room, or write it to a file first") from None
        self._hash = hashed.hexdigest()

    def read(self, position=None):
        offset = position["at"] if position else 0
        self._file.seek(offset)
        for text, ends, behind, *location in _pieces(self._file, offset, self.name):
            yield Piece(text, ends, {"at": behind}, *location)

    def fingerprint(self):
        return self._hash


# A reader per kind of file: (path, offset, name of the text field) -> (text, whether a document ends, offset of the next one, where its
# lines are counted from, number of the first line)


def _text(path, offset, field):
    with _opened(path, offset) as file:
        yield from _pieces(file, offset, path)


def _pieces(file, offset, name):
    """A text in pieces of PIECE bytes, extended to the end of a line if there is one."""
    first, block = offset == 0, _block(file)
    where, line = name if first else f"{name} from byte {offset:,} on", 1
    while block:
        behind, following = offset + len(block), _block(file)
        text = _decoded(block, name, offset)
        if text.strip() or following or not first:
            yield text, not following, behind, where, line
        first, offset, block, line = False, behind, following, line + text.count("\n")


def _block(file):
    block = file.read(PIECE)
    if len(block) == PIECE:
        block += file.readline(PIECE)
        while not block.endswith(b"\n") and (byte := file.peek(1)[:1]) and (byte == b"\n" or byte[0] & 0xC0 == 0x80):
            block += file.read(1)  # so that neither a character nor a Windows line end is split
    return block


def _json_lines(path, offset, field):
    number, rows, without, counted = 0, 0, 0, offset == 0
    with _opened(path, offset) as file:
        for line in file:
            number += 1
            location, offset = f"line {number:,}" if counted else f"the line at byte {offset:,}", offset + len(line)
            if not line.strip():
                continue
            row = _json_object(line, path, location, number == 1 and counted)
            if field not in row:
                if counted and not rows and without == WITHOUT_FIELD:
                    _check_field(field, row, path)
                _tell_left_out(path, location, f"no field {field!r}", field)
                without, lacking = without + 1, row
                continue
            rows += 1
            if (text := _text_of(row[field], path, location, field)) is not None:
                yield text, True, offset, f"{path}: {location}"
    if counted and without and not rows:
        _check_field(field, lacking, path)


def _json_object(line, path, location, first):
    """The object in a line; first: whether it is the first line of the file."""
    wrong = "is not a JSON object; every line must be one, and the file must be whole"
    try:
        if isinstance(row := json.loads(line.removeprefix(codecs.BOM_UTF8).decode(errors="surrogatepass")), dict):
            return row
    except json.JSONDecodeError:
        pass
    except UnicodeDecodeError as error:
        wrong = f"has the byte {error.object[error.start]:#04x}, which is no UTF-8; convert the file to UTF-8"
    except ValueError:  # Python limits the digits of an integer
        wrong = f"has an integer of more than {sys.get_int_max_str_digits():,} digits, too long to read; shorten it, or put it in quotes"
    except RecursionError:
        wrong = "has brackets that are nested too deep to read; flatten them, or take the line out"
    if first and (known := _format(line)):
        raise DataError(f"{path}: {known[0]}, no JSON lines; {known[1]}")
    raise DataError(f"{path}: {location} {wrong}")


_reported: set[tuple[str, str]] = set()  # (file, missing field) of warnings about skipped rows


def _tell_left_out(where, location, what, field):
    """Warn once per file that rows are skipped; a file may be read many times."""
    if (where, field) not in _reported:
        _reported.add((where, field))
        LOG.warning("%s: %s has %s, and is skipped, as all rows without text; --text-field names another field", where, location, what)


def _is_object(line):
    """Whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parquet(path, offset, field):
    import pyarrow.parquet

    with _opened(path) as file:
        table = pyarrow.parquet.ParquetFile(file)
        _check_field(field, table.schema_arrow.names, path)
        group = row = 0  # the group of rows that contains the position, and its first row
        while group < table.num_row_groups and row + table.metadata.row_group(group).num_rows <= offset:
            row += table.metadata.row_group(group).num_rows
            group += 1
        for batch in table.iter_batches(ROWS, row_groups=list(range(group, table.num_row_groups)), columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                if row > offset and (text := _text_of(value, path, f"row {row:,}", field)) is not None:
                    yield text, True, row, f"{path}: row {row:,}"


def _opened(path, offset=0):
    """A file, decompressed if necessary, from byte `offset` on."""
    file = io.BufferedReader(RemoteFile(path), PIECE) if _remote(path) else open(path, "rb")  # noqa: SIM115  closed by the caller
    name = _name(path)
    if name.endswith(".gz"):
        file = io.BufferedReader(gzip.GzipFile(fileobj=file), PIECE)
    elif name.endswith(".zst"):
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        file = io.BufferedReader(zstd.ZstdFile(file), PIECE)
    elif name.endswith(".bz2"):
        file = io.BufferedReader(bz2.BZ2File(file), PIECE)
    elif name.endswith(".xz"):
        file = io.BufferedReader(lzma.LZMAFile(file), PIECE)  # noqa: SIM115
    file.seek(offset)
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
    return data.lower().startswith(("http://", "https://"))


def _plain(files):
    return all(_kind(file) is _text and not _name(file).endswith(COMPRESSED) for file in files)


def _size(files):
    return sum(os.path.getsize(file) for file in files if os.path.exists(file))


def _check_field(field, names, where):
    if field not in names:
        raise DataError(
            f"{where}: there is no field {field!r}, but {', '.join(map(str, names))}; name the one with the text by --text-field"
        )


def _text_of(value, where, location, field):
    """The text of a field; None if it is empty, or null, which is reported."""
    if value is None:
        _tell_left_out(where, location, f"null in the field {field!r}", field)
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: {location} has {type(value).__name__} instead of text; name another field with --text-field")
    return value.encode(errors="replace").decode() if value.strip() else None  # half a surrogate pair becomes "?"


def _decoded(content: bytes, name, offset: int = 0) -> str:
    """Decode the bytes of a text that begin at byte `offset`."""
    try:
        if (zero := content.find(0)) < 0:
            text = content.decode()
            return (text if offset else text.removeprefix("\ufeff")).replace("\r\n", "\n")
        wrong = f"a text file, byte {offset + zero} is NUL; give a UTF-8 text file"
    except UnicodeDecodeError as error:
        wrong = f"UTF-8 text, byte {offset + error.start} is {content[error.start]:#04x}; convert the file to UTF-8"
    if not offset and (known := _format(content)):
        raise DataError(f"{name}: {known[0]}, not UTF-8 text; {known[1]}")
    raise DataError(f"{name}: not {wrong}")


def _format(content: bytes) -> tuple[str, str] | None:
    """(format, advice) for a file that begins with these bytes; None if the format is unknown."""
    if content[257:262] == b"ustar":
        return "a tar archive", "unpack it, and give the text in it"
    return next((kind for magic, kind in FORMATS.items() if content.startswith(magic)), None)
