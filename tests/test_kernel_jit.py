"""Scalar physics compiled for float32 must stay there: one bare 1.0 in a function promotes what it meets to float64."""

import ast
import importlib
import pkgutil
from pathlib import Path

import numba
import pytest
from numba import types

from neurogen_numba import kernels
from neurogen_numba.config import NEURONS, SURROGATES
from neurogen_numba.kernels import bundles, bundles_cpu, population, vector
from neurogen_numba.neurons import get

NUMBER, ROW, SQUARE, FLAG, BITS = types.float32, types.float32[::1], types.float32[:, ::1], types.boolean, types.uint64
OFFSET = types.UniTuple(types.uint64, 3)  # of a mask (dropout.py)
MASKS = types.uint64[::1]
PASS = (ROW, BITS, ROW, MASKS, BITS, BITS, BITS, ROW, BITS, NUMBER, MASKS, BITS, BITS, types.int64)
LEARN = (ROW, BITS, ROW, MASKS, BITS, BITS, BITS, ROW, BITS, BITS, types.int64)
PHYSICS = {  # argument types of every function that all backends share
    "exponential.exp": (NUMBER,),
    "surrogate.event": (NUMBER,),
    "surrogate.carried": (NUMBER, NUMBER, FLAG),
    "neuron.decay": (NUMBER,),
    "neuron.decay_slope": (NUMBER,),
    "neuron.drive": (NUMBER,) * 4,
    "neuron.trace_step": (NUMBER,) * 3,
    "neuron.trace_step_backward": (NUMBER,) * 5,
    "normalize.normalizer": (NUMBER, types.int64),
    "normalize.normalize_step_backward": (NUMBER,) * 3,
    "normalize.one": (NUMBER, types.int64),
    "normalize.one_backward": (NUMBER,) * 3,
    "gate.gate_step": (NUMBER, NUMBER),
    "gate.gate_step_backward": (NUMBER,) * 3,
    "working_memory.working_memory_step": (NUMBER,) * 4,
    "working_memory.working_memory_step_backward": (NUMBER,) * 5,
    "dropout.dropout_factor": (NUMBER, BITS, BITS),
    "dropout.mask_index": (OFFSET, BITS),
    "dropout.mask_index_32": (OFFSET, types.uint32, types.uint32),
    "dropout.mask_index_alone": (OFFSET, types.uint32, types.uint32),
    "rng.mix": (BITS, BITS),
    "rng.uniform": (BITS, BITS),
    **{f"bundles_cpu._add_{width}": PASS for width in (16, 32, 64)},
    **{f"bundles_cpu._add_gradient_{width}": LEARN for width in (16, 32, 64)},
    "codes.code": (types.uint8[:, ::1], BITS, BITS),
    "bundles_cpu.union_of_masks": (MASKS, BITS, types.int64),
    "population.fetch_row": (types.float32[:, :, ::1], *[types.int64] * 4),
    "population.axon_value": (NUMBER, NUMBER, BITS, OFFSET, types.uint32, types.uint32),
    "memory.sigmoid": (NUMBER,),
    "memory.silu": (NUMBER,),
    "memory.silu_slope": (NUMBER,),
    "memory.inverse_norm": (NUMBER, NUMBER),
    "memory.through_norm": (NUMBER,) * 4,
    "neuromodulation.levels_after": (NUMBER,) * 5,
    "neuromodulation.observe_sequence": (SQUARE, SQUARE, types.int32[:, ::1], NUMBER, types.int64),
    "neuromodulation.modulate_sequence": (SQUARE, SQUARE, SQUARE, ROW, types.int64),
    "neuromodulation.through_sigmoid": (NUMBER,),
    "memory.unit_forward": (ROW, ROW),
    "memory.unit_backward": (ROW, ROW, ROW, NUMBER, ROW),
    "memory.dot": (ROW, ROW),
    "memory.copy_rows": (SQUARE, SQUARE, types.int64),
    "memory.pass_over": (ROW, *[types.int64] * 3, NUMBER, *[types.int64] * 4),
    "memory.pass_over_with_dots": (ROW, *[types.int64] * 3, NUMBER, *[types.int64] * 6),
    "memory.write_and_read_rows": (SQUARE, ROW, ROW, SQUARE, ROW, SQUARE, SQUARE, NUMBER, NUMBER),
    "softmax.is_finite": (NUMBER,),
    "half.to_bfloat16": (NUMBER,),
    "half.from_bfloat16": (types.uint16,),
    "half.lower": (types.uint32,),
    "half.upper": (types.uint32,),
    "half.load": (SQUARE, BITS, BITS),
    "half.store": (SQUARE, BITS, BITS, NUMBER),
    "sampling.weight_of": (NUMBER,),
    "sampling.fraction_of": (types.int64, types.int64),
    "sampling.least_weight": (types.int64, NUMBER),
    "sampling.distance_of": (NUMBER,) * 3,
    "sampling.limits": (types.int64, NUMBER, BITS),
    "sampling.random_part": (BITS, BITS, types.int64, types.int64),
    "sampling.order_of": (NUMBER, BITS),
    "sampling.bin_of": (NUMBER,),
    "adamw.clipping": (NUMBER, NUMBER),
    "adamw.adamw_step": (NUMBER,) * 8,
    "muon.momentum_step": (NUMBER, NUMBER),
    "muon.muon_step": (NUMBER,) * 5,
    "muon.inverse_norm": (SQUARE, types.int64, types.int64),
    "muon.multiply": (SQUARE,) * 3,
    "muon.orthogonalize": (SQUARE,) * 4,
    "adamw8bit.decode": (types.int64, NUMBER, NUMBER),
    "adamw8bit.encode": (NUMBER,) * 4,
    "adamw8bit.mean_of": (types.int8, NUMBER),
    "adamw8bit.square_of": (types.uint8, NUMBER),
    "adamw8bit.mean_code": (NUMBER, NUMBER, BITS),
    "adamw8bit.root_code": (NUMBER, NUMBER, BITS),
}


