"""What is kept of a segment for the way back, where not everything is.

Neurons then have room for the tokens of one chunk only. Kept of every chunk is the state in which it begins; what happened in it is either
kept, too, in 16 bits (`Half`), or run again from there on the way back, by what the axons carried, which is all kept (`Recompute`).

A membrane potential is kept as its distance from the threshold, v - 1. That has the same sign in float16 as in float32, so that what fired
has fired on the way back, and it is the most precise where the surrogate slope wants it to be.
"""

from __future__ import annotations

import numpy as np


class Recompute:
    """The states between chunks: marks [chunks + 1, B, N] of each array of rows [C + 1, B, N]."""

    def __init__(self, act):
        self.act, self.chunks = act, -(-act.tokens // act.chunk)
        self.rows = [*act.v.values(), *act.a.values(), *act.y.values(), act.m]
        self.marks = [act.brain.backend.zeros((self.chunks + 1, *rows.shape[1:])) for rows in self.rows]
        self.said = act.brain.backend.zeros((act.tokens, *act.signals[act.brain.decoder.source].x.shape[1:]))  # what the decoder reads

    def begin(self):
        """A segment begins: its state is in row 0."""
        self._mark(0, 0)

    def enter(self, chunk):
        """Go on from the state in which a chunk begins."""
        for rows, marks in zip(self.rows, self.marks, strict=True):
            rows[0][...] = marks[chunk]

    def leave(self, chunk, first, last):
        """The tokens first ... last - 1 of a chunk have been run."""
        self._mark(chunk + 1, last - first)
        self.said[first:last] = self.act.signals[self.act.brain.decoder.source].x[: last - first]

    def back(self, chunk, first, last):
        """Bring back what happened in a chunk."""
        self.enter(chunk)
        self.act.brain.think_again(self.act, first, last)

    def _mark(self, number, row):
        for rows, marks in zip(self.rows, self.marks, strict=True):
            marks[number][...] = rows[row]


class Half(Recompute):
    """And what happened in the chunks, float16 [T, B, N] of each array [C, B, N]."""

    def __init__(self, act):
        super().__init__(act)
        zeros = act.brain.backend.zeros
        self.membranes = [v[1:] for v in act.v.values()]
        others = [rows[1:] for rows in (*act.a.values(), *act.y.values(), act.m)]
        others += [current.value for current in act.currents.values()]
        self.others = [*others, *act.r.values(), act.signals["memory.out"].x]
        self.kept_membranes, self.kept_others = (
            [zeros((act.tokens, *array.shape[1:]), "float16") for array in arrays] for arrays in (self.membranes, self.others)
        )

    def leave(self, chunk, first, last):
        super().leave(chunk, first, last)
        for kept, array in zip(self.kept_others, self.others, strict=True):
            kept[first:last] = array[: last - first]
        for kept, v in zip(self.kept_membranes, self.membranes, strict=True):
            np.subtract(v[: last - first], np.float32(1), out=kept[first:last])

    def back(self, chunk, first, last):
        self.enter(chunk)
        for kept, array in zip(self.kept_others, self.others, strict=True):
            array[: last - first] = kept[first:last]
        for kept, v in zip(self.kept_membranes, self.membranes, strict=True):
            v[: last - first] = kept[first:last]  # in float32 before anything is added
            np.add(v[: last - first], np.float32(1), out=v[: last - first])


CHECKPOINTING = {"full": None, "half": Half, "recompute": Recompute}
