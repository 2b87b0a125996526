"""The synapses of every backend, held to a sum over all pairs of neurons in float64: events forward, gradients back, the past.

Weights and what is sent are numbers of 8 binary digits, which float32, bfloat16 and float16 all hold: only the sums are rounded, and
those are in float32 everywhere. One test rounds the factors, too.
"""

import dataclasses

import numba
import numpy as np
import pytest

from conftest import SIMULATED
from neurogen_numba import backends
from neurogen_numba.brain.connectome import Arc, draw_bundles, real_weights
from neurogen_numba.brain.projection import Projection
from neurogen_numba.errors import ConfigError
from neurogen_numba.kernels import bundles
from neurogen_numba.kernels.codes import pack
from neurogen_numba.optim.parameters import Parameters
from neurogen_numba.optim.quantization import TOP

C = 4  # tokens of a chunk
SEGMENTS = (6, 2, 6, 1, 5)  # tokens, T at most: rings begin again in the middle of some, and what is under way spans several
T = max(SEGMENTS)
SIZES = (16, 32, 64)  # neurons on a side of a bundle, all that there are


@pytest.fixture(scope="module", params=["cpu", *(pytest.param(f"cuda {kind}", marks=pytest.mark.gpu) for kind in ("fp32", "bf16", "fp16"))])
def backend(request):
    """Every backend, on a GPU with every type of factors that it multiplies."""
    name, _, precision = request.param.partition(" ")
    if SIMULATED and precision != "fp32":
        pytest.skip("the simulator has no tensor cores")
    try:
        return backends.get(name, 0, precision or "fp32")
    except ConfigError as error:
        pytest.skip(str(error))


