"""The sparse synapses of every backend, held to a sum over all pairs of neurons in float64: events forward, gradients back, the past."""

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

import reference as ref
from conftest import SIMULATED
from neurogen_numba.backends import cuda_synapses
from neurogen_numba.brain.buffers import Parameter, Parameters
from neurogen_numba.brain.connectome import Arc, draw_synapses
from neurogen_numba.errors import CheckpointError

T, B, C = 6, 2, 4
SIZES = {"a.axon": 9, "b.axon": 13, "p.out": 5, "q.out": 7}


def arcs(a, b, p, q):
    """Between modules of so many neurons, and two sources of plain values."""
    return (
        Arc("far", "a.axon", "b.current", a, b, 6, first_delay=0, delays=3),
        Arc("back", "b.axon", "a.current", b, a, 4, first_delay=4, delays=2),
        Arc("own", "b.axon", "b.current", b, b, 3, first_delay=4, delays=3),
        Arc("plain", "p.out", "b.current", p, b, 3, first_delay=1, delays=2),
        Arc("prompt", "p.out", "a.current", p, a, 2),
        Arc("aside", "q.out", "b.current", q, b, 3),
    )


ARCS = arcs(*SIZES.values())
HISTORY = {name: max(arc.longest_delay for arc in ARCS if arc.source == name) for name in SIZES}
REMEMBERED = [name for name, history in HISTORY.items() if history]
CURRENTS = {"a.current": 9, "b.current": 13}


@dataclass
class Wired:
    """Synapses with their parameters, and dense float64 weights [delays, sources, targets] of each arc."""

    backend: object
    parameters: Parameters
    synapses: object
    dense: dict
    rows: dict  # arc -> (delay, source, target) of every synapse

    def traffic(self, learning=True):
        signals = {name: (size, HISTORY[name]) for name, size in SIZES.items()}
        return self.synapses.traffic(signals, CURRENTS, T, B, C, learning)


