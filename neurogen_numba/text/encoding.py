"""Pieces of documents -> token ids, in this process or in several, in the same order."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from ..errors import ConfigError, DataError
from ..system.processes import Context, ignore_terminal
from .sources import Piece
from .tokenizer import Tokenizer, UnknownCharacter

PARCEL = 2**18  # characters per work item
PARCELS_PER_WORKER = 2  # work items in flight

_tokenizer = None  # of a worker


def encoded(pieces: Iterable[Piece], tokenizer: Tokenizer, ends: bool, workers: int = 0) -> Iterator[tuple[Piece, np.ndarray]]:
    """Each piece with its token ids [tokens] int32; if `ends`, with the end of text, if there is one, after each document.

    workers: processes that encode; 0: this one does. The ids and their order are the same.
    Raises ConfigError for a character that has no token, with its position; DataError if one of the processes is killed.
    """
    if not workers:
        yield from ((piece, encode(tokenizer, piece, ends)) for piece in pieces)
        return
    pool = ProcessPoolExecutor(workers, Context(), _begin, (tokenizer,))
    try:
        under_way: deque = deque()
        for parcel in _parcels(pieces):
            under_way.append((parcel, pool.submit(_encode_all, parcel, ends)))
            if len(under_way) > PARCELS_PER_WORKER * workers:
                yield from _result(under_way)
        while under_way:
            yield from _result(under_way)
    except BrokenProcessPool:
        raise DataError("a process that encodes text was killed, perhaps because memory ran out; use fewer --workers, or 0") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # without waiting: a thread of the pool itself may drop this iterator


def encode(tokenizer: Tokenizer, piece: Piece, ends: bool) -> np.ndarray:
    """The token ids of one piece [tokens] int32, as `encoded` gives them."""
    ids = _read(tokenizer.encode, piece)
    return np.append(ids, np.int32(tokenizer.end_of_text)) if ends and piece.ends and tokenizer.end_of_text is not None else ids


def measured(tokenizer: Tokenizer, piece: Piece, ends: bool) -> tuple[np.ndarray, np.ndarray]:
    """`Tokenizer.measured` of one piece. Raises ConfigError as `encoded`."""
    return _read(lambda text: tokenizer.measured(text, ends and piece.ends), piece)


def _read(step, piece):
    """`step` of the text of a piece. Raises ConfigError that names the file and the line of a character without a token."""
    try:
        return step(piece.text)
    except UnknownCharacter as error:
        line = piece.line + piece.text.count("\n", 0, error.index)
        raise ConfigError(
            f"{piece.where or 'the text'}, line {line:,}: the character {piece.text[error.index]!r} does not occur in the training text; "
            "take it out, or train with --tokenizer sentencepiece or byte"
        ) from None


def joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The results of `Tokenizer.measured` for consecutive texts, joined as for one text."""
    empty = np.empty(0, np.int32)
    ids, counts = zip((empty, empty), *parts, strict=True)
    return np.concatenate(ids), np.concatenate(counts)


def _parcels(pieces):
    parcel, size = [], 0
    for piece in pieces:
        parcel.append(piece)
        size += len(piece.text)
        if size >= PARCEL:
            yield parcel
            parcel, size = [], 0
    if parcel:
        yield parcel


def _result(under_way):
    parcel, future = under_way.popleft()
    return zip(parcel, future.result(), strict=True)


def _begin(tokenizer):
    global _tokenizer
    _tokenizer = tokenizer
    ignore_terminal()
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent):
    parent.join()  # a killed parent cannot stop its workers, so they watch it
    os._exit(1)


def _encode_all(pieces, ends):
    return [encode(_tokenizer, piece, ends) for piece in pieces]
