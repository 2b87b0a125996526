"""Checks of arrays before a kernel gets them: kernels check nothing, and an array that is too short ends in a segmentation fault."""

from __future__ import annotations

import contextlib
import traceback

import numba
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
            shape = ", ".join(
                size if length is None or size == str(length) else f"{size} = {length}"
                for size, length in zip(names, expected, strict=True)
            )
            raise ConfigError(f"{where}: {name} must be {'integers' if integers else 'numbers'} [{shape}]; given: {described(values)}")
        arrays.append(np.ascontiguousarray(array, {"int": np.int32, "float": np.float32}.get(kind, kind)))
    return arrays, known


def described(arrays: dict) -> str:
    """Arrays with their shapes and dtypes, for people."""
    return ", ".join(f"{name} {list(np.shape(array))} {np.asarray(array).dtype}" for name, array in arrays.items())


def with_checks(kernel):
    """A loop for the CPU whose indices are checked; it runs on one thread. Functions that it calls are compiled apart, and not checked."""
    return numba.njit(boundscheck=True, error_model="numpy")(kernel.py_func)


@contextlib.contextmanager
def indices_checked(name: str, label: str, inputs: dict):
    """A context in which an index beyond an array, in a loop `with_checks` or in the simulator, is one sentence, with the line where Python
    ran the kernel. label: its name; inputs: name -> array or another value."""
    try:
        yield
    except IndexError as error:
        shapes = ", ".join(f"{what} {list(value.shape)}" for what, value in inputs.items() if isinstance(value, np.ndarray))
        lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.name == label and frame.line]
        why = " ".join(str(error).split()) + (f" at `{lines[-1]}`" if lines else "")
        raise ConfigError(f"{label} leaves an array of {name} ({why}); given: {shapes}") from None


def in_range(where: str, name: str, array, low: int, high: int, of: str):
    """Raise ConfigError unless low <= array < high. of: what there are `high` of, or why the bound is there."""
    if array.size and not (low <= array.min() and array.max() < high):
        found = f"{array.min()} to {array.max()}"
        raise ConfigError(f"{where}: {name} {list(array.shape)} {array.dtype} must be from {low} to {high - 1} ({of}), not {found}")
