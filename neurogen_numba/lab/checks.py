"""Checks of arrays before a kernel gets them: kernels check nothing, and an array that is too short ends in a segmentation fault."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError


def fit(where: str, sizes: dict[str, int] | None = None, **given) -> tuple[list[np.ndarray], dict[str, int]]:
    """The arrays as kernels take them, contiguous float32 or int32, and the sizes by name.

    given: name=(values, kind, names of the sizes, for example "T B N"). kind: "float" or "int", or a dtype, for example "uint8". A size has
    one value in all arrays, and the value in `sizes` if it is there. Raises ConfigError, which names every array with its shape and dtype,
    if one does not fit.
    """
    known, arrays = dict(sizes or {}), []
    values = {name: np.asarray(value) for name, (value, _, _) in given.items()}
    for name, (_, kind, dimensions) in given.items():
        array, names = values[name], dimensions.split()
        if array.ndim == len(names):
            for size, length in zip(names, array.shape, strict=True):
                known.setdefault(size, length)
        expected = tuple(known.get(size) for size in names)
        integers = "int" in kind
        if array.shape != expected or array.dtype.kind not in ("iub" if kind == "uint8" else "iu" if integers else "fiub"):
            shape = ", ".join(size if length is None else f"{size} = {length}" for size, length in zip(names, expected, strict=True))
            raise ConfigError(f"{where}: {name} must be {'integers' if integers else 'numbers'} [{shape}]; given: {described(values)}")
        arrays.append(np.ascontiguousarray(array, {"int": np.int32, "float": np.float32}.get(kind, kind)))
    return arrays, known


def described(arrays: dict) -> str:
    """Arrays with their shapes and dtypes, for people."""
    return ", ".join(f"{name} {list(np.shape(array))} {np.asarray(array).dtype}" for name, array in arrays.items())


def in_range(where: str, name: str, array, low: int, high: int, of: str):
    """Raise ConfigError unless low <= array < high. of: what there are `high` of, or why the bound is there."""
    if array.size and not (low <= array.min() and array.max() < high):
        found = f"{array.min()} to {array.max()}"
        raise ConfigError(f"{where}: {name} {list(array.shape)} {array.dtype} must be from {low} to {high - 1} ({of}), not {found}")
