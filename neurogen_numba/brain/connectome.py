"""The connectome: source, target, fan-in and delays of every projection, and the drawing of its synapses.

The arcs straight to Broca (the arcuate fasciculus from Wernicke, and those from Thalamus and Hippocampus) matter: without them an
early PyTorch version stayed at 2.31 nats per character where it reached 2.00 with them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import zlib
from dataclasses import dataclass

import numpy as np

from ..config import BUNDLE_SIZES, MODULES, NEUROMODULATORS, Brain, did_you_mean
from ..errors import CheckpointError, ConfigError

NORMALIZATION = "normalization"  # its name in `brain.without` (kernels/normalize.py)
TRIES = 100  # draws of a bundle that grows, before its tile counts as full
DELAY_SKEW = 0.1  # a bundle's delay d is drawn with probability ~ exp(-0.1 d)


@dataclass(frozen=True)
class Arc:
    """One projection: `source` and `target` name signals and currents, sizes are in neurons (or values), delays in tokens.

    Its synapses come in bundles (kernels/bundles.py) from `bundle` neighbouring sources to the `bundle` neighbouring targets of a tile. The
    last block of sources and the last tile of targets are smaller if the sizes do not divide; their weights are padded with 0.
    """

    name: str
    source: str
    target: str
    sources: int
    targets: int
    fan_in: int  # configured synapses per target
    first_delay: int = 0
    delays: int = 1  # number of different delays, from first_delay on
    inhibitory: bool = False  # weights stay <= 0
    most: int = 64  # neurons on a side of a bundle, at most
    pruned: int = 0  # bundles left of a pruned projection, whose tiles may read different numbers of bundles; 0: it is not pruned

    @property
    def longest_delay(self) -> int:
        return self.first_delay + self.delays - 1

    @functools.cached_property
    def bundle(self) -> int:
        """Neurons on a side of a bundle: the largest size up to `most` that divides the fan-in, or else the smallest size."""
        return max((size for size in BUNDLE_SIZES if size <= self.most and self.fan_in % size == 0), default=BUNDLE_SIZES[0])

    @property
    def blocks(self) -> int:
        return -(-self.sources // self.bundle)

    @property
    def tiles(self) -> int:
        return -(-self.targets // self.bundle)

    @property
    def covers(self) -> bool:
        """Whether a target reads every source at every delay."""
        return self.fan_in >= self.sources * self.delays

    @property
    def bundles_per_tile(self) -> int:
        """Bundles that a tile reads: the fan-in rounded to whole bundles, or all pairs of block and delay."""
        return self.blocks * self.delays if self.covers else self.nearest_bundles

    @property
    def nearest_bundles(self) -> int:
        """The fan-in rounded to whole bundles, at least one, at most all pairs of block and delay."""
        return min(max(1, (2 * self.fan_in + self.bundle) // (2 * self.bundle)), self.blocks * self.delays)

    @property
    def synapses_per_target(self) -> int:
        """The fan-in after rounding to whole bundles; of a pruned projection the mean, rounded."""
        if self.pruned:
            return -(-self.pruned * self.bundle // self.tiles)
        return min(self.bundles_per_tile * self.bundle, self.sources * self.delays)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[bundles, sources of a bundle, targets of a bundle]."""
        return self.pruned or self.tiles * self.bundles_per_tile, self.bundle, self.bundle

    @property
    def structure_shape(self) -> tuple[int, ...]:
        """[tiles, bundles per tile]; of a pruned projection [bundles]."""
        return (self.pruned,) if self.pruned else (self.tiles, self.bundles_per_tile)

    @property
    def all_tiles(self) -> np.ndarray:
        """The tile of each bundle [bundles] before any is pruned."""
        return np.repeat(np.arange(self.tiles), self.bundles_per_tile)


def output_signal(brain: Brain, module: str) -> str:
    """The output signal of a module: its readout if it has one, else its axon."""
    return f"readout_{module}.out" if has_readout(brain, module) else f"{module}.axon"


def has_readout(brain: Brain, module: str) -> bool:
    """Whether a module has a readout. PFC has none: its `outputs` are the slots of the working memory."""
    return module != "pfc" and 0 < getattr(brain, module).outputs < getattr(brain, module).neurons


def left_out(brain: Brain) -> set[str]:
    """Names of what `brain.without` and `brain.memory_rule` leave out: projections, NORMALIZATION, neuromodulators. Raises ConfigError for
    a pattern that names nothing."""
    projections = [arc.name for arc in all_arcs(brain)]
    known = [*projections, NORMALIZATION, *(NEUROMODULATORS if brain.neuromodulation else ())]
    names = {name for name in projections if brain.memory_rule == "none" and name.startswith("memory_")}
    for pattern in brain.without.split():
        named = fnmatch.filter(known, pattern)
        if not named:
            hint = "brain.neuromodulation is off" if pattern in NEUROMODULATORS else did_you_mean(pattern, known)
            raise ConfigError(f"brain.without: no part of the brain is called {pattern!r}; {hint}")
        names.update(named)
    return names


