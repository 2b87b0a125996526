"""Quantising a trained model: its decoder, embedding and synapses as integers of 8 or 4 bits (optim/quantization.py)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..config import QUANTIZED_BITS
from ..errors import ConfigError
from ..kernels.codes import pack
from ..optim.quantization import Feedback, quantize, scales
from .calibration import Group, calibrate
from .model import NeuroGenModel, made_from


def quantized(model: NeuroGenModel, bits: int, segments: Iterable[np.ndarray] | None = None) -> NeuroGenModel:
    """The quantised model of a trained one, on the same backend.

    segments: a text that rounding errors are compensated for, as `calibrate` reads it; without it, weights are rounded to the nearest code.
    Raises ConfigError for a model that is quantised already, and for other bits than 8 and 4.
    """
    if bits not in QUANTIZED_BITS:
        raise ConfigError(f"bits: 8 or 4, not {bits!r}")
    if model.quantization:
        raise ConfigError("this model is quantised already; quantise the one that it was made from")
    (tensors, _), tables, stored, moments = model.snapshot(), model.brain.parameters, {}, {}
    if segments is not None:
        groups, moments["decoder.weight"] = calibrate(model, segments)
        stored = _synapses(groups, bits)
        if model.brain.components[0].projected:
            to_thalamus = tensors["embeddings"]["embedding_thalamus.weight"].astype(np.float64)
            moments["embedding.weight"] = to_thalamus @ to_thalamus.T  # the error that counts is that of the current
    tensors |= {"optimizer": {}, "state": {}}
    for name, parameter in tables.table.items():
        if parameter.quantizable:
            weight = tensors[parameter.file].pop(name).reshape(parameter.shape[0], -1)
            codes, scale = stored.get(name) or quantize(weight, bits, moments.get(name))
            tensors[parameter.file] |= {f"{name}.codes": codes, f"{name}.scale": scale}
    return made_from(model.config, model.tokenizer, model.backend, tensors, model.optimizer.steps, model.neurons(), {"bits": bits})


def _synapses(groups: list[Group], bits: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Parameter -> (stored codes, scale) of all synapses, whose rounding errors are compensated within a group."""
    projections = {p.arc.name: p for group in groups for p, *_ in group.bundles}
    weight = {name: p.dense() for name, p in projections.items()}
    scale = {name: scales(each.reshape(len(each), -1), bits) for name, each in weight.items()}
    codes = {name: np.zeros(each.shape, np.int8) for name, each in weight.items()}  # padding stays 0
    for group in groups:
        parts = [(p.arc.name, index, targets) for p, index, targets in group.bundles]
        rows = np.concatenate([weight[name][index, :, targets] for name, index, targets in parts]).T  # [targets, sources]
        sizes = [p.arc.bundle for p, *_ in group.bundles]
        per_source = np.repeat([scale[name][index] for name, index, _ in parts], sizes)
        high = np.repeat([0.0 if p.arc.inhibitory else np.inf for p, *_ in group.bundles], sizes)
        rounded = Feedback(group.moments).round(rows, per_source, bits, high)
        for (name, index, targets), part in zip(parts, np.split(rounded.T, np.cumsum(sizes)[:-1]), strict=True):
            codes[name][index, :, targets] = part
    return {f"{name}.weight": (pack(each.reshape(len(each), -1), bits), scale[name]) for name, each in codes.items()}
