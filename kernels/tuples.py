"""Tuples of arrays and of numbers, entry by entry. A neuron has as many states and constants as it has; a kernel holds them in tuples.

Numba has no loop over a tuple whose entries stay in registers, so each function here is written out for the length of its tuple: of two
arrays, `load(arrays, i)` is compiled as `(arrays[0][i], arrays[1][i])`. An index may be anything that an array takes.
"""

from numba.extending import overload

from .jit import ZERO


def load(arrays, index):
    """(arrays[0][index], arrays[1][index], ...)"""
    return tuple(array[index] for array in arrays)


def save(arrays, index, values):
    """arrays[0][index], arrays[1][index], ... = values"""
    for array, value in zip(arrays, values, strict=True):
        array[index] = value


def rows(array, first, like):
    """(array[first], array[first + 1], ...), as many as `like` has entries."""
    return tuple(array[first + k] for k in range(len(like)))


def add(one, other):
    """(one[0] + other[0], one[1] + other[1], ...)"""
    return tuple(a + b for a, b in zip(one, other, strict=True))


def zeros(like):
    """(0, 0, ...) float32, as many as `like` has entries."""
    return (ZERO,) * len(like)


def _written_out(function, arguments, entry, counted, returns=True):
    """Compile a function of tuples as a line for each length. entry: the text of entry {k}; counted: the argument whose length counts."""

    def of_length(*types):
        entries = [entry.format(k=k) for k in range(len(types[counted]))]
        body = f"return ({''.join(f'{entry}, ' for entry in entries)})" if returns else "; ".join(entries) or "pass"
        scope = {"ZERO": ZERO}
        exec(f"def {function.__name__}({arguments}): {body}", scope)
        return scope[function.__name__]

    scope = {"of_length": of_length}
    exec(f"def typed({arguments}): return of_length({arguments})", scope)  # Numba wants the same names of arguments
    overload(function)(scope["typed"])


_written_out(load, "arrays, index", "arrays[{k}][index]", 0)
_written_out(save, "arrays, index, values", "arrays[{k}][index] = values[{k}]", 0, returns=False)
_written_out(rows, "array, first, like", "array[first + {k}]", 2)
_written_out(add, "one, other", "one[{k}] + other[{k}]", 0)
_written_out(zeros, "like", "ZERO", 0)
