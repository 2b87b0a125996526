"""Pieces of held-out text for samples: a prompt, and the true continuation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PIECES = 4  # used in turn, so that later samples of a piece show what has changed
PROMPT_TOKENS = 64
SAMPLE_TOKENS = 160


@dataclass(frozen=True)
class Piece:
    """context: the prompt with the token before it, if any; prompt, truth: token ids, int32."""

    context: np.ndarray
    prompt: np.ndarray
    truth: np.ndarray


def pieces(tokens: np.ndarray, end_of_text: int | None) -> list[Piece]:
    """At most PIECES different pieces, evenly spread over `tokens` [n] int32, n at least 2.

    No piece crosses the end of a document. A short document is taken whole; its prompt is at most half of it.
    """
    ends = [-1, *np.flatnonzero(tokens == end_of_text).tolist(), len(tokens)]
    documents = [(before + 1, end) for before, end in pairwise(ends) if end - before > 2] or [(0, len(tokens))]
    longest, found = PROMPT_TOKENS + SAMPLE_TOKENS, {}
    for number in range(PIECES):
        offset = number * len(tokens) // PIECES
        first, last = max((document for document in documents if document[0] <= offset), default=documents[0])
        if last - first > longest:
            first = min(max(first, offset), last - longest)
            last = first + longest
        cut = first + min(PROMPT_TOKENS, (last - first) // 2)
        found[first] = Piece(tokens[max(0, first - 1) : cut], tokens[first:cut], tokens[cut:last])
    return list(found.values())
