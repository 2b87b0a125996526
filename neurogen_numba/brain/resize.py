"""Resizing a trained brain: a new brain of another size that computes what the old one did.

Every neuron of the new brain has a parent in the old one: neuron j has parent j % N of N. It gets its parent's constants and reads
what its parent reads: a synapse s -> t with delay d and weight w becomes one from a child of s to every child of t, with the same delay and
weight. All children of s behave alike, so any of them may be read, and a wider brain computes what the old one did until training
breaks the symmetry (Chen et al. 2016, "Net2Net", for dense layers). Blocks of neighbours stay neighbours, so a bundle becomes
one bundle where the bundles' size divides the numbers of neurons.

    more bundles per tile than before        additional bundles begin at 0
    fewer                                    the bundles with the smallest weights are dropped
    a smaller module                         neuron s % N' of the N' replaces a neuron s without children
    other delays                             the nearest available delay

Parameters without a counterpart (a new readout, another kind of memory) keep their initial values.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ..config import MODULES
from ..config import Brain as BrainConfig
from .brain import Brain
from .connectome import Arc


@dataclass(frozen=True)
class Row:
    """How one tensor was resized. A shape is None if that brain has no such tensor."""

    name: str
    old: tuple[int, ...] | None
    new: tuple[int, ...] | None
    how: str


class Line:
    """The neurons (or values) of one signal, current or table, in the old brain and in the new one.

    parent: [new] index of each new one's parent. heir: [old] the new one read in place of an old one without children. n_children: [old].
    """

    def __init__(self, parent: np.ndarray, heir: np.ndarray):
        self.parent, self.heir = parent, heir
        self.n_children = np.bincount(parent, minlength=len(heir))
        self._children, self._first = np.argsort(parent, kind="stable"), np.cumsum(self.n_children) - self.n_children

    @property
    def unchanged(self) -> bool:
        """Whether the new ones are the old ones, in the same order."""
        return np.array_equal(self.parent, np.arange(len(self.heir)))

    def child(self, old: np.ndarray, which: int) -> np.ndarray:
        """Child number `which`, modulo their number, of each old one; its heir if it has none."""
        number = self._first[old] + which % np.maximum(1, self.n_children[old])
        return np.where(self.n_children[old] > 0, self._children[np.minimum(number, len(self._children) - 1)], self.heir[old])

    def spread(self, matrix: np.ndarray) -> np.ndarray:
        """Weights [old, ...] of values as weights [new, ...]: children share their parent's, and so the sum stays what it was."""
        spread = (matrix / np.maximum(1, self.n_children).reshape(-1, *[1] * (matrix.ndim - 1)))[self.parent]
        childless = np.flatnonzero(self.n_children == 0)
        np.add.at(spread, self.heir[childless], matrix[childless])
        return spread.astype(np.float32)


def parents(old: int, new: int) -> np.ndarray:
    """Parents [new] in range(old): all of them in order, repeated."""
    return np.arange(new) % old


def repeated(old: int, new: int) -> Line:
    """The line of `new` neurons whose parents are the `old` ones in order, repeated."""
    return Line(parents(old, new), parents(new, old))


def line(name: str, old: BrainConfig, new: BrainConfig, sizes: tuple[int, int]) -> Line:
    """The line of the signal or current `name`, sizes (old, new): repeated; in the associative memory per head."""
    if name in ("memory.query", "memory.value", "memory.out"):
        shapes = [(brain.memory_heads, brain.memory_width) for brain in (old, new)]
        return Line(_cells(*shapes), _cells(*shapes[::-1]))
    return repeated(*sizes)


def _cells(old, new):
    heads, cells = (parents(before, now) for before, now in zip(old, new, strict=True))
    return (heads[:, None] * old[1] + cells).ravel()


def carry_over(old: Brain, new: Brain) -> list[Row]:
    """Initialise a new brain from a trained one, in place. Both are on the CPU and have the same vocabulary.

    Returns a row for each tensor of either.
    """
    rows = [*_embedding(old, new), *_populations(old, new), *_projections(old, new), *_decoder(old, new)]
    done = {row.name for row in rows}
    before, now = old.parameters.table, new.parameters.table
    rows += [Row(name, None, parameter.shape, "new: as drawn") for name, parameter in now.items() if name not in done]
    rows += [Row(name, parameter.shape, None, "left out: the new brain has none") for name, parameter in before.items() if name not in now]
    new.refresh()
    return rows


