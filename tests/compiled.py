"""The argument types of every CUDA kernel, to compile them where there is no GPU: for each kernel, or factory of one with its arguments,
the list of its signatures; and `made`, what factories make for some cards only."""

from numba import types

from neurogen_numba.kernels import bundles, mma
from neurogen_numba.kernels.population import NeuronParameters, NeuronState
from neurogen_numba.neurons import get

f1, f2, f3, f4 = (types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3, 4))
i1, i2 = types.int32[::1], types.int32[:, ::1]
h2, b2, h3, b3 = types.float16[:, ::1], types.uint16[:, ::1], types.float16[:, :, ::1], types.uint16[:, :, ::1]  # bfloat16 as its bits

KERNELS = {}

# kernels/neuron.py

KERNELS |= {
    "neuron.decay_forward": [(f1, f1)],
    "neuron.decay_backward": [(f1, f1, f1)],
    "neuron.gain_forward": [(f1, f1, f1)],
    "neuron.gain_backward": [(f1, f1, f1)],
}

# kernels/memory.py, working_memory.py, dropout.py

dropout = types.float32, types.uint64[::1], types.UniTuple(types.uint64, 3)  # rate, key, offset
KERNELS |= {
    "memory.memory_forward": [(f3, f4, f2, f3, f3, f3, f1, f1, f1, kind, i1, types.int64, types.float32) for kind in (f3, h3, b3)],
    "memory.memory_backward": [(f3, f3, f3, f2, f4, f2, f3, f4, f2, f3, f3, f3, f1, f1, f1, types.float32)],
    "working_memory.working_memory_forward": [(f1, f1, f1, f1, kind, i1, types.int64) for kind in (f3, h3, b3)],
    "working_memory.working_memory_backward": [(f1,) * 8],
    "dropout.scaled_dropout": [(kind, f1, types.float32, *dropout) for kind in (f2, h2, b2)],
}

# kernels/embedding.py, softmax.py, sampling.py, adamw.py, reduce.py

k2_1 = types.uint64[::1]

KERNELS |= {
    "embedding.embedding_forward": [(f2, f2, i1)],
    "embedding.embedding_backward": [(f2, f2, i1)],
    "softmax.cross_entropy": [(f1, types.uint8[::1], kind, f2, f1, i1, f1, types.int64) for kind in (f2, h2, b2)],
    "sampling.find_largest": [(f2, i2, f2, f1, types.int64)],
    "sampling.sample": [(i1, f2, f1, types.float32, types.int64, types.float32, types.uint64, k2_1, f2, i2, types.int64)],
    "online_cross_entropy.softmax_part": [(f1, i1, f1, f1, f2, f1, i1, types.int64, types.int64)],
    "online_cross_entropy.softmax_end": [(f1, types.uint8[::1], f1, f1, i1, f1, f1, i1, f1)],
    "online_cross_entropy.softmax_gradient": [(kind, f2, f1, f1, f1, i1, f1, types.int64, types.int64) for kind in (f2, h2, b2)],
    "distill.soften": [(kind, f1, types.float32) for kind in (f2, h2, b2)],
    "embedding.scale_words": [(f2, i1, types.float32, types.float32, k2_1)],
    "average.average": [(f1, f1, f1)],
    "average.exchange": [(f1, f1)],
    "adamw.adamw": [(f1,) * 9],
    ("muon.make_muon", 16): [(f1,) * 8],
    ("muon.make_muon", 32): [(f1,) * 8],
    ("muon.make_muon", 64): [(f1,) * 8],
    "adamw8bit.adamw8bit": [(f1, f1, types.int8[::1], types.uint8[::1], *[f1] * 7, types.uint64[::1], types.uint64)],
    "adafactor.spread_columns": [(f1, f1)],
    "adafactor.adafactor": [(f2, f2, f1, f1, i1, types.float32, f1, f1)],
    "adafactor.column_squares": [(f1, f2, i1, f1, f1)],
    "adafactor.column_step": [(f1, f1, f1)],
    "reduce.sum_of_squares": [(types.float64[::1], f1)],
    "reduce.norm": [(f1, types.float64[::1])],
    "half.assign": [(kind, f1) for kind in (h2, b2)],
    "neuromodulation.observe": [(f2, f2, i2, types.float32)],
    "neuromodulation.modulate": [(f2, f2, f2, f1)],
    "neuromodulation.sensitivity_backward": [(f1, f3, f1, f3, f1)],
    "reduce.add_rows": [(f1, kind) for kind in (f2, h2, b2)],
}