def arcs(brain: Brain) -> list[Arc]:
    """The projections of the brain that have synapses: all that are not left out. Raises ConfigError as `left_out`."""
    names = left_out(brain)
    left = [arc for arc in all_arcs(brain) if arc.fan_in and arc.name not in names]
    return _pruned(left, brain.pruned) if brain.pruned else left


def _pruned(table, pruned):
    """Arcs with the numbers of bundles that are left of them, "NAME=N NAME=N". Raises ConfigError for anything else."""
    bundles = {arc.name: arc.weight_shape[0] for arc in table}
    counts = {}
    for word in pruned.split():
        name, _, count = word.partition("=")
        if name not in bundles or not count.isdecimal() or not 1 <= int(count) <= bundles[name]:
            raise ConfigError(f"brain.pruned: {word!r} is not PROJECTION=N, N from 1 to its number of bundles; `neurogen prune` writes it")
        counts[name] = int(count)
    return [dataclasses.replace(arc, pruned=counts.get(arc.name, 0)) for arc in table]


def all_arcs(brain: Brain) -> list[Arc]:
    """All projections that a brain of these sizes may have; those without synapses have a fan-in of 0."""
    size = {f"{name}.axon": getattr(brain, name).neurons for name in MODULES}
    size |= {f"{name}.current": getattr(brain, name).neurons for name in MODULES}
    size |= {f"{name}.trace": getattr(brain, name).neurons for name in MODULES}
    size |= {f"readout_{name}.out": getattr(brain, name).output_size for name in MODULES}
    size |= {f"readout_{name}.current": getattr(brain, name).output_size for name in MODULES}
    cells, slots = brain.memory_heads * brain.memory_width, brain.pfc.output_size
    size |= {"memory.query": cells, "memory.value": cells, "memory.write": brain.memory_heads, "memory.out": cells}
    size |= {"working_memory.retain": slots, "working_memory.store": slots, "working_memory.out": slots, "broca.gate": brain.broca.neurons}
    wernicke, hippocampus, go = (output_signal(brain, name) for name in ("wernicke", "hippocampus", "basal_ganglia"))
    late = {"first_delay": brain.chunk, "delays": brain.late_delays}
    feedback = late | {"first_delay": brain.chunk * brain.feedback_chunks}

    def arc(name, source, target, fan_in=brain.fan_in, **delays):
        most = brain.memory_bundle if target.startswith("memory.") else brain.bundle
        return Arc(name, source, target, size[source], size[target], fan_in, most=most, **delays)

    table = [
        arc("feedback_thalamus", "pfc.axon", "thalamus.current", brain.feedback, inhibitory=True, **feedback),
        arc("thalamus_wernicke", "thalamus.axon", "wernicke.current", delays=brain.delays),
        arc("feedback_wernicke", "pfc.axon", "wernicke.current", brain.feedback, **feedback),
        arc("memory_query", "thalamus.axon", "memory.query", brain.memory_fan_in, delays=brain.memory_context),
        arc("memory_value", "thalamus.axon", "memory.value", brain.memory_fan_in),
        arc("memory_write", wernicke, "memory.write", brain.memory_fan_in),
        arc("memory_hippocampus", "memory.out", "hippocampus.current"),
        arc("wernicke_hippocampus", "wernicke.axon", "hippocampus.current", delays=4),
        arc("wernicke_retain", wernicke, "working_memory.retain"),
        arc("wernicke_store", wernicke, "working_memory.store"),
        arc("hippocampus_retain", hippocampus, "working_memory.retain"),
        arc("hippocampus_store", hippocampus, "working_memory.store"),
        arc("go_retain", go, "working_memory.retain", brain.feedback, inhibitory=True, **feedback),
        arc("working_memory_pfc", "working_memory.out", "pfc.current"),
        arc("wernicke_pfc", "wernicke.axon", "pfc.current", delays=4),
        arc("hippocampus_pfc", "hippocampus.axon", "pfc.current"),
        arc("pfc_basal_ganglia", "pfc.axon", "basal_ganglia.current"),
        arc("pfc_broca", "pfc.axon", "broca.current"),
        arc("hippocampus_broca", "hippocampus.axon", "broca.current"),
        arc("wernicke_broca", "wernicke.axon", "broca.current", delays=4),
        arc("memory_broca", "memory.out", "broca.current"),
        arc("thalamus_broca", "thalamus.axon", "broca.current", delays=brain.delays),
        arc("go_broca", go, "broca.gate"),
    ]
    table += [arc(f"lateral_{name}", f"{name}.axon", f"{name}.current", getattr(brain, name).lateral, **late) for name in MODULES]
    table += [arc(f"readout_{name}", f"{name}.trace", f"readout_{name}.current") for name in MODULES if has_readout(brain, name)]
    return table


