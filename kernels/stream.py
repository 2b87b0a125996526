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
        """words[i] ... words[i + 3] by one load of 16 bytes: words uint32, i uint64, a multiple of 4."""

        def load(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            quad = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.VectorType(ir.IntType(32), 4).as_pointer())
            loaded = builder.load(quad, align=16)
            return context.make_tuple(
                builder, signature.return_type, [builder.extract_element(loaded, ir.IntType(32)(n)) for n in range(4)]
            )

        return types.UniTuple(types.uint32, 4)(words, i), load

    @intrinsic
    def write_quad(typing, words, i, first, second, third, fourth):
        """words[i] ... words[i + 3] = four words (uint32), by one store of 16 bytes: i uint64, a multiple of 4."""

        def store(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            place = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.VectorType(ir.IntType(32), 4).as_pointer())
            quad = ir.Constant(ir.VectorType(ir.IntType(32), 4), ir.Undefined)
            for n, word in enumerate(arguments[2:]):
                quad = builder.insert_element(quad, word, ir.IntType(32)(n))
            builder.store(quad, place, align=16)
            return context.get_dummy_value()

        return types.void(words, i, first, second, third, fourth), store
