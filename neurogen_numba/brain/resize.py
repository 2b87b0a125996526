"""A brain of another size that goes on from one that has learned.

Every neuron of the new brain has a parent in the old one, the one in the same place in proportion: neuron j of N' takes after neuron
j N // N' of N. It gets its parent's constants and hears what its parent hears: of each synapse s -> t with delay d and weight w, a child of
t gets one from a child of s, with the same delay and weight. Where all children of s do alike, it does not matter from which. So a wider
brain does what the old one did, until learning tells the children apart (Chen et al. 2016, "Net2Net", do so with dense layers).

    more synapses per neuron than before     a weight is shared out among several children; those that are still too many begin at 0
    fewer                                    the weakest are left out
    a smaller module                         who has no child is heard through the neuron in the same place in proportion
    other delays                             the nearest delay that there is

What has no counterpart (a module that has a readout only now, another kind of memory) stays as it was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import MODULES
from ..config import Brain as BrainConfig
from .brain import Brain
from .connectome import Arc, generator


@dataclass(frozen=True)
class Row:
    """What became of one tensor. Shapes are None where there is none."""

    name: str
    old: tuple[int, ...] | None
    new: tuple[int, ...] | None
    how: str


class Line:
    """The neurons (or values) of one signal, current or table, in the old brain and in the new one.

    parent: [new] of each new one. heir: [old] the new one that is heard in the place of an old one without children. n_children: [old].
    """

    def __init__(self, parent: np.ndarray, heir: np.ndarray):
        self.parent, self.heir = parent, heir
        self.n_children = np.bincount(parent, minlength=len(heir))
        self._children, self._first = np.argsort(parent, kind="stable"), np.cumsum(self.n_children) - self.n_children

    @property
    def unchanged(self) -> bool:
        """Whether there are as many as before, each in the place of its parent."""
        return np.array_equal(self.parent, np.arange(len(self.heir)))

    def child(self, old: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Child number `which`, counted round, of each old one; its heir, where it has none."""
        number = self._first[old] + which % np.maximum(1, self.n_children[old])
        return np.where(self.n_children[old] > 0, self._children[np.minimum(number, len(self._children) - 1)], self.heir[old])

    def spread(self, matrix: np.ndarray) -> np.ndarray:
        """Weights [old, ...] of values as weights [new, ...]: children share their parent's, and so the sum stays what it was."""
        spread = (matrix / np.maximum(1, self.n_children).reshape(-1, *[1] * (matrix.ndim - 1)))[self.parent]
        childless = np.flatnonzero(self.n_children == 0)
        np.add.at(spread, self.heir[childless], matrix[childless])
        return spread.astype(np.float32)


def in_proportion(old: int, new: int) -> np.ndarray:
    """[new]: for each of `new` places the one of `old` that is as far along."""
    return np.arange(new) * old // new


def proportional(old: int, new: int) -> Line:
    """The line of `new` places that take after `old` ones in proportion."""
    return Line(in_proportion(old, new), in_proportion(new, old))


def line(name: str, old: BrainConfig, new: BrainConfig, sizes: tuple[int, int]) -> Line:
    """The line of what is called `name`, of these sizes before and now: in proportion, in the associative memory head by head."""
    if name in ("memory.query", "memory.value", "memory.out"):
        shapes = [(brain.memory_heads, brain.memory_width) for brain in (old, new)]
        return Line(_cells(*shapes), _cells(*shapes[::-1]))
    return proportional(*sizes)


def _cells(old, new):
    heads, cells = (in_proportion(before, now) for before, now in zip(old, new, strict=True))
    return (heads[:, None] * old[1] + cells).ravel()


def carry_over(old: Brain, new: Brain, seed: int = 0) -> list[Row]:
    """Give a freshly drawn brain what it can take over from another, in place. Both are on the CPU and know the same tokens.

    Returns a row for each tensor of either.
    """
    rows = [*_embedding(old, new), *_populations(old, new), *_projections(old, new, seed), *_decoder(old, new)]
    told = {row.name for row in rows}
    before, now = old.parameters.table, new.parameters.table
    rows += [Row(name, None, own.shape, "new: as drawn") for name, own in now.items() if name not in told]
    rows += [Row(name, own.shape, None, "left out: the new brain has none") for name, own in before.items() if name not in now]
    new.refresh()
    return rows