def test_every_function_of_physics_is_in_the_table():
    others = {
        "dropout.mask_offset",
        "eligibility.threads_of",
        "jit._compile",
        "jit.made",
        "population.flat",
        "cache.cached",
        "cache.folder",
        "cache._sealed",
        "cache._warn",
        "rng.key",
    }  # of the host
    others |= {"cache._fingerprint", "cache._forget", "cache.available", "cache.rebuild"}
    others |= {f"fingerprint.{name}" for name in ("overloads", "templates", "_library", "_identified_by_name", "_canonical")}
    others |= {"exponential.exp_cpu", "exponential.exp_cuda"}  # what exp stands for
    others |= {"launch.gpu", "launch.blocks", "launch.allow_shared"}
    numpy = "reduce.norm_cpu", "reduce.add_rows_cpu", "adafactor.spread_columns_cpu", "adafactor.column_step_cpu"
    others |= {*numpy, "tape._compile", "tape._words"}
    compiler = ("_mma", "_pair", "_statement", "_bfloat16", "_float16", "_float16_turing")
    others |= {f"mma.{name}" for name in compiler} | {"vector._number"}
    others |= {f"codes.{name}" for name in ("make_quantized_product", "pack", "unpack")}
    others |= {f"bundles.{name}" for name in ("bundles_per_block", "threads_of", "b_registers_of", "scales_of", "weights_of")}
    others |= {f"tuples.{name}" for name in ("load", "save", "rows", "add", "zeros", "unit", "_unroll")}  # of Python, for the simulator
    others |= {f"surrogate.{name}" for name in ("make_surrogate", "_triangle", "_fast_sigmoid", "_arctan")}
    for name, module in (("bundles", bundles), ("bundles_cpu", bundles_cpu), ("population", population), ("vector", vector)):
        others |= {f"{name}.{factory}" for factory in vars(module) if factory.startswith("make_")}
    found = set()
    for module in pkgutil.iter_modules(kernels.__path__):
        content = vars(importlib.import_module(f"{kernels.__name__}.{module.name}"))
        plain = [name for name, thing in content.items() if hasattr(thing, "__code__") and not hasattr(thing, "py_func")]
        found |= {f"{module.name}.{name}" for name in plain if content[name].__module__ == f"{kernels.__name__}.{module.name}"}
    assert found - others == set(PHYSICS)


@pytest.mark.parametrize("name", PHYSICS)
def test_physics_stays_in_single_precision(name):
    module, function = name.split(".")
    physics = getattr(importlib.import_module(f"{kernels.__name__}.{module}"), function)
    compiled = numba.njit(PHYSICS[name], no_cpython_wrapper=True)(physics)
    (overload,) = compiled.overloads.values()
    doubles = [variable for variable, kind in overload.type_annotation.typemap.items() if kind in (types.float64, types.float64[::1])]
    assert not doubles


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_stay_in_single_precision(name, kind):
    one = get(name)
    physics = one.physics(kind)
    states, constants = len(one.state), len(one.learned)
    for function, arguments in (
        (physics.step, (NUMBER,) * (states + 1 + constants)),
        (physics.adjoint, (*[NUMBER] * (3 * states + 2 + constants), FLAG)),
        (physics.surrogate.slope, (NUMBER,)),
    ):
        (overload,) = numba.njit(arguments, no_cpython_wrapper=True)(function).overloads.values()
        assert types.float64 not in overload.type_annotation.typemap.values()


def test_a_loop_that_sums_into_a_number_stores_nothing():
    """Beside a store, the order of the sum would depend on where in memory the arrays lie (jit.py), and a run could not be repeated.
    A CUDA thread adds in the order that is written."""
    mixed = []
    for source in Path(kernels.__path__[0]).glob("*.py"):
        tree = ast.parse(source.read_text())
        functions = [part for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)]
        on_gpu = [part for part in functions if any(ast.unparse(mark).startswith(("gpu", "device")) for mark in part.decorator_list)]
        elsewhere = set(ast.walk(tree)) - {part for function in on_gpu for part in ast.walk(function)}
        for loop in elsewhere:
            if not isinstance(loop, ast.For) or any(isinstance(inner, ast.For) for inner in ast.walk(loop) if inner is not loop):
                continue
            changes = [part for part in ast.walk(loop) if isinstance(part, (ast.Assign, ast.AugAssign))]
            targets = [target for part in changes for target in (part.targets if isinstance(part, ast.Assign) else [part.target])]
            stores = any(isinstance(target, ast.Subscript) for target in targets)
            sums = [part for part in changes if isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name)]
            sums = [part for part in sums if not isinstance(part.op, ast.BitOr)]  # bits that are set have no order
            if stores and any(not isinstance(part.value, ast.Constant) for part in sums):  # counting by ones has one order only
                mixed.append(f"{source.name}:{loop.lineno}")
    assert mixed == []
