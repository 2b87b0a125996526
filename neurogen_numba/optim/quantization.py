"""Quantisation: weights as integers of 8 or 4 bits, with a scale per row of a table, or per bundle of synapses.

    weight = scale code,      |code| <= 127 in 8 bits, 7 in 4 bits

Codes are symmetric, so a weight of 0 stays 0; kernels/codes.py has how they are stored. A scale minimises the squared error of its row,
over CANDIDATES between half of the scale that represents the largest weight and all of it.
"""

from __future__ import annotations

import numpy as np

from ..kernels.codes import pack, unpack

TOP = {8: 127, 4: 7}  # bits -> the largest code
CANDIDATES = np.linspace(0.5, 1, 26, dtype=np.float32)
PART = 2**20  # weights that are quantised at a time
DAMPING = 0.01  # added to the diagonal of second moments, relative to its mean


def quantize(weight: np.ndarray, bits: int, moments: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(codes [R, K bits / 8, rounded up], scale [R] float32) of weights [R, K].

    moments [K, K]: second moments of the inputs x of the product weight @ x. With them the rounding error of a weight is compensated by the
    weights after it, so that the error of the product is small (Frantar et al. 2023, "GPTQ: accurate post-training quantization for
    generative pre-trained transformers").
    """
    factor = None if moments is None else _feedback(moments)
    count = max(1, PART // weight.shape[1])
    parts = [_quantize(weight[first : first + count], TOP[bits], factor) for first in range(0, len(weight), count)]
    codes, scale = (np.concatenate(part) for part in zip(*parts, strict=True))
    return pack(codes, bits), scale


def _quantize(weight, top, factor):
    largest = np.abs(weight).max(axis=1) / np.float32(top)
    least, scale = np.full(len(weight), np.inf, np.float32), largest
    for tried in CANDIDATES[:, None] * largest:
        error = np.square(_codes(weight, tried, top) * tried[:, None] - weight).sum(axis=1)
        scale, least = np.where(error < least, tried, scale), np.minimum(error, least)
    if factor is None:
        return _codes(weight, scale, top).astype(np.int8), scale
    left, codes = weight.astype(np.float64), np.zeros(weight.shape, np.int8)
    for k, row in enumerate(factor):
        codes[:, k] = _codes(left[:, k : k + 1], scale, top)[:, 0]
        left[:, k:] -= np.outer((left[:, k] - codes[:, k] * scale) / row[k], row[k:])
    return codes, scale


def _codes(weight, scale, top):
    """Weights [R, K] divided by their scales [R], rounded, in range; 0 where the scale is 0."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(weight * inverse[:, None]), -top, top)


def _feedback(moments):
    """The upper Cholesky factor of the inverse of damped second moments [K, K]: row k spreads the error of weight k (GPTQ, algorithm 1)."""
    damped = moments + DAMPING * max(np.trace(moments) / len(moments), 1e-12) * np.eye(len(moments))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def dequantize(stored: np.ndarray, scale: np.ndarray, numbers: int) -> np.ndarray:
    """Weights [R, numbers] float32 from stored codes and scales [R]."""
    return unpack(stored)[:, :numbers] * scale[:, None]
