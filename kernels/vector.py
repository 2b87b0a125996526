"""SIMD building blocks of the CPU's bundles: a row of weights is an LLVM vector, and one event adds one row.

A vectorised loop of Numba tests at run time whether its arrays overlap. For rows of 16 to 64 numbers, this test costs more than the row.
These intrinsics emit LLVM vector instructions directly, and a sum stays in registers for all events of a block.

Arrays are contiguous float32, and weights may be codes (codes.py); offsets are uint64 and count numbers. Nothing is bounds-checked.
"""

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 64  # numbers per column: the stride from one column to the next, and the bits of a mask
STRIP = 32  # columns of a matrix in one vector, whose sums stay in registers
_FLOAT, _U64, _I32, _I1 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
_I8 = ir.IntType(8)
_BYTES = ir.IntType(8).as_pointer()


def _number(value):
    return ir.Constant(_U64, value)


class _Rows:
    """Emits LLVM instructions for rows of `width` float32."""

    def __init__(self, context, builder, signature, width, columns):
        self.context, self.builder, self.signature, self.width, self.columns_at_once = context, builder, signature, width, columns
        self.vector = ir.VectorType(_FLOAT, width)

    def pointer(self, argument, array, offset):
        """A pointer to the number at `offset` of an array argument of the intrinsic."""
        data = self.context.make_array(self.signature.args[argument])(self.context, self.builder, value=array).data
        return self.builder.gep(data, [offset])

    def columns(self, pointer):
        """Pointers to the same number in each of the columns that are computed together."""
        return [self.builder.gep(pointer, [_number(column * WORD)]) for column in range(self.columns_at_once)]

    def row(self, pointer, s):
        """A pointer to row s of a block that begins at `pointer`."""
        return self.builder.gep(pointer, [self.builder.mul(s, _number(self.width))])

    def load(self, pointer):
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def weights(self, argument, array, offset):
        """A function that loads row s, as float32, of the block of weights at `offset` of an array argument: of float32 or of codes."""
        kind = self.signature.args[argument].dtype
        if kind == types.float32:
            block = self.pointer(argument, array, offset)
            return lambda s: self.load(self.row(block, s))
        packed = kind == types.uint8
        size = self.width // 2 if packed else self.width  # bytes of a row
        block = self.pointer(argument, array, self.builder.lshr(offset, _number(1)) if packed else offset)
        return lambda s: self._decode(self.builder.gep(block, [self.builder.mul(s, _number(size))]), size, packed)

    def _decode(self, pointer, size, packed):
        """Load a row of codes, `size` bytes, as float32."""
        builder, stored = self.builder, ir.VectorType(_I8, size)
        row = builder.load(builder.bitcast(pointer, stored.as_pointer()), align=1)
        if packed:

            def each(value):
                return ir.Constant(stored, [value] * size)

            halves = builder.and_(row, each(15)), builder.lshr(row, each(4))
            order = [n // 2 + n % 2 * size for n in range(self.width)]
            signed = [builder.sub(half, each(8)) for half in halves]
            row = builder.shuffle_vector(*signed, ir.Constant(ir.VectorType(_I32, self.width), order))
        return builder.sitofp(builder.sext(row, ir.VectorType(_I32, self.width)), self.vector)

    def store(self, row, pointer):
        self.builder.store(row, self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def broadcast_load(self, pointer, s):
        """Load the s-th number after `pointer` into all SIMD lanes."""
        return self.broadcast(self.builder.load(self.builder.gep(pointer, [s])))

    def broadcast(self, value):
        """A row with `value` in all SIMD lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(self.builder.insert_element(undefined, value, ir.Constant(_I32, 0)), undefined, first)

    def multiply_add(self, a, b, c):
        """a b + c, as one FMA where the processor has it."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        fused = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fmuladd.v{self.width}f32")
        return self.builder.call(fused, [a, b, c])

    def sum(self, row):
        """Horizontal sum of a row. The compiler chooses the order; it is the same in every run."""
        kind = ir.FunctionType(_FLOAT, [_FLOAT, self.vector])
        added = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.fadd.v{self.width}f32")
        return self.builder.call(added, [ir.Constant(_FLOAT, 0.0), row], fastmath=("reassoc",))

    def loop(self, first, values, step):
        """Emit a loop: (count, more, values) = step(count, values) from count = first, while `more`. Returns the final values."""
        builder = self.builder
        before, body, after = builder.block, builder.append_basic_block("step"), builder.append_basic_block("end")
        builder.branch(body)
        builder.position_at_end(body)
        count, now = builder.phi(_U64), [builder.phi(value.type) for value in values]
        following, more, new = step(count, now)
        for phi, start, next_value in zip((count, *now), (first, *values), (following, *new), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(next_value, body)
        builder.cbranch(more, body, after)
        builder.position_at_end(after)
        return new

    def for_each(self, events, sums, step):
        """Emit a loop: sums = step(s, sums) for every set bit s of events (not 0), lowest first. Returns the final sums."""
        builder = self.builder

        def event(left, values):
            new = step(builder.cttz(left, ir.Constant(_I1, 1)), values)
            remaining = builder.and_(left, builder.sub(left, _number(1)))  # clears the lowest set bit
            return remaining, builder.icmp_unsigned("!=", remaining, _number(0)), new

        return self.loop(events, sums, event)


@functools.cache
def make_add_product(width: int, columns: int):
    """`add_product` for rows of `width` numbers and `columns` columns together."""

    @intrinsic
    def add_product(typing, out, out_offset, x, x_offset, weight, weight_offset, scale, events):
        """out[out_offset + n] += sum over events s of x[x_offset + s] weight[weight_offset + s width + n], for n < width.

        scale: float32, of the weights if they are codes; else not read. events: bit mask (not 0), the union over the columns; x is 0 where
        a column has no event. Columns are WORD numbers apart in out and x.
        """
        coded = weight.dtype != types.float32

        def codegen(context, builder, signature, arguments):
            out_, out_offset_, x_, x_offset_, weight_, weight_offset_, scale_, events_ = arguments
            rows = _Rows(context, builder, signature, width, columns)
            totals, values = rows.columns(rows.pointer(0, out_, out_offset_)), rows.columns(rows.pointer(2, x_, x_offset_))
            load = rows.weights(4, weight_, weight_offset_)

            def factor(value, s):
                x_s = builder.load(builder.gep(value, [s]))
                return rows.broadcast(builder.fmul(x_s, scale_) if coded else x_s)

            def step(s, sums):
                row = load(s)
                return [rows.multiply_add(factor(value, s), row, total) for value, total in zip(values, sums, strict=True)]

            for total, pointer in zip(rows.for_each(events_, [rows.load(total) for total in totals], step), totals, strict=True):
                rows.store(total, pointer)
            return context.get_dummy_value()

        return types.void(out, types.uint64, x, types.uint64, weight, types.uint64, types.float32, types.uint64), codegen

    return add_product


@functools.cache
def make_dot(width: int):
    """`dot` in steps of `width` numbers."""

    @intrinsic
    def dot(typing, x, x_offset, weight, weight_offset, steps):
        """The sum of x[x_offset + k] weight[weight_offset + k] over k < steps width; steps: not 0. Codes are not scaled."""

        def codegen(context, builder, signature, arguments):
            x_, x_offset_, weight_, weight_offset_, steps_ = arguments
            rows = _Rows(context, builder, signature, width, 1)
            values, load = rows.pointer(0, x_, x_offset_), rows.weights(2, weight_, weight_offset_)

            def step(s, sums):
                total = rows.multiply_add(rows.load(rows.row(values, s)), load(s), sums[0])
                following = builder.add(s, _number(1))
                return following, builder.icmp_unsigned("<", following, steps_), [total]

            return rows.sum(rows.loop(_number(0), [ir.Constant(rows.vector, [0.0] * width)], step)[0])

        return types.float32(x, types.uint64, weight, types.uint64, types.uint64), codegen

    return dot


@functools.cache
def make_add_outer(width: int, columns: int):
    """`add_outer` for rows of `width` numbers, summed over `columns` columns."""

    @intrinsic
    def add_outer(typing, out, out_offset, x, x_offset, d, d_offset, events):
        """out[out_offset + s width + n] += x[x_offset + s] d[d_offset + n] for every event s, for n < width.

        events: as in `add_product`; columns are WORD numbers apart in x and d.
        """

        def codegen(context, builder, signature, arguments):
            out_, out_offset_, x_, x_offset_, d_, d_offset_, events_ = arguments
            rows = _Rows(context, builder, signature, width, columns)
            values, totals = rows.columns(rows.pointer(2, x_, x_offset_)), rows.pointer(0, out_, out_offset_)
            factors = [rows.load(pointer) for pointer in rows.columns(rows.pointer(4, d_, d_offset_))]

            def step(s, state):
                pointer = rows.row(totals, s)
                total = rows.load(pointer)
                for value, factor in zip(values, factors, strict=True):
                    total = rows.multiply_add(rows.broadcast_load(value, s), factor, total)
                rows.store(total, pointer)
                return state

            rows.for_each(events_, [], step)
            return context.get_dummy_value()

        return types.void(out, types.uint64, x, types.uint64, d, types.uint64, types.uint64), codegen

    return add_outer


@intrinsic
def nonzero_bits(typing, x, x_offset):
    """A bit mask (uint64): bit i is set if x[x_offset + i] is not 0, for i < WORD."""

    def codegen(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, WORD, 1)
        row = rows.load(rows.pointer(0, *arguments))
        return builder.bitcast(builder.fcmp_unordered("!=", row, ir.Constant(rows.vector, [0.0] * WORD)), _U64)

    return types.uint64(x, types.uint64), codegen


@intrinsic
def prefetch(typing, x, offset):
    """Prefetch x[offset] of a flat array into the cache. The offset may be beyond the array."""

    def codegen(context, builder, signature, arguments):
        pointer = builder.bitcast(_Rows(context, builder, signature, 1, 1).pointer(0, *arguments), _BYTES)
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(x, types.uint64), codegen


@functools.cache
def make_step(dots: bool):
    """`step` for STRIP columns of a matrix. dots: also the dot product of each row with another row."""

    def generate(context, builder, signature, arguments):
        block, matrix, size, width, lam, x, a, b, y, *more = arguments
        rows = _Rows(context, builder, signature, STRIP, 1)
        pointer_to = functools.partial(rows.pointer, 0, block)
        row_a, lam_row = rows.load(pointer_to(a)), rows.broadcast(lam)
        other = rows.load(pointer_to(more[0])) if dots else None

        def step(i, sums):
            pointer = pointer_to(builder.add(matrix, builder.mul(i, width)))
            added = builder.fmul(rows.broadcast_load(pointer_to(x), i), row_a)
            row = rows.multiply_add(lam_row, rows.load(pointer), added)
            rows.store(row, pointer)
            if dots:
                total = pointer_to(builder.add(more[1], i))
                builder.store(builder.fadd(builder.load(total), rows.sum(builder.fmul(row, other))), total)
            following = builder.add(i, _number(1))
            return (
                following,
                builder.icmp_unsigned("<", following, size),
                [rows.multiply_add(rows.broadcast_load(pointer_to(b), i), row, sums[0])],
            )

        rows.store(rows.loop(_number(0), [ir.Constant(rows.vector, [0.0] * STRIP)], step)[0], pointer_to(y))
        return context.get_dummy_value()

    if dots:

        @intrinsic
        def step(typing, block, matrix, size, width, lam, x, a, b, y, c, dot):
            """As without dots, and block[dot + i] += the dot product of the updated row i with the row at offset c, for i < size."""
            return types.void(block, *[types.uint64] * 3, types.float32, *[types.uint64] * 6), generate

    else:

        @intrinsic
        def step(typing, block, matrix, size, width, lam, x, a, b, y):
            """M = lam M + x a^T, then y = M^T b, for STRIP columns of a matrix M with `size` (not 0) rows, `width` numbers apart.

            matrix, x, b (one number per row of M), a and y (one per column) are offsets into `block`, which is flat.
            """
            return types.void(block, *[types.uint64] * 3, types.float32, *[types.uint64] * 4), generate

    return step
