"""Rehearsal: what a model was trained on is learned together with what is new, so that it is not forgotten (Robins 1995, "Catastrophic
forgetting, rehearsal and pseudorehearsal", Connection Science 7:123)."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..errors import CheckpointError, DataError, NeuroGenError
from ..storage.run_folder import TOKENS, read_config
from ..text.batches import end_to_stop_at, file_batches, open_corpus
from ..text.sources import read_again
from ..text.tokenfile import MappedBatches, TokenFile

SEQUENCES = 8  # of training text in a batch, at most


class Rehearsal:
    """Segments of the training text of a model: of the tokens that its run keeps, or of the text that `config.text` names.

    sequences: in a segment, half of a training batch at most. missing: why there is no text, a sentence; "" where there is.
    """

    def __init__(self, model):
        self._model, self.missing, self._open = model, "", None
        self.sequences = min(SEQUENCES, model.config.training.batch // 2)
        self.restart()

    def restart(self):
        """Begin again with the first segment."""
        self._batches = self._first = None

    def available(self) -> bool:
        """Whether there is text, which the first segment shows; if not, `missing` explains why."""
        self.missing = ""
        if self._model.trained_in is None:
            return False
        if not self.sequences:
            self.missing = "no text is rehearsed: the model learns one sequence at a time"
            return False
        try:
            self._first = self._first or self.next()
        except NeuroGenError as error:
            reason = str(error).partition(";")[0]  # advice, if any, is for training
            self.missing, self._open = f"no text is rehearsed: {reason}", None
        return not self.missing

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """The next segment: (inputs, targets) [T, sequences] int32. Raises NeuroGenError where the text cannot be read."""
        if self._first:
            first, self._first = self._first, None
            return first
        try:
            self._open = self._open or self._opened()
            self._batches = self._batches or self._open()
            return self._batches.next()
        except BaseException:  # Ctrl-C too ends the generators that read
            self.restart()
            raise

    def _opened(self):
        """A function that begins to read the training text."""
        model, tokens = self._model, self._model.trained_in / TOKENS
        config = model.config.replace(training={"batch": self.sequences})
        if tokens.is_file() and self._is_of_the_run():
            file, end = TokenFile.open(tokens, model.tokenizer), end_to_stop_at(config.text, model.tokenizer)
            return partial(file_batches, str(tokens), file, config.training, None, end, MappedBatches)
        if not read_again(config.text.data):
            raise DataError(f"{config.text.data}: cannot be read again here")
        return open_corpus(config, model.tokenizer).batches

    def _is_of_the_run(self):
        """Whether the run in whose folder the checkpoint is has the text of the model: it may have been copied there."""
        try:
            return read_config(self._model.trained_in).text == self._model.config.text
        except CheckpointError:
            return False