def short(x):
    """x as float32 numbers of 8 binary digits, which float16 holds, too: none is as small as its smallest."""
    x = np.asarray(x, np.float32)
    return (np.where(abs(x) < 2.0**-14, np.float32(0), x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def arcs(a, b, p, q, bundle=16, fan_in=32):
    """Between modules of these sizes, and two sources of plain values: several projections into a current, several out of a signal,
    of two sizes of bundles where `bundle` is more than 16."""
    return (
        Arc("far", "a.axon", "b.current", a, b, fan_in, delays=3, most=bundle),
        Arc("back", "b.axon", "a.current", b, a, fan_in, first_delay=C, delays=2, most=bundle),
        Arc("own", "b.axon", "b.current", b, b, 16, first_delay=C, delays=3, most=bundle),
        Arc("plain", "p.out", "b.current", p, b, fan_in, first_delay=1, delays=2, most=bundle),
        Arc("prompt", "p.out", "a.current", p, a, 16, most=bundle),
        Arc("aside", "q.out", "b.current", q, b, 16, most=bundle),
    )


SMALL = arcs(9, 21, 19, 17)


class Wired:
    """Synapses with their parameters, and dense float64 weights [delays, sources, targets] of each arc."""

    def __init__(self, backend, arcs=SMALL, seed=0, copied=()):
        self.backend, self.arcs, self.copied = backend, arcs, dict(copied)
        self.sizes, self.currents = {arc.source: arc.sources for arc in arcs}, {arc.target: arc.targets for arc in arcs}
        self.history = {name: max(arc.longest_delay for arc in arcs if arc.source == name) for name in self.sizes}
        self.remembered = [name for name, history in self.history.items() if history]
        self.projections = {arc.name: Projection(arc, backend) for arc in arcs}
        self.parameters = Parameters((p for projection in self.projections.values() for p in projection.parameters()), backend)
        for projection in self.projections.values():
            projection.bind(self.parameters)
        self.synapses = backend.synapses(list(self.projections.values()), self.parameters)
        self.dense = {}
        for name, projection in self.projections.items():
            projection.initialise(self.parameters, seed)
            self.set_weight(name, short(backend.to_numpy(projection.weight)))
        self.synapses.wire()
        self.synapses.refresh()

    def set_weight(self, name, weight):
        """Give a projection weights [bundles, BS, BT]; `refresh` is left to the caller."""
        self.parameters.value[f"{name}.weight"][...] = self.backend.asarray(weight)
        arc = self.projections[name].arc
        self.dense[name] = np.zeros((arc.delays, arc.sources, arc.targets))
        for bundle, delay, sources, targets in self.places(name):
            self.dense[name][delay, sources, targets] = weight[bundle, : sources.stop - sources.start, : targets.stop - targets.start]

    def places(self, name):
        """(bundle, delay - first_delay, sources, targets) of every bundle: where it lies in the dense weights."""
        projection = self.projections[name]
        arc, structure = projection.arc, (projection.block.ravel(), projection.delay.ravel(), projection.tile)
        for bundle, (block, delay, tile) in enumerate(zip(*structure, strict=True)):
            source, target = block * arc.bundle, tile * arc.bundle
            sources = slice(source, min(source + arc.bundle, arc.sources))
            targets = slice(target, min(target + arc.bundle, arc.targets))
            yield bundle, delay - arc.first_delay, sources, targets

    def in_bundles(self, name, dense):
        """Dense weights [delays, sources, targets] as bundles [bundles, BS, BT], padded with 0."""
        weight = np.zeros(self.projections[name].arc.weight_shape)
        for bundle, delay, sources, targets in self.places(name):
            weight[bundle, : sources.stop - sources.start, : targets.stop - targets.start] = dense[delay, sources, targets]
        return weight

    def state(self, batch, learning=True):
        signals = {name: (size, self.history[name]) for name, size in self.sizes.items()}
        return self.synapses.state(signals, self.currents, T, batch, learning, self.copied)

    def silent_past(self, batch):
        return {name: np.zeros((history, batch, self.sizes[name])) for name, history in self.history.items()}

    def weight_grad(self, name):
        return self.backend.to_numpy(self.parameters.gradient[f"{name}.weight"])

    def membranes(self, seed, length=T, batch=2):
        """Potentials of the axons: some fire, some are near the threshold, some far below; and plain values."""
        rng = np.random.default_rng([3, seed])
        return {name: short(rng.uniform(-2, 2, (length, batch, size))) for name, size in self.sizes.items()}

    def gradients(self, seed, length=T, batch=2):
        rng = np.random.default_rng([5, seed])
        return {name: short(rng.standard_normal((length, batch, size))) for name, size in self.currents.items()}


def carried(name, v):
    return np.where(v > 1, v, 0).astype(np.float64) if name.endswith(".axon") else v.astype(np.float64)


def has_gradient(made, name, v):
    """Where the gradient of a signal is asked for: on a GPU everywhere, on the CPU at plain values, at events and where the surrogate slope
    is not 0."""
    return np.ones(v.shape, bool) if made.backend.name != "cpu" or not name.endswith(".axon") else v > 0


def chunks(length, chunk):
    return [(first, min(length, first + chunk)) for first in range(0, length, chunk)]


def words(x, dtype):
    """x [B, M] in words of 64: [words, B, 64]."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 64)))
    return padded.reshape(len(x), -1, 64).swapaxes(0, 1).astype(dtype)


def write(made, state, sent, first, last):
    """Send what axons of these potentials carry, and plain values, as the operations do that compute them (test_kernel_population.py)."""
    bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
    for name, v in sent.items():
        axon, start = state.axon(name), int(made.backend.to_numpy(state.axon(name).start)[0])
        for t in range(first, last):
            row, x = (start + t) % axon.ring.shape[1], carried(name, v[t])
            axon.ring[:, row] = made.backend.asarray(words(x, np.float32))
            if made.backend.name == "cpu":
                axon.fired[:, row] = (words(x != 0, np.uint64) * bits).sum(axis=2)
                if name.endswith(".axon"):
                    axon.needs_grad[:, row] = (words(v[t] > 0, np.uint64) * bits).sum(axis=2)


def forward(made, state, sent, chunk=C):
    length, batch = next(iter(sent.values())).shape[:2]
    found = {name: np.full((length, batch, size), np.nan, np.float32) for name, size in made.currents.items()}
    for first, last in chunks(length, chunk):
        write(made, state, sent, first, last)
        values = {name: made.backend.asarray(found[name][first:last]) for name in made.currents}
        state.forward(values, first, last)
        for name, value in values.items():
            found[name][first:last] = made.backend.to_numpy(value)
    return found


def backward(made, state, d_currents, direct=False):
    """Gradients of the signals [T', B, M]; those of the weights are added to the parameters'. In the order in which a brain of `a`, which
    reads `b` a chunk later, and `b` goes back: what reaches a current only in the next chunk is asked for before this chunk is known.
    direct: the gradients of currents are written to where the synapses keep them."""
    backend, (length, batch, _) = made.backend, next(iter(d_currents.values())).shape
    ds = {name: np.full((length, batch, size), np.nan, np.float32) for name, size in made.sizes.items()}
    order = sorted({*made.sizes, *made.currents}, key=["b.axon", "b.current", "a.axon", "a.current", "p.out", "q.out"].index)
    for first, last in reversed(chunks(length, C)):
        for name in order:
            if name in d_currents and direct:
                array, offset, scale = state.current_grad(name, first, last)
                columns = (d_currents[name][first:last] * np.float32(scale)).reshape(-1, made.currents[name])
                for line, part in zip(array, np.split(columns, range(64, columns.shape[1], 64), axis=1), strict=True):
                    line[offset : offset + len(columns), : part.shape[1]] = backend.asarray(part)
            elif name in d_currents:
                state.set_current_grad(name, first, last, backend.asarray(d_currents[name][first:last]))
            else:
                gradient = backend.asarray(ds[name][first:last])
                state.source_grad({name: gradient}, first, last, length)
                ds[name][first:last] = backend.to_numpy(gradient)
    state.accumulate_weight_grad(length)
    return ds


def expected(made, past, heard, d_currents):
    """(currents, ds, weight gradients in bundles) in float64 of what is carried [T', B, M]; past: what was carried before, [H, B, M]."""
    length, batch, _ = next(iter(heard.values())).shape
    whole = {name: np.concatenate([past[name], s]) for name, s in heard.items()}
    currents = {name: np.zeros((length, batch, size)) for name, size in made.currents.items()}
    ds, d_weight = {name: np.zeros((length, batch, size)) for name, size in made.sizes.items()}, {}
    for arc in made.arcs:
        d_dense = np.zeros_like(made.dense[arc.name])
        for t in range(length):
            for d in range(arc.delays):
                source = t - arc.first_delay - d
                s = whole[arc.source][made.history[arc.source] + source]
                currents[arc.target][t] += s @ made.dense[arc.name][d]
                d_dense[d] += s.T @ d_currents[arc.target][t]
                if source >= 0:
                    ds[arc.source][source] += d_currents[arc.target][t] @ made.dense[arc.name][d].T
        d_weight[arc.name] = made.in_bundles(arc.name, d_dense)
    return currents, ds, d_weight


def close(found, want, size=1.0):
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * size)


def check_segment(made, state, past, sent, d_currents):
    """One segment forward and back, held to float64; returns what the next one starts from."""
    made.parameters.clear_gradient()
    heard = {name: carried(name, v) for name, v in sent.items()}
    want_currents, want_ds, want_d_weight = expected(made, past, heard, d_currents)
    currents, ds = forward(made, state, sent), backward(made, state, d_currents)
    for name in made.currents:
        close(currents[name], want_currents[name])
    for name, v in sent.items():
        needed = has_gradient(made, name, v)
        close(ds[name][needed], want_ds[name][needed], 10)
    for arc in made.arcs:
        close(made.weight_grad(arc.name), want_d_weight[arc.name], 10)
        sources, targets = real_weights(arc, made.projections[arc.name].block, made.projections[arc.name].tile)
        padding = ~(sources[:, :, None] & targets[:, None, :])
        assert not made.weight_grad(arc.name)[padding].any(), "what leads nowhere learns nothing"
    length = len(next(iter(sent.values())))
    state.advance(length)
    after = {name: np.concatenate([past[name], s])[length:] for name, s in heard.items()}
    for name in made.remembered:
        np.testing.assert_array_equal(state.past(name), after[name].astype(np.float32))
    return after


# By hand


def test_one_event_through_one_synapse(backend):
    """Neuron 3 of `a` fires with 2.5 at token 1, and reaches neuron 17 of `b`, in its second tile, with weight 2 two tokens later."""
    arc = Arc("one", "a.axon", "b.current", 20, 18, 16, first_delay=2, most=16)
    made = Wired(backend, (arc,))
    made.projections["one"].set_structure([[1], [0]], [[2], [2]])
    weight = np.zeros(arc.weight_shape, np.float32)
    weight[1, 3, 1] = 2
    made.set_weight("one", weight)
    made.synapses.wire()
    made.synapses.refresh()
    state, v = made.state(batch=2), np.full((4, 2, 20), -1, np.float32)
    v[1, 1, 3] = 2.5
    v[1, 1, 4] = 0.5  # near, and has no synapse
    current = np.zeros((4, 2, 18))
    current[3, 1, 17] = 5
    np.testing.assert_array_equal(forward(made, state, {"a.axon": v})["b.current"], current)
    d = np.zeros((4, 2, 18), np.float32)
    d[3, 1, 17] = 3
    ds, d_weight = np.zeros((4, 2, 20)), np.zeros(arc.weight_shape)
    ds[1, 1, 3], d_weight[1, 3, 1] = 6, 7.5
    np.testing.assert_array_equal(backward(made, state, {"b.current": d})["a.axon"], ds)
    np.testing.assert_array_equal(made.weight_grad("one"), d_weight)


def test_a_signal_that_is_a_current_is_written_with_it(backend):
    """`r.out` is `r.current`: what reaches it is in its ring, in the row of the token, and nowhere else."""
    arcs = (
        Arc("read", "a.axon", "r.current", 40, 21, 32, most=16),
        Arc("next", "r.out", "b.current", 21, 18, 16, first_delay=1, delays=3, most=16),
    )
    made = Wired(backend, arcs, copied={"r.current": "r.out"})
    state, v = made.state(2), np.random.default_rng(2).uniform(-2, 2, (T, 2, 40)).astype(np.float32)
    write(made, state, {"a.axon": v}, 0, T)
    value = backend.zeros((T, 2, 21))
    for first, last in chunks(T, C):
        state.forward({"r.current": value[first:last]}, first, last)
    assert np.count_nonzero(backend.to_numpy(value)) > 100
    state.advance(T)
    rounding = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11}[backend.product_dtype]
    np.testing.assert_allclose(state.past("r.out"), backend.to_numpy(value)[-3:], rtol=rounding, atol=1e-6 if rounding else 0)


def test_nothing_goes_back_to_blocks_that_want_no_gradient():
    """On the CPU: sequence 0 is far below the threshold, sequence 1 is near it."""
    made = Wired(backends.get("cpu"), (Arc("one", "a.axon", "b.current", 64, 64, 64),))
    state, v = made.state(batch=2), np.full((C, 2, 64), -1, np.float32)
    v[:, 1] = 0.5
    forward(made, state, {"a.axon": v})
    ds = backward(made, state, {"b.current": np.ones((C, 2, 64), np.float32)})["a.axon"]
    assert not ds[:, 0].any() and ds[:, 1].all()


def test_a_target_sums_up_its_bundles(backend):
    """Two blocks and two delays: 1 * 3 of now, 10 * 5 of a token ago; from the second block 100 * 7 of a token ago."""
    arc = Arc("three", "p.out", "a.current", 17, 1, 48, delays=4, most=16)
    made = Wired(backend, (arc,))
    made.projections["three"].set_structure([[0, 0, 1]], [[0, 1, 1]])
    weight = np.zeros(arc.weight_shape, np.float32)
    weight[:, 0, 0] = 1, 10, 100
    made.set_weight("three", weight)
    made.synapses.wire()
    made.synapses.refresh()
    x = np.zeros((2, 1, 17), np.float32)
    x[0, 0, 0], x[0, 0, 16], x[1, 0, 0] = 5, 7, 3
    np.testing.assert_array_equal(forward(made, made.state(batch=1), {"p.out": x})["a.current"].ravel(), [5, 753])


def test_bundles_that_are_not_wired_have_the_gradient_that_they_would_have(backend):
    """Of two sizes, of several projections, in any order; the gradient of the wired ones stays."""
    made = Wired(backend, arcs(21, 69, 19, 17, 32, 32))
    state, sent, d_currents = made.state(2), made.membranes(0), made.gradients(0)
    forward(made, state, sent)
    backward(made, state, d_currents)
    before = {arc.name: made.weight_grad(arc.name).copy() for arc in made.arcs}
    for arc in made.arcs:
        made.projections[arc.name].set_structure(*draw_bundles(arc, 9))
    want = expected(made, made.silent_past(2), {name: carried(name, v) for name, v in sent.items()}, d_currents)[2]
    for size in (16, 32):
        some = [(number, made.projections[arc.name]) for number, arc in enumerate(made.arcs) if arc.bundle == size]
        of = np.concatenate([np.full(p.block.size, number) for number, p in some])
        order = np.random.default_rng(0).permutation(len(of))
        ends = (np.concatenate([getattr(p, end).ravel() for _, p in some])[order] for end in ("tile", "block", "delay"))
        found = backend.to_numpy(state.bundle_grad(of[order], *ends, T))
        close(found.reshape(-1, size, size), np.concatenate([want[p.arc.name] for _, p in some])[order], 10)
    for arc in made.arcs:
        np.testing.assert_array_equal(made.weight_grad(arc.name), before[arc.name])


@pytest.mark.parametrize("size, batch", [(16, 1), (32, 3)])
def test_tiles_of_a_pruned_projection_read_different_numbers_of_bundles(backend, size, batch):
    check_pruned(backend, size, batch)


def check_pruned(backend, size, batch):
    """Two segments with a third of the bundles, some tiles without any."""
    whole = arcs(21, 2 * size + 5, 19, 17, size, size)
    made = Wired(backend, [dataclasses.replace(arc, pruned=max(1, arc.weight_shape[0] // 3)) for arc in whole])
    counts = [np.bincount(p.tile, minlength=p.arc.tiles) for p in made.projections.values()]
    assert any(len(set(each)) > 1 for each in counts) and any(0 in each for each in counts)
    state, past = made.state(batch), made.silent_past(batch)
    for segment, length in enumerate((3, 2)):
        past = check_segment(made, state, past, made.membranes(segment, length, batch), made.gradients(segment, length, batch))


# Codes


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size, batch", [(16, 1), (64, 1), (32, 5)])
def test_codes_are_read_as_they_are_stored(backend, size, batch, bits):
    if SIMULATED and size > 32:
        pytest.skip("too large for the simulator")
    made = Wired(backend, arcs(21, 2 * size + 5, 19, 17, size, size))
    check_codes(made, bits, batch)


def quantize(made, bits):
    """Replace the weights by codes of `bits` bits; scales are powers of 2 of either sign, so 16-bit factors hold the products. Returns
    name -> (weights as read from the codes, the same as they were made)."""
    rng, dense, projections = np.random.default_rng(bits), {}, list(made.projections.values())
    for name, projection in made.projections.items():
        sources, targets = real_weights(projection.arc, projection.block)
        weight = rng.integers(-TOP[bits] - 1, TOP[bits] + 1, projection.arc.weight_shape) * (sources[:, :, None] & targets[:, None, :])
        scale = (np.exp2(-rng.integers(4, 9, len(weight))) * rng.choice([-1, 1], len(weight))).astype(np.float32)
        made.set_weight(name, (weight * scale[:, None, None]).astype(np.float32))
        dense[name] = weight, scale
    made.parameters = Parameters((p for projection in projections for p in projection.parameters()), made.backend, bits)
    for name, (weight, scale) in dense.items():
        stored = pack(weight.reshape(len(weight), -1).astype(np.int8), bits)
        made.parameters.load_stored(f"{name}.weight", {f"{name}.weight.codes": stored, f"{name}.weight.scale": scale})
        dense[name] = made.parameters.dense(f"{name}.weight"), weight * scale[:, None, None]
    made.synapses = made.backend.synapses(projections, made.parameters)
    made.synapses.wire()
    made.synapses.refresh()
    return dense


def check_codes(made, bits, batch):
    """Two segments forward, of codes, held to float64."""
    for found, want in quantize(made, bits).values():
        np.testing.assert_array_equal(found, want)
    state, past = made.state(batch, learning=False), made.silent_past(batch)
    for segment, length in enumerate((3, 2)):
        v = made.membranes(segment, length, batch)
        heard = {name: carried(name, x) for name, x in v.items()}
        want, _, _ = expected(made, past, heard, made.gradients(segment, length, batch))
        for name, found in forward(made, state, v).items():
            close(found, want[name], 10)
        state.advance(length)
        past = {name: np.concatenate([past[name], s])[length:] for name, s in heard.items()}


# Any sizes


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_events_arrive_and_gradients_return(backend, size, batch):
    """Over several segments; no size of a module is a multiple of a bundle's, and some projections have smaller bundles."""
    if SIMULATED and (size, batch) not in ((16, 3), (32, 1)):
        pytest.skip("too large for the simulator")
    sizes = (9, 21, 2 * size + 3, 17) if SIMULATED else (size - 7, 2 * size + 5, 2 * size + 11, 70)
    made = Wired(backend, arcs(*sizes, size, 2 * size))
    assert made.projections["far"].arc.weight_shape[1:] == (size, size)
    state, past = made.state(batch), made.silent_past(batch)
    for segment, length in enumerate(SEGMENTS):
        past = check_segment(made, state, past, made.membranes(segment, length, batch), made.gradients(segment, length, batch))


@pytest.mark.parametrize("seed", range(3 if SIMULATED else 20))
def test_numbers_that_no_bundle_divides(backend, seed):
    rng = np.random.default_rng([11, seed])
    most, targets = (24, 16) if SIMULATED else (200, rng.choice([16, 32, 64]))
    fan_in = int(rng.integers(1, 100))
    a, b, p, q = rng.integers(1, most, 4)
    batch = int(rng.choice([1, 2, 5] if SIMULATED else [1, 2, 5, 17, 37]))
    made = Wired(backend, arcs(a, b, max(p, 17), q + 16, int(targets), fan_in), seed)
    state, past = made.state(batch), made.silent_past(batch)
    for segment in range(2):
        length = int(rng.integers(1, T + 1))
        past = check_segment(made, state, past, made.membranes(segment, length, batch), made.gradients(segment, length, batch))


def everything(made, sent, d_currents, chunk=C):
    """A segment from the start: every array of it, as bytes."""
    made.parameters.clear_gradient()
    state = made.state(next(iter(sent.values())).shape[1])
    currents, ds = forward(made, state, sent, chunk), backward(made, state, d_currents)
    state.advance(T)
    arrays = [*currents.values(), *ds.values(), made.backend.to_numpy(made.parameters.flat_gradient)]
    return [array.tobytes() for array in (*arrays, *(state.past(name) for name in made.remembered))]


def test_modules_of_many_tiles_and_columns(backend, full_size):
    """As above; and once more from the start it is the same to the bit, in whatever order warps and blocks come."""
    if backend.name == "cpu":
        sizes, batch = (110, 205, 300, 70), 9
    else:
        sizes, batch = (1100, 2050, 300, 700), 97
    made = Wired(backend, arcs(*sizes, 64, 192))
    sent = made.membranes(1, batch=batch)
    d_currents = {name: d / 16 for name, d in made.gradients(1, batch=batch).items()}  # float16 holds them, times their scale
    check_segment(made, made.state(batch), made.silent_past(batch), sent, d_currents)
    first = everything(made, sent, d_currents)
    assert all(everything(made, sent, d_currents) == first for _ in range(3))


def test_the_same_again_is_the_same_to_the_bit(backend):
    """Whatever the chunks and the threads."""
    made = Wired(backend)
    sent, d_currents = made.membranes(2), made.gradients(2)
    first = everything(made, sent, d_currents)
    assert everything(made, sent, d_currents, chunk=T) == first
    if backend.name == "cpu":
        before = numba.get_num_threads()
        for threads in range(1, before + 1):
            numba.set_num_threads(threads)
            assert everything(made, sent, d_currents) == first
        numba.set_num_threads(before)


def test_other_weights_are_heard_after_a_refresh(backend):
    made, sent = Wired(backend), {name: np.abs(v) for name, v in Wired(backend).membranes(0).items()}
    for name, projection in made.projections.items():
        made.set_weight(name, -4 * backend.to_numpy(projection.weight))
    made.synapses.refresh()
    past, d_currents = made.silent_past(2), made.gradients(0)
    made_currents = forward(made, made.state(2), sent)
    for name, want in expected(made, past, {name: carried(name, v) for name, v in sent.items()}, d_currents)[0].items():
        close(made_currents[name], want, 10)


def test_factors_are_rounded_to_nearest(backend):
    """Products of rounded factors: the error is at most both factors' halves of a unit, 2^-8 for bfloat16, 2^-11 for float16."""
    made, unit = Wired(backend), {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
    share = 2.01 * unit.get(getattr(backend, "product_dtype", "float32"), 2.0**-24) + 2.0**-20  # and the sum in float32
    rng = np.random.default_rng(13)
    for name, projection in made.projections.items():
        real = np.sign(np.abs(backend.to_numpy(projection.weight)))  # padding stays 0
        made.set_weight(name, (real * rng.standard_normal(real.shape)).astype(np.float32))
    made.synapses.refresh()
    sent = {name: rng.uniform(-2, 2, (T, 2, size)).astype(np.float32) for name, size in made.sizes.items()}
    d_currents = {name: rng.standard_normal((T, 2, size)).astype(np.float32) for name, size in made.currents.items()}
    state, heard = made.state(2), {name: carried(name, v) for name, v in sent.items()}
    currents, ds = forward(made, state, sent), backward(made, state, d_currents)
    want_currents, want_ds, want_d_weight = expected(made, made.silent_past(2), heard, d_currents)
    signed = made.dense
    made.dense = {name: abs(weight) for name, weight in signed.items()}
    positive = {name: abs(s) for name, s in heard.items()}, {name: abs(d) for name, d in d_currents.items()}
    size_currents, size_ds, size_d_weight = expected(made, made.silent_past(2), *positive)  # sums of all absolute values
    for name in made.currents:
        assert (abs(currents[name] - want_currents[name]) <= share * size_currents[name]).all(), name
    for name, v in sent.items():
        needed = has_gradient(made, name, v)
        assert (abs(ds[name] - want_ds[name]) <= share * size_ds[name])[needed].all(), name
    for arc in made.arcs:
        assert (abs(made.weight_grad(arc.name) - want_d_weight[arc.name]) <= share * size_d_weight[arc.name]).all(), arc.name


@pytest.mark.parametrize("exponent", [-40, -24, -7, 10])
def test_gradients_may_be_small(backend, exponent):
    """A token's share of a mean over T B tokens. float16 holds 6e-5 to 65,504 in full, so they are scaled on their way."""
    if exponent != -7 and getattr(backend, "product_dtype", "") == "float16":
        pytest.skip("float16 does not hold it")
    made, sent = Wired(backend), Wired(backend).membranes(3)
    d_currents = {name: d * np.float32(2.0**exponent) for name, d in made.gradients(3).items()}
    state = made.state(2)
    forward(made, state, sent)
    ds = backward(made, state, d_currents)
    _, want_ds, want_d_weight = expected(made, made.silent_past(2), {name: carried(name, v) for name, v in sent.items()}, d_currents)
    for name, v in sent.items():
        needed = has_gradient(made, name, v)
        close(ds[name][needed], want_ds[name][needed], 100 * 2.0**exponent)
    for arc in made.arcs:
        close(made.weight_grad(arc.name), want_d_weight[arc.name], 100 * 2.0**exponent)


# State after a segment


def test_gradients_of_weights_are_added_and_those_of_signals_are_not(backend):
    made = Wired(backend)
    sent, d_currents, state = made.membranes(0), made.gradients(1), made.state(2)
    forward(made, state, sent)
    once = backward(made, state, d_currents)
    after_once = backend.to_numpy(made.parameters.flat_gradient).copy()
    twice = backward(made, state, d_currents)
    for name in made.sizes:
        np.testing.assert_array_equal(once[name], twice[name])
    close(backend.to_numpy(made.parameters.flat_gradient), 2 * after_once)


def test_gradients_of_currents_may_be_written_where_they_are_kept(backend):
    made = Wired(backend)
    state = made.state(2)
    if not state.direct_gradients:
        pytest.skip("this backend keeps them in another form")
    sent, d_currents, found = made.membranes(0), made.gradients(1), []
    forward(made, state, sent)
    for direct in (False, True):
        made.parameters.clear_gradient()
        ds = backward(made, state, d_currents, direct)
        found.append([*(ds[name].tobytes() for name in ds), backend.to_numpy(made.parameters.flat_gradient).tobytes()])
        backward(made, state, {name: 2 * d for name, d in d_currents.items()})  # something to overwrite
    assert found[0] == found[1]


def test_what_a_longer_segment_left_is_not_heard_in_a_shorter_one(backend):
    """Rows beyond its end hold numbers of an earlier segment, here NaN, so that reading them shows."""
    made = Wired(backend)
    state = made.state(2)
    forward(made, state, {name: np.full_like(v, np.nan) for name, v in made.membranes(0).items()})
    backward(made, state, {name: np.full_like(d, np.nan) for name, d in made.gradients(0).items()})
    for name in made.remembered:
        state.set_past(name, np.zeros((made.history[name], 2, made.sizes[name]), np.float32))
    check_segment(made, state, made.silent_past(2), made.membranes(1, 3), made.gradients(1, 3))


def test_a_past_can_be_set_and_some_of_it_forgotten(backend):
    """The rest of it is read, and has a gradient."""
    made = Wired(backend)
    rng, state = np.random.default_rng(8), made.state(3)
    shapes = {name: (made.history[name], 3, made.sizes[name]) for name in made.remembered}
    past = {name: short(np.maximum(0, rng.standard_normal(shape))) for name, shape in shapes.items()}
    forward(made, state, made.membranes(4, batch=3))  # something that setting the past must overwrite
    state.advance(T)
    for name, values in past.items():
        state.set_past(name, values)
        np.testing.assert_array_equal(state.past(name), values)
    state.reset(backend.asarray([0, 1, 0], "uint8"))
    for name, values in past.items():
        values[:, 1] = 0
        np.testing.assert_array_equal(state.past(name), values)
    check_segment(made, state, made.silent_past(3) | past, made.membranes(6, batch=3), made.gradients(6, batch=3))


def test_a_past_that_was_set_is_the_same_to_the_bit(backend):
    """Later segments, too."""
    made = Wired(backend)
    state = made.state(2, learning=False)
    for key, length in enumerate(SEGMENTS[:3]):
        forward(made, state, made.membranes(key, length))
        state.advance(length)
        again = made.state(2, learning=False)
        for name in made.remembered:
            again.set_past(name, state.past(name))
            assert again.past(name).tobytes() == state.past(name).tobytes()
        goes_on = made.membranes(9, 2)
        one, other = forward(made, state, goes_on), forward(made, again, goes_on)
        assert all(one[name].tobytes() == other[name].tobytes() for name in made.currents)


def test_a_ring_is_where_it_says(backend):
    """`start` and what stands beside it are enough to find what was sent: users see them through `Activity.rings`."""
    made = Wired(backend)
    state = made.state(2, learning=False)
    for length in SEGMENTS[:3]:
        forward(made, state, made.membranes(length, length))
        state.advance(length)
    for name in made.remembered:
        ring, past = state.ring(name), state.past(name)
        value, start = backend.to_numpy(ring["value"]).astype(np.float32), int(backend.to_numpy(ring["start"])[0])
        value = np.concatenate(list(value), axis=-1)[..., : made.sizes[name]]  # words of 64 neurons
        newest = [value[(start + t) % len(value)] for t in range(-made.history[name], 0)]
        np.testing.assert_array_equal(newest, past)


# Nothing, NaN and infinity


def test_a_current_without_sources_and_a_signal_without_readers_are_zero(backend):
    made = Wired(backend)
    signals = {name: (size, made.history[name]) for name, size in made.sizes.items()} | {"unread.axon": (9, 0)}  # which has no reader
    state = made.synapses.state(signals, made.currents | {"unheard.current": 9}, T, 2, learning=True, copied={})
    write(made, state, made.membranes(0), 0, C)
    for what in (lambda x: state.forward({"unheard.current": x}, 0, C), lambda x: state.source_grad({"unread.axon": x}, 0, C, T)):
        values = backend.asarray(np.full((C, 2, 9), np.nan, np.float32))
        what(values)
        assert not backend.to_numpy(values).any()


@pytest.mark.parametrize("x", [np.nan, np.inf])
def test_nan_and_infinity_reach_every_reader(backend, x):
    """And nobody in another sequence."""
    made = Wired(backend)
    sent = {name: np.zeros_like(v) for name, v in made.membranes(0).items()}
    sent["p.out"][1, 0, 0] = x
    heard = {name: np.nan_to_num(v, nan=1, posinf=1) for name, v in sent.items()}
    reached, _, _ = expected(made, made.silent_past(2), heard, made.gradients(0))
    found = forward(made, made.state(2), sent)
    assert sum((want != 0).sum() for want in reached.values()) > 16
    for name, want in reached.items():
        assert not np.isfinite(found[name][want != 0]).any(), name
        assert np.isfinite(found[name][:, 1]).all()
        assert np.isfinite(found[name][0]).all()


@pytest.mark.parametrize("x", [np.nan, -np.inf])
def test_a_gradient_that_is_not_finite_stays_so_through_the_synapses(backend, x):
    made = Wired(backend)
    sent, state = {name: np.full_like(v, 2) for name, v in made.membranes(0).items()}, made.state(2)
    forward(made, state, sent)
    d_currents = {name: np.zeros_like(d) for name, d in made.gradients(0).items()}
    d_currents["b.current"][5, 0, 20] = x
    ds = backward(made, state, d_currents)
    d_currents["b.current"][5, 0, 20] = 1
    _, want_ds, want_d_weight = expected(made, made.silent_past(2), {name: carried(name, v) for name, v in sent.items()}, d_currents)
    assert want_d_weight["far"].any() and want_d_weight["plain"].any() and want_ds["a.axon"].any()
    for arc in made.arcs:
        found = made.weight_grad(arc.name)
        assert not np.isfinite(found[want_d_weight[arc.name] != 0]).any(), arc.name
    for name in made.sizes:
        assert not np.isfinite(ds[name][want_ds[name] != 0]).any(), name
        assert np.isfinite(ds[name][:, 1]).all()


# 16-bit copies of the weights


@pytest.mark.gpu
@pytest.mark.parametrize("size", [16, *([] if SIMULATED else [32, 64])])
def test_packed_weights_stand_as_lanes_load_them(size):
    """Of two bundles: word (slice, tile of 8 outputs, lane 4 g + q) has, for output g, numbers 4 q ... of the slice."""
    cuda, words = backends.get("cuda", 0, "fp32"), size * size // 4
    weight = short(np.random.default_rng(0).standard_normal((2, size, size)))
    copies = [cuda.zeros((2 * words, 4), "float16") for _ in range(2)]
    cuda.launch(bundles.make_pack(size), 2, 32, *copies, cuda.asarray(weight.reshape(-1)), cuda.asarray([0, words], "int64"))
    for copy, inputs in zip(copies, (weight, weight.swapaxes(1, 2)), strict=True):
        found = cuda.to_numpy(copy).astype(np.float32).reshape(2, -1, size // 8, 8, 4, 4)  # bundle, slice, tile, g, q, number
        want = inputs.reshape(2, -1, 4, 4, size // 8, 8).transpose(0, 1, 4, 5, 2, 3)
        np.testing.assert_array_equal(found, want)