def _embedding(old, new):
    name, through = "embedding.weight", "embedding_thalamus.weight"
    before, now, senses = old.parameters.value, new.parameters.value, old.components[0]
    thalamus = proportional(old.config.thalamus.neurons, new.config.thalamus.neurons)
    rows, of_rows = senses.weight * senses.gain, None if senses.tied else senses.weight.shape
    if new.config.tied and not senses.tied:
        if through in now:
            yield Row(
                through, before[through].shape if through in before else None, now[through].shape, "reset: it hears the decoder's rows"
            )
        return
    if through in now:
        columns = proportional(rows.shape[1], now[through].shape[0])
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
        how = _changed(rows, now[name]) if through not in before else "multiplied by the projection, which is not needed any more"
        now[name][...] = (rows @ before[through] if through in before else rows)[:, thalamus.parent]
    yield Row(name, of_rows, now[name].shape, how if of_rows else f"the decoder's rows, {how}")


def _populations(old, new):
    """Constants of neurons, heads and slots."""
    before, now = old.parameters.value, new.parameters.value
    for name in now:
        if name.split(".")[0] not in (*MODULES, "memory", "working_memory") or name not in before:
            continue
        now[name][...] = before[name][in_proportion(len(before[name]), len(now[name]))]
        yield Row(name, before[name].shape, now[name].shape, _changed(before[name], now[name]))
    for mine, theirs in zip(new.populations, old.populations, strict=True):
        mine.input_scale[...] = theirs.input_scale[in_proportion(theirs.size, mine.size)]


def _decoder(old, new):
    before, now = old.parameters.value, new.parameters.value
    weight, bias = "decoder.weight", "decoder.bias"
    same = old.decoder.source == new.decoder.source
    if same:
        line = proportional(before[weight].shape[1], now[weight].shape[1])
        now[weight][...] = line.spread(before[weight].T).T
    how = _changed(before[weight], now[weight]) if same else f"reset: it reads {new.decoder.source}, not {old.decoder.source}"
    now[bias][...] = before[bias]
    yield Row(weight, before[weight].shape, now[weight].shape, how)
    yield Row(bias, before[bias].shape, now[bias].shape, "carried over")


def _projections(old, new, seed):
    known = {projection.arc.name: projection for projection in old.projections}
    for mine in new.projections:
        arc, name = mine.arc, f"{mine.arc.name}.weight"
        theirs = known.get(arc.name)
        if theirs is None or (theirs.arc.source, theirs.arc.target) != (arc.source, arc.target):
            why = "new: as drawn" if theirs is None else f"reset: it hears {arc.source}, not {theirs.arc.source}"
            yield Row(name, theirs and theirs.weight.shape, mine.weight.shape, why)
            continue
        sources = line(arc.source, old.config, new.config, (theirs.arc.sources, arc.sources))
        targets = line(arc.target, old.config, new.config, (theirs.arc.targets, arc.targets))
        if arc.dense:
            mine.weight[...] = sources.spread(_matrix(theirs))[:, targets.parent]
            same = theirs.arc.dense and sources.unchanged and targets.unchanged
            yield Row(name, theirs.weight.shape, mine.weight.shape, "carried over" if same else "spread in proportion")
            continue
        before = _by_target(theirs)
        pair, weight, share = descend(*before, theirs.arc, arc, sources, targets, generator(seed, f"{arc.name}.resize"))
        order = np.argsort(pair.ravel(), kind="stable")
        mine.weight[...] = weight.ravel()[order]
        row_start = np.zeros(arc.sources * arc.delays + 1, np.uint32)
        row_start[1:] = np.cumsum(np.bincount(pair.ravel(), minlength=arc.sources * arc.delays))
        mine.set_structure(row_start, np.repeat(np.arange(arc.targets), arc.synapses_per_target)[order])
        how = _descended(before[0], theirs.arc, arc, sources, targets, share)
        yield Row(name, theirs.weight.shape, mine.weight.shape, how)
    new.synapses.wire()


