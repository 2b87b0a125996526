"""Readings of the associative memory, split into the contributions of the earlier tokens that were written.

Per head, the memory (kernels/memory.py) is a sum over the tokens i that were written, with the correction u[i] of the gated delta rule:

    S[t] = lambda^(t+1) S[-1] + sum over i <= t of lambda^(t-i) k[i] u[i]^T
    o[t] = S[t]^T q[t] = lambda^(t+1) S[-1]^T q[t] + sum over i <= t of lambda^(t-i) (k[i] . q[t]) u[i]

so the reading o[t] is a weighted sum of the u[i], as in attention without a softmax. The share of token i is the part of o[t] that points
along o[t]: lambda^(t-i) (k[i] . q[t]) (u[i] . o[t]) / (o[t] . o[t]). The shares of all tokens, and of what was stored before the first
one, add up to 1; a share may be negative. Nothing is estimated.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from ..kernels.memory import KEY_FLOOR, OUT_FLOOR

CHUNK = 32  # tokens whose corrections are solved for together


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class RecallTrace:
    """Keys, queries, corrections and readings of the last tokens of one sequence, from the inputs of the associative memory.

    S [heads, W, W], key [heads, W]: the state of the memory before the first token; decay, write_bias [heads]: the learned parameters;
    window: tokens that are kept, in whole chunks. Everything is float32, as in the memory.
    """

    def __init__(self, S, key, decay, write_bias, window: int):
        self.S, self.key, self.write_bias = (np.array(x, np.float32) for x in (S, key, write_bias))
        self.heads, self.width = self.key.shape
        self.window, self.tokens = window, 0
        self._chunks = deque()  # (k, q, u, o), each [heads, tokens, W], oldest first
        keep = sigmoid(np.array(decay, np.float64))[:, None]
        self._powers = (keep ** np.arange(window + 2 * CHUNK)).astype(np.float32)  # [heads, ages]: lambda^age
        now = np.arange(CHUNK)
        self._read = self._fade(now, now)
        self._written = np.where(now[:, None] > now, self._read, 0)  # before a token reads, it writes

    def write(self, query, value, write, write_scale):
        """Add T tokens. query, value [T, heads W], write [T, heads]: the currents of the memory; write_scale: of dopamine, a number or
        [T]."""
        T = len(query)
        x, v = (np.array(rows, np.float32).reshape(T, self.heads, self.width).transpose(1, 0, 2) for rows in (query, value))
        q = x * sigmoid(x)
        q = q / np.sqrt((q * q).sum(2, keepdims=True) + KEY_FLOOR * np.float32(self.width))
        scale = np.broadcast_to(np.asarray(write_scale, np.float32), T)[:, None]
        w = (sigmoid(np.array(write, np.float32) + self.write_bias) * scale).T[:, :, None]
        for first in range(0, T, CHUNK):
            part = slice(first, min(first + CHUNK, T))
            self._write(q[:, part], v[:, part], w[:, part])
        while self.tokens - self._chunks[0][0].shape[1] >= self.window:
            self.tokens -= self._chunks.popleft()[0].shape[1]

    def _write(self, q, v, w):
        """Solve u[t] + w[t] sum over i < t of lambda^(t-i) (k[i] . k[t]) u[i] = w[t] (v[t] - lambda^(t+1) S^T k[t]) for all u[t]."""
        T = q.shape[1]
        asked = np.concatenate([self.key[:, None], q], 1)  # k[0] ... k[T-1] are the first T of them, q[0] ... q[T-1] the last T
        k, faded = asked[:, :-1], self._powers[:, 1 : T + 1, None]
        stored, overlap = asked @ self.S, asked @ k.transpose(0, 2, 1)
        system = np.eye(T, dtype=np.float32) + w * self._written[:, :T, :T] * overlap[:, :-1]
        u = np.linalg.solve(system, w * (v - faded * stored[:, :-1]))
        o = faded * stored[:, 1:] + (self._read[:, :T, :T] * overlap[:, 1:]) @ u
        self.S = faded[:, -1:] * self.S + (k * self._powers[:, T - 1 :: -1, None][:, :T]).transpose(0, 2, 1) @ u
        self.key = q[:, -1]
        self._chunks.append((k, q, u, o))
        self.tokens += T

    def _fade(self, now, then):
        """[heads, now, then]: lambda^(now - then), 0 for tokens that are still to come."""
        age = now[:, None] - then
        return np.where(age >= 0, self._powers[:, np.maximum(age, 0)], np.float32(0))

    def shares(self, tokens: int) -> np.ndarray:
        """[tokens, N]: what each of the last N = `self.tokens` tokens, oldest first, contributes to the readings of the last `tokens`.

        The mean over heads; a head that recalls nothing counts as 0.
        """
        return self.shares_of_heads(self.tokens - tokens, self.tokens).mean(0)

    def shares_of_heads(self, first: int, last: int) -> np.ndarray:
        """[heads, last - first, N]: what each of the last N = `self.tokens` tokens, oldest first, contributes to the readings of tokens
        first ... last - 1 of them. The shares of a head that recalls nothing are 0."""
        k, q, u, o = (np.concatenate(parts, 1) for parts in zip(*self._chunks, strict=True))
        q, o = q[:, first:last], o[:, first:last]
        along = (q @ k.transpose(0, 2, 1)) * (o @ u.transpose(0, 2, 1)) * self._fade(np.arange(first, last), np.arange(self.tokens))
        return along / ((o * o).sum(2, keepdims=True) + OUT_FLOOR * np.float32(self.width))

    def lengths(self, first: int, last: int) -> np.ndarray:
        """[heads, last - first]: the sum of the shares of all tokens, and of what was stored before them. It is 1, or less for a head that
        recalls almost nothing."""
        square = (np.concatenate([o for *_, o in self._chunks], 1)[:, first:last] ** 2).sum(2)
        return square / (square + OUT_FLOOR * np.float32(self.width))

    def forget(self):
        """Forget what was written; the key of the next token stays."""
        self.S = np.zeros_like(self.S)
        self.tokens = 0
        self._chunks.clear()
