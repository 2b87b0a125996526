"""The argument types of every CUDA kernel, to compile them where there is no GPU: for each kernel the list of its signatures."""

from numba import types

from neurogen_numba.kernels.population import NeuronParameters, NeuronState

f1, f2, f3, f4 = (types.Array(types.float32, dimensions, "C") for dimensions in (1, 2, 3, 4))
i1, i2 = types.int32[::1], types.int32[:, ::1]
h2, b2 = types.float16[:, ::1], types.uint16[:, ::1]  # bfloat16 comes as its bits

KERNELS = {}

# kernels/neuron.py

KERNELS |= {
    "neuron.decay_forward": [(f1, f1)],
    "neuron.decay_backward": [(f1, f1, f1)],
}

# kernels/memory.py, working_memory.py, dropout.py

KERNELS |= {
    "memory.memory_forward": [(f3, f4, f2, f3, f3, f3, f1, f1, f1)],
    "memory.memory_backward": [(f3, f3, f3, f2, f4, f2, f3, f4, f2, f3, f3, f3, f1, f1, f1)],
    "working_memory.working_memory_forward": [(f1,) * 4],
    "working_memory.working_memory_backward": [(f1,) * 8],
    "dropout.scaled_dropout": [(kind, f1, types.float32, types.float32, types.uint64[::1], types.uint64) for kind in (f2, h2, b2)],
}

# kernels/embedding.py, softmax.py, sampling.py, adamw.py, reduce.py

k2_1 = types.uint64[::1]

KERNELS |= {
    "embedding.embedding_forward": [(f2, f2, i1)],
    "embedding.embedding_backward": [(f2, f2, i1)],
    "softmax.cross_entropy": [(f1, types.uint8[::1], kind, f2, f1, i1, f1, types.int64) for kind in (f2, h2, b2)],
    "sampling.find_largest": [(f2, i2, f2, f1, types.int64)],
    "sampling.sample": [(i1, f2, f1, types.float32, types.int64, types.float32, types.uint64, k2_1, f2, i2, types.int64)],
    "softmax_blocks.softmax_part": [(f1, i1, f1, f1, f2, f1, i1, types.int64, types.int64)],
    "softmax_blocks.softmax_end": [(f1, types.uint8[::1], f1, f1, i1, f1, f1, i1, f1)],
    "softmax_blocks.softmax_gradient": [(kind, f2, f1, f1, f1, i1, f1, types.int64, types.int64) for kind in (f2, h2, b2)],
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

# kernels/population.py

state = types.NamedUniTuple(f1, 3, NeuronState)
parameters = types.NamedUniTuple(f1, 6, NeuronParameters)
neurons = parameters, f1, f1, types.int64, types.int64  # and the neuromodulators' factors, hypercolumn, columns
events = types.float32, types.uint64[::1], types.uint64, types.boolean, types.boolean  # dropout, graded, smooth

KERNELS |= {
    "population.population_forward": [(state, f1, kind, i1, types.int64, f1, f1, *neurons, *events) for kind in (f2, h2, b2)],
    "population.population_backward": [
        (kind, f1, state, f2, f1, f1, state, f1, f1, f1, *neurons, types.int64, types.float32, *events) for kind in (f2, h2, b2)
    ],
    "population.add_parameter_gradients": [(parameters, f2)],
}

# kernels/synapse.py, tiles.py, events.py, fixed.py, forget.py, stimulus.py

size, flag, number = types.int64, types.boolean, types.float32
u16, u32, u32_2, k1, l1, l2, i3 = (
    types.uint16[::1],
    types.uint32[::1],
    types.uint32[:, ::1],
    types.uint64[::1],
    types.int64[::1],
    types.int64[:, ::1],
    types.int32[:, :, ::1],
)
u16_2 = types.uint16[:, ::1]


def walk(index, target):
    """What the kernels that walk synapses are told, from the table of pairs to the width."""
    return l2, size, size, i1, size, index, f1, i1, u32, target, f1, size


KINDS = [(index, target) for index in (u16, u32) for target in (u16, u32)]  # targets with their weight in them have 32 bits

KERNELS |= {
    "synapse.synapse_forward": [(f3, *walk(*kinds), size) for kinds in KINDS],
    "wide.synapse_forward_wide": [(f3, *walk(*kinds)) for kinds in KINDS],  # part_size is where the width was
    "synapse.synapse_forward_few": [(i1, i1, l2, i1, size, index, f1, i1, u32, target, f1, flag) for index, target in KINDS],
    "synapse.take_currents": [(f3, i3, i1)],
    "synapse.pack_synapses": [(u32, u16, f1)],
    "synapse.spread_weights": [(kind, l1, f1) for kind in (f2, b2)],
    "synapse.gather_gradients": [(f1, f1, l1)],
    "events.list_events": [(index, f1, i1, i1, size, size, size, size, f3, number, k1, types.uint64, flag, flag) for index in (u16, u32)],
    "events.clear_counts": [(i1, i1, *[size] * 4)],
    "events.list_values": [(f1, i1, size, size, size, f3)],
    "events.spread_events": [(f2, index, f2, i2) for index in (u16_2, u32_2)],
    "events.turn_ring": [(i1, i1, size, i1)],
    "tiles.list_sources": [
        (u32, u32_2, i2, owed, i1, size, size, size, flag, index, f1, i1, *[size] * 6) for index in (u16, u32) for owed in (u16, f1)
    ],
    "tiles.synapse_backward": [
        (f1, l1, owed, u32, l2, size, size, u32, target, f1, u32, u32_2, i2, *[size] * 4, number)
        for owed, target in ((u16, u32), (f1, u16))
    ],
    "tiles.hand_out": [(f3, f1, i2, u32, owed, *[size] * 2) for owed in (u16, f1)],
    "wide.lay_out": [(u32, owed, size, i1, size, size, f3) for owed in (u16, f1)],
    "wide.lay_events": [(u32, owed, i1, size, size, f3, number, k1, types.uint64, flag, flag) for owed in (u16, f1)],
    "wide.forget_lines": [(u32, owed, size, types.uint8[::1]) for owed in (u16, f1)],
    "wide.pick_weights": [(f1, f1, u32)],
    "wide.synapse_gather": [(f3, owed, u32, i1, size, u32_2, f2, size, size) for owed in (u16, f1)],
    "wide.synapse_backward_wide": [
        (f3, l1, owed, u32, l2, size, size, u32, target, f1, u32, i1, size, flag, *[size] * 4, number)
        for owed, target in ((u16, u32), (f1, u16))
    ],
    "fixed.take_fixed": [(f1, l1, number)],
    "carry.carry": [(f1, l2, size)],
    "forget.forget": [(kind, types.uint8[::1]) for kind in (f3, i3)],
    "stimulus.poisson": [(f3, number, number, types.uint64, k1)],
}
