"""Activation checkpointing: how a segment's values reach the backward pass when memory has room for one chunk of them only.

Every mode keeps the state at each chunk boundary, and everything the axons carried. `Recompute` runs the neurons of a chunk again from its
boundary in the backward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost"). `HalfPrecision` keeps the values of all
chunks in float16 instead.

A membrane potential is stored as its distance from the threshold, v - 1. Its sign is the same in float16 as in float32, so the backward
pass sees the same events; and its precision is highest near the threshold, where the surrogate gradient needs it.
"""

from __future__ import annotations

import numpy as np


class Recompute:
    """Keeps the state at chunk boundaries: [chunks + 1, B, N] for each state array [C + 1, B, N]; row 0 is the token before the chunk."""

    def __init__(self, act):
        self.act, chunks = act, -(-act.tokens // act.chunk)
        self.rows = [*(rows for states in act.neurons.values() for rows in states.values()), *act.y.values(), act.m]
        self.boundaries = [act.brain.backend.zeros((chunks + 1, *rows.shape[1:])) for rows in self.rows]
        self._source = act.signals[act.brain.decoder.source]
        self.decoder_source = act.brain.backend.zeros((act.tokens, *self._source.x.shape[1:]))  # the signal that the decoder reads

    def begin_segment(self):
        """Keep the state before the segment, which is in row 0."""
        self._save_boundary(0, 0)

    def load_boundary(self, chunk):
        """Overwrite row 0 with the state before a chunk."""
        for rows, boundaries in zip(self.rows, self.boundaries, strict=True):
            self.act.brain.backend.apply(np.copyto, rows[0], boundaries[chunk])

    def save_chunk(self, chunk, first, last):
        """Keep what the backward pass needs of a chunk, the tokens first ... last - 1, after its forward pass."""
        self._save_boundary(chunk + 1, last - first)
        self.decoder_source[first:last] = self._source.x[: last - first]

    def begin_backward(self, chunk, first, last):
        """Restore the values of a chunk before its backward pass."""
        self.load_boundary(chunk)
        self.act.brain.recompute(self.act, first, last)

    def _save_boundary(self, number, row):
        for rows, boundaries in zip(self.rows, self.boundaries, strict=True):
            boundaries[number][...] = rows[row]


class HalfPrecision(Recompute):
    """Also keeps the values of all chunks: float16 [T, B, N] for each array [C, B, N]."""

    def __init__(self, act):
        super().__init__(act)
        zeros = act.brain.backend.zeros
        self.membranes = [v[1:] for v in act.v.values()]
        membranes = list(map(id, act.v.values()))
        others = [rows[1:] for rows in self.rows if id(rows) not in membranes]
        others += [current.value for current in act.currents.values()]
        self.others = [*others, *act.r.values(), act.signals["memory.out"].x]
        self.saved_membranes, self.saved_others = (
            [zeros((act.tokens, *array.shape[1:]), "float16") for array in arrays] for arrays in (self.membranes, self.others)
        )

    def save_chunk(self, chunk, first, last):
        super().save_chunk(chunk, first, last)
        for saved, array in zip(self.saved_others, self.others, strict=True):
            saved[first:last] = array[: last - first]
        for saved, v in zip(self.saved_membranes, self.membranes, strict=True):
            np.subtract(v[: last - first], np.float32(1), out=saved[first:last])

    def begin_backward(self, chunk, first, last):
        self.load_boundary(chunk)
        for saved, array in zip(self.saved_others, self.others, strict=True):
            array[: last - first] = saved[first:last]
        for saved, v in zip(self.saved_membranes, self.membranes, strict=True):
            v[: last - first] = saved[first:last]  # convert to float32 before adding
            np.add(v[: last - first], np.float32(1), out=v[: last - first])


CHECKPOINTING = {"full": None, "half": HalfPrecision, "recompute": Recompute}  # by `training.activation_memory`
