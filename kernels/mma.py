"""Tile products: the smallest matrix products, from which bundles.py is built.

On tensor cores one instruction of a warp computes A B + C for A [16, 16], B [16, 8], C [16, 8]: `mma.sync` (PTX ISA, "Warp-level matrix
instructions"), with 16-bit factors and float32 sums. Lane 4 g + q of the warp holds, two numbers per register:

    A   rows g and g + 8, columns 2 q, 2 q + 1 and 2 q + 8, 2 q + 9      a0 (row g), a1 (row g + 8), a2, a3 (the second pair of columns)
    B   column g, rows 2 q, 2 q + 1 and 2 q + 8, 2 q + 9                 b0, b1
    C   rows g and g + 8, columns 2 q, 2 q + 1                           c0, c1 (row g), c2, c3 (row g + 8)

The 16 products of a sum may be permuted, as long as A and B use the same permutation. The kernels do so: a lane loads four neighbouring
numbers as one 8-byte word, and uses the first two as the first pair of columns and the last two as the second.

Without tensor cores (float32, or the simulator) a thread accumulates a tile of EDGE x EDGE numbers from shared memory (`outer`).
"""

import numpy as np
from numba import types

from .launch import SIMULATED, device

BFLOAT16, FLOAT16, FLOAT16_TURING = 0, 1, 2  # kinds of factors; Turing (sm_75) multiplies A [16, 8] by B [8, 8] at a time
EDGE = 16 if SIMULATED else 4  # rows and columns of a thread's tile in `outer`

_WORD, _UPPER, _LOWER, _BITS = np.uint64(32), np.uint32(0xFFFF0000), np.uint32(0xFFFF), np.uint32(16)


if SIMULATED:

    def outer(acc, a, b, k, row, column):
        acc += np.outer(a[k, row : row + EDGE], b[k, column : column + EDGE])

else:

    @device
    def outer(acc, a, b, k, row, column):
        """acc [EDGE, EDGE] += a[k, row ...] times b[k, column ...], for one k of a product; a, b float32 in shared memory."""
        for i in range(EDGE):
            for j in range(EDGE):
                acc[i, j] += a[k, row + i] * b[k, column + j]


@device
def low(word):
    """The first two 16-bit numbers of a uint64."""
    return np.uint32(word)


@device
def high(word):
    """The last two 16-bit numbers of a uint64."""
    return np.uint32(word >> _WORD)


@device
def first_halves(a, b):
    """The lower 16 bits of two words (uint32), packed into one: a in the lower half, b in the upper."""
    return np.uint32((a & _LOWER) | (b << _BITS))


@device
def second_halves(a, b):
    """The upper 16 bits of two words (uint32), packed into one: a in the lower half, b in the upper."""
    return np.uint32((a >> _BITS) | (b & _UPPER))


