"""Files and folders -> documents, as plain text."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError

SUFFIXES = (".txt", ".md")


def documents(path: str | Path) -> list[str]:
    """The text of a file, or of every .txt and .md file in a folder and its subfolders, sorted by path; empty files are left out.

    A byte order mark is dropped and Windows line ends become "\\n".
    Raises DataError if there is nothing there, it cannot be read, is not UTF-8 text, or is empty.
    """
    path = Path(path)
    if not path.is_dir():
        text = _read(path)
        if not text.strip():
            raise DataError(f"{path}: the file is empty; give one with text in it")
        return [text]
    files = sorted(
        (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()),
        key=lambda file: file.relative_to(path).as_posix(),  # the same order on every system
    )
    if not files:
        raise DataError(f"{path}: the folder has no {' or '.join(SUFFIXES)} file; give one that has, or a single file")
    texts = [text for text in map(_read, files) if text.strip()]
    if not texts:
        raise DataError(f"{path}: every text file in the folder is empty; give one with text in it")
    return texts


def read_text(path: str | Path) -> str:
    """All documents of `path` as one text, a newline between them. Raises DataError as `documents`."""
    return "\n".join(documents(path))


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder; check the path given to --data") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions, or give another file") from None
    zero = content.find(b"\0")
    if zero >= 0:
        raise DataError(f"{path}: not a text file, byte {zero} is NUL; give a UTF-8 text file")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text, byte {error.start} is {content[error.start]:#04x}; convert the file to UTF-8") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")
