"""The population's two fused operations, on every backend, against the float64 reference."""

import numba
import numpy as np
import pytest

import reference as ref
from conftest import SIMULATED
from gradients import gradient, single
from neurogen_numba.kernels import rng as random
from neurogen_numba.kernels.dropout import mask_offset
from neurogen_numba.kernels.population import Axon, NeuronParameters, NeuronState, flat
from neurogen_numba.neurons import get

LIF_A = get("lif_a")
PARAMETERS = (*LIF_A.learned, "gain", "bias", "gamma")  # as `flat` has them
KEY, PLACE = np.array([random.key(7)]), np.uint64(5)
SHAPES = [  # C, B, N, hypercolumn
    (1, 1, 1, 1),
    (3, 1, 7, 3),
    (2, 5, 9, 16),
    (5, 3, 13, 8),
    (3, 2, 70, 35),
]
LARGE = [(16, 37, 8200, 256), (3, 5, 2100, 1024), (4, 9, 300, 1), (6, 130, 513, 100)]
MODES = [  # graded, smooth, traced, gated, dropout
    (True, False, True, False, 0.0),
    (True, False, False, False, 0.4),
    (False, False, True, True, 0.4),
    (True, True, True, True, 0.0),
    (False, True, False, False, 0.4),
    (False, True, True, False, 0.0),
    (True, False, True, True, 0.4),
]
WITH_MODES = pytest.mark.parametrize("graded, smooth, traced, gated, rate", MODES)
WITH_SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=str)


