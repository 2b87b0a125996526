"""Gradual pruning: bundles of synapses are removed in stages, with training between them (Zhu and Gupta 2017, "To prune, or not to prune:
exploring the efficacy of pruning for model compression").

Of all bundles, stage s = 1 ... STAGES leaves the share

    keep + (1 - keep) (1 - s / STAGES)^3

It comes before update (s - 1) LAST steps / STAGES, counted from 0, so the last stage comes in the middle of the run.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math

import numpy as np

from ..brain.connectome import arcs
from ..brain.model import NeuroGenModel
from ..brain.prune import gradients, pruned
from ..config import Brain, Config
from ..text.batches import Batches

STAGES = 6
LAST = 0.6  # share of the updates that the stages divide; the last one comes at the beginning of its part
SEGMENTS = 30  # of the text that comes next, over which the scores are summed


def bundles_at(config: Config, step: int, steps: int) -> int:
    """The number of bundles that update `step` (from 0) of `steps` trains, at most."""
    keep, stage = config.training.prune_keep, min(STAGES, math.ceil(STAGES * (step + 1) / (LAST * steps)))
    projections, whole = _whole(config.brain)
    return max(projections, round((keep + (1 - keep) * (1 - stage / STAGES) ** 3) * whole))  # one of each projection


@functools.cache
def _whole(brain: Brain) -> tuple[int, int]:
    """(projections, bundles) of a brain before it was pruned."""
    whole = arcs(dataclasses.replace(brain, pruned=""))
    return len(whole), sum(arc.weight_shape[0] for arc in whole)


def due(model: NeuroGenModel, step: int, steps: int) -> bool:
    """Whether bundles are removed before update `step` (from 0) of `steps`."""
    if model.config.training.prune_keep == 1:
        return False
    return bundles_at(model.config, step, steps) < sum(arc.weight_shape[0] for arc in model.brain.arcs)


def coming(batches: Batches) -> list[tuple[np.ndarray, np.ndarray]]:
    """The segments that bundles are scored on: (inputs, targets) [T, B] int32. Raises DataError if the text cannot be read."""
    return [batches.next() for _ in range(SEGMENTS)]


def prune(model: NeuroGenModel, segments: list[tuple[np.ndarray, np.ndarray]], step: int, steps: int) -> NeuroGenModel:
    """The model without the bundles that are removed before update `step` (from 0) of `steps`. segments: from `coming`."""
    score = gradients(copy.copy(model), segments)
    return pruned(model, bundles_at(model.config, step, steps), score)
