"""Pruning a trained model: whole bundles of synapses are removed, those that matter least.

The score of a bundle is the sum of |w dL/dw| over its weights and segments of the training text: the first-order change of the loss if the
weight were 0 (Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference").

Bundles are ranked over all projections, and each projection keeps one at least. Tiles then read different numbers of bundles.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .model import NeuroGenModel, made_from

# Of the scores, and of the training that follows, which may have a teacher: backpropagation on the text. Rewiring and e-prop
# know no tiles of different sizes.
PLAIN = {"learning": "bptt", "learning_signal": "symmetric", "rewire_interval": 0, "distill": ""}


def gradients(model: NeuroGenModel, segments: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Projection -> score of each bundle. segments: (inputs, targets) [T, B] int32, at least one, each the continuation of the last. The
    model gets the configuration and the optimiser's state of one that learns by back-propagation through time."""
    model.config = model.config.replace(training=PLAIN)
    act, total = None, {p.arc.name: 0.0 for p in model.brain.projections}
    for inputs, targets in segments:
        act = act or model.activity(*inputs.shape, learning=True)
        model.update(act, inputs, targets, 0.0)
        for p in model.brain.projections:
            change = np.abs(p.dense() * model.backend.to_numpy(p.d_weight))
            total[p.arc.name] = total[p.arc.name] + change.sum(axis=(1, 2), dtype=np.float64)
    act.recorded.clear()  # its steps refer to it: breaking the cycle frees its memory now, without the garbage collector
    return total


def restarted(model: NeuroGenModel, training: dict) -> NeuroGenModel:
    """The model on the same backend, with other fields of its `config.training`, and with a new optimiser."""
    config = model.config.replace(training=training)
    tensors = model.snapshot()[0]
    tensors["optimizer"] = NeuroGenModel.from_config(config, model.tokenizer, backend=model.backend).snapshot()[0]["optimizer"]
    return made_from(config, model.tokenizer, model.backend, tensors, 0, model.neurons())


def pruned(model: NeuroGenModel, bundles: int, score: dict[str, np.ndarray]) -> NeuroGenModel:
    """The model with the `bundles` bundles whose score is the largest, on the same backend, with their part of the optimiser's state."""
    chosen = choose(bundles, score)
    config = model.config.replace(brain={"pruned": " ".join(f"{name}={len(left)}" for name, left in chosen.items())})
    tensors = model.snapshot()[0]
    for p in model.brain.projections:
        name, left = p.arc.name, chosen[p.arc.name]
        arrays = {"weight": p.dense(), "block": p.block.ravel(), "delay": p.delay.ravel(), "tile": p.tile}
        tensors["brain"] |= {f"{name}.{what}": array[left] for what, array in arrays.items()}
        for key, array in tensors["optimizer"].items():
            if key.partition(".")[2] == f"{name}.weight":  # some optimisers have a number per group of weights
                tensors["optimizer"][key] = array.reshape(len(p.tile), -1)[left].reshape(-1, *array.shape[1:])
    return made_from(config, model.tokenizer, model.backend, tensors, model.optimizer.steps, model.neurons())


def choose(bundles: int, score: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Projection -> indices of the bundles that are left, ascending: the best of each, and the best of all others."""
    first = {name: int(np.argmax(each)) for name, each in score.items()}
    flat = np.concatenate([np.where(np.arange(len(each)) == first[name], np.inf, each) for name, each in score.items()])
    left = np.zeros(len(flat), bool)
    left[np.argsort(-flat, kind="stable")[: max(len(score), bundles)]] = True
    ends = np.cumsum([len(each) for each in score.values()])
    return {name: np.flatnonzero(part) for name, part in zip(score, np.split(left, ends[:-1]), strict=True)}
