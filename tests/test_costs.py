"""What operations move and compute: counted on shapes small enough to count by hand."""

import itertools
from functools import partial

import numpy as np
import pytest

import tiny
from neurogen_numba import backends
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.kernels.dropout import mask_offset
from neurogen_numba.kernels.population import Axon
from neurogen_numba.planning.costs import OF_ROWS, OPERATIONS, READ_AND_WRITTEN, SYNAPTIC, Call, SynapseCosts, cost, recorded

pytestmark = pytest.mark.usefixtures("one_thread")


def zeros(*shape):
    return np.zeros(shape, np.float32)


def of(name, *arguments, **how):
    return cost(Call(name, partial(print, *arguments, **how)))


def test_bytes_and_operations_by_hand():
    out, a, b = zeros(3, 5), zeros(3, 4), zeros(4, 5)
    assert of("product", out, a, b) == (4 * (15 + 12 + 20), 2 * 3 * 4 * 5)
    assert of("product", out, a, b, add=True) == (4 * (2 * 15 + 12 + 20), 2 * 3 * 4 * 5)
    assert of("scaled_dropout", out, out, 1.0, np.float32(0.5), zeros(1), mask_offset(0)) == (4 * (2 * 15 + 1), 0)
    tokens = np.zeros((2, 3), np.int32)
    assert of("embedding_forward", zeros(2, 3, 8), zeros(100, 8), tokens) == (4 * (6 * 8 + 6 * 8 + 6), 0)
    assert of("embedding_backward", zeros(100, 8), zeros(2, 3, 8), tokens) == (4 * (2 * 6 * 8 + 6 * 8 + 6), 0)
    p, block, one = zeros(2 * 4096), zeros(2), zeros(1)
    moved, products = 4 * (5 * p.size + 3 * 2 + 1 + 4), 3 * 2 * 32**3 * 4 * (p.size // 32**2)
    assert of("muon", p, p, p, block, block, block, one, zeros(4), 32) == (moved, products)
    S, x = zeros(2, 3, 4, 4), zeros(5, 2, 12)  # sequences, heads, width; tokens
    assert of("memory_forward", x, S, zeros(2, 12), x, x) == (4 * (3 * x.size + 2 * S.size + 2 * 24), 7 * 5 * S.size)
    axon = Axon(zeros(9, 2, 12).astype(np.float16), zeros(1), zeros(1), zeros(1))  # of its rows, those of the five tokens
    moved = 4 * (3 * x.size + 2 * S.size + 2 * 24) + 2 * x.size
    assert of("memory_forward", x, S, zeros(2, 12), x, x, axon, 0) == (moved, 7 * 5 * S.size)


@pytest.fixture(scope="module", params=["adamw", "muon", "adamw8bit", "adafactor", "eprop"])
def update(request):
    """(model, activity, what an update asks for), after some that let the neurons fire."""
    rule = {"learning": "eprop"} if request.param == "eprop" else {"optimizer": request.param}
    config = tiny.config(**rule, dropout=0.3, axon_dropout=0.3, average=2, brain={"vocabulary": 40})
    model = NeuroGenModel.from_config(config, backend="cpu")
    act = model.activity(16, 4, learning=True)
    ids = np.random.default_rng(0).integers(0, 40, (17, 4)).astype(np.int32)
    for _ in range(3):
        model.update(act, ids[:-1], ids[1:], 1e-2)
    with recorded(model.backend, act.synapses) as calls:
        model.update(act, ids[:-1], ids[1:], 1e-2)
    return model, act, calls


def run(call, changed=None):
    """(what an operation might be given, the same as it leaves it), as `Call.arguments`; argument `changed` is another one than usual."""
    draw, given = np.random.default_rng(0), {}
    for argument, x in call.arguments().items():
        if isinstance(x, np.ndarray):
            x = x + draw.random(x.shape, np.float32) / 100 if x.dtype == np.float32 else x.copy()  # what was used up is there again
            x -= x.dtype.type(argument == changed)
        given[argument] = x
    left = {argument: x.copy() if isinstance(x, np.ndarray) else x for argument, x in given.items()}

    def again(name, usual):
        if isinstance(usual, Axon):
            return usual
        return rebuilt(usual, (left[name, n] for n in itertools.count()))

    by_name = {name: again(name, usual) for name, usual in call.repeat.keywords.items()}
    call.repeat.func(*(again(*usual) for usual in enumerate(call.repeat.args)), **by_name)
    return given, left


def rebuilt(usual, entries):
    """An argument as it usually is, a tuple of tuples perhaps, of other entries."""
    if not isinstance(usual, tuple):
        return next(entries)
    return getattr(usual, "_make", tuple)([rebuilt(part, entries) for part in usual])


def same(a, b):
    return np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else True


def test_what_is_read_and_written_counts_twice(update):
    """An array that is changed, and whose content makes a difference to what an operation leaves."""
    seen = set()
    for call in update[2]:
        if call.name in (*SYNAPTIC, "product", "sample") or call.name in seen:
            continue
        seen.add(call.name)
        given, left = run(call)
        for argument, x in call.arguments().items():
            if not isinstance(x, np.ndarray) or x.size < 2 or OF_ROWS.get(call.name) == argument[0]:
                continue
            if (call.name, argument[0]) in (("population_forward", "state"), ("working_memory_forward", 0)):
                continue  # the row of the token before the chunk is read, the others are written; of an axon only some are
            other_given, other_left = run(call, argument)
            written = not (same(left[argument], given[argument]) and same(other_left[argument], other_given[argument]))
            outputs = [p for p, y in given.items() if not same(left[p], y)]
            read = any(not same(left[p], other_left[p]) for p in outputs)
            assert (argument[0] in READ_AND_WRITTEN.get(call.name, ())) == (written and read), (call.name, argument)
    assert len(seen) > 15


def test_an_operation_that_asks_for_others_counts_once(update):
    model, _, calls = update
    assert not any(name in vars(model.backend) for name in OPERATIONS)  # nothing is left behind
    names = [call.name for call in calls]
    parts = 2 if model.config.training.learning == "eprop" else 1  # of the segment, for the decoder
    assert "dropout" not in names and names.count("scaled_dropout") == 2 * parts + 2 * 2  # the decoder's input; chunks of the embedding
    assert names.count("population_forward") == names.count("population_backward") == 2 * 6  # chunks, modules


def test_synapses_are_passed_by_events(update):
    model, act, calls = update
    costs = SynapseCosts(model.brain, act, 16)
    arc = next(arc for arc in costs.arcs if arc.target == "wernicke.current" and arc.source == "thalamus.axon")
    synapses = arc.targets * arc.synapses_per_target
    assert costs.passed([arc], 32, {"thalamus": 0.25}) == 32 * synapses / 4 and costs.passed([arc], 32, {}) == 32 * synapses
    gradient = zeros(8, 4, 24)
    arcs = [arc for arc in costs.arcs if arc.source == "thalamus.axon"]
    weights, columns = sum(arc.targets * arc.synapses_per_target for arc in arcs), 8 * 4
    moved, operations = costs.backward("thalamus.axon", gradient)
    assert moved == 4 * (weights + columns * sum(arc.targets for arc in arcs)) + gradient.nbytes
    assert 0 < costs.passed(arcs, columns, costs.fired) < operations / 2 == columns * weights
    assert costs.total(calls) == tuple(np.sum([costs.cost(call) for call in calls], axis=0))


def test_what_is_noted_is_done():
    backend, out = backends.get("cpu"), zeros(2, 2)
    with recorded(backend) as calls:
        backend.product(out, np.eye(2, dtype=np.float32), np.full((2, 2), 3, np.float32))
    assert (out == 3).all() and [call.name for call in calls] == ["product"]
    out[...] = 0
    calls[0].repeat()
    assert (out == 3).all()