# kernels/population.py

stock = get("lif_a")


def passes(neuron):
    """Signatures of `population_forward` and `population_backward` of a neuron, for rings of all kinds."""
    state = types.NamedTuple((types.UniTuple(f1, len(neuron.state)), f1), NeuronState)
    parameters = types.NamedTuple((types.UniTuple(f1, len(neuron.learned)), f1, f1, f1), NeuronParameters)
    hypercolumns = types.int64, types.int64, types.int64  # size, columns, tokens
    neurons = parameters, f1, f1, *hypercolumns  # and neuromodulators' factors
    back = parameters, f1, f1, f1, f1, *hypercolumns  # and their slopes
    gradients = types.int64, types.int64  # shift and offset
    forward = [(state, f1, kind, i1, kind, i1, types.int64, f1, f1, *neurons, *dropout) for kind in (f3, h3, b3)]
    after = state, f2, f1, f1, state, f1, f1, f1, *back, types.float32
    return forward, [(kind, *gradients, kind, *after, *dropout) for kind in (f3, h3, b3)]


KERNELS["population.add_parameter_gradients"] = [(types.UniTuple(f1, 6), f2)]
KERNELS["population.make_population_backward", stock.physics(), True, True, True, True] = passes(stock)[1][-1:]  # modulated
# Of forms that store in the same way one kind of ring is enough.
for graded, traced, gated, kinds in ((True, True, True, 3), (True, True, False, 1), (True, False, False, 1), (False, True, True, 1)):
    for factory, signatures in zip(("forward", "backward"), passes(stock), strict=True):
        KERNELS[f"population.make_population_{factory}", stock.physics(), graded, traced, gated] = signatures[-kinds:]

# kernels/population_eligibility.py, eligibility.py

state = types.NamedTuple((types.UniTuple(f1, 2), f1), NeuronState)
parameters = types.NamedTuple((types.UniTuple(f1, 3), f1, f1, f1), NeuronParameters)
effects, chunk = (f2, f2, f3, f3, f2, f2), (state, f1, f1, f1, parameters, f1, f1, types.int64)
for traced, gated in ((True, True), (False, False)):
    KERNELS["population_eligibility.make_population_eligibility", stock.physics(), 3, True, traced, gated] = [(*effects, *chunk)]
KERNELS["working_memory.working_memory_eligibility"] = [(f1, f1, f1, f1, f2, f1, f1, f1, f1, f1)]
for width, K, kind in ((64, 3, f3), (32, 3, b3), (32, 2, h3), (16, 1, b3)):
    ring = kind, i1, types.int64
    KERNELS["eligibility.make_eligibility", width, K] = [(f3, f2, *ring, i1, i1, types.int64, f4, f4, f3)]

# kernels/bundles.py, reset.py, stimulus.py

size, flag, number = types.int64, types.boolean, types.float32
l1, l2, k1 = types.int64[::1], types.int64[:, ::1], types.uint64[::1]
SIZES = (16, 32, 64)
tables, numbers = (i2, i2, i1), (size, size, size, size, number)  # of `gather`
after_bundles = i2, i1, size, size, number  # what `weight_grad` is told, from bundles to scale


def factors(capability: int) -> list[int]:
    """The kinds of factors (kernels/mma.py) that cards of this compute capability multiply on tensor cores."""
    return [mma.BFLOAT16, mma.FLOAT16] if capability >= 80 else [mma.FLOAT16_TURING]