def generator(seed: int, name: str) -> np.random.Generator:
    """A random number generator of its own for a name, so that the order of drawing does not matter."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def draw_bundles(arc: Arc, seed: int) -> tuple[np.ndarray, ...]:
    """(block, delay), each [tiles, bundles per tile] int32: source block and delay of each bundle, in ascending order of (delay, block). Of
    a pruned projection (block, delay, tile), [bundles] each, for a random part of them.

    Pairs of a delay and a block are drawn one after the other without replacement, delays with probability ~ exp(-0.1 d).
    """
    rng = generator(seed, f"{arc.name}.structure")
    pairs, count = arc.blocks * arc.delays, arc.bundles_per_tile
    odds = np.exp(-DELAY_SKEW * np.arange(arc.delays))
    if count * 4 > pairs:  # a large share of all pairs: rank them (Gumbel's trick is the same draw)
        chance = np.log(np.repeat(odds, arc.blocks))
        pair = np.stack([np.argpartition(-(chance + rng.gumbel(size=pairs)), count - 1)[:count] for _ in range(arc.tiles)])
    else:
        pair = np.full((arc.tiles, count), -1)
        again = pair < 0
        while again.any():  # draw again what a tile drew twice
            delay = rng.choice(arc.delays, size=again.sum(), p=odds / odds.sum())
            pair[again] = delay * arc.blocks + rng.integers(arc.blocks, size=again.sum())
            order = np.argsort(pair, axis=1, kind="stable")
            ranked = np.take_along_axis(pair, order, axis=1)
            again = np.zeros(pair.shape, bool)
            np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    pair.sort(axis=1)
    structure = (pair % arc.blocks).astype(np.int32), (arc.first_delay + pair // arc.blocks).astype(np.int32)
    if not arc.pruned:
        return structure
    some = np.sort(rng.choice(pair.size, arc.pruned, replace=False))
    return *(array.reshape(-1)[some] for array in structure), arc.all_tiles[some]


def grow_bundles(arc: Arc, block: np.ndarray, delay: np.ndarray, slots: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` pairs of a delay and a block, [count, K] int64, for each of the K bundles `slots` that is to be another one: a pair is
    (delay - first delay) * blocks + block. Delays are drawn as by `draw_bundles`; a pair that its tile has, or had, is never drawn, and
    none is twice. -1 if a tile has no other pair left, or TRIES draws found none.
    """
    tiles, size = np.tile(slots // arc.bundles_per_tile, count), arc.blocks * arc.delays
    known = np.arange(arc.tiles)[:, None] * size + (delay.astype(np.int64) - arc.first_delay) * arc.blocks + block
    claims, room = np.zeros(arc.tiles * size, np.int32), np.full(arc.tiles, size - arc.bundles_per_tile)
    claims[known] = taken = len(tiles) + 1  # above every claim; 0: nobody has claimed the pair
    odds = np.exp(-DELAY_SKEW * np.arange(arc.delays)).cumsum()
    pairs, missing = np.full(len(tiles), -1, np.int64), np.arange(len(tiles))
    for _ in range(TRIES):
        if not room[tiles[missing]].any():
            break
        late = (odds / odds[-1]).searchsorted(rng.random(len(missing)), side="right")
        drawn = late * arc.blocks + rng.integers(arc.blocks, size=len(missing))
        key, claim = tiles[missing] * size + drawn, (len(tiles) - missing).astype(claims.dtype)
        np.maximum.at(claims, key, claim)  # of those that draw a pair at once, the first gets it
        new = claims[key] == claim
        pairs[missing[new]], claims[key[new]] = drawn[new], taken
        room -= np.bincount(tiles[missing[new]], minlength=arc.tiles)
        missing = missing[~new]
    return pairs.reshape(count, len(slots))


def real_weights(arc: Arc, block: np.ndarray, tile: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the weights that are synapses, not padding: sources [bundles, BS] bool, targets [bundles, BT] bool. tile: of each bundle of
    a pruned projection."""
    source = block.reshape(-1, 1) * arc.bundle + np.arange(arc.bundle)
    tile = (arc.all_tiles if tile is None else tile)[:, None]
    return source < arc.sources, tile * arc.bundle + np.arange(arc.bundle) < arc.targets


def check_bundles(arc: Arc, block: np.ndarray, delay: np.ndarray, tile: np.ndarray | None = None):
    """Raise CheckpointError if bundles from a file are out of range or occur twice in a tile: kernels do not check them. tile: of each
    bundle of a pruned projection."""
    tile = arc.all_tiles if tile is None else tile
    inside = (block >= 0).all() and (block < arc.blocks).all()
    inside = inside and (delay >= arc.first_delay).all() and (delay <= arc.longest_delay).all()
    inside = inside and (tile >= 0).all() and (tile < arc.tiles).all()
    bundle = (tile.astype(np.int64) * (arc.longest_delay + 1) + delay.reshape(-1)) * arc.blocks + block.reshape(-1)
    if not inside or len(np.unique(bundle)) < len(bundle):
        raise CheckpointError(f"{arc.name}: its bundles lead out of the brain or are there twice; use another checkpoint")
