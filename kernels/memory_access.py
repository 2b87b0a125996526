"""Loads and stores of long arrays: bounds-checked, streaming, and 16 bytes wide.

A thread keeps PREFETCH loads in flight, because global memory has a latency of hundreds of cycles. Loops over long arrays are `while` loops
with unsigned indices: Numba checks at every access whether a signed index is negative, and `range` keeps a second counter.
"""

import numpy as np

from .launch import SIMULATED, device

if not SIMULATED:
    from llvmlite import ir
    from numba import types
    from numba.cuda.cache_hints import ldcs
    from numba.cuda.extending import intrinsic

PREFETCH = np.uint64(4)  # loads that a thread keeps in flight


@device
def read(x, i, end, otherwise):
    """x[i] if i < end, else `otherwise`."""
    return x[i] if i < end else otherwise


if SIMULATED:

    def read_once(x, i):
        return x[i]

    def read_quad(words, i):
        return words[i], words[i + 1], words[i + 2], words[i + 3]

    def write_quad(words, i, *quad):
        words[i : i + 4] = quad

else:

    @device
    def read_once(x, i):
        """x[i], i uint32, by a streaming load (`ld.global.cs`): evict first, so resident data stays cached."""
        return ldcs(x, np.uint64(i))  # ldcs checks for negative indices; the compiler drops the check for a widened uint32

    @intrinsic
    def read_quad(typing, words, i):
        """words[i : i + 4] by one 16-byte load. words: 32 bits each; i: uint64, a multiple of 4."""

        def load(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            vector = ir.VectorType(context.get_value_type(words.dtype), 4)
            loaded = builder.load(builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer()), align=16)
            return context.make_tuple(
                builder, signature.return_type, [builder.extract_element(loaded, ir.IntType(32)(n)) for n in range(4)]
            )

        return types.UniTuple(words.dtype, 4)(words, i), load

    @intrinsic
    def write_quad(typing, words, i, first, second, third, fourth):
        """words[i : i + 4] = four numbers, cast to the dtype of words, by one store: 16 bytes, or 8 if words have 16 bits. i: uint64, a
        multiple of 4."""

        def store(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            vector = ir.VectorType(context.get_value_type(words.dtype), 4)
            quad = ir.Constant(vector, ir.Undefined)
            for n, (word, kind) in enumerate(zip(arguments[2:], signature.args[2:], strict=True)):
                quad = builder.insert_element(quad, context.cast(builder, word, kind, words.dtype), ir.IntType(32)(n))
            address = builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())
            builder.store(quad, address, align=words.dtype.bitwidth // 2)
            return context.get_dummy_value()

        return types.void(words, i, first, second, third, fourth), store