def made(capability: int) -> list[tuple[str, tuple, tuple]]:
    """The kernels that factories make for cards of this compute capability to run on tensor cores: (factory, its arguments, signature).

    For cards with bfloat16 every size, number of columns and kind is there in one direction at least. Both directions, and for all cards,
    are there of the form that needs the most registers and of that with the fewest columns.
    """
    wide, (first, *others) = SIZES[-1], factors(capability)
    few, some, many = bundles.COLUMNS
    forms = [(first, width, at_once, back, True) for width, at_once in ((wide, many), (SIZES[0], few)) for back in (False, True)]
    if capability >= 80:
        forms += [(first, SIZES[0], many, True, False), (first, SIZES[1], many, False, True)]
        forms += [(first, wide, many, False, False), (first, wide, some, True, True)] + [(kind, wide, many, True, True) for kind in others]
    forms += [(first, wide, columns, False, True, bits) for columns, bits in ((many, 8), (few, 8), (few, 4))]  # codes
    gather = f1, f1, f1, types.uint32[::1], k1, k1, f1, *tables, *numbers
    kernels = [("bundles.make_gather", form, gather) for form in forms]
    pairs = [(first, width) for width in (SIZES if capability >= 80 else SIZES[-1:])] + [(kind, wide) for kind in others]
    return kernels + [("bundles.make_weight_grad", pair, (f1, k1, k1, *after_bundles)) for pair in pairs]


KERNELS |= {
    "bundles.write_gradient": [(kind, size, f2, number) for kind in (f3, h3, b3)],
    "bundles.advance_rings": [(i1, i1, size)],
    "roll_state.roll_state": [(f1, l2, size)],
    "reset.reset": [(kind, types.uint8[::1]) for kind in (f3, h3, b3)],
    "stimulus.poisson": [(f3, number, number, types.uint64, k1)],
    ("bundles.make_pack", SIZES[1]): [(kind, kind, f1, l1) for kind in (h2, b2)],
}
for width in SIZES:
    KERNELS["bundles.make_weight_grad_fp32", width] = [(f1, f1, f1, *after_bundles)]
for width, at_once, add in [*((width, bundles.COLUMNS_FP32, False) for width in SIZES), (SIZES[-1], bundles.SLICE, True)]:
    for back in (False, True):
        KERNELS["bundles.make_gather_fp32", width, at_once, back, add] = [(*[f1] * 7, *tables, *numbers)]

# kernels/codes.py, and codes in bundles

for codes in (types.int8[:, ::1], types.uint8[:, ::1]):
    gather_codes = *[f1] * 5, codes, f1, *tables, *numbers
    KERNELS.setdefault(("bundles.make_gather_fp32", SIZES[-1], bundles.SLICE, False, False, True), []).append(gather_codes)
    KERNELS.setdefault("codes.code_rows", []).append((f2, codes, i1, f1))
    KERNELS.setdefault("codes.expand", []).extend((kind, codes, f1) for kind in (f2, h2, b2))
for bits, columns in ((8, 1), (8, 8), (4, 1), (4, 8)):
    KERNELS["codes.make_quantized_product", bits, columns] = [(f2, kind, types.uint32[::1], f1) for kind in (f2, h2, b2)]


def shared() -> list[tuple[str, tuple, tuple]]:
    """KERNELS as `made` has them: (kernel or factory, the factory's arguments, signature)."""
    named = ((kernel, ()) if isinstance(kernel, str) else (kernel[0], kernel[1:]) for kernel in KERNELS)
    return [(*what, signature) for what, signatures in zip(named, KERNELS.values(), strict=True) for signature in signatures]


def known() -> set[tuple[str, tuple[str, ...]]]:
    """(kernel, types of its arguments) of all that is compiled here."""
    return {(name.replace("make_", ""), tuple(map(str, types_))) for name, _, types_ in (*shared(), *made(90))}
