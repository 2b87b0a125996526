"""Quantising a trained model: its decoder, embedding and synapses as integers of 8 or 4 bits (optim/quantization.py)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import ConfigError
from ..optim.quantization import quantize
from .model import NeuroGenModel, made_from

DECODER = "decoder.weight"


def quantized(model: NeuroGenModel, bits: int, moments: np.ndarray | None = None) -> NeuroGenModel:
    """The quantised model of a trained one, on the same backend. moments: of `decoder_moments`, for the rounding of the decoder.

    Raises ConfigError for a model that is quantised already.
    """
    if model.quantization:
        raise ConfigError("this model is quantised already; quantise the one that it was made from")
    (tensors, _), tables = model.snapshot(), model.brain.parameters
    tensors |= {"optimizer": {}, "state": {}}
    for name, parameter in tables.table.items():
        if parameter.quantizable:
            weight = tensors[parameter.file].pop(name).reshape(parameter.shape[0], -1)
            codes, scale = quantize(weight, bits, moments if name == DECODER else None)
            tensors[parameter.file] |= {f"{name}.codes": codes, f"{name}.scale": scale}
    return made_from(model.config, model.tokenizer, model.backend, tensors, model.optimizer.steps, model.neurons(), {"bits": bits})


def decoder_moments(model: NeuroGenModel, segments: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of x x^T [N, N] float64, x what the decoder reads. segments: token ids [T, B] int32, each the continuation of the last."""
    act, total, count = None, 0.0, 0
    for ids in segments:
        act = act or model.activity(*ids.shape)
        model.score(act, ids, np.zeros_like(ids))
        x = model.backend.to_numpy(act.decoder_input).astype(np.float64).reshape(ids.size, -1)
        total, count = total + x.T @ x, count + ids.size
    return total / count