def _descended(pair, old: Arc, new: Arc, sources: Line, targets: Line, share: float) -> str:
    """What became of the synapses of an arc, arguments as of `descend`: the same weights may be of synapses that lead elsewhere now."""
    K, slots = old.synapses_per_target, new.synapses_per_target
    delay = pair // old.sources + old.first_delay
    moved = ((delay < new.first_delay) | (delay > new.longest_delay)).mean()
    notes = {
        "wired anew": not sources.unchanged,
        f"{_percent(moved)} had another delay": moved > 0,
        f"the strongest {slots} of {K} per target": slots < K,
        f"{_percent(1 - share)} of the synapses are new and begin at 0": share < 1,
    }
    said = [note for note, holds in notes.items() if holds]
    spread = not targets.unchanged or (slots > K and not sources.unchanged)
    carried = "weights carried over" if said else "carried over"
    return ", ".join(["spread in proportion" if spread else carried, *said])


def descend(pair, weight, old: Arc, new: Arc, sources: Line, targets: Line, rng) -> tuple[np.ndarray, np.ndarray, float]:
    """The synapses of an arc from those of another: (pair [targets', K'] of delay and source, weight [targets', K'] float32, share of them
    that have a parent).

    pair, weight: [targets, K] of the old arc. A pair is (delay - first_delay) * sources + source; no target has the same one twice.
    """
    K, slots = pair.shape[1], new.synapses_per_target
    pair, weight = pair[targets.parent], weight[targets.parent]
    if slots < K:
        strongest = np.argsort(-np.abs(weight), axis=1, kind="stable")[:, :slots]
        pair, weight = np.take_along_axis(pair, strongest, 1), np.take_along_axis(weight, strongest, 1)
        K = slots
    slot = np.arange(slots)
    copies = np.bincount(slot % K, minlength=K)  # of each old synapse, one after the other
    pair, weight = pair[:, slot % K], (weight / copies.astype(np.float32))[:, slot % K]
    delay = np.clip(pair // old.sources + old.first_delay - new.first_delay, 0, new.delays - 1)
    which = rng.integers(2**31, size=(len(pair), K))[:, slot % K] + slot // K
    pair = delay * new.sources + sources.child(pair % old.sources, which)
    return _distinct(pair, weight, new, rng)


def _distinct(pair, weight, arc, rng):
    """Add up the weights of pairs that a target has twice; the slots that are left over get pairs that it has not, of weight 0."""
    order = np.argsort(pair, axis=1, kind="stable")
    pair, weight = np.take_along_axis(pair, order, 1), np.take_along_axis(weight, order, 1)
    again = np.zeros(pair.shape, bool)
    again[:, 1:] = pair[:, 1:] == pair[:, :-1]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(pair.shape[1])), axis=1)
    summed = np.zeros_like(weight)
    np.add.at(summed, (np.arange(len(pair))[:, None], first), weight)
    for target in np.flatnonzero(again.any(1)):
        free = np.ones(arc.sources * arc.delays, bool)
        free[pair[target]] = False
        pair[target, again[target]] = rng.choice(np.flatnonzero(free), again[target].sum(), replace=False)
    return pair, summed, 1 - again.mean()


def _by_target(projection):
    """(pair, weight), each [targets, K], of all synapses of a projection; see `descend`."""
    arc = projection.arc
    if arc.dense:
        return np.tile(np.arange(arc.sources), (arc.targets, 1)), np.array(projection.weight.T)
    order = np.argsort(projection.target, kind="stable")
    pair = np.repeat(np.arange(arc.sources * arc.delays), np.diff(projection.row_start.astype(np.int64)))
    return pair[order].reshape(arc.targets, -1), np.array(projection.weight)[order].reshape(arc.targets, -1)


def _matrix(projection):
    """Weights [sources, targets] of a projection, whatever their delays."""
    pair, weight = _by_target(projection)
    matrix = np.zeros((projection.arc.sources, projection.arc.targets), np.float32)
    np.add.at(matrix, (pair % projection.arc.sources, np.arange(projection.arc.targets)[:, None]), weight)
    return matrix


def _changed(old, new):
    """How an array that has a counterpart came into the new brain."""
    return "carried over" if old.shape == new.shape else "spread in proportion"


def _percent(share):
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