if not SIMULATED:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    def _mma(name, words):
        """A code generator for one `mma.sync` instruction with `words` registers for A and B together."""
        of_a = words * 2 // 3
        operands = [f"${4 + i}" for i in range(words + 4)]
        groups = ["$0,$1,$2,$3", ",".join(operands[:of_a]), ",".join(operands[of_a:words]), ",".join(operands[words:])]
        text = f"mma.sync.aligned.{name} " + ", ".join("{" + group + "}" for group in groups) + ";"
        constraints = ",".join(["=f"] * 4 + ["r"] * words + ["f"] * 4)
        word, number = ir.IntType(32), ir.FloatType()
        kind = ir.FunctionType(ir.LiteralStructType([number] * 4), [word] * words + [number] * 4)

        def emit(builder, factors, sums):
            made = builder.call(ir.InlineAsm(kind, text, constraints, side_effect=False), [*factors, *sums])
            return [builder.extract_value(made, i) for i in range(4)]

        return emit

    _bfloat16 = _mma("m16n8k16.row.col.f32.bf16.bf16.f32", 6)
    _float16 = _mma("m16n8k16.row.col.f32.f16.f16.f32", 6)
    _float16_turing = _mma("m16n8k8.row.col.f32.f16.f16.f32", 3)
    _SIGNATURE = types.UniTuple(types.float32, 4)(*[types.uint32] * 6, *[types.float32] * 4)

    @intrinsic
    def mma_bfloat16(typing, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        """(c0, c1, c2, c3) of A B + C, factors bfloat16 (sm_80 or newer)."""

        def codegen(context, builder, signature, x):
            return context.make_tuple(builder, signature.return_type, _bfloat16(builder, x[:6], x[6:]))

        return _SIGNATURE, codegen

    @intrinsic
    def mma_float16(typing, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        """(c0, c1, c2, c3) of A B + C, factors float16 (sm_80 or newer)."""

        def codegen(context, builder, signature, x):
            return context.make_tuple(builder, signature.return_type, _float16(builder, x[:6], x[6:]))

        return _SIGNATURE, codegen

    @intrinsic
    def mma_float16_turing(typing, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        """(c0, c1, c2, c3) of A B + C, factors float16, by two instructions of depth 8 each (sm_75)."""

        def codegen(context, builder, signature, x):
            sums = _float16_turing(builder, [x[0], x[1], x[4]], x[6:])
            sums = _float16_turing(builder, [x[2], x[3], x[5]], sums)
            return context.make_tuple(builder, signature.return_type, sums)

        return _SIGNATURE, codegen

    @intrinsic
    def store_pair(typing, array, index, a, b):
        """array[index], array[index + 1] = a, b (float32) in one store of 8 bytes; its address must be a multiple of 8."""

        def codegen(context, builder, signature, arguments):
            array, index, a, b = arguments
            data = context.make_array(signature.args[0])(context, builder, array).data
            vector, number = ir.VectorType(ir.FloatType(), 2), ir.IntType(32)
            packed = builder.insert_element(ir.Constant(vector, ir.Undefined), a, ir.Constant(number, 0))
            packed = builder.insert_element(packed, b, ir.Constant(number, 1))
            pair_address = builder.bitcast(builder.gep(data, [index]), vector.as_pointer())
            builder.store(packed, pair_address, align=8)
            return context.get_dummy_value()

        return types.void(array, index, types.float32, types.float32), codegen

    def _pair(text):
        """Type and code of an intrinsic that rounds two float32 to 16 bits and packs them into a word; the first is the lower half."""

        def codegen(context, builder, signature, x):
            kind = ir.FunctionType(ir.IntType(32), [ir.FloatType()] * 2)
            return builder.call(ir.InlineAsm(kind, text, "=r,f,f", side_effect=False), x)

        return types.uint32(types.float32, types.float32), codegen

    @intrinsic
    def _pair_bfloat16(typing, a, b):
        return _pair("cvt.rn.bf16x2.f32 $0, $2, $1;")

    @intrinsic
    def _pair_float16(typing, a, b):
        return _pair("{ .reg .b16 a, b; cvt.rn.f16.f32 a, $1; cvt.rn.f16.f32 b, $2; mov.b32 $0, {a, b}; }")

    @device
    def pack_pair(kind, a, b):
        """Two float32, rounded to the 16-bit type `kind` and packed into a word (uint32): a in the lower half, b in the upper."""
        return _pair_bfloat16(a, b) if kind == BFLOAT16 else _pair_float16(a, b)

    @device
    def multiply(kind, c, a, b0, b1):
        """c [4] += A B, by a warp. a [4], b0, b1, c: the registers of a lane, in the layout of the module's docstring. kind: a compile-time
        constant; the other branches are removed."""
        if kind == BFLOAT16:
            c[0], c[1], c[2], c[3] = mma_bfloat16(a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2], c[3])
        elif kind == FLOAT16:
            c[0], c[1], c[2], c[3] = mma_float16(a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2], c[3])
        else:
            c[0], c[1], c[2], c[3] = mma_float16_turing(a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2], c[3])

    @intrinsic
    def _copy_async(typing, to, i, source, j, size):
        """Start an asynchronous copy of 16 bytes from source[j] (global memory) to to[i] (shared memory); if size is 0, write zeros
        (`cp.async`, sm_80 or newer)."""

        def codegen(context, builder, signature, arguments):
            to, i, source, j, size = arguments
            long, word = ir.IntType(64), ir.IntType(32)

            def address(array, index, kind):
                data = context.make_array(kind)(context, builder, array).data
                return builder.ptrtoint(builder.gep(data, [index]), long)

            shared, begin = address(to, i, signature.args[0]), address(source, j, signature.args[2])
            text = """{ .reg .u64 s; .reg .u32 t; cvta.to.shared.u64 s, $0; cvt.u32.u64 t, s;
                cp.async.cg.shared.global [t], [$1], 16, $2; }"""
            kind = ir.FunctionType(ir.VoidType(), [long, long, word])
            size = builder.trunc(size, word) if size.type.width > 32 else size
            builder.call(ir.InlineAsm(kind, text, "l,l,r,~{memory}", side_effect=True), [shared, begin, size])
            return context.get_dummy_value()

        return types.void(to, i, source, j, size), codegen

    def _statement(text):
        """Type and code of an intrinsic that is one instruction without operands."""

        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(kind, text, "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), codegen

    @intrinsic
    def _commit(typing):
        return _statement("cp.async.commit_group;")

    @intrinsic
    def _wait_0(typing):
        return _statement("cp.async.wait_group 0;")

    @intrinsic
    def _wait_1(typing):
        return _statement("cp.async.wait_group 1;")

    @intrinsic
    def _wait_2(typing):
        return _statement("cp.async.wait_group 2;")

    @device
    def copy(kind, to, i, source, j, size):
        """Copy 16 bytes from global to shared memory: to[i], to[i + 1] = source[j], source[j + 1] (uint64), or zeros if size is 0.

        The copy is asynchronous and complete after `wait_for_copies`. Turing has no asynchronous copies and loads at once.
        """
        if kind == FLOAT16_TURING:
            to[i], to[i + 1] = (source[j], source[j + 1]) if size else (np.uint64(0), np.uint64(0))
        else:
            _copy_async(to, np.int64(i), source, np.int64(j), size)

    @device
    def end_of_copies(kind):
        """Commit the copies that this thread has started since the last call as one group."""
        if kind != FLOAT16_TURING:
            _commit()

    @device
    def wait_for_copies(kind, latest):
        """Wait until all groups of this thread's copies are complete, except the `latest` (0, 1 or 2) newest. Both arguments are
        compile-time constants. Copies of other threads need a barrier as well."""
        if kind != FLOAT16_TURING:
            if latest == 0:
                _wait_0()
            elif latest == 1:
                _wait_1()
            else:
                _wait_2()
