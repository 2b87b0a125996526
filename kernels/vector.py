"""What the CPU's bundles are built from: rows of weights as vectors of the processor, one event at a time.

Numba compiles a loop over a row with a test, each time it is entered, of whether its arrays overlap; for rows of 16 to 64 numbers the test
costs more than the row. Here LLVM's vectors are written directly: a sum stays in registers while the events of a block pass.

Arrays are flat (1-D) float32; places in them are uint64, in numbers. Nothing is checked.
"""

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 64  # numbers from one column to the next
STRIP = 32  # columns of a matrix whose sums stay in registers
_FLOAT, _U64, _I32, _I1 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)
_BYTES = ir.IntType(8).as_pointer()


def _number(value):
    return ir.Constant(_U64, value)


class _Rows:
    """Writes LLVM instructions for rows of `width` float32."""

    def __init__(self, context, builder, signature, width, columns):
        self.context, self.builder, self.signature, self.width, self.together = context, builder, signature, width, columns
        self.vector = ir.VectorType(_FLOAT, width)

    def pointer(self, argument, array, place):
        """To a number of an array that is an argument of the intrinsic."""
        data = self.context.make_array(self.signature.args[argument])(self.context, self.builder, value=array).data
        return self.builder.gep(data, [place])

    def columns(self, pointer):
        """Pointers to the same number of all columns that are computed at once."""
        return [self.builder.gep(pointer, [_number(column * WORD)]) for column in range(self.together)]

    def row(self, pointer, s):
        """To row s of a block that begins there."""
        return self.builder.gep(pointer, [self.builder.mul(s, _number(self.width))])

    def load(self, pointer):
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def store(self, row, pointer):
        self.builder.store(row, self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def spread(self, pointer, s):
        """A row of one number, the s-th from there on."""
        return self.whole(self.builder.load(self.builder.gep(pointer, [s])))

    def whole(self, value):
        """A row of one number."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(self.builder.insert_element(undefined, value, ir.Constant(_I32, 0)), undefined, first)

    def multiply_add(self, a, b, c):
        """a b + c, fused where the processor can."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        fused = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fmuladd.v{self.width}f32")
        return self.builder.call(fused, [a, b, c])

    def sum(self, row):
        """Of the numbers of a row, in an order of the compiler's that is always the same."""
        kind = ir.FunctionType(_FLOAT, [_FLOAT, self.vector])
        added = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.vector.reduce.fadd.v{self.width}f32")
        return self.builder.call(added, [ir.Constant(_FLOAT, 0.0), row], fastmath=("reassoc",))

    def loop(self, first, values, step):
        """Repeat (count, more, values) = step(count, values) as long as `more`, from count = first on. Returns the last values."""
        builder = self.builder
        before, body, after = builder.block, builder.append_basic_block("step"), builder.append_basic_block("end")
        builder.branch(body)
        builder.position_at_end(body)
        count, now = builder.phi(_U64), [builder.phi(value.type) for value in values]
        following, more, new = step(count, now)
        for phi, start, again in zip((count, *now), (first, *values), (following, *new), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(again, body)
        builder.cbranch(more, body, after)
        builder.position_at_end(after)
        return new

    def for_each(self, events, sums, step):
        """sums = step(s, sums) for every bit s of events (not 0), lowest first. Returns the last sums."""
        builder = self.builder

        def event(left, values):
            new = step(builder.cttz(left, ir.Constant(_I1, 1)), values)
            remaining = builder.and_(left, builder.sub(left, _number(1)))
            return remaining, builder.icmp_unsigned("!=", remaining, _number(0)), new

        return self.loop(events, sums, event)


@functools.cache
def make_add_product(width: int, columns: int):
    """`add_product` for rows of `width` numbers, of `columns` columns at once."""

    @intrinsic
    def add_product(typing, out, out_at, x, x_at, weight, weight_at, events):
        """out[out_at + n] += the sum over events s of x[x_at + s] weight[weight_at + s width + n], for n < width.

        events: bits (not 0), of all that are events in any of the columns; x is 0 where it is none. Columns are WORD numbers apart in out
        and x.
        """

        def codegen(context, builder, signature, arguments):
            out_, out_at_, x_, x_at_, weight_, weight_at_, events_ = arguments
            rows = _Rows(context, builder, signature, width, columns)
            totals, values = rows.columns(rows.pointer(0, out_, out_at_)), rows.columns(rows.pointer(2, x_, x_at_))
            weights = rows.pointer(4, weight_, weight_at_)

            def step(s, sums):
                row = rows.load(rows.row(weights, s))
                return [rows.multiply_add(rows.spread(value, s), row, total) for value, total in zip(values, sums, strict=True)]

            for total, pointer in zip(rows.for_each(events_, [rows.load(total) for total in totals], step), totals, strict=True):
                rows.store(total, pointer)
            return context.get_dummy_value()

        return types.void(out, types.uint64, x, types.uint64, weight, types.uint64, types.uint64), codegen

    return add_product


@functools.cache
def make_add_outer(width: int, columns: int):
    """`add_outer` for rows of `width` numbers, summed over `columns` columns."""

    @intrinsic
    def add_outer(typing, out, out_at, x, x_at, d, d_at, events):
        """out[out_at + s width + n] += x[x_at + s] d[d_at + n] for every event s, for n < width.

        events: as in `add_product`; columns are WORD numbers apart in x and d.
        """

        def codegen(context, builder, signature, arguments):
            out_, out_at_, x_, x_at_, d_, d_at_, events_ = arguments
            rows = _Rows(context, builder, signature, width, columns)
            values, totals = rows.columns(rows.pointer(2, x_, x_at_)), rows.pointer(0, out_, out_at_)
            factors = [rows.load(pointer) for pointer in rows.columns(rows.pointer(4, d_, d_at_))]

            def step(s, state):
                pointer = rows.row(totals, s)
                total = rows.load(pointer)
                for value, factor in zip(values, factors, strict=True):
                    total = rows.multiply_add(rows.spread(value, s), factor, total)
                rows.store(total, pointer)
                return state

            rows.for_each(events_, [], step)
            return context.get_dummy_value()

        return types.void(out, types.uint64, x, types.uint64, d, types.uint64, types.uint64), codegen

    return add_outer


@intrinsic
def nonzero_bits(typing, x, x_at):
    """A word (uint64) whose bit i says whether x[x_at + i] is not 0, for i < WORD."""

    def codegen(context, builder, signature, arguments):
        rows = _Rows(context, builder, signature, WORD, 1)
        row = rows.load(rows.pointer(0, *arguments))
        return builder.bitcast(builder.fcmp_unordered("!=", row, ir.Constant(rows.vector, [0.0] * WORD)), _U64)

    return types.uint64(x, types.uint64), codegen


@intrinsic
def prefetch(typing, x, place):
    """Have x[place], a flat array, brought into the cache; it may lie beyond the array."""

    def codegen(context, builder, signature, arguments):
        pointer = builder.bitcast(_Rows(context, builder, signature, 1, 1).pointer(0, *arguments), _BYTES)
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(x, types.uint64), codegen


@functools.cache
def make_step(dots: bool):
    """`step` of a matrix: with dots, also what its rows come to with another row. Both work on STRIP columns."""

    def generate(context, builder, signature, arguments):
        block, matrix, size, width, keep, x, a, b, y, *more = arguments
        rows = _Rows(context, builder, signature, STRIP, 1)
        at = functools.partial(rows.pointer, 0, block)
        row_a, kept = rows.load(at(a)), rows.whole(keep)
        other = rows.load(at(more[0])) if dots else None

        def step(i, sums):
            pointer = at(builder.add(matrix, builder.mul(i, width)))
            added = builder.fmul(rows.spread(at(x), i), row_a)
            row = rows.multiply_add(kept, rows.load(pointer), added)
            rows.store(row, pointer)
            if dots:
                total = at(builder.add(more[1], i))
                builder.store(builder.fadd(builder.load(total), rows.sum(builder.fmul(row, other))), total)
            following = builder.add(i, _number(1))
            return following, builder.icmp_unsigned("<", following, size), [rows.multiply_add(rows.spread(at(b), i), row, sums[0])]

        rows.store(rows.loop(_number(0), [ir.Constant(rows.vector, [0.0] * STRIP)], step)[0], at(y))
        return context.get_dummy_value()

    if dots:

        @intrinsic
        def step(typing, block, matrix, size, width, keep, x, a, b, y, c, dot):
            """As without dots, and block[dot + i] += the product of row i, as it is now, with the row at c, for i < size."""
            return types.void(block, *[types.uint64] * 3, types.float32, *[types.uint64] * 6), generate

    else:

        @intrinsic
        def step(typing, block, matrix, size, width, keep, x, a, b, y):
            """M = keep M + x a^T, then the row at y = M^T b, for STRIP columns of a matrix M of `size` (not 0) rows, `width` numbers apart.

            M, x and b (a number for each row of M), a and y (one for each column) are places in block, flat.
            """
            return types.void(block, *[types.uint64] * 3, types.float32, *[types.uint64] * 4), generate

    return step