def _embedding(old, new):
    name, through = "embedding.weight", "embedding_thalamus.weight"
    before, now, senses = old.parameters.value, new.parameters.value, old.components[0]
    thalamus = repeated(old.config.thalamus.neurons, new.config.thalamus.neurons)
    rows, of_rows = senses.weight * senses.gain, None if senses.tied else senses.weight.shape
    if new.config.tied and not senses.tied:
        if through in now:
            yield Row(
                through, before[through].shape if through in before else None, now[through].shape, "reset: it reads the decoder's rows"
            )
        return
    if through in now:
        columns = repeated(rows.shape[1], now[through].shape[0])
        projection = before[through] if through in before else np.eye(rows.shape[1], dtype=np.float32)
        # the decoder has shared its rows out among the children already, and makes them larger by another gain
        larger = new.components[0].gain / senses.gain
        spread = projection[columns.parent] / larger if new.config.tied else columns.spread(projection)
        now[through][...] = spread[:, thalamus.parent]
        yield Row(through, before[through].shape if through in before else None, now[through].shape, _changed(projection, now[through]))
    if new.config.tied:
        return
    if through in now:
        how, now[name][...] = _changed(rows, now[name]), rows[:, columns.parent]
    else:  # a row of the new table is what the Thalamus gets for a token
        how = _changed(rows, now[name]) if through not in before else "multiplied by the projection, which is dropped"
        now[name][...] = (rows @ before[through] if through in before else rows)[:, thalamus.parent]
    yield Row(name, of_rows, now[name].shape, how if of_rows else f"the decoder's rows, {how}")


def _populations(old, new):
    """Constants of neurons, heads and slots."""
    before, now = old.parameters.value, new.parameters.value
    for name in now:
        if name.split(".")[0] not in (*MODULES, "memory", "working_memory", "neuromodulation") or name not in before:
            continue
        now[name][...] = before[name][parents(len(before[name]), len(now[name]))]
        yield Row(name, before[name].shape, now[name].shape, _changed(before[name], now[name]))
    for mine, theirs in zip(new.populations, old.populations, strict=True):
        if mine.neuron is not theirs.neuron:
            continue  # its own, as drawn
        mine.input_scale[...] = theirs.input_scale[parents(theirs.size, mine.size)]


def _decoder(old, new):
    before, now = old.parameters.value, new.parameters.value
    weight, bias = "decoder.weight", "decoder.bias"
    same = old.decoder.source == new.decoder.source
    if same:
        line = repeated(before[weight].shape[1], now[weight].shape[1])
        now[weight][...] = line.spread(before[weight].T).T
    how = _changed(before[weight], now[weight]) if same else f"reset: it reads {new.decoder.source}, not {old.decoder.source}"
    now[bias][...] = before[bias]
    yield Row(weight, before[weight].shape, now[weight].shape, how)
    yield Row(bias, before[bias].shape, now[bias].shape, "carried over")


def _projections(old, new):
    known = {projection.arc.name: projection for projection in old.projections}
    for mine in new.projections:
        arc, name = mine.arc, f"{mine.arc.name}.weight"
        theirs = known.get(arc.name)
        if theirs is None or (theirs.arc.source, theirs.arc.target) != (arc.source, arc.target):
            why = "new: as drawn" if theirs is None else f"reset: it reads {arc.source}, not {theirs.arc.source}"
            yield Row(name, theirs and theirs.weight.shape, mine.weight.shape, why)
            continue
        if arc.name in old.drawn_anew:
            yield Row(name, None, mine.weight.shape, "drawn anew: its synapses were not in bundles as they are now")
            continue
        sources = line(arc.source, old.config, new.config, (theirs.arc.sources, arc.sources))
        targets = line(arc.target, old.config, new.config, (theirs.arc.targets, arc.targets))
        descent = descend(theirs, mine, sources, targets)
        yield Row(name, theirs.weight.shape, mine.weight.shape, _descended(descent, theirs.arc, arc, sources, targets))
    new.synapses.wire()