def short(x):
    """x as float32 numbers that a bfloat16 can hold, which are the same to every backend and precision."""
    return (x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def wired(backend, seed=0):
    rng = np.random.default_rng(seed)
    table = [Parameter(f"{arc.name}.weight", (arc.targets * arc.synapses_per_target,), "synapses") for arc in ARCS]
    parameters, projections, dense, rows = Parameters(table, backend), [], {}, {}
    for arc in ARCS:
        row_start, target = draw_synapses(arc, seed, "uint16")
        weight = short(rng.standard_normal(target.size))
        parameters.value[f"{arc.name}.weight"][...] = backend.asarray(weight)
        own = {"arc": arc, "row_start": row_start, "target": target, "weight": parameters.value[f"{arc.name}.weight"]}
        projections.append(types.SimpleNamespace(**own, d_weight=parameters.gradient[f"{arc.name}.weight"]))
        row = np.repeat(np.arange(row_start.size - 1), np.diff(row_start.astype(int)))
        rows[arc.name] = row // arc.sources, row % arc.sources, target.astype(int)
        dense[arc.name] = np.zeros((arc.delays, arc.sources, arc.targets))
        np.add.at(dense[arc.name], rows[arc.name], weight)
    synapses = backend.synapses(projections, "uint16", parameters)
    synapses.wire()
    synapses.refresh()
    return Wired(backend, parameters, synapses, dense, rows)


def membranes(seed):
    """Potentials of the axons: some fire, some are near the threshold, some far below; and plain values."""
    rng = np.random.default_rng([3, seed])
    return {name: short(rng.uniform(-2, 2, (T, B, size))) for name, size in SIZES.items()}


def carried(name, v):
    return np.where(v > 1, v, 0).astype(np.float64) if name.endswith(".axon") else v.astype(np.float64)


def chunks():
    return [(first, min(T, first + C)) for first in range(0, T, C)]


def send(wired, traffic, sent, first, last, drop=0.0, key=0):
    for name, v in sent.items():
        part = wired.backend.asarray(v[first:last])
        if name.endswith(".axon"):
            place = np.uint64(first * B * SIZES[name])
            keys = wired.backend.asarray([key], "uint64")
            traffic.send_events(name, first, last, part, (np.float32(drop), keys, place), True, False)
        else:
            traffic.send_values(name, first, last, part)


def forward(wired, traffic, sent, **dropout):
    found = {name: np.full((T, B, size), np.nan, np.float32) for name, size in CURRENTS.items()}
    for first, last in chunks():
        send(wired, traffic, sent, first, last, **dropout)
        values = {name: wired.backend.asarray(found[name][first:last]) for name in CURRENTS}
        traffic.receive(values, first, last)
        for name, value in values.items():
            found[name][first:last] = wired.backend.to_numpy(value)
    return found


def backward(wired, traffic, d_currents):
    """Gradients of the signals [T, B, M]; those of the weights are added to the parameters'. In the order in which a brain of `a`, which
    hears `b` a chunk later, and `b` goes back: what reaches a current only in the next chunk is asked for before this chunk is known."""
    backend = wired.backend
    ds = {name: np.full((T, B, size), np.nan, np.float32) for name, size in SIZES.items()}
    traffic.turn_back(T)
    for first, last in reversed(chunks()):
        for name in ("b.axon", "b.current", "a.axon", "a.current", "p.out", "q.out"):
            if name in d_currents:
                traffic.owe(name, first, last, backend.asarray(d_currents[name][first:last]))
            else:
                gradient = backend.asarray(ds[name][first:last])
                traffic.owed(name, first, last, gradient)
                ds[name][first:last] = backend.to_numpy(gradient)
    traffic.settle(T)
    return ds


def expected(wired, past, sent, d_currents):
    """(currents, ds, d_weight per arc) in float64; past: name -> what was carried before, [H, B, M]."""
    heard = {name: np.concatenate([past[name], carried(name, v)]) for name, v in sent.items()}
    currents = {name: np.zeros((T, B, size)) for name, size in CURRENTS.items()}
    ds, d_weight = {name: np.zeros((T, B, size)) for name, size in SIZES.items()}, {}
    for arc in ARCS:
        d_dense = np.zeros_like(wired.dense[arc.name])
        for t in range(T):
            for d in range(arc.delays):
                source = t - arc.first_delay - d
                s = heard[arc.source][HISTORY[arc.source] + source]
                currents[arc.target][t] += s @ wired.dense[arc.name][d]
                d_dense[d] += s.T @ d_currents[arc.target][t]
                if source >= 0:
                    ds[arc.source][source] += d_currents[arc.target][t] @ wired.dense[arc.name][d].T
        d_weight[arc.name] = d_dense[wired.rows[arc.name]]
    return currents, ds, d_weight


def near(name, v):
    """Where a gradient is wanted: at plain values, and where the surrogate slope or the event is not 0."""
    return np.ones(v.shape, bool) if not name.endswith(".axon") else abs(v - 1) < 1


@pytest.fixture
def parts(request, monkeypatch, backend):
    """Modules of more than one part, too; and such as are wide, in parts that are no block's, with sequences for more than one tile."""
    if request.param and backend.name != "cpu":
        monkeypatch.setattr(backend, "shared_memory", 5 * cuda_synapses.TILE_BYTES)
    if request.param in ("mixed", "wide"):
        monkeypatch.setattr(cuda_synapses, "SHORT", 0.55 if request.param == "mixed" else 1000)
        monkeypatch.setattr(cuda_synapses, "SHORTER", 1000)
        monkeypatch.setattr(cuda_synapses, "WIDE_PART", 8)
        monkeypatch.setattr(sys.modules[__name__], "B", 5 if SIMULATED else 17)
    return request.param


@pytest.fixture(params=["few", "many", "packed", "gathered", "gathered packed"])
def columns(request, monkeypatch, backend):
    """A column shared by several blocks, or a block for each column and, where that has the room, part; plain values one by one, through
    matrices, or gathered; and weights packed with their targets."""
    monkeypatch.setattr(cuda_synapses, "FEW", 1000 if request.param == "few" else 0)
    monkeypatch.setattr(cuda_synapses, "MATRIX_COLUMNS", 1000 if request.param in ("few", "packed") else 0)
    monkeypatch.setattr(backend, "product_dtype", "bfloat16" if "packed" in request.param else "float32")
    if "packed" not in request.param:
        monkeypatch.setattr(cuda_synapses, "MANY_SHARED", 0)
    if "gathered" in request.param:
        monkeypatch.setattr(cuda_synapses, "MATRIX_PAIRS", 0)
    return request.param


@pytest.mark.parametrize("parts", [None, "parts", "mixed", "wide"], indirect=True)
def test_events_arrive_and_gradients_return(backend, parts, columns):
    if backend.name == "cpu" and (parts, columns) != (None, "few"):
        pytest.skip("the CPU has one way only")
    if SIMULATED and (parts, columns) in (("mixed", "many"), ("mixed", "packed"), ("wide", "packed")):
        pytest.skip("too large for the simulator")  # and each half of it is there
    if parts != "wide" and "gathered" in columns:
        pytest.skip("what is not wide is not gathered")
    made = wired(backend)
    if backend.name != "cpu":
        assert list(made.synapses.gathered) == (["prompt", "aside"] if "gathered" in columns else [])
    traffic = made.traffic()
    rng = np.random.default_rng(5)
    past = {name: np.zeros((HISTORY[name], B, size)) for name, size in SIZES.items()}
    for segment in range(2):  # the second with what the first left under way
        sent = membranes(segment)
        d_currents = {name: short(rng.standard_normal((T, B, size))) for name, size in CURRENTS.items()}
        made.parameters.clear_gradient()
        currents = forward(made, traffic, sent)
        ds = backward(made, traffic, d_currents)
        want_currents, want_ds, want_d_weight = expected(made, past, sent, d_currents)
        for name in CURRENTS:
            np.testing.assert_allclose(currents[name], want_currents[name], rtol=1e-5, atol=1e-5)
        for name, v in sent.items():
            wanted = near(name, v)
            np.testing.assert_allclose(ds[name][wanted], want_ds[name][wanted], rtol=1e-4, atol=1e-4)
        for arc in ARCS:
            found = backend.to_numpy(made.parameters.gradient[f"{arc.name}.weight"])
            np.testing.assert_allclose(found, want_d_weight[arc.name], rtol=1e-4, atol=1e-4)
        traffic.advance(T)
        for name, v in sent.items():
            past[name] = np.concatenate([past[name], carried(name, v)])[T:]
        for name in REMEMBERED:
            np.testing.assert_array_equal(traffic.past(name), past[name].astype(np.float32))


@pytest.mark.parametrize("columns", ["few", "many", "packed"], indirect=True)
@pytest.mark.parametrize("wide", [False, True])
def test_modules_of_many_blocks_and_warps(backend, full_size, columns, wide, monkeypatch):
    """As above; and once more from the start it is the same to the bit, in whatever order warps and blocks come."""
    if backend.name == "cpu" and (columns, wide) != ("few", False):
        pytest.skip("the CPU has one way only")
    sizes = {"a.axon": 1100, "b.axon": 2050, "p.out": 300, "q.out": 700}
    own = {"B": 17, "SIZES": sizes, "ARCS": arcs(*sizes.values()), "CURRENTS": {"a.current": 1100, "b.current": 2050}}
    for name, value in own.items():
        monkeypatch.setattr(sys.modules[__name__], name, value)
    monkeypatch.setattr(backend, "multiprocessors", 1, raising=False)  # so that a block has many rows
    if wide:
        monkeypatch.setattr(backend, "shared_memory", 1000 * cuda_synapses.TILE_BYTES)  # so that modules have parts
        monkeypatch.setattr(cuda_synapses, "SHORT", 1000)
        monkeypatch.setattr(cuda_synapses, "SHORTER", 1000)
    made, rng, sent = wired(backend), np.random.default_rng(7), membranes(5)
    assert backend.name == "cpu" or made.synapses.wide == (set(CURRENTS) if wide else set())
    d_currents = {name: short(rng.standard_normal((T, B, size))) for name, size in CURRENTS.items()}

    def passed():
        made.parameters.clear_gradient()
        traffic = made.traffic()
        currents, ds = forward(made, traffic, sent), backward(made, traffic, d_currents)
        traffic.advance(T)
        ds = {name: np.where(near(name, v), ds[name], 0) for name, v in sent.items()}
        return currents, ds, backend.to_numpy(made.parameters.flat_gradient).copy(), {name: traffic.past(name) for name in REMEMBERED}

    currents, ds, gradient, past = passed()
    nothing = {name: np.zeros((HISTORY[name], B, size)) for name, size in SIZES.items()}
    want_currents, want_ds, want_d_weight = expected(made, nothing, sent, d_currents)
    for name in CURRENTS:
        np.testing.assert_allclose(currents[name], want_currents[name], rtol=1e-5, atol=1e-4)
    for name, v in sent.items():
        np.testing.assert_allclose(ds[name], np.where(near(name, v), want_ds[name], 0), rtol=1e-4, atol=1e-3)
    for arc in ARCS:
        found = backend.to_numpy(made.parameters.gradient[f"{arc.name}.weight"])
        np.testing.assert_allclose(found, want_d_weight[arc.name], rtol=1e-4, atol=1e-3)
    for name in REMEMBERED:
        np.testing.assert_array_equal(past[name], carried(name, sent[name])[-HISTORY[name] :].astype(np.float32))
    currents_again, ds_again, gradient_again, _ = passed()
    assert gradient.tobytes() == gradient_again.tobytes()
    assert all(currents[name].tobytes() == currents_again[name].tobytes() for name in CURRENTS)
    assert all(ds[name].tobytes() == ds_again[name].tobytes() for name in SIZES)


@pytest.mark.parametrize("columns", ["few", "many"], indirect=True)
def test_small_numbers_are_as_fine_as_promised(backend, columns):
    """Half a unit for each addend: 2^-20 of a current, and of a gradient 2^-36 of a token's share, the 16th part here."""
    made, sent = wired(backend), membranes(3)
    for arc in ARCS:
        made.parameters.value[f"{arc.name}.weight"][...] *= np.float32(2.0**-10)
        made.dense[arc.name] *= 2.0**-10
    made.synapses.refresh()
    rng, traffic = np.random.default_rng(6), made.traffic()
    d_currents = {name: short(rng.standard_normal((T, B, size))) * np.float32(2.0**-24) for name, size in CURRENTS.items()}
    currents = forward(made, traffic, sent)
    backward(made, traffic, d_currents)
    want, _, want_d_weight = expected(made, SILENT_PAST, sent, d_currents)
    for name in CURRENTS:
        most = sum(arc.synapses_per_target for arc in ARCS if arc.target == name)
        np.testing.assert_allclose(currents[name], want[name], rtol=1e-6, atol=most * 2.0**-21)
    for arc in ARCS:
        found = backend.to_numpy(made.parameters.gradient[f"{arc.name}.weight"])
        np.testing.assert_allclose(found, want_d_weight[arc.name], rtol=1e-5, atol=T * B * 2.0 ** -(36 + 4 + 1))


def test_gradients_are_added_to_what_is_there_and_nothing_is_left_behind(backend):
    made, sent = wired(backend), membranes(0)
    rng, traffic = np.random.default_rng(1), made.traffic()
    d_currents = {name: short(rng.standard_normal((T, B, size))) for name, size in CURRENTS.items()}
    forward(made, traffic, sent)
    once = backward(made, traffic, d_currents)
    after_once = backend.to_numpy(made.parameters.flat_gradient)
    twice = backward(made, traffic, d_currents)
    for name in SIZES:
        np.testing.assert_array_equal(once[name], twice[name])
    np.testing.assert_allclose(backend.to_numpy(made.parameters.flat_gradient), 2 * after_once, rtol=1e-5)


@pytest.mark.parametrize("parts", [None, "wide"], indirect=True)
def test_a_past_can_be_set_and_some_of_it_forgotten(backend, parts):
    """And what is left of it is heard, and learned from."""
    if backend.name == "cpu" and parts:
        pytest.skip("the CPU has one way only")
    made = wired(backend)
    past = {
        name: np.maximum(0, np.random.default_rng(8).standard_normal((HISTORY[name], B, SIZES[name]))).astype(np.float32)
        for name in REMEMBERED
    }
    traffic = made.traffic()
    forward(made, traffic, membranes(4))  # something that setting the past must overwrite
    traffic.advance(T)
    for name, values in past.items():
        traffic.set_past(name, values)
        np.testing.assert_array_equal(traffic.past(name), values)
    traffic.forget(backend.asarray([0, 1] + [0] * (B - 2), "uint8"))
    for name, values in past.items():
        values[:, 1] = 0
        np.testing.assert_array_equal(traffic.past(name), values)
    sent, rng = membranes(6), np.random.default_rng(9)
    d_currents = {name: short(rng.standard_normal((T, B, size))) for name, size in CURRENTS.items()}
    nothing = {name: np.zeros((HISTORY[name], B, size)) for name, size in SIZES.items()}
    want, _, want_d_weight = expected(made, nothing | past, sent, d_currents)
    currents = forward(made, traffic, sent)
    backward(made, traffic, d_currents)
    for name in CURRENTS:
        np.testing.assert_allclose(currents[name], want[name], rtol=1e-5, atol=1e-5)
    for arc in ARCS:
        found = backend.to_numpy(made.parameters.gradient[f"{arc.name}.weight"])
        np.testing.assert_allclose(found, want_d_weight[arc.name], rtol=1e-4, atol=1e-4)


def test_a_past_that_was_set_is_the_same_to_the_bit(backend):
    """Silent, dropped and empty lanes have no sign."""
    made = wired(backend)
    traffic, again = made.traffic(learning=False), made.traffic(learning=False)
    for key in range(4):
        forward(made, traffic, membranes(key), drop=0.5, key=key)
        traffic.advance(T)
        for name in REMEMBERED:
            again.set_past(name, traffic.past(name))
            assert again.past(name).tobytes() == traffic.past(name).tobytes()


def test_dropped_axons_are_silent_and_the_others_louder(backend):
    from neurogen_numba.kernels.rng import uniform

    made, sent = wired(backend), membranes(2)
    traffic = made.traffic(learning=False)
    with np.errstate(over="ignore"):
        forward(made, traffic, sent, drop=0.25, key=9)
        traffic.advance(T)
        for name in ("a.axon", "b.axon"):
            places = np.arange(T * B * SIZES[name], dtype=np.uint64)
            kept = (uniform(np.uint64(9), places) >= 0.25).reshape(T, B, -1)
            want = (carried(name, sent[name]) * kept / 0.75)[-HISTORY[name] :]
            np.testing.assert_allclose(traffic.past(name), want, rtol=1e-6)


@pytest.mark.parametrize("parts", [None, "wide"], indirect=True)
def test_synapses_learn_from_what_dropout_leaves(backend, parts, monkeypatch):
    from neurogen_numba.kernels.rng import uniform

    if backend.name == "cpu" and parts:
        pytest.skip("the CPU has one way only")
    monkeypatch.setattr(sys.modules[__name__], "B", 2 if not parts else 9 if SIMULATED else 17)  # more than one tile of wide modules
    made, sent, rng = wired(backend), membranes(2), np.random.default_rng(4)
    d_currents = {name: short(rng.standard_normal((T, B, size))) for name, size in CURRENTS.items()}
    traffic = made.traffic()
    with np.errstate(over="ignore"):
        forward(made, traffic, sent, drop=0.25, key=9)
        backward(made, traffic, d_currents)
        kept = {name: uniform(np.uint64(9), np.arange(T * B * size, dtype=np.uint64)) >= 0.25 for name, size in SIZES.items()}

    def left(name, v, whole=carried):
        return whole(name, v) * (kept[name].reshape(v.shape) / 0.75 if name.endswith(".axon") else 1)

    past = {name: np.zeros((HISTORY[name], B, size)) for name, size in SIZES.items()}
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[__name__], "carried", left)
        _, _, want = expected(made, past, sent, d_currents)
    for arc in ARCS:
        found = backend.to_numpy(made.parameters.gradient[f"{arc.name}.weight"])
        np.testing.assert_allclose(found, want[arc.name], rtol=1e-4, atol=1e-4)


