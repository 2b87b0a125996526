"""What the associative memory recalls at a token, split into what each earlier token has written there.

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
    """Keys, queries, corrections and readings of the last tokens of one sequence, from the inputs of the associative memory, in float64.

    S [heads, W, W], key [heads, W]: the state of the memory before the first token; decay, write_bias [heads]: the learned parameters;
    window: tokens that are kept, in whole chunks.
    """

    def __init__(self, S, key, decay, write_bias, window: int):
        self.S, self.key = np.array(S, np.float64), np.array(key, np.float64)
        self.heads, self.width = self.key.shape
        self.keep, self.write_bias = sigmoid(np.array(decay, np.float64))[:, None, None], np.array(write_bias, np.float64)
        self.window, self.tokens = window, 0
        self._chunks = deque()  # (k, q, u, o), each [heads, tokens, W], oldest first

    def write(self, query, value, write, write_scale: float):
        """Go on by T tokens. query, value [T, heads W], write [T, heads]: the currents of the memory; write_scale: of dopamine."""
        T = len(query)
        x, v = (np.array(rows, np.float64).reshape(T, self.heads, self.width).transpose(1, 0, 2) for rows in (query, value))
        q = x * sigmoid(x)
        q = q / np.sqrt((q * q).sum(2, keepdims=True) + float(KEY_FLOOR) * self.width)
        w = (sigmoid(np.array(write, np.float64) + self.write_bias) * write_scale).T[:, :, None]
        for first in range(0, T, CHUNK):
            part = slice(first, min(first + CHUNK, T))
            self._write(q[:, part], v[:, part], w[:, part])
        while self.tokens - self._chunks[0][0].shape[1] >= self.window:
            self.tokens -= self._chunks.popleft()[0].shape[1]

    def _write(self, q, v, w):
        """Solve u[t] + w[t] sum over i < t of lambda^(t-i) (k[i] . k[t]) u[i] = w[t] (v[t] - lambda^(t+1) S^T k[t]) for all u[t]."""
        T = q.shape[1]
        asked = np.concatenate([self.key[:, None], q], 1)  # k[0] ... k[T-1] are the first T of them, q[0] ... q[T-1] the last T
        k, now = asked[:, :-1], np.arange(T)
        stored, overlap = asked @ self.S, asked @ k.transpose(0, 2, 1)
        faded = self.keep ** (now + 1)[:, None]  # [heads, T, 1]: lambda^(t+1)
        u = np.linalg.solve(np.eye(T) + w * self._fade(now, now, 1) * overlap[:, :-1], w * (v - faded * stored[:, :-1]))
        o = faded * stored[:, 1:] + (self._fade(now, now, 0) * overlap[:, 1:]) @ u
        self.S = faded[:, -1:] * self.S + (k * faded[:, ::-1] / self.keep).transpose(0, 2, 1) @ u
        self.key = q[:, -1]
        self._chunks.append((k, q, u, o))
        self.tokens += T

    def _fade(self, now, then, least):
        """[heads, now, then]: lambda^(now - then), 0 where that is less than `least` tokens ago."""
        age = now[:, None] - then
        powers = self.keep[:, 0] ** np.arange(age.max() + 1)  # [heads, ages]
        return np.where(age >= least, powers[:, np.maximum(age, 0)], 0)

    def shares(self, tokens: int) -> np.ndarray:
        """[tokens, N]: what each of the last N = `self.tokens` tokens, oldest first, contributes to the readings of the last `tokens`.

        The mean over heads; a head that recalls nothing counts as 0.
        """
        k, q, u, o = (np.concatenate(parts, 1) for parts in zip(*self._chunks, strict=True))
        N, q, o = self.tokens, q[:, -tokens:], o[:, -tokens:]
        along = (q @ k.transpose(0, 2, 1)) * (o @ u.transpose(0, 2, 1)) * self._fade(np.arange(N - tokens, N), np.arange(N), 0)
        return (along / ((o * o).sum(2, keepdims=True) + float(OUT_FLOOR) * self.width)).mean(0)

    def forget(self):
        """Forget what was written; the key of the next token stays."""
        self.S = np.zeros_like(self.S)
        self.tokens = 0
        self._chunks.clear()