@dataclass(frozen=True)
class Descent:
    """What resizing kept of a projection, as shares. kept: of the squared weights; moved: bundles with another delay; filled: new bundles
    with weights."""

    kept: float
    moved: float
    filled: float


def _descended(descent: Descent, old: Arc, new: Arc, sources: Line, targets: Line) -> str:
    notes = {
        "wired anew": not sources.unchanged,
        f"{_percent(descent.moved)} of the bundles had another delay": descent.moved > 0,
        f"the strongest bundles, with {_percent(descent.kept)} of the squared weights": descent.kept < 0.9995,
        f"{_percent(1 - descent.filled)} of the bundles are new and begin at 0": descent.filled < 1,
    }
    changes = [note for note, holds in notes.items() if holds]
    same = sources.unchanged and targets.unchanged and not changes
    return ", ".join(["carried over" if same else "repeated", *changes])


def descend(theirs, mine, sources: Line, targets: Line) -> Descent:
    """Overwrite structure and weights of a projection with those resized from another one, on the CPU."""
    arc, chosen = mine.arc, {}
    size, count = arc.bundle, arc.bundles_per_tile
    block, delay, weight = mine.block.copy(), mine.delay.copy(), np.zeros(arc.weight_shape, np.float32)
    total = kept = filled = 0.0
    bundles, aligned = list(_bundles(theirs)), theirs.arc.sources % size == 0
    moved = np.mean([not arc.first_delay <= d <= arc.longest_delay for d, *_ in bundles])
    for tile in range(arc.tiles):
        tile_parents, found = targets.parent[tile * size : (tile + 1) * size], {}
        for number, (d, s0, t0, w) in enumerate(bundles):
            columns = np.flatnonzero((tile_parents >= t0) & (tile_parents < t0 + w.shape[1]))
            if not len(columns):
                continue
            which = tile + number if aligned else 0  # all children are read, one by this tile, another by the next
            child, lines = sources.child(np.arange(s0, s0 + len(w)), which), w[:, tile_parents[columns] - t0]
            d = int(np.clip(d, arc.first_delay, arc.longest_delay))
            for q in np.unique(child // size):
                piece, inside = found.setdefault((d, int(q)), np.zeros((size, size), np.float32)), child // size == q
                np.add.at(piece, (child[inside, None] % size, columns), lines[inside])
        squares = {pair: float(np.square(piece, dtype=np.float64).sum()) for pair, piece in found.items()}
        strongest = sorted((pair for pair in found if squares[pair]), key=lambda pair: (-squares[pair], pair))[:count]
        drawn = list(zip(delay[tile].tolist(), block[tile].tolist(), strict=True))
        spare = [pair for pair in drawn if pair not in strongest] + _free(arc, {*drawn, *strongest}, count)
        chosen = sorted(strongest + spare[: count - len(strongest)])
        delay[tile], block[tile] = zip(*chosen, strict=True)
        for k, pair in enumerate(chosen):
            weight[tile * count + k] = found[pair] if pair in strongest else 0
        total, kept, filled = total + sum(squares.values()), kept + sum(squares[pair] for pair in strongest), filled + len(strongest)
    mine.set_structure(block, delay)
    mine.weight[...] = weight
    return Descent(kept / total if total else 1.0, float(moved), filled / block.size)


def _free(arc, taken, count):
    """At most `count` pairs of a delay and a block that are not taken."""
    pairs = ((d, q) for d in range(arc.first_delay, arc.longest_delay + 1) for q in range(arc.blocks))
    return list(itertools.islice((pair for pair in pairs if pair not in taken), count))


def _bundles(projection):
    """(delay, first source, first target, weights [sources, targets]) of each bundle of a projection, without padding."""
    arc, weight = projection.arc, np.asarray(projection.weight)
    for number in range(len(weight)):
        s0, t0 = int(projection.block.flat[number]) * arc.bundle, int(projection.tile[number]) * arc.bundle
        yield int(projection.delay.flat[number]), s0, t0, weight[number, : arc.sources - s0, : arc.targets - t0]


def _changed(old, new):
    """How an array with a counterpart was resized."""
    return "carried over" if old.shape == new.shape else "repeated"


def _percent(share):
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