def silent(loud=(), x=0, tokens=slice(None)):
    """What is sent by signals that are all silent, but for some in the first sequence at some tokens: x by each of their neurons."""
    sent = {name: np.full((T, B, size), -5 if name.endswith(".axon") else 0, np.float32) for name, size in SIZES.items()}
    for name in loud:
        sent[name][tokens, 0] = x
    return sent


def all_ones(backend):
    """Synapses of weight 1, the fixed-point sums of which are exact."""
    made = wired(backend)
    for arc in ARCS:
        made.parameters.value[f"{arc.name}.weight"][...] = 1
        made.dense[arc.name][...] = 0
        np.add.at(made.dense[arc.name], made.rows[arc.name], 1)
    made.synapses.refresh()
    return made


SILENT_PAST = {name: np.zeros((HISTORY[name], 2, size)) for name, size in SIZES.items()}
NOTHING_OWED = {name: np.zeros((T, 2, size)) for name, size in CURRENTS.items()}


@pytest.mark.parametrize("columns", ["few", "many"], indirect=True)
@pytest.mark.parametrize("x", [np.nan, -np.inf, 2047.5, -1365])  # two or three of them are 4,095
def test_what_a_whole_number_cannot_hold_is_nan_and_forgotten_with_the_segment(backend, columns, x):
    if backend.name == "cpu":
        pytest.skip("its currents are float32")
    made, sent = all_ones(backend), silent(["p.out"], np.float32(x), slice(1, 2))
    traffic = made.traffic()
    with np.errstate(invalid="ignore"):
        found = forward(made, traffic, sent)
        want, _, _ = expected(made, SILENT_PAST, sent, NOTHING_OWED)
    reached = 0
    for name in CURRENTS:
        fits = abs(want[name]) < 1024
        by_matrix = columns == "many" and name == "a.current" and np.isfinite(x)
        if not by_matrix:
            assert np.isnan(found[name][~fits]).all()
            reached += (~fits).sum()
        np.testing.assert_array_equal(found[name][:, 1], 0)  # the other sequence
    assert reached
    traffic.advance(T)
    for name, zeros in forward(made, traffic, silent()).items():
        assert not zeros.any(), name


