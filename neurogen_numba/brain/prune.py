"""Pruning a trained model: whole bundles of synapses are removed, those that matter least by one of two criteria.

    magnitude    root of the mean of w^2 over a bundle, relative to that over its projection (Han et al. 2015, "Learning both weights and
                 connections for efficient neural networks", of bundles)
    gradient     sum over a bundle of |w dL/dw|, over segments of the training text: the first-order change of the loss if the weight were 0
                 (Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference")

Bundles are ranked over all projections, and each projection keeps one at least. Tiles then read different numbers of bundles.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import ConfigError
from .model import NeuroGenModel, made_from

# Of the training that follows: backpropagation on the text alone. Rewiring, e-prop and a teacher know no tiles of different sizes.
PLAIN = {"learning": "bptt", "learning_signal": "symmetric", "rewire_interval": 0, "distill": ""}


def magnitudes(model: NeuroGenModel) -> dict[str, np.ndarray]:
    """Projection -> criterion `magnitude` of each bundle."""
    squares = {p.arc.name: np.square(p.dense(), dtype=np.float64).mean(axis=(1, 2)) for p in model.brain.projections}
    return {name: np.sqrt(each / max(each.mean(), 1e-30)) for name, each in squares.items()}


def gradients(model: NeuroGenModel, segments: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Projection -> criterion `gradient` of each bundle. segments: (inputs, targets) [T, B] int32, each the continuation of the last. The
    model gets the configuration and the optimiser's state of one that learns by back-propagation through time."""
    model.config = model.config.replace(training=PLAIN)
    act, total = None, {p.arc.name: 0.0 for p in model.brain.projections}
    for inputs, targets in segments:
        act = act or model.activity(*inputs.shape, learning=True)
        model.update(act, inputs, targets, 0.0)
        for p in model.brain.projections:
            change = np.abs(p.dense() * model.backend.to_numpy(p.d_weight))
            total[p.arc.name] = total[p.arc.name] + change.sum(axis=(1, 2), dtype=np.float64)
    return total


def pruned(model: NeuroGenModel, keep: float, score: dict[str, np.ndarray], training: dict) -> NeuroGenModel:
    """The model with the share `keep` of its bundles whose score is the largest, on the same backend, with a new optimiser.

    training: fields of its configuration that change. Raises ConfigError for a share that is not above 0 and at most 1, a quantised model,
    and one with a pruned projection.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"keep: a share above 0 and at most 1, not {keep}")
    if model.quantization or model.config.brain.pruned:
        raise ConfigError("a quantised or pruned model is not pruned; prune the one that it was made from")
    chosen = choose(keep, score)
    left = " ".join(f"{name}={len(bundles)}" for name, bundles in chosen.items())
    config = model.config.replace(brain={"pruned": left}, training=training)
    tensors = model.snapshot()[0]
    for p in model.brain.projections:
        arrays = {"weight": p.dense(), "block": p.block.ravel(), "delay": p.delay.ravel(), "tile": p.tile}
        tensors["brain"] |= {f"{p.arc.name}.{what}": array[chosen[p.arc.name]] for what, array in arrays.items()}
    new = NeuroGenModel.from_config(config, model.tokenizer, backend=model.backend)
    tensors["optimizer"] = new.snapshot()[0]["optimizer"]
    return made_from(config, model.tokenizer, model.backend, tensors, 0, model.neurons())


def choose(keep: float, score: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Projection -> indices of the bundles that are left, ascending: the best of each, and the best of all others."""
    first = {name: int(np.argmax(each)) for name, each in score.items()}
    flat = np.concatenate([np.where(np.arange(len(each)) == first[name], np.inf, each) for name, each in score.items()])
    count = max(len(score), round(keep * len(flat)))
    left = np.zeros(len(flat), bool)
    left[np.argsort(-flat, kind="stable")[:count]] = True
    ends = np.cumsum([len(each) for each in score.values()])
    return {name: np.flatnonzero(part) for name, part in zip(score, np.split(left, ends[:-1]), strict=True)}
