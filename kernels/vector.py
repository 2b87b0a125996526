"""What the CPU's bundles are built from: rows of weights as vectors of the processor, one event at a time.

Numba compiles a loop over a row with a test, at every visit, of whether its arrays overlap; for rows of 16 to 64 numbers the test costs
more than the row. Here LLVM's vectors are written directly: a sum stays in registers while the events of a block pass.

Arrays are flat (1-D) float32; places in them are uint64, in numbers. Nothing is checked.
"""

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 64  # numbers from one column to the next
_FLOAT, _U64, _I32, _I1 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(1)


class _Rows:
    """Writes LLVM instructions for rows of `width` float32."""

    def __init__(self, context, builder, signature, width):
        self.context, self.builder, self.signature, self.width = context, builder, signature, width
        self.vector = ir.VectorType(_FLOAT, width)

    def pointer(self, argument, array, place):
        """To a number of an array that is an argument of the intrinsic."""
        data = self.context.make_array(self.signature.args[argument])(self.context, self.builder, value=array).data
        return self.builder.gep(data, [place])

    def load(self, pointer):
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def store(self, row, pointer):
        self.builder.store(row, self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def columns(self, pointer):
        """Pointers to the same number of as many neighbouring columns as fill a word."""
        return [self.builder.gep(pointer, [ir.Constant(_U64, column * WORD)]) for column in range(WORD // self.width)]

    def spread(self, pointer):
        """A row of one number."""
        row = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), self.builder.load(pointer), ir.Constant(_I32, 0))
        first = ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(row, ir.Constant(self.vector, ir.Undefined), first)

    def multiply_add(self, a, b, c):
        """a b + c, fused where the processor can."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        fused = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fmuladd.v{self.width}f32")
        return self.builder.call(fused, [a, b, c])

    def for_each(self, events, state, step):
        """Over the set bits of `events`, at least one, lowest first: state = step(bit, state). Returns the last state."""

        def next_(left):
            return self.builder.and_(left, self.builder.sub(left, ir.Constant(_U64, 1)))

        return self._loop(events, state, lambda left, values: step(self.builder.cttz(left, ir.Constant(_I1, 1)), values), next_)

    def for_all(self, count, state, step):
        """Over 0 ... count - 1, at least one: state = step(number, state). Returns the last state."""
        builder = self.builder

        def of(left, values):
            return step(builder.sub(count, left), values)

        return self._loop(count, state, of, lambda left: builder.sub(left, ir.Constant(_U64, 1)))

    def _loop(self, first, state, step, next_):
        """Until `left`, which is `first` in the beginning, is 0: state = step(left, state), left = next_(left)."""
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        left, values = builder.phi(_U64), [builder.phi(value.type) for value in state]
        new = step(left, values)
        remaining = next_(left)
        for phi, once, again in zip((left, *values), (first, *state), (remaining, *new), strict=True):
            phi.add_incoming(once, before)
            phi.add_incoming(again, builder.block)
        builder.cbranch(builder.icmp_unsigned("!=", remaining, ir.Constant(_U64, 0)), loop, after)
        builder.position_at_end(after)
        return new


@functools.cache
def make_add_events(width: int):
    """`add_events` for rows of `width` numbers."""

    @intrinsic
    def add_events(typing, out, out_at, x, x_at, weight, weight_at, events):
        """out[out_at + n] += sum over the set bits s of `events` (not 0) of x[x_at + s] weight[weight_at + s width + n], n < width."""

        def codegen(context, builder, signature, arguments):
            out_, out_at_, x_, x_at_, weight_, weight_at_, events_ = arguments
            rows = _Rows(context, builder, signature, width)
            total, value, row = rows.pointer(0, out_, out_at_), rows.pointer(2, x_, x_at_), rows.pointer(4, weight_, weight_at_)

            def step(s, sums):
                of_event = builder.gep(row, [builder.mul(s, ir.Constant(_U64, width))])
                return [rows.multiply_add(rows.spread(builder.gep(value, [s])), rows.load(of_event), sums[0])]

            (total_row,) = rows.for_each(events_, [rows.load(total)], step)
            rows.store(total_row, total)
            return context.get_dummy_value()

        place = types.uint64
        return types.void(out, place, x, place, weight, place, types.uint64), codegen

    return add_events


@functools.cache
def make_add_outer(width: int):
    """`add_outer` for rows of `width` numbers."""

    @intrinsic
    def add_outer(typing, out, out_at, x, x_at, row, row_at, events):
        """out[out_at + s width + n] += x[x_at + s] row[row_at + n] for every set bit s of events (uint64, not 0), n < width."""

        def codegen(context, builder, signature, arguments):
            out_, out_at_, x_, x_at_, row_, row_at_, events_ = arguments
            rows = _Rows(context, builder, signature, width)
            total, value, factor = rows.pointer(0, out_, out_at_), rows.pointer(2, x_, x_at_), rows.load(rows.pointer(4, row_, row_at_))

            def step(s, state):
                of_event = builder.gep(total, [builder.mul(s, ir.Constant(_U64, width))])
                rows.store(rows.multiply_add(rows.spread(builder.gep(value, [s])), factor, rows.load(of_event)), of_event)
                return state

            rows.for_each(events_, [], step)
            return context.get_dummy_value()

        place = types.uint64
        return types.void(out, place, x, place, row, place, types.uint64), codegen

    return add_outer


@functools.cache
def make_add_product(width: int):
    """`add_product` for rows of `width` numbers, of WORD // width columns at once."""

    @intrinsic
    def add_product(typing, out, out_at, x, x_at, weight, weight_at, depth):
        """As `add_events` where all of `depth` numbers are events, for neighbouring columns, which are WORD numbers apart in out and x."""

        def codegen(context, builder, signature, arguments):
            out_, out_at_, x_, x_at_, weight_, weight_at_, depth_ = arguments
            rows = _Rows(context, builder, signature, width)
            totals, values = rows.columns(rows.pointer(0, out_, out_at_)), rows.columns(rows.pointer(2, x_, x_at_))
            row = rows.pointer(4, weight_, weight_at_)

            def step(s, sums):
                of_number = rows.load(builder.gep(row, [builder.mul(s, ir.Constant(_U64, width))]))
                spread = [rows.spread(builder.gep(value, [s])) for value in values]
                return [rows.multiply_add(one, of_number, total) for one, total in zip(spread, sums, strict=True)]

            for total, pointer in zip(rows.for_all(depth_, [rows.load(total) for total in totals], step), totals, strict=True):
                rows.store(total, pointer)
            return context.get_dummy_value()

        place = types.uint64
        return types.void(out, place, x, place, weight, place, types.uint64), codegen

    return add_product


@functools.cache
def make_add_outer_product(width: int):
    """`add_outer_product` for rows of `width` numbers, of WORD // width columns at once."""

    @intrinsic
    def add_outer_product(typing, out, out_at, x, x_at, row, row_at, depth):
        """As `add_outer` where all of `depth` numbers are events, for neighbouring columns, which are WORD numbers apart in x and row."""

        def codegen(context, builder, signature, arguments):
            out_, out_at_, x_, x_at_, row_, row_at_, depth_ = arguments
            rows = _Rows(context, builder, signature, width)
            values, total = rows.columns(rows.pointer(2, x_, x_at_)), rows.pointer(0, out_, out_at_)
            factors = [rows.load(pointer) for pointer in rows.columns(rows.pointer(4, row_, row_at_))]

            def step(s, state):
                of_number = builder.gep(total, [builder.mul(s, ir.Constant(_U64, width))])
                sum_ = rows.load(of_number)
                for value, factor in zip(values, factors, strict=True):
                    sum_ = rows.multiply_add(rows.spread(builder.gep(value, [s])), factor, sum_)
                rows.store(sum_, of_number)
                return state

            rows.for_all(depth_, [], step)
            return context.get_dummy_value()

        place = types.uint64
        return types.void(out, place, x, place, row, place, types.uint64), codegen

    return add_outer_product