@pytest.mark.parametrize("columns", ["few", "many"], indirect=True)
@pytest.mark.parametrize("x", [60, 127])
def test_a_current_may_be_large_as_long_as_it_fits(backend, columns, x):
    if backend.name == "cpu":
        pytest.skip("its currents are float32")
    made, sent = all_ones(backend), silent(["a.axon", "b.axon", "p.out"], x)
    found, (want, _, _) = forward(made, made.traffic(), sent), expected(made, SILENT_PAST, sent, NOTHING_OWED)
    assert (want["b.current"].max() > 1024) == (x == 127)
    for name in CURRENTS:
        np.testing.assert_array_equal(found[name], np.where(want[name] < 1024, want[name], np.nan))


@pytest.mark.parametrize("columns", ["few", "many"], indirect=True)
@pytest.mark.parametrize("owed", [np.nan, -np.inf])
def test_a_gradient_that_is_no_number_is_none_for_the_synapses_either(backend, columns, owed):
    made, sent = wired(backend), silent(["b.axon"], 2, slice(1, 2))
    traffic = made.traffic()
    forward(made, traffic, sent)
    d_currents = {name: np.zeros((T, B, size), np.float32) for name, size in CURRENTS.items()}
    d_currents["b.current"][5, 0] = owed
    made.parameters.clear_gradient()
    with np.errstate(invalid="ignore"):
        backward(made, traffic, d_currents)
    d_currents["b.current"][5, 0] = 1
    _, _, reached = expected(made, SILENT_PAST, sent, d_currents)
    assert reached["own"].any()
    for arc in ARCS:
        found = backend.to_numpy(made.parameters.gradient[f"{arc.name}.weight"])
        assert not np.isfinite(found[reached[arc.name] != 0]).any()


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("graded", [False, True])
def test_what_an_axon_carries_and_who_gets_a_gradient_depend_on_the_mode(backend, graded, smooth):
    made, sent = wired(backend), membranes(7)
    traffic = made.traffic()
    nobody = np.float32(0), backend.asarray([0], "uint64"), np.uint64(0)
    for first, last in chunks():
        for name in ("a.axon", "b.axon"):
            traffic.send_events(name, first, last, backend.asarray(sent[name][first:last]), nobody, graded, smooth)
        traffic.send_values("p.out", first, last, backend.asarray(sent["p.out"][first:last]))
    owed = {name: np.ones((T, B, size), np.float32) for name, size in CURRENTS.items()}
    ds = backward(made, traffic, owed)
    _, want_ds, _ = expected(made, SILENT_PAST, sent, owed)
    traffic.advance(T)
    for name in ("a.axon", "b.axon"):
        z = ref.event(sent[name], smooth)
        s = z * sent[name] if graded else z
        np.testing.assert_allclose(traffic.past(name), s[-HISTORY[name] :], rtol=1e-6, atol=1e-7)
        wanted = (s != 0) | (ref.psi(sent[name]) > 0)
        np.testing.assert_allclose(ds[name][wanted], want_ds[name][wanted], rtol=1e-4, atol=1e-4)


