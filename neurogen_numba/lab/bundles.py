"""Synapses in bundles on made-up wiring, and the plain values that a user's kernel gets of a model's synapses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..brain.connectome import Arc
from ..brain.projection import Projection
from ..config import BUNDLE_SIZES
from ..errors import ConfigError
from ..kernels import bundles_cpu
from ..kernels.bundles import LINE
from ..optim.parameters import Parameters
from .checks import fit, in_range


class Wiring(NamedTuple):
    """Synapses of a projection: block, delay [tiles, J] int32 and weight [tiles J, BS, BT] float32, NumPy (docs/model.md, section 2)."""

    block: np.ndarray
    delay: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class _Given(Arc):
    """An arc whose bundles are given, not derived from a fan-in."""

    bundle_size: int = 16
    of_tile: int = 1

    @property
    def bundle(self):
        return self.bundle_size

    @property
    def bundles_per_tile(self):
        return self.of_tile


def wiring(sources: int, targets: int, fan_in: int = 64, delays: int = 4, bundle: int = 32, seed: int = 0) -> Wiring:
    """Wiring drawn as a brain draws it: each target reads `fan_in` of the sources, 0 to `delays` - 1 tokens late.

    bundle: neurons on a side of a bundle, at most: 16, 32 or 64. Raises ConfigError for sizes below 1 and other bundles.
    """
    for name, value in {"sources": sources, "targets": targets, "fan_in": fan_in, "delays": delays}.items():
        if value < 1:
            raise ConfigError(f"wiring: {name} must be at least 1, not {value}")
    if bundle not in BUNDLE_SIZES:
        raise ConfigError(f"wiring: a bundle has {', '.join(map(str, BUNDLE_SIZES))} neurons on a side, not {bundle}")
    from .. import backends

    backend = backends.get("cpu")
    projection = Projection(Arc("made_up", "x", "current", sources, targets, fan_in, delays=delays, most=bundle), backend)
    parameters = Parameters(projection.parameters(), backend)
    projection.bind(parameters)
    projection.initialise(parameters, seed)
    return Wiring(projection.block, projection.delay, projection.weight)


def checked(where: str, block, delay, weight, sources=None, targets=None, weight_name="weight", **beside):
    """(wiring as kernels take it, the arrays beside it, sizes by name). beside: as `fit` takes them; M and N are the sources and targets,
    int or None, where they are not given. weight_name: how messages call the weights. Raises ConfigError if something does not fit."""
    given = {"block": (block, "int", "tiles J"), "delay": (delay, "int", "tiles J"), weight_name: (weight, "float", "bundles BS BT")}
    (*others, block, delay, weight), size = fit(where, **beside, **given)
    bundle, M, N = size["BS"], size.get("M", sources), size.get("N", targets)
    N = len(block) * bundle if N is None else N
    if bundle not in BUNDLE_SIZES or size["BT"] != bundle:
        raise ConfigError(
            f"{where}: {weight_name} {list(weight.shape)} float32 must be [tiles J, BS, BS], with BS one of {list(BUNDLE_SIZES)}"
        )
    fit(where, {"tiles": -(-N // bundle), "bundles": block.size}, **beside, **given)
    in_range(where, "block", block, 0, -(-M // bundle), f"{M} sources are as many blocks of {bundle}")
    in_range(where, "delay", delay, 0, 2**15, "tokens")
    return Wiring(block, delay, weight), others, size | {"M": M, "N": N}


class Made:
    """The synapses of one projection on a backend: source values "x", current "current", a segment of `tokens` tokens."""

    def __init__(self, backend, wiring: Wiring, sources: int, targets: int, tokens: int, batch: int):
        self.backend, (self.tiles, of_tile) = backend, wiring.block.shape
        self.history = max(1, int(wiring.delay.max()))
        size = wiring.weight.shape[1]
        given = {"delays": self.history + 1, "most": size, "bundle_size": size, "of_tile": of_tile}
        arc = _Given("made_up", "x", "current", sources, targets, of_tile * size, **given)
        self.projection = Projection(arc, backend)
        parameters = Parameters(self.projection.parameters(), backend)
        self.projection.bind(parameters)
        self.projection.set_structure(wiring.block, wiring.delay)
        self.projection.weight[...] = backend.asarray(wiring.weight)
        self.synapses = backend.synapses([self.projection], parameters)
        self.synapses.wire()
        self.synapses.refresh()
        self.state = self.synapses.state({"x": (sources, self.history)}, {"current": targets}, tokens, batch, True, {})


# The plain values of a synaptic state


def read_source(state, signal: str, before: int, first: int, last: int):
    """Values [before + C, B, M] of a signal: of the tokens first ... last - 1 of the segment, and of `before` tokens before them."""
    if state.synapses.backend.name == "cpu":
        size, _ = state.signals[signal]
        return _plain(state.axon(signal).ring[:, state.row + first - before : state.row + last], size)
    ring, rows = state.ring(signal)["value"], _rows(state, signal, first - before, last)
    read = state.backend.bits(ring)[:, rows].view(ring.dtype)  # CuPy picks rows of integers, not of bfloat16
    return _plain(read.astype("float32"), state.sizes[signal][0])


def write_source(state, signal: str, first: int, values):
    """Write plain values [C, B, M] of a signal, of the tokens from `first` on."""
    backend = state.synapses.backend
    if backend.name == "cpu":
        axon = state.axon(signal)
        backend.launch(bundles_cpu.write_values_cpu, axon.ring, axon.fired, axon.start, first, values)
        return
    ring = state.ring(signal)["value"]
    C, B, M = values.shape
    whole = backend.zeros((C, B, len(ring) * LINE))
    whole[:, :, :M] = values
    written = backend.zeros((len(ring), C, B, LINE), str(ring.dtype))
    written[...] = whole.reshape(C, B, len(ring), LINE).transpose(2, 0, 1, 3)  # rounds
    backend.bits(ring)[:, _rows(state, signal, first, first + C)] = backend.bits(written)


def _rows(state, signal, first, last):
    """Rows of the ring of a signal on a GPU that have the tokens first ... last - 1 of the segment."""
    xp = state.backend._xp
    return (state.ring(signal)["start"][0] + xp.arange(first, last)) % state.rows[signal]


def read_gradient(state, current: str, size: int, first: int, last: int, length: int):
    """Gradients [C, B, N] of a current of `size` numbers, of the tokens first ... last - 1; those from `length` on have none."""
    if state.synapses.backend.name == "cpu":
        words = state.synapses.currents[current]
        rows = state.d[words.start : words.stop, first : min(last, length)]
    else:
        matrix, _, scale = state.current_grad(current, 0, length)
        rows = matrix.reshape(len(matrix), -1, state.batch, LINE)[:, first : min(last, length)].astype("float32") / scale
    plain = state.synapses.backend.zeros((last - first, state.batch, size))
    plain[: rows.shape[1]] = _plain(rows, size)
    return plain


def read_weight(synapses, projection):
    """The weights [tiles J, BS, BT] float32 of a projection that our kernels compute with; some are dropped while a brain learns."""
    if projection.weight is None:  # codes
        return synapses.backend.asarray(projection.dense())
    if synapses.backend.name == "cpu":
        flat, offset = synapses.read, synapses.weight_offsets[synapses.projections.index(projection)]
    else:
        flat, offset = synapses.latest, synapses.weight_offset[projection.arc.name]
    return flat[offset : offset + projection.weight.size].reshape(projection.weight.shape)


def _plain(rows, size):
    """[words, C, B, WORD] as contiguous [C, B, size]."""
    words, C, B, word = rows.shape
    return rows.transpose(1, 2, 0, 3).reshape(C, B, words * word)[:, :, :size].copy()


# A user's kernel in the place of ours: methods of the backend's SynapticState


def forward(run):
    def swapped(state, values, first, last):
        copied = state.copied
        for current, value in values.items():
            value[...] = 0
            for projection in _reading(state, "target", current):
                x = read_source(state, projection.arc.source, _longest(projection), first, last)
                run(state.synapses.backend, (value, x, *_structure(projection), read_weight(state.synapses, projection)))
            if current in copied:
                write_source(state, copied[current], first, value)

    return swapped


def source_grad(run):
    def swapped(state, gradients, first, last, length):
        for signal, gradient in gradients.items():
            gradient[...] = 0
            for projection in _reading(state, "source", signal):
                arc = projection.arc
                d = read_gradient(state, arc.target, arc.targets, first, last + _longest(projection), length)
                run(state.synapses.backend, (gradient, d, *_structure(projection), read_weight(state.synapses, projection)))

    return swapped


def weight_grad(run):
    def swapped(state, length):
        for projection in state.synapses.projections:
            arc = projection.arc
            x = read_source(state, arc.source, _longest(projection), 0, length)
            d = read_gradient(state, arc.target, arc.targets, 0, length, length)
            run(state.synapses.backend, (projection.d_weight, x, d, *_structure(projection)))

    return swapped


METHODS = {
    "bundles_forward": ("forward", forward),
    "bundles_backward": ("source_grad", source_grad),
    "bundles_weight_grad": ("accumulate_weight_grad", weight_grad),
}


def _reading(state, side, name):
    return [projection for projection in state.synapses.projections if getattr(projection.arc, side) == name]


def _longest(projection):
    return int(projection.delay.max())


def _structure(projection):
    """(block, delay) on the device. Raises ConfigError for a pruned projection, whose tiles have different numbers of bundles."""
    if projection.arc.pruned:
        raise ConfigError(f"{projection.arc.name} is pruned: kernels of bundles of one's own need the same number of bundles in every tile")
    backend = projection.backend
    return tuple(backend.asarray(array, "int32") for array in (projection.block, projection.delay))
