"""Quantisation: weights as integers of 8 or 4 bits, with a scale per row of a table, or per bundle of synapses.

    weight = scale code,      -128 <= code <= 127 in 8 bits, -8 <= code <= 7 in 4 bits

A weight of 0 stays 0; kernels/codes.py has how codes are stored. A scale minimises the squared error of its row over CANDIDATES, shares of
the scale that represents the largest weight as 127 or 7, each also negated: -128 and -8 have no positive counterpart, and with a negative
scale they stand for positive weights.

With second moments of the inputs x of the product weight @ x, the rounding error of a weight is compensated by the weights after it, so
that the error of the product is small; weights of the largest inputs come first (Frantar et al. 2023, "GPTQ: accurate post-training
quantization for generative pre-trained transformers").
"""

from __future__ import annotations

import numpy as np

from ..kernels.codes import pack, unpack

TOP = {8: 127, 4: 7}  # bits -> the largest code; the smallest is -TOP - 1
CANDIDATES = np.outer([1, -1], np.linspace(0.5, 1, 26)).astype(np.float32).ravel()
PART = 2**20  # weights that are quantised at a time
COLUMNS = 128  # weights of a row after which the compensation of all later ones is one matrix product
DAMPING = 0.01  # added to the diagonal of second moments, relative to its mean


def quantize(weight: np.ndarray, bits: int, moments: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(codes [R, K bits / 8, rounded up], scale [R] float32) of weights [R, K]. moments [K, K]: of `Feedback`; without them a weight
    gets the nearest code."""
    count, feedback = max(1, PART // weight.shape[1]), None if moments is None else Feedback(moments)
    codes, scale = [], scales(weight, bits)
    for first in range(0, len(weight), count):
        rows = slice(first, first + count)
        part = weight[rows], scale[rows, None], bits
        codes.append(nearest(*part) if feedback is None else feedback.round(*part))
    return pack(np.concatenate(codes), bits), scale


def scales(weight: np.ndarray, bits: int) -> np.ndarray:
    """The scale [R] float32 of each row of weights [R, K]: the one of CANDIDATES with the smallest squared error."""
    scale = np.empty(len(weight), np.float32)
    for first in range(0, len(weight), count := max(1, PART // weight.shape[1])):
        part = weight[first : first + count]
        tried = CANDIDATES[:, None] * (np.abs(part).max(axis=1) / np.float32(TOP[bits]))
        errors = [np.square(nearest(part, each[:, None], bits) * each[:, None] - part).sum(axis=1) for each in tried]
        scale[first : first + count] = np.take_along_axis(tried, np.argmin(errors, axis=0)[None], axis=0)[0]
    return scale


def nearest(weight: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """Codes, int8, of weights [R, K] divided by their scales, broadcast to them; 0 where a scale is 0."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return np.clip(np.rint(weight * inverse), -TOP[bits] - 1, TOP[bits]).astype(np.int8)


class Feedback:
    """Rounding with compensation, for second moments [K, K] of what K weights of a row are multiplied with.

    order [K]: weights in the order of their rounding; factor [K, K]: the upper Cholesky factor of the inverse of damped moments, in this
    order. Its row k spreads the error of weight k (GPTQ, algorithm 1).
    """

    def __init__(self, moments: np.ndarray):
        self.order = np.argsort(-np.diag(moments), kind="stable")
        ordered = moments[np.ix_(self.order, self.order)].astype(np.float64)
        ordered += DAMPING * max(np.trace(ordered) / len(ordered), 1e-12) * np.eye(len(ordered))
        self.factor = np.linalg.cholesky(np.linalg.inv(ordered)).T

    def round(self, weight: np.ndarray, scale: np.ndarray, bits: int, high: np.ndarray | float = np.inf) -> np.ndarray:
        """Codes [R, K] int8 of weights [R, K]. scale, high: broadcast to them; no code stands for more than `high`."""
        left = weight[:, self.order].astype(np.float64)
        scale, high = (np.broadcast_to(x, weight.shape)[:, self.order] for x in (scale, high))
        codes, errors = np.empty(weight.shape, np.int8), np.empty_like(left)
        for first in range(0, len(self.order), COLUMNS):
            part, after = slice(first, first + COLUMNS), slice(first + COLUMNS, None)
            for k in range(*part.indices(len(self.order))):
                column, later = slice(k, k + 1), slice(k + 1, part.stop)
                codes[:, column] = nearest(np.minimum(left[:, column], high[:, column]), scale[:, column], bits)
                errors[:, k] = (left[:, k] - codes[:, k] * scale[:, k]) / self.factor[k, k]
                left[:, later] -= np.outer(errors[:, k], self.factor[k, later])
            left[:, after] -= errors[:, part] @ self.factor[part, after]
        return codes[:, np.argsort(self.order)]


def dequantize(stored: np.ndarray, scale: np.ndarray, numbers: int) -> np.ndarray:
    """Weights [R, numbers] float32 from stored codes and scales [R]."""
    return unpack(stored)[:, :numbers] * scale[:, None]
