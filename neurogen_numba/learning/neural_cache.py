"""Neural cache: a model's predictions, mixed with those of the tokens that followed similar states of it before.

Grave et al. 2017, "Improving neural language models with a continuous cache", equations 2 and 3:

    p(w)       = (1 - l) p_model(w) + l p_cache(w)
    p_cache(w) ∝ Σ over the cached tokens i of [x_i+1 = w] exp(theta h · h_i)

h is the vector that the decoder reads, scaled to length 1, which the paper does not do; x_i+1 is the token that followed h_i. The cache
holds the last SIZE tokens of a stream. While it is empty, p is p_model. SIZE, theta and l are the same for all models and texts.
docs/decisions.md has the measurements.

The cache is kept on the host, in float32.
"""

from __future__ import annotations

import numpy as np

from .evaluation import Plain

SIZE = 2000  # tokens of a stream
THETA = 20.0
SHARE = 0.1  # l


class NeuralCache(Plain):
    """Scores as `Plain`, with a neural cache for each stream. Hits are those of the model alone."""

    def __init__(self, model, streams: int):
        super().__init__(model, streams)
        rows = SIZE + self.tokens  # of a ring: token n of a stream is in row n % rows
        self._keys = np.zeros((streams, rows, model.brain.decoder.shape[1]), np.float32)
        self._values = np.zeros((streams, 1, rows), np.int32)
        self._index = np.full(rows, -rows)  # of the token in each row
        self._read = 0  # tokens of a stream

    def score(self, inputs, targets):
        losses, hits = super().score(inputs, targets)
        index = self._read + np.arange(len(inputs))
        rows, self._read = index % len(self._index), self._read + len(inputs)
        h = self._directions(len(inputs))
        self._keys[:, rows], self._values[:, 0, rows], self._index[rows] = h, targets.T, index
        age = index[:, None] - self._index
        cached = (age >= 1) & (age <= SIZE)  # [T, rows]: without the token itself, whose target is to be predicted
        weight = np.exp(THETA * (h @ self._keys.swapaxes(1, 2) - 1)) * cached  # [B, T, rows]
        matching = weight * (self._values == targets.T[:, :, None])
        share = np.where(cached.any(1), SHARE, 0)[:, None]
        p_cache = (matching.sum(2) / np.maximum(weight.sum(2), np.finfo(np.float32).tiny)).T  # [T, B]
        mixed = -np.log((1 - share) * np.exp(-losses.astype(np.float64)) + share * p_cache)
        return np.where(targets < 0, 0, mixed), hits

    def _directions(self, tokens):
        """h of the last `tokens` tokens, scaled to length 1: [B, T, N] float32."""
        h = self.model.backend.to_numpy(self.act.signals[self.model.brain.decoder.source].x)[:tokens].swapaxes(0, 1)
        return h / np.maximum(np.linalg.norm(h, axis=2, keepdims=True), np.finfo(np.float32).tiny)


def describe() -> str:
    """The cache, in words."""
    constants = f"theta {THETA:g} and share {SHARE:g}, as for every text"
    return f"with a neural cache of the last {SIZE:,} tokens of a stream, {constants}"
