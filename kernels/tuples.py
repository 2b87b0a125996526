"""Elementwise operations on tuples of arrays or numbers. The number of states and constants depends on the neuron, so kernels use tuples.

A loop over a tuple would move its entries from registers to memory. Each function here is therefore unrolled for the length of its tuple:
for two arrays, `load(arrays, i)` is compiled as `(arrays[0][i], arrays[1][i])`. An index may be any valid index of an array.
"""

from numba.extending import overload

from .jit import ONE, ZERO


def load(arrays, index):
    """(arrays[0][index], arrays[1][index], ...)"""
    return tuple(array[index] for array in arrays)


def save(arrays, index, values):
    """arrays[0][index], arrays[1][index], ... = values"""
    for array, value in zip(arrays, values, strict=True):
        array[index] = value


def rows(array, first, like):
    """(array[first], array[first + 1], ...), of the length of `like`."""
    return tuple(array[first + k] for k in range(len(like)))


def add(one, other):
    """(one[0] + other[0], one[1] + other[1], ...)"""
    return tuple(a + b for a, b in zip(one, other, strict=True))


def zeros(like):
    """(0, 0, ...) float32, of the length of `like`."""
    return (ZERO,) * len(like)


def unit(like, index):
    """(0, ..., 1, ..., 0) float32, of the length of `like`, with the 1 at `index`; all 0 if the index is beyond it."""
    return tuple(ONE if k == index else ZERO for k in range(len(like)))


def _unroll(function, arguments, entry, counted, returns=True):
    """Overload a function of tuples with one expression per length. entry: source of entry {k}; counted: index of the argument whose length
    is the number of entries."""

    def of_length(*types):
        entries = [entry.format(k=k) for k in range(len(types[counted]))]
        body = f"return ({''.join(f'{entry}, ' for entry in entries)})" if returns else "; ".join(entries) or "pass"
        scope = {"ZERO": ZERO, "ONE": ONE}
        exec(f"def {function.__name__}({arguments}): {body}", scope)
        return scope[function.__name__]

    scope = {"of_length": of_length}
    exec(f"def typed({arguments}): return of_length({arguments})", scope)  # Numba requires the same argument names
    overload(function)(scope["typed"])


_unroll(load, "arrays, index", "arrays[{k}][index]", 0)
_unroll(save, "arrays, index, values", "arrays[{k}][index] = values[{k}]", 0, returns=False)
_unroll(rows, "array, first, like", "array[first + {k}]", 2)
_unroll(add, "one, other", "one[{k}] + other[{k}]", 0)
_unroll(zeros, "like", "ZERO", 0)
_unroll(unit, "like, index", "ONE if {k} == index else ZERO", 0)
