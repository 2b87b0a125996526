"""An ablation study: a recipe, and the recipe with one change at a time, several seeds each; the effect of each change on the loss.

Every run is a process of `neurogen train`. An interrupted study resumes. Results are appended to a log.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from ..config import MODULES, NEUROMODULATORS, Config
from ..errors import ConfigError
from ..storage.run_folder import METRICS, SUMMARY, make_folder, write_whole

BASE = "base"  # name of the recipe without a change
LOG = "log.jsonl"
POLL = 0.5  # seconds between checks of the runs
SURE = 2.0  # standard errors from which a difference is reported as better or worse
# Name of a change -> settings without one part of the brain, or with one that is off by default. Changes that a recipe has are left out.
COMPONENTS = {
    "binary events": {"brain": {"events": "binary"}},
    "no delays": {"brain": {"delays": 1}},
    "delays": {"brain": {"delays": 24}},
    "LIF-A": {"brain": {name: {"neuron": "lif_a"} for name in MODULES}},
    "SE-adLIF": {"brain": {name: {"neuron": "adlif"} for name in MODULES}},
    "no arcs straight to Broca": {"brain": {"without": "thalamus_broca wernicke_broca hippocampus_broca"}},
    "no associative memory": {"brain": {"without": "memory_hippocampus memory_broca"}},
    "no working memory": {"brain": {"without": "working_memory_pfc"}},
    "no gate": {"brain": {"without": "go_broca"}},
    "no feedback": {"brain": {"feedback": 0}},
    "feedback": {"brain": {"feedback": 16}},
    "neuromodulation": {"brain": {"neuromodulation": True}},
    **{f"neuromodulation, no {name}": {"brain": {"neuromodulation": True, "without": name}} for name in NEUROMODULATORS},
    "rewiring": {"training": {"rewire_interval": 300}},
    "no rewiring": {"training": {"rewire_interval": 0}},
    "replay": {"training": {"replay": 4}},
    "no lateral synapses": {"brain": {"without": "lateral_*"}},
    "no normalization": {"brain": {"without": "normalization"}},
}


@dataclass(frozen=True, eq=False)
class Change:
    """A name, and the configuration of the recipe with this change."""

    name: str
    config: Config
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Run:
    """One training run of a study: a change with a seed, in its own folder."""

    change: Change
    seed: int
    folder: Path

    def result(self) -> dict | None:
        """The summary of the run; None before its end."""
        try:
            summary = json.loads((self.folder / SUMMARY).read_bytes())
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) and isinstance(summary.get("val_loss"), float) else None

    def step(self) -> int:
        """The last update in the log of the run."""
        try:
            lines = (self.folder / METRICS).read_bytes().splitlines()
        except OSError:
            return 0
        steps = re.findall(rb'"step": (\d+)', b"".join(lines[-3:]))
        return int(steps[-1]) if steps else 0


@dataclass(frozen=True)
class Row:
    """Statistics of a change over all seeds that have ended. loss: nats per token; spread: standard deviation over seeds, None for one
    seed.

    difference: mean over the seeds of its loss minus the recipe's with the same seed, None for the recipe itself; error: standard error of
    this mean.
    """

    name: str
    seeds: int
    loss: float
    spread: float | None
    difference: float | None
    error: float | None
    questions: float | None
    parameters: int
    losses: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """better, worse, no difference; empty if there are too few seeds."""
        if self.difference is None or self.error is None:
            return ""
        if abs(self.difference) < SURE * self.error:
            return "no difference"
        return "better" if self.difference < 0 else "worse"


class Study:
    """Runs of a recipe and its changes under `out`, `jobs` at a time.

    flags: flags of `neurogen train` for every run, for example --backend. Raises ConfigError if a change has no name, or the name of
    another.
    """

    def __init__(self, changes: Sequence[Change], seeds: int, out: Path, flags: Sequence[str] = (), jobs: int = 1):
        names = [_slug(change.name) for change in changes]
        for change, name in zip(changes, names, strict=True):
            if not name or names.count(name) > 1:
                raise ConfigError(f"change {change.name!r}: a unique name is needed, with letters or digits")
        self.changes, self.out, self.flags, self.jobs, self.failed = changes, out, list(flags), jobs, {}
        self.runs = [
            Run(change, seed, out / "runs" / f"{name}-{seed}")
            for seed in range(1, seeds + 1)
            for change, name in zip(changes, names, strict=True)
        ]

    def train(self) -> Iterator[list[Run]]:
        """Train the remaining runs. Yields the list of active runs at intervals; closing the generator ends the processes.

        `failed`: for each failed run, the last line of its output. Raises ConfigError if `out` contains runs with other settings.
        """
        make_folder(self.out / "runs")
        for run in self.runs:
            self._write_settings(run)
        waiting, under_way = [run for run in self.runs if run.result() is None], {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self.jobs:
                    run = waiting.pop(0)
                    under_way[run] = self._start(run)
                yield list(under_way)
                time.sleep(POLL)
                for run, process in list(under_way.items()):
                    if process.poll() is not None:
                        self._end(run, process)
                        del under_way[run]
        finally:
            for process in under_way.values():
                process.terminate()  # a run then saves a checkpoint
            for process in under_way.values():
                process.wait()

    def _start(self, run):
        command = [sys.executable, "-m", "neurogen_numba.train", "--plain", *self.flags, "--out", str(run.folder.parent)]
        if run.folder.exists():
            command += ["--resume", str(run.folder)]
        else:
            command += ["--name", run.folder.name, "--config", str(run.folder.with_suffix(".toml"))]
        with open(self._outputs(run), "wb") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def _outputs(self, run):
        return run.folder.with_suffix(".txt")

    def _write_settings(self, run):
        import tomli_w

        values = run.change.config.replace(training={"seed": run.seed}).to_dict()
        del values["brain"]["vocabulary"]  # the tokenizer determines it
        path, settings = run.folder.with_suffix(".toml"), tomli_w.dumps(values).encode()
        if run.folder.exists() and path.exists() and path.read_bytes() != settings:
            raise ConfigError(f"{self.out}: {run.folder.name} was trained with other settings; name another folder by --out")
        write_whole(path, settings)

    def _end(self, run, process):
        summary = run.result()
        if summary is None:
            output = self._outputs(run).read_text("utf-8", "replace").split("\n")
            self.failed[run] = next((line for line in reversed(output) if line.strip()), f"ended with exit code {process.returncode}")
            return
        record = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}", "change": run.change.name, "seed": run.seed}
        record |= {"settings": run.change.settings, **summary}
        with open(self.out / LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")

    def rows(self) -> list[Row]:
        """The changes with at least one finished seed, in order."""
        results = {name: {run.seed: run.result() for run in self.runs if run.change.name == name} for name in self._names()}
        results = {name: {seed: summary for seed, summary in of.items() if summary} for name, of in results.items()}
        return [_row(name, of, results.get(BASE, {})) for name, of in results.items() if of]

    def _names(self):
        return [change.name for change in self.changes]


def _row(name, results, base):
    losses = {seed: summary["val_loss"] for seed, summary in results.items()}
    paired = [] if name == BASE else [loss - base[seed]["val_loss"] for seed, loss in losses.items() if seed in base]
    answers = [summary["question_accuracy"] for summary in results.values() if "question_accuracy" in summary]
    return Row(
        name=name,
        seeds=len(losses),
        loss=statistics.fmean(losses.values()),
        spread=statistics.stdev(losses.values()) if len(losses) > 1 else None,
        difference=statistics.fmean(paired) if paired else None,
        error=statistics.stdev(paired) / len(paired) ** 0.5 if len(paired) > 1 else None,
        questions=statistics.fmean(answers) if answers else None,
        parameters=next(iter(results.values()))["parameters"],
        losses=tuple(losses.values()),
    )


def _slug(name: str) -> str:
    """The name of a folder for a change."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
