"""Reading and writing long arrays: a thread has AHEAD numbers on their way at a time, since the first takes hundreds of cycles to come.

Indices of such loops are unsigned, and the loops are `while` loops: where an index could be negative, Numba asks at every access whether it
counts from the end, and its ranges count on beside the index.
"""

import numpy as np

from .launch import SIMULATED, device

if not SIMULATED:
    from llvmlite import ir
    from numba import types
    from numba.cuda.cache_hints import ldcs
    from numba.cuda.extending import intrinsic

ONCE, TWICE, THRICE, AHEAD = (np.uint64(n) for n in (1, 2, 3, 4))


@device
def read(x, i, end, otherwise):
    """x[i], or `otherwise` where i is not below the end."""
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
        """x[i], i uint32, which nobody will want again soon: it is the first to leave the cache, and what is there stays."""
        return ldcs(x, np.uint64(i))  # which asks every index whether it is negative, and of so short a one knows that it is not

    @intrinsic
    def read_quad(typing, words, i):
        """words[i] ... words[i + 3] by one load of 16 bytes: words of 32 bits each, i uint64, a multiple of 4."""

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
        """words[i] ... words[i + 3] = four numbers, cast to what the array holds, by one store of 16 bytes, or of 8 where words have 16
        bits: i uint64, a multiple of 4."""

        def store(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            vector = ir.VectorType(context.get_value_type(words.dtype), 4)
            quad = ir.Constant(vector, ir.Undefined)
            for n, (word, kind) in enumerate(zip(arguments[2:], signature.args[2:], strict=True)):
                quad = builder.insert_element(quad, context.cast(builder, word, kind, words.dtype), ir.IntType(32)(n))
            place = builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())
            builder.store(quad, place, align=words.dtype.bitwidth // 2)
            return context.get_dummy_value()

        return types.void(words, i, first, second, third, fourth), store