def test_a_current_that_nobody_brings_is_zero(backend):
    made = wired(backend)
    value = backend.asarray(np.full((C, B, 9), np.nan, np.float32))
    made.traffic(learning=False).receive({"unheard.current": value}, 0, C)
    assert not backend.to_numpy(value).any()


def test_synapses_are_found_by_target_where_all_have_as_many():
    arc = ARCS[4]
    row_start, target = draw_synapses(arc, 0, "uint16")
    place, source = cuda_synapses.by_target(arc, row_start, target)
    pairs = [(int(s), int(n)) for s, n in zip(np.repeat(np.arange(5), np.diff(row_start.astype(int))), target, strict=True)]
    assert [[pairs[k] for k in own] for own in place.T] == [[(s, n) for s in own] for n, own in enumerate(source.T.tolist())]
    target[target == 3] = 4
    with pytest.raises(CheckpointError, match="prompt: each of its 9 neurons must have 2 synapses"):
        cuda_synapses.by_target(arc, row_start, target)


def test_rows_are_split_by_parts_where_targets_ascend():
    arc = ARCS[0]
    row_start, target = draw_synapses(arc, 0, "uint16")
    split = cuda_synapses.split_rows(arc, row_start, target, 3, 5)
    assert split[0] == 0 and split[-1] == target.size
    for row in range(row_start.size - 1):
        assert split[3 * row] == row_start[row]
        for part in range(3):
            assert set(target[split[3 * row + part] : split[3 * row + part + 1]] // 5) <= {part}
    backwards = target.copy()
    longest = np.argmax(np.diff(row_start))
    own = slice(row_start[longest], row_start[longest + 1])
    backwards[own] = [12, *backwards[own][1:]][: own.stop - own.start]
    backwards[own.stop - 1] = 0
    with pytest.raises(CheckpointError, match="far: the targets of a source must ascend"):
        cuda_synapses.split_rows(arc, row_start, backwards, 3, 8)
