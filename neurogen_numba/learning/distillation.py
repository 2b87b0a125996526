"""A smaller model learns from the predictions of a larger one on the same text (kernels/distill.py has the equation)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from ..brain.model import NeuroGenModel
from ..config import ROW_WISE
from ..errors import CheckpointError, ConfigError

SHARE = np.float32(0.5)  # of the teacher's predictions in the targets; the rest is the token of the text
PREFIX = "teacher."  # of its state in a checkpoint
TEACHER = "teacher"  # its folder in a run


def load_teacher(config, backend, run: Path) -> NeuroGenModel:
    """The model that `training.distill` names; the run's own copy of it, if there is one. Raises ConfigError if it has no tokenizer or
    another one than the configuration asks for, or if learning or optimiser do not have the whole gradient of the logits of a segment;
    CheckpointError if it cannot be read."""
    named, copy, text = Path(config.training.distill), run / TEACHER, config.text
    if not (named.exists() or copy.exists()):
        raise CheckpointError(
            f"training.distill: {named}, which {run} learns from, is gone; put it back, or begin the run again with another model"
        )
    try:
        model = NeuroGenModel.load(copy if copy.exists() else named, backend=backend)
    except CheckpointError as error:
        raise CheckpointError(f"training.distill, the larger model that is learned from: {error}") from None
    if config.training.optimizer in ROW_WISE:
        raise ConfigError(
            f"training.distill: {config.training.optimizer} updates the decoder without its logits' whole gradient; use adamw or muon"
        )
    if config.training.learning != "bptt":
        raise ConfigError(f"training.distill: with --learning {config.training.learning} a segment has no soft targets; use bptt")
    if model.tokenizer is None:
        raise ConfigError(f"training.distill: {config.training.distill} has no tokenizer; use a checkpoint of `neurogen train`")
    theirs = model.config.text
    if (theirs.tokenizer, theirs.vocabulary) != (text.tokenizer, text.vocabulary):
        flags = f"--tokenizer {theirs.tokenizer} --vocab-size {theirs.vocabulary}"
        raise ConfigError(f"training.distill: the larger model has another tokenizer, so its predictions are of other tokens; add {flags}")
    return model


class Teacher:
    """The larger model, which reads the same segments, with a state of its own for each sequence."""

    def __init__(self, model: NeuroGenModel, tokenizer, tokens: int, batch: int):
        """Raises ConfigError if its tokens are not those of `tokenizer`."""
        if model.tokenizer.pieces != tokenizer.pieces:
            raise ConfigError("training.distill: the larger model has another tokenizer than this run")
        self.model, self.act = model, model.activity(tokens, batch)

    def keep(self, run: Path):
        """Save it in the folder of the run that learns from it, once: the run that it is from removes its older checkpoints. Raises
        CheckpointError."""
        if not (run / TEACHER).exists():
            self.model.save(run / TEACHER)

    def read(self, inputs, targets, reset=None):
        """Run it over the next segment, time-major [T, B] int32. reset: [B] bool, the sequences to reset before."""
        act, brain = self.act, self.model.brain
        self.model.load_segment(act, inputs, targets)
        if reset is not None:
            act.reset(brain.backend.asarray(reset, "uint8"))
        self.model.run(act, ("read", act.length), self._forward)

    def _forward(self):
        act, brain = self.act, self.model.brain
        brain.forward(act, functools.partial(brain.decoder.losses, act) if brain.modulation else None)
        act.advance(act.length)

    def soften(self, first: int, last: int, d_logits):
        """Turn d_logits, the gradient of hard targets of tokens first ... last - 1 of the segment, into that of soft targets."""
        act, decoder = self.act, self.model.brain.decoder
        logits = decoder.scores(act, first, last)
        decoder.cross_entropy(act, first, last, logits, logits)
        self.model.backend.soften(d_logits, logits, SHARE)

    def state(self) -> dict[str, np.ndarray]:
        """Its state, beside that of the model that learns, in a checkpoint."""
        return {PREFIX + name: array for name, array in self.act.state().items()}

    def load_state(self, state: dict[str, np.ndarray]):
        """Inverse of `state`."""
        self.act.load_state({name.removeprefix(PREFIX): array for name, array in state.items() if name.startswith(PREFIX)})
