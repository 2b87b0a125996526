"""The argument types of every CUDA kernel, to compile them where there is no GPU: for each kernel the list of its signatures; and `made`,
those that factories make."""

from numba import types

from neurogen_numba.kernels import bundles, mma

f1, f2, f3, f4 = (types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3, 4))
i1, i2 = types.int32[::1], types.int32[:, ::1]

KERNELS = {}

# kernels/neuron.py, normalize.py

KERNELS |= {
    "neuron.lif_forward": [(*[f1] * 10, types.boolean)],
    "neuron.lif_backward": [(*[f1] * 18, types.boolean, types.boolean)],
    "neuron.trace_forward": [(f1, f1, f1, types.boolean, types.boolean)],
    "neuron.trace_backward": [(*[f1] * 7, types.boolean, types.boolean)],
    "neuron.decay_forward": [(f1, f1)],
    "neuron.decay_backward": [(f1, f1, f1)],
    "normalize.normalize_forward": [(f2, f2, types.int64)],
    "normalize.normalize_backward": [(f2, f2, f2, types.int64)],
}

# kernels/memory.py, working_memory.py, gate.py, dropout.py

KERNELS |= {
    "memory.memory_forward": [(f3, f4, f2, f3, f3, f3, f1, f1, f1)],
    "memory.memory_backward": [(f3, f3, f3, f2, f4, f2, f3, f4, f2, f3, f3, f3, f1, f1, f1)],
    "working_memory.working_memory_forward": [(f1,) * 4],
    "working_memory.working_memory_backward": [(f1,) * 8],
    "gate.gate_forward": [(f1,) * 3],
    "gate.gate_backward": [(f1,) * 5],
    "dropout.dropout": [(f1, types.float32, types.uint64[::1], types.uint64)],
}

# kernels/embedding.py, softmax.py, sampling.py, adamw.py, reduce.py

k2_1, k2, w3 = types.uint64[::1], types.uint64[:, ::1], types.uint32[:, :, ::1]
h2, b2 = types.float16[:, ::1], types.uint16[:, ::1]  # bfloat16 comes as its bits

KERNELS |= {
    "embedding.embedding_forward": [(f2, f2, i1)],
    "embedding.embedding_backward": [(f2, f2, i1)],
    "bias.add_bias": [(f2, f1)],
    "softmax.cross_entropy": [(f1, types.uint8[::1], kind, f2, i1, f1, types.int64) for kind in (f2, h2, b2)],
    "sampling.find_largest": [(f2, i2, w3, k2, f2, types.int64)],
    "sampling.tally_distances": [(w3, f2, i2, f2, types.float32, types.float32, types.int64)],
    "sampling.list_probable": [(k2, w3, f2, i2, f2, types.float32, types.int64, types.float32, types.int64)],
    "sampling.sample": [(i1, f2, *[types.float32, types.int64, types.float32], types.uint64, k2_1, f2, i2, w3, k2, types.int64)],
    "affine.affine_of_one": [(f2, f2, k2, f1)],
    "softmax_blocks.softmax_part": [(f1, i1, f1, f1, f2, i1, types.int64, types.int64)],
    "softmax_blocks.softmax_end": [(f1, types.uint8[::1], f1, f1, i1, f1, f1, i1, f1)],
    "softmax_blocks.softmax_gradient": [(kind, f2, f1, f1, i1, f1, types.int64, types.int64) for kind in (f2, h2, b2)],
    "adamw.adamw": [(f1,) * 9],
    "adamw8bit.adamw8bit": [(f1, f1, types.int8[::1], types.uint8[::1], *[f1] * 7, types.uint64[::1], types.uint64)],
    "adafactor.spread_columns": [(f1, f1)],
    "adafactor.adafactor": [(f2, f2, f1, f1, i1, types.float32, f1, f1)],
    "adafactor.column_squares": [(f1, f2, i1, f1, f1)],
    "adafactor.column_step": [(f1, f1, f1)],
    "reduce.sum_of_squares": [(types.float64[::1], f1)],
    "reduce.norm": [(f1, types.float64[::1])],
    "half.round_rows": [(kind, f2) for kind in (f2, h2, b2)],
    "reduce.add_rows": [(f1, kind) for kind in (f2, h2, b2)],
}

# kernels/bundles.py, forget.py, stimulus.py

size, flag, number = types.int64, types.boolean, types.float32
l2, k1, u1 = types.int64[:, ::1], types.uint64[::1], types.uint32[::1]
SIZES = (16, 32, 64)
SHAPES = [(sources, targets) for targets in SIZES for sources in SIZES if sources <= targets]  # of a bundle
after_region = i1, i2, l2, i1, size, size, size, number, flag  # what `gather` is told, from tile_start to add
after_bundles = i2, l2, l2, i1, size, size, number  # and `weight_grad`, from bundles to scale


def factors(capability: int) -> list[int]:
    """The kinds of factors (kernels/mma.py) that cards of this compute capability multiply on tensor cores."""
    return [mma.BFLOAT16, mma.FLOAT16] if capability >= 80 else [mma.FLOAT16_TURING]


def made(capability: int) -> list[tuple[str, tuple, tuple]]:
    """The kernels that factories make, in all the forms that a card of this compute capability runs: (factory, its arguments, signature)."""
    kernels = [("bundles.make_pack", shape, (kind, kind, f1, i2)) for shape in SHAPES for kind in (h2, b2)]
    for back in (False, True):
        for width in SIZES:
            columns = (bundles.SLICE, bundles.COLUMNS)
            kernels += [("bundles.make_gather_fp32", (width, at_once, back), (f2, f1, f1, *after_region)) for at_once in columns]
            kernels += [("bundles.make_gather", (kind, width, back), (f2, k1, k1, *after_region)) for kind in factors(capability)]
    for shape in SHAPES:
        kernels += [("bundles.make_weight_grad_fp32", shape, (f1, f1, f1, *after_bundles))]
        kernels += [("bundles.make_weight_grad", (kind, *shape), (f1, u1, u1, *after_bundles)) for kind in factors(capability)]
    return kernels


KERNELS |= {
    "bundles.write_values": [(kind, i1, size, size, f3) for kind in (f2, h2, b2)],
    "bundles.write_events": [(kind, i1, size, size, f3, number, k1, types.uint64, flag, flag) for kind in (f2, h2, b2)],
    "bundles.write_gradient": [(kind, f2, number) for kind in (f2, h2, b2)],
    "bundles.advance_rings": [(i1, i1, size)],
    "carry.carry": [(f1, l2, size)],
    "forget.forget": [(kind, types.uint8[::1]) for kind in (f3, types.float16[:, :, ::1], types.uint16[:, :, ::1])],
    "stimulus.poisson": [(f3, number, number, types.uint64, k1)],
}
