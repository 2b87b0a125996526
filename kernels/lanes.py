"""Sixteen sequences side by side: one vector register.

Synapses are wired at random, so one event's targets are scattered in memory and vector code does not help within a sequence. It helps
across sequences: where the same neuron of sixteen of them lies side by side, one synapse is one load and one multiply-add for all sixteen.
Arrays of the synapse kernels are therefore in lane order,

    [T, B, N]  ->  [T, G, N, LANES],   G = ceil(B / LANES) groups,   sequence b in lane b % LANES of group b // LANES, empty lanes 0

and `Lanes` is a Numba type for the sixteen numbers of one [token, group, neuron]. LLVM turns it into one AVX-512 register, two of AVX, or
four of SSE or NEON. A kernel handles it with the four functions below; they are inlined.
"""

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from .jit import ZERO, cpu

LANES = 16
_FLOAT, _VECTOR = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)


class Lanes(types.Type):
    """LANES float32 numbers in a register."""

    def __init__(self):
        super().__init__("Lanes")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, data_models, kind):
        super().__init__(data_models, kind, _VECTOR)


def _address(context, builder, array_type, array, row_type, row):
    row = context.cast(builder, row, row_type, types.uintp)
    first = builder.mul(row, ir.Constant(row.type, LANES))
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [first]), _VECTOR.as_pointer())


@intrinsic
def load(typing, array, row):
    """The lanes of row `row` of a contiguous array [N, LANES] float32."""

    def generate(context, builder, signature, arguments):
        array_type, row_type = signature.args
        loaded = builder.load(_address(context, builder, array_type, arguments[0], row_type, arguments[1]))
        loaded.align = 4
        return loaded

    return lanes(array, row), generate


@intrinsic
def store(typing, array, row, values):
    """Write lanes to row `row` of a contiguous array [N, LANES] float32."""

    def generate(context, builder, signature, arguments):
        array_type, row_type, _ = signature.args
        stored = builder.store(arguments[2], _address(context, builder, array_type, arguments[0], row_type, arguments[1]))
        stored.align = 4
        return context.get_dummy_value()

    return types.void(array, row, lanes), generate


@intrinsic
def add_scaled(typing, total, scale, values):
    """total + scale * values, for a float32 scale."""

    def generate(context, builder, signature, arguments):
        total, scale, values = arguments
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scale, ir.Constant(ir.IntType(32), 0))
        all_lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        scale = builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), all_lanes)
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        return builder.call(fused, [scale, values, total])

    return lanes(lanes, types.float32, lanes), generate


@intrinsic
def dot(typing, a, b):
    """Sum over the lanes of a * b, float32."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(reduce, [ir.Constant(_FLOAT, -0.0), builder.fmul(*arguments)], fastmath=("reassoc",))

    return types.float32(lanes, lanes), generate


@cpu()
def to_lanes_cpu(grouped, x):
    """grouped [C, G, N, LANES] = x [C, B, N] in lane order."""
    C, B, N = x.shape
    for column in numba.prange(C * grouped.shape[1]):
        t, g = column // grouped.shape[1], column % grouped.shape[1]
        for n in range(N):
            for lane in range(LANES):
                b = g * LANES + lane
                grouped[t, g, n, lane] = x[t, b, n] if b < B else ZERO


@cpu()
def add_from_lanes_cpu(x, grouped):
    """Add lane-ordered grouped [C, G, N, LANES] to x [C, B, N]."""
    C, B, N = x.shape
    for column in numba.prange(C * B):
        t, b = column // B, column % B
        g, lane = b // LANES, b % LANES
        for n in range(N):
            x[t, b, n] += grouped[t, g, n, lane]