class Case:
    """A population of random neurons and currents, and its passes on a backend."""

    def __init__(self, shape, mode, seed=1):
        self.C, self.B, self.N, self.hypercolumn = C, B, N, hypercolumn = shape
        self.graded, self.smooth, self.traced, self.gated, self.rate = mode
        self.elsewhere = 0  # numbers of a token's mask that are of other processes
        rng = np.random.default_rng(seed)
        self.c, self.gate = single(rng.normal(0, 1, (C, B, N))), single(rng.normal(0, 1, (C, B, N)))
        self.parameters = {
            "alpha": single(rng.uniform(0.3, 0.9, N)),
            "rho": single(rng.uniform(0.3, 0.9, N)),
            "beta": single(rng.uniform(0.1, 1, N)),
            "gain": single(rng.uniform(1, 2, N)),
            "bias": single(rng.normal(0.4, 0.3, N)),
            "gamma": single(rng.uniform(0.1, 0.8, N)),
        }
        self.gain_scale, self.beta_scale = single(rng.uniform(0.5, 1.5, (2, B)))
        self.before = {
            "v": single(rng.normal(0.5, 0.7, (B, N))),
            "a": single(rng.uniform(0, 1, (B, N))),
            "y": single(rng.normal(0, 1, (B, N))),
        }
        self.ds, self.dy = single(rng.normal(0, 1, (2, C, B, N)))

    def inputs(self):
        """Everything that a gradient is known for, by name."""
        arrays = {"c": self.c, "gate": self.gate} | self.parameters | self.before
        return {name: arrays[name] for name in arrays if (self.traced or name not in ("gamma", "y")) and (self.gated or name != "gate")}

    def mask(self):
        """What dropout multiplies the axons [C, B, N] with."""
        index = PLACE + np.arange(self.c.size, dtype=np.uint64).reshape(self.c.shape)
        index += np.uint64(self.elsewhere) * np.arange(self.C, dtype=np.uint64)[:, None, None]
        with np.errstate(over="ignore"):
            return (random.uniform(KEY[0], index) >= np.float32(self.rate)) / (1 - self.rate)

    def reference(self, inputs=None):
        """v, a, s, and y where there is one, [C, B, N] float64."""
        arrays = self.inputs() | (inputs or {})
        c = ref.gate(arrays["c"], arrays["gate"]) if self.gated else arrays["c"]
        params = {name: arrays[name] for name in ("beta", "gain", "bias")} | {"input_scale": 1.0}
        for letter, name in (("v", "alpha"), ("a", "rho"), *((("y", "gamma"),) if self.traced else ())):
            params[f"log_tau_{letter}"] = -np.log(-np.log(np.asarray(arrays[name], np.float64)))
        return ref.population(
            c,
            params,
            arrays,
            smooth=self.smooth,
            graded=self.graded,
            hypercolumn=self.hypercolumn,
            gain_scale=self.gain_scale.astype(np.float64),
            beta_scale=self.beta_scale.astype(np.float64),
        )

    def run(self, backend, tokens=slice(None), before=None, dtype="float32", rows=None):
        """What the forward pass leaves of some of the tokens, as NumPy: v, a, y, r, ring [rows, B, N_pad], fired, wanted [rows, B, words];
        the last three begin with the row of the segment's first token. On a GPU that is the last one, so that the ring wraps around. And in
        `trace` that of the trace, which has a row more."""
        c, gate, before = self.c[tokens], self.gate[tokens], before or self.before
        C, B, N = c.shape
        words, rows, on_cpu = -(-N // 64), C + 2 if rows is None else rows, backend.name == "cpu"
        there, none = backend.asarray, backend.zeros((1, 1, 1))[:0]
        v, a, y = (np.full((C + 1, B, N), np.nan, np.float32) for _ in "vay")
        v[0], a[0], y[0] = before["v"], before["a"], before["y"]
        state = NeuronState((there(v), there(a)), there(y) if self.traced else none)
        r = there(np.full((C, B, -(-N // self.hypercolumn)), np.nan, np.float32))
        ring = backend.zeros((words, rows, B, 64), dtype)
        axon_start = 1 if on_cpu else rows - 1
        axon = Axon(ring, there(np.array([axon_start], np.int32)), *(backend.zeros((words, rows, B), "uint64") for _ in range(2)))
        trace = backend.no_axon
        if rows and self.traced:
            masks = [backend.zeros((words, rows + 1, B), "uint64") for _ in range(2)]
            trace = Axon(backend.zeros((words, rows + 1, B, 64), dtype), there(np.array([1 if on_cpu else rows], np.int32)), *masks)
        rest, gate = self._rest(backend, tokens), there(gate) if self.gated else none
        backend.population_forward(state, r, axon, trace, self._first(tokens), there(c), gate, *rest)
        self.trace = backend.to_numpy(trace.ring)
        if trace is not backend.no_axon:
            self.trace = np.roll(np.moveaxis(self.trace, 0, 2).reshape(rows + 1, B, -1), -1 if on_cpu else -rows, 0)
        left = [backend.to_numpy(x) for x in (*state.values, state.y, r, axon.ring, axon.fired, axon.needs_grad)]
        if rows:
            left[4:] = [np.moveaxis(x, 0, 2).reshape(rows, B, -1) for x in left[4:]]
            left[4:] = [np.roll(x, -axon_start, 0) for x in left[4:]]
        return left

    def run_back(self, backend, forward, tokens=slice(None), grads=None, dtype="float32", padding=0, scale=1):
        """(d_current, d_gate); carries and adds to what is in grads: name -> array. padding: d_current has more numbers than neurons; on a
        GPU it has lines of 64 then, and begins in a later column."""
        v, a, y, r = forward[:4]
        c, gate, ds, dy = (x[tokens] for x in (self.c, self.gate, self.ds, self.dy))
        there, none = backend.asarray, backend.zeros((1, 1, 1))[:0]
        C, B, N = c.shape
        offset = padding if backend.name == "cuda" else 0
        shape = (-(-N // 64), offset + C * B, 64) if offset else (1, C * B, N + padding)
        d_current = backend.zeros(shape, dtype)
        d_gate = backend.zeros(shape, dtype) if self.gated else none
        carry = NeuronState((there(grads["v"]), there(grads["a"])), there(grads["y"]) if self.traced else none[:, 0])
        d = self._parameters(there, grads)
        state = NeuronState((there(v), there(a)), there(y) if self.traced else none)
        through = there(r), there(c), there(gate) if self.gated else none
        dy = there(dy) if self.traced else none
        backend.population_backward(
            d_current, d_gate, carry, d, there(ds), dy, state, *through, *self._rest(backend, tokens), scale, offset
        )
        for name, array in [*zip("vay", (*carry.values, carry.y), strict=True), *zip(PARAMETERS, flat(d), strict=True)]:
            if array.size:
                grads[name][...] = backend.to_numpy(array)
        written = [
            np.moveaxis(backend.to_numpy(d), 0, 1).reshape(offset + C * B, -1) for d in (d_current, *([d_gate] if self.gated else []))
        ]
        assert not any(d[:offset].any() for d in written)
        d_current, d_gate = (d[offset:].reshape(C, B, -1) for d in (written[0], written[-1]))
        return d_current, d_gate[:, :, :N]

    def _first(self, tokens):
        return tokens.start or 0

    def _rest(self, backend, tokens):
        there = backend.asarray
        parameters = self._parameters(there, self.parameters)
        index = PLACE + np.uint64(self._first(tokens) * (self.B * self.N + self.elsewhere))
        dropout = np.float32(self.rate), there(KEY), mask_offset(index, self.B * self.N, self.elsewhere)
        physics = LIF_A.physics(smooth=self.smooth)
        return parameters, there(self.gain_scale), there(self.beta_scale), self.hypercolumn, dropout, self.graded, physics

    def _parameters(self, there, values):
        """NeuronParameters of values by name."""
        *constants, gain, bias, gamma = (there(values[name]) for name in PARAMETERS)
        return NeuronParameters(tuple(constants), gain, bias, gamma if self.traced else gamma[:0])

    def no_grads(self, fill=0.0):
        grads = {name: np.zeros((self.B, self.N), np.float32) for name in "vay"}
        return grads | {name: np.full(self.N, fill, np.float32) for name in self.parameters}

    def adjoint(self, forward):
        """Section 6 of docs/model.md, word for word, in float64: the gradients by name, from the states that a forward pass left."""
        v, a, y, r = (None if x is None else np.asarray(x, np.float64) for x in forward[:4])
        p = {name: x.astype(np.float64) for name, x in self.parameters.items()}
        alpha, rho, gamma, beta = p["alpha"], p["rho"], p["gamma"], p["beta"] * self.beta_scale[:, None]
        z = ref.event(v, self.smooth)
        s = z * v if self.graded else z
        to_s = self.ds * self.mask() if self.rate else self.ds
        gv, ga, gy = np.zeros((3, self.B, self.N))
        found = {name: np.zeros(self.N) for name in p} | {"c": np.zeros(self.c.shape), "gate": np.zeros(self.c.shape)}
        for t in range(self.C, 0, -1):
            gs = to_s[t - 1]
            if self.traced:
                gy = gamma * gy + self.dy[t - 1]
                gs = gs + (1 - gamma) * gy
                found["gamma"] += (gy * (y[t - 1] - s[t])).sum(0)
            gz = (1 - rho) * ga - gv
            gv = alpha * gv + (ref.psi(v[t]) * (gz + gs * v[t]) + z[t] * gs if self.graded else ref.psi(v[t]) * (gz + gs))
            found["alpha"] += (gv * v[t - 1]).sum(0)
            found["rho"] += (ga * (a[t - 1] - z[t])).sum(0)
            found["beta"] -= (gv * a[t - 1] * self.beta_scale[:, None]).sum(0)
            ga = rho * ga - beta * gv
            c = self.c[t - 1].astype(np.float64)
            gated = ref.gate(c, self.gate[t - 1]) if self.gated else c
            x, dx = ref.normalise(gated, self.hypercolumn), gv * p["gain"] * self.gain_scale[:, None]
            found["gain"] += (gv * x * self.gain_scale[:, None]).sum(0)
            found["bias"] += gv.sum(0)
            for first in range(0, self.N, self.hypercolumn):
                arrays = np.s_[:, first : first + self.hypercolumn]
                factor = r[t - 1, :, first // self.hypercolumn, None]
                found["c"][t - 1][arrays] = factor * (dx[arrays] - x[arrays] * np.mean(dx[arrays] * x[arrays], axis=1, keepdims=True))
            if self.gated:
                p_t, d = ref.sigmoid(self.gate[t - 1]), 2 * found["c"][t - 1]
                found["gate"][t - 1], found["c"][t - 1] = d * c * p_t * (1 - p_t), d * p_t
        return found | {"v": gv, "a": ga, "y": gy}


def same_bits(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


@WITH_MODES
@WITH_SHAPES
def test_forward(backend, shape, graded, smooth, traced, gated, rate):
    case = Case(shape, (graded, smooth, traced, gated, rate))
    expected = case.reference()
    assert smooth or np.abs(expected["v"] - 1).min() > 1e-5  # where rounding decides who fires, there is nothing to compare
    v, a, y, r, ring, fired, wanted = case.run(backend)
    for name, ours in (("v", v), ("a", a), *((("y", y),) if traced else ())):
        np.testing.assert_array_equal(ours[0], case.before[name])
        np.testing.assert_allclose(ours[1:], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    c = ref.gate(case.c, case.gate) if gated else case.c
    np.testing.assert_allclose(
        c * np.repeat(r, case.hypercolumn, 2)[:, :, : case.N], ref.normalise(c, case.hypercolumn), rtol=1e-4, atol=1e-5
    )
    mask = case.mask() if rate else np.ones(case.c.shape)
    np.testing.assert_allclose(ring[: case.C, :, : case.N], expected["s"] * mask, rtol=1e-4, atol=1e-5)
    assert not ring[case.C :].any() and not ring[:, :, case.N :].any()
    if traced:
        np.testing.assert_array_equal(case.trace[: case.C, :, : case.N], y[1:])
        assert not case.trace[case.C :].any() and not case.trace[:, :, case.N :].any()
    if backend.name == "cpu":
        has_gradient = (expected["s"] != 0) | (ref.psi(expected["v"]) > 0)
        for words, flags in ((fired, expected["s"] * mask != 0), (wanted, has_gradient & (mask > 0))):
            bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=2, bitorder="little")
            np.testing.assert_array_equal(bits[: case.C, :, : case.N], flags)
            assert not bits[case.C :].any() and not bits[:, :, case.N :].any()


def test_a_process_of_several_draws_the_numbers_of_its_sequences(backend):
    case = Case((4, 3, 13, 8), (True, False, True, False, 0.4))
    case.elsewhere = 5 * case.N
    forward, grads = case.run(backend), case.no_grads()
    np.testing.assert_allclose(forward[4][: case.C, :, : case.N], case.reference()["s"] * case.mask(), rtol=1e-4, atol=1e-5)
    d_current, _ = case.run_back(backend, forward, grads=grads)
    np.testing.assert_allclose(d_current, case.adjoint(forward)["c"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_forward_as_large_as_in_a_brain(backend, full_size, shape):
    """Token by token from the state that the kernel left before it: among many neurons rounding decides some about."""
    case = Case(shape, (True, False, True, True, 0.25))
    v, a, y, _, ring, _, _ = (x.astype(np.float64) for x in case.run(backend))
    p, z = case.parameters, ref.event(v)
    drive = ref.normalise(ref.gate(case.c, case.gate), case.hypercolumn) * p["gain"] * case.gain_scale[:, None] + p["bias"]
    expected = p["alpha"] * v[:-1] - z[:-1] + drive - p["beta"] * case.beta_scale[:, None] * a[:-1]
    np.testing.assert_allclose(v[1:], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a[1:], p["rho"] * a[:-1] + (1 - p["rho"]) * z[1:], rtol=1e-4, atol=1e-5)
    s = z[1:] * v[1:]
    np.testing.assert_allclose(y[1:], p["gamma"] * y[:-1] + (1 - p["gamma"]) * s, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ring[: case.C, :, : case.N], s * case.mask(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 5, 3)], ids=str)
def test_gradient(backend, shape, graded):
    """Against finite differences of the reference, through everything."""
    case = Case(shape, (graded, True, True, True, 0.4))

    def loss(changed):
        record = case.reference(changed)
        return np.sum(case.ds * case.mask() * record["s"]) + np.sum(case.dy * record["y"])

    grads = case.no_grads(fill=0.5)
    d_current, d_gate = case.run_back(backend, case.run(backend), grads=grads)
    expected = {name: gradient(loss, case.inputs(), name) for name in case.inputs()}
    np.testing.assert_allclose(d_current, expected["c"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(d_gate, expected["gate"], rtol=1e-3, atol=1e-4)
    for name in case.parameters:  # added to what was there
        np.testing.assert_allclose(grads[name] - 0.5, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    # The carry out of the chunk, with the step that the token before it still has to add.
    p = case.parameters
    np.testing.assert_allclose((p["alpha"] - ref.psi(case.before["v"])) * grads["v"], expected["v"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(grads["a"], expected["a"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(p["gamma"] * grads["y"], expected["y"], rtol=1e-3, atol=1e-4)


def check_adjoint(backend, case):
    forward, grads = case.run(backend), case.no_grads()
    d_current, d_gate = case.run_back(backend, forward, grads=grads, padding=3)
    expected = case.adjoint(forward)
    close = {"rtol": 1e-3, "atol": 1e-4 * np.sqrt(case.B * case.C)}
    np.testing.assert_allclose(d_current[:, :, : case.N], expected["c"], **close)
    assert not d_current[:, :, case.N :].any()
    if case.gated:
        np.testing.assert_allclose(d_gate, expected["gate"], **close)
    for name in grads:
        if case.traced or name not in ("y", "gamma"):
            np.testing.assert_allclose(grads[name], expected[name], **close, err_msg=name)


@WITH_MODES
@WITH_SHAPES
def test_adjoint(backend, shape, graded, smooth, traced, gated, rate):
    """With true events there is no finite difference."""
    check_adjoint(backend, Case(shape, (graded, smooth, traced, gated, rate)))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_adjoint_as_large_as_in_a_brain(backend, full_size, shape):
    check_adjoint(backend, Case(shape, (True, False, True, True, 0.25)))


@WITH_MODES
def test_two_chunks_are_one(backend, graded, smooth, traced, gated, rate):
    case = Case((7, 3, 11, 4), (graded, smooth, traced, gated, rate))
    early, late = slice(0, 3), slice(3, 7)
    whole, first = case.run(backend), case.run(backend, early, rows=9)
    after = {name: rows[-1] if len(rows) else None for name, rows in zip("vay", first, strict=False)}
    second = case.run(backend, late, before=after, rows=9)
    for one, before, rest in zip(whole[:3], first, second, strict=False):
        if one.size:
            np.testing.assert_allclose(np.concatenate([before, rest[1:]]), one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first[4] + second[4], whole[4], rtol=1e-5, atol=1e-6)  # the ring: each chunk has written its own rows

    once, twice = case.no_grads(), case.no_grads()
    d_whole = case.run_back(backend, whole, grads=once)
    d_late = case.run_back(backend, second, late, grads=twice)
    d_early = case.run_back(backend, first, early, grads=twice)
    for one, before, rest in zip(d_whole, d_early, d_late, strict=True):
        if one.size:
            np.testing.assert_allclose(np.concatenate([before, rest]), one, rtol=1e-4, atol=1e-5)
    for name, values in once.items():
        np.testing.assert_allclose(twice[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_is_only_run_again_is_not_sent(backend):
    case = Case((3, 2, 9, 4), MODES[0])
    same_bits(case.run(backend, rows=0)[:4], case.run(backend)[:4])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_axons_and_gradients_in_16_bits(backend, dtype):
    if backend.name == "cpu":
        pytest.skip("has 32 bits")
    case = Case((3, 2, 21, 8), (True, False, True, True, 0.25))
    dtype = "uint16" if dtype == "bfloat16" and SIMULATED else dtype
    exact = case.run(backend)

    def values(x):
        return x.astype(np.float64) if x.dtype == np.float16 else (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)

    np.testing.assert_allclose(values(case.run(backend, dtype=dtype)[4]), exact[4], rtol=2**-8)
    np.testing.assert_allclose(values(case.trace)[:3, :, :21], exact[2][1:], rtol=2**-8)
    grads = [case.run_back(backend, exact, grads=case.no_grads(), dtype=arrays) for arrays in ("float32", dtype)]
    for exact, rounded in zip(*grads, strict=True):
        np.testing.assert_allclose(values(rounded), exact, rtol=2**-8, atol=1e-7)


def test_the_same_run_gives_the_same_bits(backend):
    """Whatever the number of threads."""
    case, results, available = Case((3, 9, 70, 16), (True, False, True, True, 0.25)), [], numba.get_num_threads()
    try:
        for threads in (1, available):
            numba.set_num_threads(threads)
            forward, grads = case.run(backend), case.no_grads()
            results.append([*forward, *case.run_back(backend, forward, grads=grads), *grads.values()])
    finally:
        numba.set_num_threads(available)
    same_bits(*results)


def test_a_scale_is_that_of_the_currents_gradients_alone(backend):
    case = Case((2, 3, 9, 4), MODES[-1])
    forward, one, eight = case.run(backend), case.no_grads(), case.no_grads()
    plain, scaled = case.run_back(backend, forward, grads=one), case.run_back(backend, forward, grads=eight, scale=8)
    same_bits((8 * plain[0], 8 * plain[1], *one.values()), (*scaled, *eight.values()))


def test_a_hypercolumn_is_alone(backend):
    case = Case((2, 2, 11, 4), MODES[0])
    alone = case.run(backend)[0]
    case.c[0, 0, 5] = np.nan  # neuron 5 is in the second hypercolumn, 4 to 7
    touched = case.run(backend)[0]
    assert np.isnan(touched[1:, 0, 4:8]).all()
    touched[1:, 0, 4:8] = alone[1:, 0, 4:8]
    np.testing.assert_array_equal(touched, alone)


def test_silence_stays_silent(backend):
    case = Case((1, 2, 6, 4), MODES[0])
    case.c[...] = 0
    np.testing.assert_allclose(case.run(backend)[3], 0.05**-0.5, rtol=1e-6)
