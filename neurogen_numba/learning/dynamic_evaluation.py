"""Dynamic evaluation: a model that learns each segment of the text after the segment has been scored.

Krause et al. 2018, "Dynamic evaluation of neural sequence models". The paper's update is RMSProp, with a decay towards the trained weights;
here it is the trainer's own (`NeuroGenModel.update`): one update on `training.segment` tokens, with learning rate RATE, with the
gradient clipped, the optimiser's moments from training, and neither dropout nor weight decay. A gradient of one sequence has about
`training.batch` times the variance of the mean over a batch, so moments and the norm that clips are rescaled. docs/decisions.md has the
measurements.
"""

from __future__ import annotations

import copy
import math

from ..config import DROPOUTS
from ..errors import TrainingError
from .evaluation import Plain

RATE = 3e-4  # learning rate


class DynamicEvaluation(Plain):
    """Scores as `Plain`, and then learns what it has scored. The model that learns is a copy.

    With several streams, a stream would learn from text that follows it; so there should be one. Raises ConfigError for a quantised model.
    """

    def __init__(self, model, streams: int):
        model.check_learns()
        learner = copy.copy(model)
        learner.config = model.config.replace(training=dict.fromkeys(DROPOUTS, 0.0))
        learner.optimizer.stop_decay()
        learner.optimizer.rescale(math.sqrt(model.config.training.batch))
        super().__init__(learner, streams, model.config.training.segment)
        self._learning = self.model.activity(self.tokens, streams, learning=True)

    def score(self, inputs, targets):
        """As `Plain.score`; losses are those before the update. Raises TrainingError if loss or gradient norm are not finite."""
        losses, hits = super().score(inputs, targets)
        loss, _, norm = self.model.update(self._learning, inputs, targets, RATE)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(f"the model cannot learn this text: its loss is {loss}, its gradient {norm}; evaluate without --adapt")
        return losses, hits


def describe(model) -> str:
    """The measurement, in words."""
    return f"dynamic evaluation, an update at rate {RATE:g} on every {model.config.training.segment:,} tokens after they were scored"
