"""Shared code of the commands for trained models: loading a model, and describing it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .brain.model import NeuroGenModel
from .config import Config
from .configure import check_neurons
from .errors import CheckpointError
from .hints import hint, typed
from .storage import checkpoint
from .storage.run_folder import SUMMARY, find_checkpoint, progress


def find(path: str | None, out: Path) -> Path:
    """`run_folder.find_checkpoint`, with its sentences about skipped checkpoints on standard error."""
    folder, passed_over = find_checkpoint(path, out)
    for sentence in passed_over:
        print(f"neurogen: {sentence}", file=sys.stderr)
    return folder


def run_name(folder: Path) -> str:
    """The name of the run of a checkpoint, or of the checkpoint if it is in no run."""
    folder = folder.absolute()
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name


def beside(folder: Path, out: Path | None, suffix: str) -> Path:
    """RUN-suffix for what is made from a checkpoint: under `out`; None: beside the run, or beside a checkpoint that is in no run."""
    folder = folder.absolute()
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    return (out or typed(run).parent) / f"{run.name}-{suffix}"


def load(folder: Path, backend="auto", neurons: dict[str, str] | None = None) -> NeuroGenModel:
    """The model of a checkpoint, with its tokenizer. neurons: module -> neuron, as `configure.named_neurons` has them.

    Raises CheckpointError if there is no tokenizer, because the model then cannot read or write text; ConfigError if a module has another
    neuron.
    """
    model = NeuroGenModel.load(folder, backend=backend)
    check_neurons(model.config, neurons or {})
    if model.tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer, so its model cannot read text; use a checkpoint of `neurogen train`")
    return model


def summary_of(model: NeuroGenModel, folder: Path) -> dict:
    """Facts about a model: preset, parameters, updates, and the results of its run, if it is the final model."""
    facts = {"preset": model.config.preset, "parameters": model.parameters, "steps": model.optimizer.steps}
    try:
        summary = json.loads((folder.parent.parent / SUMMARY).read_bytes())
        if summary["steps"] == facts["steps"]:
            shown = ("val_bits_per_byte", "entropy_floor_bits_per_byte", "question_accuracy")
            facts |= {name: float(summary[name]) for name in shown if name in summary}
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        pass  # missing or damaged; it is for display only
    return facts


def unfinished(folder: Path, config: Config) -> str | None:
    """A sentence about the newest checkpoint of a run that has not made all its planned updates; None for any other checkpoint.

    config: of the run."""
    step, run = checkpoint.step_of(folder.absolute()), folder.absolute().parent.parent
    if step is None:
        return None
    reached = progress(run)
    if reached.finished or not reached.steps or not step < reached.steps or (not reached.training and step < reached.step):
        return None
    made = f"{step:,} of {reached.steps:,} updates"
    return f"{made}: it is training" if reached.training else f"{made}: stopped early; {hint('train --resume', run, config)} continues it"
