"""Cases of training with several ranks, and a script that runs them as one rank: `mpiexec -n 2 python tests/ranks.py FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np

import tiny
from neurogen_numba import backends
from neurogen_numba.benchmarks.speed import Bench
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.distributed.team import assemble, follow

VOCABULARY, BATCH, SEGMENT = 20, 5, 16
DROPOUT = {"dropout": 0.1, "axon_dropout": 0.1, "weight_drop": 0.1, "word_dropout": 0.1}
REWIRE = {"rewire_interval": 3, "rewire": "rigl"}
CASES = {  # name: (updates, settings of the training, of the brain)
    "adamw": (100, {"average": 7, **DROPOUT}, {}),
    "adamw, rewired": (9, {**REWIRE, "average": 7}, {"tied": True, "embedding": 32}),
    "muon, rewired": (9, {"optimizer": "muon", "average": 7, **REWIRE}, {"tied": True, "embedding": 32}),
    "adamw8bit": (9, {"optimizer": "adamw8bit", **REWIRE}, {"neuromodulation": True}),
    "adafactor": (9, {"optimizer": "adafactor", "activation_memory": "recompute"}, {}),
    "e-prop, replayed": (9, {"learning": "eprop", "replay": 2, "dropout": 0.1}, {}),
    "three-factor": (9, {"learning": "three-factor", "dropout": 0.1, "rewire_interval": 3, "rewire": "set"}, {"neuromodulation": True}),
}


def learn(communicator, case: str, backend=None) -> tuple[dict, dict]:
    """(figures and weights, arrays of a checkpoint) after the updates of a case, on rank 0."""
    updates, training, brain = CASES[case]
    config = tiny.config(brain={"vocabulary": VOCABULARY, **brain}, batch=BATCH, segment=SEGMENT, **training)
    backend = backend or backends.get("cpu")
    team, draw = assemble(communicator, lambda: NeuroGenModel.from_config(config, backend=backend)), np.random.default_rng(3)
    figures = []
    for step in range(updates):
        ids = draw.integers(0, VOCABULARY, (SEGMENT + 1, BATCH)).astype(np.int32)
        targets = np.where(draw.random((SEGMENT, BATCH)) < 0.5 * np.arange(BATCH) / BATCH, -1, ids[1:])  # the last sequence has the fewest
        due = team.rewiring is not None and step % 3 == 2
        figures.append(team._update(ids[:-1], targets, 0.002, draw.random(BATCH) < 0.2, step + 1, 3 * updates, due))
    state, moments = team._state()
    tensors = team.model.snapshot(state, {}, moments)[0]
    arrays = {f"{group}/{name}": array for group, entries in tensors.items() for name, array in entries.items()}
    return {"figures": np.array(figures), "weights": backend.to_numpy(team.model.brain.parameters.flat_value)}, arrays


def cases_of(size: int) -> list[str]:
    """The cases of `size` ranks. Three of them run none that is long."""
    return [case for case, (updates, *_) in CASES.items() if size == 2 or updates < 100]


def main(folder: Path):
    from neurogen_numba.distributed.mpi import Mpi
    from neurogen_numba.distributed.pulse import Pulse

    ranks, backend = Mpi(Pulse(None)), backends.get("cpu")
    ranks.bind(backend)
    for number, case in enumerate(cases_of(ranks.size)):
        for ranks.shard in (False, True):
            learned, arrays = learn(ranks, case, backend)
            everyone = ranks.everyone(learned["weights"].tobytes())
            assert len(set(everyone)) == 1, f"{case}: ranks have other weights"
            if ranks.rank == 0:
                np.savez(folder / f"{number}-{ranks.shard}.npz", **learned, **arrays)
    ranks.shard = False
    if ranks.rank:
        follow(ranks, backend)
        return
    config = tiny.config(brain={"vocabulary": VOCABULARY})
    (folder / "bench.json").write_text(json.dumps(Bench(config, backend, 1, 1, communicator=ranks).train()))
    ranks.order("end", 0)


def load(folder: Path, size: int, case: str, shard: bool) -> dict:
    """The arrays that `main` saved of a case."""
    with np.load(folder / f"{cases_of(size).index(case)}-{shard}.npz") as saved:
        return dict(saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
