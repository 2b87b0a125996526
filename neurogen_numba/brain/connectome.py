"""Which module hears which, with what fan-in and delays, and the drawing of the synapses.

The arcs that go straight to Broca (the arcuate fasciculus from Wernicke, and those from Thalamus and Hippocampus) matter: without them an
early PyTorch version stayed at 2.31 nats per character where it reached 2.00 with them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ..config import MODULES, Brain
from ..errors import CheckpointError

DELAY_SKEW = 0.1  # a synapse's delay d is drawn with probability ~ exp(-0.1 d)


@dataclass(frozen=True)
class Arc:
    """One projection: `source` and `target` name signals and currents, sizes are in neurons (or values), delays in tokens."""

    name: str
    source: str
    target: str
    sources: int
    targets: int
    fan_in: int
    first_delay: int = 0
    delays: int = 1  # how many different delays, from first_delay on
    inhibitory: bool = False  # weights stay <= 0

    @property
    def dense(self) -> bool:
        """A product of matrices: plain values without delay, all of them heard by every target. What fires stays sparse."""
        return not self.source.endswith(".axon") and self.longest_delay == 0 and self.fan_in >= self.sources

    @property
    def synapses_per_target(self) -> int:
        return min(self.fan_in, self.sources * self.delays)

    @property
    def longest_delay(self) -> int:
        return self.first_delay + self.delays - 1


def output_signal(brain: Brain, module: str) -> str:
    """The signal that stands for a module's output: its readout where it has one, otherwise its axon."""
    return f"readout_{module}.out" if has_readout(brain, module) else f"{module}.axon"


def has_readout(brain: Brain, module: str) -> bool:
    """PFC's outputs are the slots of the working memory, not a readout of its trace."""
    return module != "pfc" and 0 < getattr(brain, module).outputs < getattr(brain, module).neurons


def arcs(brain: Brain) -> list[Arc]:
    """Every projection of the brain; those with no synapses are left out."""
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
        return Arc(name, source, target, size[source], size[target], fan_in, **delays)

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
    return [a for a in table if a.fan_in]


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers for one named thing: independent of the order in which things are drawn."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def draw_synapses(arc: Arc, seed: int, index_dtype) -> tuple[np.ndarray, np.ndarray]:
    """(row_start [delays * sources + 1] uint32, target [synapses] index_dtype): distinct (delay, source) pairs for every target.

    Pairs are drawn one after the other without replacement, delays with probability ~ exp(-0.1 d).
    """
    rng = generator(seed, f"{arc.name}.structure")
    pairs, fan_in = arc.sources * arc.delays, arc.synapses_per_target
    odds = np.exp(-DELAY_SKEW * np.arange(arc.delays))
    if fan_in * 4 > pairs:  # a large share of all pairs: rank them (Gumbel's trick is the same draw)
        chance = np.log(np.repeat(odds, arc.sources))
        row = np.stack([np.argpartition(-(chance + rng.gumbel(size=pairs)), fan_in - 1)[:fan_in] for _ in range(arc.targets)])
    else:
        row = np.full((arc.targets, fan_in), -1)
        again = row < 0
        while again.any():  # redraw what a target drew twice
            delay = rng.choice(arc.delays, size=again.sum(), p=odds / odds.sum())
            row[again] = delay * arc.sources + rng.integers(arc.sources, size=again.sum())
            order = np.argsort(row, axis=1, kind="stable")
            ranked = np.take_along_axis(row, order, axis=1)
            again = np.zeros(row.shape, bool)
            np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    row_start = np.zeros(pairs + 1, np.uint32)
    row_start[1:] = np.cumsum(np.bincount(row.ravel(), minlength=pairs))
    target = np.repeat(np.arange(arc.targets), fan_in)[np.argsort(row.ravel(), kind="stable")]
    return row_start, target.astype(index_dtype)


def check_synapses(arc: Arc, row_start: np.ndarray, target: np.ndarray):
    """Raises CheckpointError where synapses from a file lead to nowhere: the kernels follow them without looking."""
    rows_in_order = row_start[0] == 0 and row_start[-1] == target.size and (row_start[:-1] <= row_start[1:]).all()
    if not rows_in_order or target.max() >= arc.targets:
        raise CheckpointError(f"{arc.name}: its synapses lead out of the brain; use another checkpoint")
