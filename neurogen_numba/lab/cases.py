"""Made-up inputs for kernels, and reference results: the equations once more, slow and obvious, in float64 NumPy.

The references share no code with the kernels. A test holds them to those of the tests, which were written apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .bundles import wiring


@dataclass(frozen=True)
class Case:
    """A kernel's inputs. make(rng, **sizes): name -> NumPy array or number, in the order of the arguments; outputs are what they hold
    before the call: random numbers, which tell a kernel that overwrites from one that accumulates. reference(**arguments): name -> what an
    output must hold afterwards. sizes: those by default, of a measurement; small: those of a second check, which divide into nothing."""

    make: Callable
    reference: Callable
    sizes: dict
    small: dict


NO_AXON = object()  # stands for the backend's `no_axon`


def _float(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


# Synapses


def _wiring(sources, targets, fan_in, delays, bundle, **_):
    return wiring(sources, targets, fan_in, delays, bundle)


def _events(rng, shape, firing):
    """Graded events: 0, or a potential above 1."""
    return np.where(rng.random(shape) < firing, 1 + rng.random(shape), 0).astype(np.float32)


def make_forward(rng, tokens, batch, sources, targets, firing, **sizes):
    block, delay, weight = _wiring(sources, targets, **sizes)
    x = _events(rng, (delay.max() + tokens, batch, sources), firing)
    return {"current": _float(rng, tokens, batch, targets), "x": x, "block": block, "delay": delay, "weight": weight}


def bundles(block, weight_shape, sources, targets):
    """(tile, j, bundle, slice of its sources, slice of its targets) of every bundle."""
    tiles, J = block.shape
    _, BS, BT = weight_shape
    for tile in range(tiles):
        for j in range(J):
            first, to = block[tile, j] * BS, tile * BT
            yield tile, j, tile * J + j, slice(first, min(first + BS, sources)), slice(to, min(to + BT, targets))


def forward(current, x, block, delay, weight):
    current, C = current.astype(np.float64), len(current)
    for tile, j, bundle, read, written in bundles(block, weight.shape, x.shape[2], current.shape[2]):
        rows = len(x) - C - delay[tile, j]
        w = weight[bundle, : read.stop - read.start, : written.stop - written.start]
        current[:, :, written] += x[rows : rows + C, :, read].astype(np.float64) @ w
    return {"current": current}


def make_backward(rng, tokens, batch, sources, targets, firing, **sizes):
    block, delay, weight = _wiring(sources, targets, **sizes)
    d = _float(rng, tokens + delay.max(), batch, targets)
    d[tokens:] = 0  # after the segment there is no gradient
    return {"source_grad": _float(rng, tokens, batch, sources), "d": d, "block": block, "delay": delay, "weight": weight}


def backward(source_grad, d, block, delay, weight):
    source_grad, C = source_grad.astype(np.float64), len(source_grad)
    for tile, j, bundle, read, written in bundles(block, weight.shape, source_grad.shape[2], d.shape[2]):
        w = weight[bundle, : read.stop - read.start, : written.stop - written.start]
        source_grad[:, :, read] += d[delay[tile, j] : delay[tile, j] + C, :, written].astype(np.float64) @ w.T
    return {"source_grad": source_grad}


def make_weight_grad(rng, tokens, batch, sources, targets, firing, **sizes):
    block, delay, weight = _wiring(sources, targets, **sizes)
    x, d = _events(rng, (delay.max() + tokens, batch, sources), firing), _float(rng, tokens, batch, targets)
    return {"weight_grad": _float(rng, *weight.shape), "x": x, "d": d, "block": block, "delay": delay}


def weight_grad(weight_grad, x, d, block, delay):
    total = weight_grad.astype(np.float64)
    for tile, j, bundle, read, written in bundles(block, total.shape, x.shape[2], d.shape[2]):
        rows = len(x) - len(d) - delay[tile, j]
        product = np.einsum("tbm,tbn->mn", x[rows : rows + len(d), :, read].astype(np.float64), d[:, :, written])
        total[bundle, : product.shape[0], : product.shape[1]] += product
    return {"weight_grad": total}


SYNAPSES = {"tokens": 16, "batch": 16, "sources": 1024, "targets": 1024, "fan_in": 128, "delays": 8, "bundle": 32, "firing": 0.1}
FEW_SYNAPSES = {"tokens": 5, "batch": 3, "sources": 40, "targets": 50, "fan_in": 32, "delays": 3, "bundle": 16, "firing": 0.3}


# Neurons and memories


def make_decay(rng, neurons):
    return {"decayed": _float(rng, neurons), "log_tau": rng.uniform(-2, 5, neurons).astype(np.float32)}


def decay(decayed, log_tau):
    return {"decayed": np.exp(-np.exp(-np.float64(log_tau)))}


def make_working_memory(rng, tokens, batch, slots):
    m = _float(rng, tokens + 1, batch, slots)
    inputs = {name: _float(rng, tokens, batch, slots) for name in ("f_in", "u_in")}
    return {"m": m, **inputs, "retain": _float(rng, slots), "axon": NO_AXON, "first": 0}


def working_memory(m, f_in, u_in, retain, **_):
    m = m.astype(np.float64)
    for t in range(len(f_in)):
        f = sigmoid(f_in[t] + retain)
        m[t + 1] = f * m[t] + (1 - f) * u_in[t]
    return {"m": m}


def make_memory(rng, tokens, batch, heads, width):
    size = heads * width
    arrays = {"out": _float(rng, tokens, batch, size), "S": rng.standard_normal((batch, heads, width, width)) / 8}
    arrays |= {"key": rng.standard_normal((batch, size)) / width**0.5, "q_in": _float(rng, tokens, batch, size)}
    arrays |= {"v": _float(rng, tokens, batch, size), "w_in": _float(rng, tokens, batch, heads), "write_bias": np.zeros(heads)}
    arrays |= {"decay": np.linspace(5, 8, heads), "write_scale": np.ones(batch)}
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {"axon": NO_AXON, "first": 0, "erase": 1.0}


def memory(out, S, key, q_in, v, w_in, write_bias, decay, write_scale, erase=1.0, **_):
    (T, B, size), (H, W) = out.shape, S.shape[1:3]
    q = (np.float64(q_in) * sigmoid(q_in)).reshape(T, B, H, W)
    q /= np.sqrt((q**2).sum(axis=3, keepdims=True) + 1e-3 * W)
    w = sigmoid(w_in + write_bias) * write_scale[:, None]
    S, key, out = S.astype(np.float64), key.astype(np.float64).reshape(B, H, W), np.zeros((T, B, H, W))
    for t in range(T):
        S = sigmoid(decay)[:, None, None] * S
        u = w[t, ..., None] * (v[t].reshape(B, H, W) - erase * np.einsum("bhkv,bhk->bhv", S, key))
        S = S + key[..., None] * u[..., None, :]
        o = np.einsum("bhkv,bhk->bhv", S, q[t])
        out[t], key = o / np.sqrt((o**2).mean(axis=2, keepdims=True) + 1e-4), q[t]
    return {"out": out.reshape(T, B, size), "S": S, "key": key.reshape(B, size)}


# Logits and learning


def make_cross_entropy(rng, rows, vocabulary):
    width = -(-vocabulary // 64) * 64  # a whole number of tiles, as on a GPU
    targets = rng.integers(-1, vocabulary, rows).astype(np.int32)
    arrays = {"loss": _float(rng, rows), "hit": np.full(rows, 7, np.uint8), "d_logits": _float(rng, rows, width)}
    arrays |= {"logits": 3 * _float(rng, rows, width), "bias": _float(rng, width), "targets": targets}
    return arrays | {"weight": np.array([1 / rows], np.float32), "size": vocabulary}


def cross_entropy(loss, hit, d_logits, logits, bias, targets, weight, size):
    z, counted = (np.float64(logits) + bias)[:, :size], targets >= 0
    z -= z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    rows, gradient = np.arange(len(z)), np.zeros(d_logits.shape)
    gradient[:, :size] = np.exp(log_p) * weight[0]
    gradient[rows, targets] -= weight[0]
    found = {"loss": -log_p[rows, targets], "hit": z.argmax(axis=1) == targets, "d_logits": gradient}
    return {name: value * (counted if value.ndim == 1 else counted[:, None]) for name, value in found.items()}


def make_embedding(rng, tokens, batch, vocabulary, width):
    weight, ids = _float(rng, vocabulary, width), rng.integers(0, vocabulary, (tokens, batch)).astype(np.int32)
    return {"x": _float(rng, tokens, batch, width), "weight": weight, "tokens": ids}


def make_adamw(rng, blocks):
    size, decay = 4096 * blocks, np.tile(np.float32([0, 0.1]), blocks)[:blocks]
    arrays = {"p": _float(rng, size), "g": _float(rng, size), "m": _float(rng, size) / 8, "v": _float(rng, size) ** 2}
    bounds = {"decay": decay, "low": np.full(blocks, -2, np.float32), "high": np.full(blocks, 2, np.float32)}
    return arrays | bounds | {"norm": np.float32([2]), "numbers": np.float32([0.01, 1.5, 2.5, 1])}


def adamw(p, g, m, v, decay, low, high, norm, numbers):
    (rate, unbias1, unbias2, clip), each = np.float64(numbers), len(p) // len(decay)
    decay, low, high = (np.repeat(x, each) for x in (decay, low, high))
    g = np.float64(g) * min(1, clip / norm[0])
    m, v = 0.9 * np.float64(m) + 0.1 * g, 0.99 * np.float64(v) + 0.01 * g**2
    p = p * (1 - rate * decay) - rate * m * unbias1 / (np.sqrt(v * unbias2) + 1e-8)
    return {"p": np.clip(p, low, high), "m": m, "v": v}


def make_add_rows(rng, rows, columns):
    return {"total": _float(rng, columns), "x": _float(rng, rows, columns)}


CASES = {
    "bundles_forward": Case(make_forward, forward, SYNAPSES, FEW_SYNAPSES),
    "bundles_backward": Case(make_backward, backward, SYNAPSES, FEW_SYNAPSES),
    "bundles_weight_grad": Case(make_weight_grad, weight_grad, SYNAPSES, FEW_SYNAPSES),
    "decay_forward": Case(make_decay, decay, {"neurons": 2**22}, {"neurons": 37}),
    "working_memory_forward": Case(
        make_working_memory, working_memory, {"tokens": 16, "batch": 16, "slots": 8192}, {"tokens": 3, "batch": 2, "slots": 37}
    ),
    "memory_forward": Case(
        make_memory, memory, {"tokens": 16, "batch": 16, "heads": 8, "width": 32}, {"tokens": 3, "batch": 2, "heads": 2, "width": 8}
    ),
    "cross_entropy": Case(make_cross_entropy, cross_entropy, {"rows": 256, "vocabulary": 16384}, {"rows": 7, "vocabulary": 37}),
    "embedding_forward": Case(
        make_embedding,
        lambda x, weight, tokens: {"x": weight[tokens]},
        {"tokens": 64, "batch": 64, "vocabulary": 16384, "width": 512},
        {"tokens": 3, "batch": 2, "vocabulary": 5, "width": 8},
    ),
    "adamw": Case(make_adamw, adamw, {"blocks": 512}, {"blocks": 3}),
    "add_rows": Case(
        make_add_rows,
        lambda total, x: {"total": total + x.sum(axis=0, dtype=np.float64)},
        {"rows": 1024, "columns": 4096},
        {"rows": 5, "columns": 37},
    ),
}
