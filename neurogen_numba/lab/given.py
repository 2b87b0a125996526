"""Inputs of a user for `compare`, checked: kernels check nothing, and an array of another shape ends in a segmentation fault."""

from __future__ import annotations

import math

import numpy as np

from ..config import BUNDLE_SIZES, did_you_mean
from ..errors import ConfigError
from ..kernels.adamw import BLOCK
from ..kernels.adamw8bit import GROUP_SIZE
from .bundles import checked
from .cases import NO_AXON
from .checks import described, fit, in_range
from .vocabulary import BUNDLES, OPERATIONS, arguments

# Operation -> its arrays, "name: dtype shape" without float32. All other arguments are numbers, `axon` excepted.
SHAPES = {
    "decay_forward": "decayed: N, log_tau: N",
    "decay_backward": "d_log_tau: N, d_decay: N, log_tau: N",
    "gain_forward": "scaled: N, gain: N, input_scale: N",
    "gain_backward": "d_gain: N, d_scaled: N, input_scale: N",
    "poisson": "current: C B N, ticks: uint64 1",
    "memory_forward": "out: C B H*W, S: B H W W, key: B H*W, q_in: C B H*W, v: C B H*W, w_in: C B H, write_bias: H, decay: H, "
    "write_scale: B",
    "memory_backward": "dq_in: C B H*W, dv: C B H*W, dw_in: C B H, d_decay: B H, dS: B H W W, d_key: B H*W, d_out: C B H*W, "
    "S_before: B H W W, key_before: B H*W, q_in: C B H*W, v: C B H*W, w_in: C B H, write_bias: H, decay: H, write_scale: B",
    "working_memory_forward": "m: C+1 B M, f_in: C B M, u_in: C B M, retain: M",
    "working_memory_backward": "df_in: C B M, du_in: C B M, dm_carry: B M, dm: C B M, m: C+1 B M, f_in: C B M, u_in: C B M, retain: M",
    "observe": "rows: 9 B, losses: T B, targets: int32 T B",
    "modulate": "factors: 14 B, slopes: 14 B, rows: 9 B, sensitivity: 14",
    "embedding_forward": "x: C B E, weight: V E, tokens: int32 C B",
    "embedding_backward": "d_weight: V E, dx: C B E, tokens: int32 C B",
    "scale_words": "x: C B E, tokens: int32 C B, key: uint64 1",
    "scaled_dropout": "out: R N, x: R N, key: uint64 1",
    "cross_entropy": "loss: R, hit: uint8 R, d_logits: R W, logits: R W, bias: W, targets: int32 R, weight: 1",
    "softmax_part": "top: R, best: int32 R, total: R, picked: R, logits: R W, bias: W, targets: int32 R",
    "softmax_end": "loss: R, hit: uint8 R, factor: R, top: R, best: int32 R, total: R, picked: R, targets: int32 R, weight: 1",
    "softmax_gradient": "d_logits: R W, logits: R W, bias: W, top: R, factor: R, targets: int32 R, weight: 1",
    "sample": "tokens: int32 B, logits: B W, bias: W, step: uint64 B",
    "average": "mean: K, p: K, share: 1",
    "exchange": "x: K, y: K",
    "adamw": "p: K, g: K, m: K, v: K, decay: K/BLOCK, low: K/BLOCK, high: K/BLOCK, norm: 1, numbers: 4",
    "muon": "p: K, g: K, m: K, decay: K/BLOCK, low: K/BLOCK, high: K/BLOCK, norm: 1, numbers: 4",
    "adamw8bit": "p: K, g: K, m: int8 K, v: uint8 K, m_top: K/GROUP_SIZE, r_top: K/GROUP_SIZE, decay: K/BLOCK, low: K/BLOCK, "
    "high: K/BLOCK, norm: 1, numbers: 4, key: uint64 1",
    "adafactor": "p: R C, g: P C, row: R, spread: C, where: int32 P, norm: 1, numbers: 4",
    "spread_columns": "spread: C, column: C",
    "column_squares": "total: C, g: P C, where: int32 P, norm: 1, numbers: 4",
    "column_step": "column: C, total: C, norm: 1",
    "sum_of_squares": "partial: float64 K/BLOCK, x: K",
    "norm": "norm: 1, partial: float64 n",
    "add_rows": "total: N, x: R N",
}
DERIVED = {
    "C+1": lambda size: size["C"] + 1,
    "H*W": lambda size: size["H"] * size["W"],
    "K/BLOCK": lambda size: math.ceil(size["K"] / BLOCK),
    "K/GROUP_SIZE": lambda size: math.ceil(size["K"] / GROUP_SIZE),
}
BELOW = {("tokens", "V"), ("where", "R")}  # indices, and the size that they are below


def checked_inputs(name: str, given: dict) -> dict:
    """The arguments of a kernel in order, name -> array or number, from those that a user gives for `compare`.

    Lists and other dtypes are converted, into copies. `axon`, `first` and `erase` may be missing: no axon, 0, 1. Raises ConfigError for a
    kernel whose shapes are not known here, an argument that is missing or unknown, a shape or dtype that does not fit, and indices out of
    range.
    """
    names = arguments(name)
    if name in OPERATIONS and name not in SHAPES:
        raise ConfigError(f"compare does not know the shapes of {name}, so it cannot take given inputs; run a model with `swap` instead")
    if not isinstance(given, dict):
        raise ConfigError(f"{name}: given must be a dict, argument -> array or number, not {type(given).__name__}")
    usual = {"axon": NO_AXON, "first": 0, "erase": 1.0}
    given = {argument: value for argument, value in usual.items() if argument in names} | given
    for unknown in given.keys() - set(names):
        raise ConfigError(f"{name}: given has {unknown!r}, which is no argument; {did_you_mean(str(unknown), names)}")
    missing = [argument for argument in names if argument not in given]
    if missing:
        raise ConfigError(f"{name}: given has no {', '.join(missing)}; it needs all of: {', '.join(names)}")
    where = f"compare {name}"
    try:
        arrays = _bundles(where, name, given) if name in BUNDLES else _operation(where, name, given)
    except ConfigError:
        raise
    except ValueError:  # of NumPy, for lists of several lengths
        raise ConfigError(f"{where}: every list needs rows of one length") from None
    return {argument: arrays.get(argument, given[argument]) for argument in names}


def _bundles(where, name, given):
    output, *others = BUNDLES[name][0]
    kinds = {"current": "C B N", "source_grad": "C B M", "x": "H+C B M", "d": "C+H B N"}
    if name == "bundles_weight_grad":
        kinds |= {"x": "H+T B M", "d": "T B N"}
    beside = {argument: (given[argument], "float", kinds[argument]) for argument in (output, *others) if argument in kinds}
    weight = "weight" if "weight" in given else "weight_grad"
    wires, arrays, size = checked(where, given["block"], given["delay"], given[weight], weight_name=weight, **beside)
    found = dict(zip(beside, arrays, strict=True)) | {"block": wires.block, "delay": wires.delay, weight: wires.weight}
    if not wires.block.size:
        raise ConfigError(f"{where}: at least one bundle is needed; given: {described(found)}")
    tokens, late = size.get("C", size.get("T")), int(wires.delay.max(initial=0))
    before = "x" if "x" in found else "d"
    if len(found[before]) < tokens + late:
        raise ConfigError(f"{where}: {before} needs {tokens} + {late} rows, for delays up to {late}; given: {described(found)}")
    if name == "bundles_backward" and found["d"][tokens:].any():
        raise ConfigError(f"{where}: d must be 0 from row {tokens} on, where the segment has ended")
    return found


def _operation(where, name, given):
    kinds = {}
    for entry in SHAPES[name].split(", "):
        argument, what = entry.split(": ")
        dtype, _, sizes = what.partition(" ")
        kinds[argument] = (
            given[argument],
            *((dtype, sizes) if dtype.rstrip("0123456789") in ("int", "uint", "float") else ("float", what)),
        )
    fixed = {"1": 1, "4": 4, "9": 9, "14": 14}
    _, size = fit(where, fixed, **kinds)
    arrays, size = fit(where, {label: of(size) for label, of in DERIVED.items() if label in size} | fixed, **kinds)
    found = dict(zip(kinds, arrays, strict=True))
    for argument in given.keys() - found.keys() - {"axon"}:
        if np.ndim(given[argument]) or not np.issubdtype(np.asarray(given[argument]).dtype, np.number):
            raise ConfigError(f"{where}: {argument} must be a number, not {given[argument]!r}")
    if given.get("size", 0) > size.get("W", given.get("size", 0)):
        raise ConfigError(f"{where}: size {given['size']} is more than the {size['W']} columns of logits")
    for argument, bound in BELOW:
        if argument in found and bound in size:
            indices = found[argument] if argument == "tokens" else found[argument].clip(0)  # a negative row is skipped
            in_range(where, argument, indices, 0, size[bound], bound)
    if name == "muon" and given["side"] not in BUNDLE_SIZES:
        raise ConfigError(f"{where}: side must be one of {BUNDLE_SIZES}, not {given['side']}")
    if name == "cross_entropy":
        in_range(where, "targets", found["targets"].clip(0), 0, given["size"], "size")
    return found
