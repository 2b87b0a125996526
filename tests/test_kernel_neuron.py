import numba
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single
from neurogen_numba.kernels.neuron import BLOCK

CONSTANTS = ("gain", "bias", "alpha", "rho", "beta", "gamma")  # per neuron
SIZES = st.sampled_from([1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
MODES = pytest.mark.parametrize("graded, smooth", [(True, False), (False, False), (True, True), (False, True)])


def draw(C, B, N, seed=1):
    """Everything that a population needs, float32: normalised currents x, constants, factors of the neuromodulators, the state before."""
    rng = np.random.default_rng(seed)
    return {
        "x": single(rng.uniform(-0.95, 0.95, (C, B, N))),
        "gain": single(rng.uniform(1, 2, N)),
        "bias": single(rng.normal(0.4, 0.3, N)),
        "alpha": single(rng.uniform(0.3, 0.9, N)),
        "rho": single(rng.uniform(0.3, 0.9, N)),
        "beta": single(rng.uniform(0.1, 1, N)),
        "gamma": single(rng.uniform(0.1, 0.8, N)),
        "gain_scale": single(rng.uniform(0.5, 1.5, B)),
        "beta_scale": single(rng.uniform(0.5, 1.5, B)),
        "v0": single(rng.normal(0.5, 0.7, (B, N))),
        "a0": single(rng.uniform(0, 1, (B, N))),
        "y0": single(rng.normal(0, 1, (B, N))),
    }


def reference(p, graded, smooth):
    """The same population in float64."""
    x = np.asarray(p["x"], np.float64)
    c = x * np.sqrt(0.05 / (1 - x**2))  # in a hypercolumn of its own, this current is normalised to x
    params = {"beta": p["beta"], "gain": p["gain"], "bias": p["bias"], "input_scale": 1.0}
    for letter, name in (("v", "alpha"), ("a", "rho"), ("y", "gamma")):
        params[f"log_tau_{letter}"] = -np.log(-np.log(np.asarray(p[name], np.float64)))
    state = {"v": p["v0"], "a": p["a0"], "y": p["y0"]}
    levels = {"norepinephrine": p["gain_scale"].astype(np.float64) - 1, "serotonin": p["beta_scale"].astype(np.float64) - 1}
    return ref.population(c, params, state, smooth=smooth, graded=graded, hypercolumn=1, **levels)


def forward(op, p, graded, smooth):
    """v, a, y [C+1, B, N] of the kernels, row 0 the state before; the other rows held NaN."""
    v, a, y = np.full((3, len(p["x"]) + 1, *p["v0"].shape), np.nan, np.float32)
    v[0], a[0], y[0] = p["v0"], p["a0"], p["y0"]
    constants = [p[name] for name in ("gain", "bias", "alpha", "rho", "beta", "gain_scale", "beta_scale")]
    op("lif_forward", v, a, p["x"], *constants, smooth)
    op("trace_forward", y, v, p["gamma"], graded, smooth)
    return v, a, y


def backward(op, p, rows, to_s, to_y, grads, graded, smooth):
    """dx. Carries and adds to what is in grads: dv, da, dy [B, N] and CONSTANTS [N]."""
    v, a, y = rows
    ds, dx = single(to_s), np.full_like(p["x"], np.nan)
    op("trace_backward", ds, grads["dy"], grads["gamma"], single(to_y), y, v, p["gamma"], graded, smooth)
    sums = [grads[name] for name in ("dv", "da", "gain", "bias", "alpha", "rho", "beta")]
    constants = [p[name] for name in ("gain", "alpha", "rho", "beta", "gain_scale", "beta_scale")]
    op("lif_backward", dx, *sums, ds, v, a, p["x"], *constants, graded, smooth)
    return dx


def no_grads(p, fill=0.0):
    grads = {name: np.zeros_like(p["v0"]) for name in ("dv", "da", "dy")}
    return grads | {name: np.full_like(p[name], fill) for name in CONSTANTS}


def part_of(p, tokens, rows=None):
    """The population over some of the tokens; rows: v, a, y of the part before."""
    state = {"v0": rows[0][-1], "a0": rows[1][-1], "y0": rows[2][-1]} if rows else {}
    return p | {"x": p["x"][tokens]} | state


@MODES
@given(st.integers(1, 4), st.sampled_from([1, 2, 17]), SIZES, st.integers(0, 999))
def test_forward(op, graded, smooth, C, B, N, seed):
    p = draw(C, B, N, seed)
    expected = reference(p, graded, smooth)
    assume(smooth or np.abs(expected["v"] - 1).min() > 1e-5)  # where rounding decides who fires, there is nothing to compare
    for ours, letter in zip(forward(op, p, graded, smooth), "vay", strict=True):
        np.testing.assert_array_equal(ours[0], p[f"{letter}0"])
        np.testing.assert_allclose(ours[1:], expected[letter], rtol=1e-4, atol=1e-5, err_msg=letter)


@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("C, B, N", [(1, 1, 1), (5, 2, 3)])
def test_gradient(op, C, B, N, graded):
    p, rng = draw(C, B, N), np.random.default_rng(2)
    to_s, to_y = rng.normal(0, 1, (2, C, B, N))

    def loss(changed):
        record = reference(changed, graded, smooth=True)
        return np.sum(to_s * record["s"]) + np.sum(to_y * record["y"])

    grads = no_grads(p, fill=0.5)
    dx = backward(op, p, forward(op, p, graded, True), to_s, to_y, grads, graded, True)
    expected = {name: gradient(loss, p, name) for name in ("x", "v0", "a0", "y0", *CONSTANTS)}
    np.testing.assert_allclose(dx, expected["x"], rtol=1e-3, atol=1e-4)
    for name in CONSTANTS:  # added to what was there
        np.testing.assert_allclose(grads[name] - 0.5, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    # What is carried out of the chunk, with the step that the token before it still has to add.
    np.testing.assert_allclose((p["alpha"] - ref.psi(p["v0"])) * grads["dv"], expected["v0"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(grads["da"], expected["a0"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(p["gamma"] * grads["dy"], expected["y0"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.parametrize("C, B, N", [(6, 3, 5), (2, 2, 300), (2, 70, 9)])
def test_adjoint_where_neurons_fire(op, C, B, N, graded):
    """With true events there is no finite difference: section 6 of docs/model.md, word for word."""
    check_adjoint(op, C, B, N, graded)


def test_adjoint_of_many_neurons(op, full_size):
    check_adjoint(op, 16, 37, 8200, True)


def check_adjoint(op, C, B, N, graded):
    p, rng = draw(C, B, N), np.random.default_rng(3)
    to_s, to_y = single(rng.normal(0, 1, (2, C, B, N)))
    rows, grads = forward(op, p, graded, False), no_grads(p)
    dx = backward(op, p, rows, to_s, to_y, grads, graded, False)

    v, a, y = (row.astype(np.float64) for row in rows)
    z = ref.event(v)
    assert 0.1 < z.mean() < 0.9
    s = z * v if graded else z
    alpha, rho, gamma, beta = p["alpha"], p["rho"], p["gamma"], p["beta"] * p["beta_scale"][:, None]
    gy, ga, gv = np.zeros((3, B, N))
    drive_gradient, sums = np.zeros((C, B, N)), {name: np.zeros(N) for name in ("alpha", "rho", "beta", "gamma")}
    for t in range(C, 0, -1):
        gy = gamma * gy + to_y[t - 1]
        gs = to_s[t - 1] + (1 - gamma) * gy
        gz = (1 - rho) * ga - gv
        gv = alpha * gv + (ref.psi(v[t]) * (gz + gs * v[t]) + z[t] * gs if graded else ref.psi(v[t]) * (gz + gs))
        sums["alpha"] += (gv * v[t - 1]).sum(0)
        sums["rho"] += (ga * (a[t - 1] - z[t])).sum(0)
        sums["beta"] -= (gv * a[t - 1] * p["beta_scale"][:, None]).sum(0)
        sums["gamma"] += (gy * (y[t - 1] - s[t])).sum(0)
        ga = rho * ga - beta * gv
        drive_gradient[t - 1] = gv
    scale = p["gain_scale"][:, None]
    sums |= {"gain": (drive_gradient * p["x"] * scale).sum((0, 1)), "bias": drive_gradient.sum((0, 1))}
    np.testing.assert_allclose(dx, drive_gradient * p["gain"] * scale, rtol=1e-4, atol=1e-5)
    for name, expected in sums.items():
        np.testing.assert_allclose(grads[name], expected, rtol=1e-4, atol=1e-5 * np.sqrt(B), err_msg=name)


@MODES
def test_two_chunks_are_one(op, graded, smooth):
    p, rng = draw(7, 3, BLOCK + 3), np.random.default_rng(4)
    to_s, to_y = single(rng.normal(0, 1, (2, *p["x"].shape)))
    early, late = slice(0, 3), slice(3, 7)
    whole = forward(op, p, graded, smooth)
    first = forward(op, part_of(p, early), graded, smooth)
    second = forward(op, part_of(p, late, first), graded, smooth)
    for one, before, after in zip(whole, first, second, strict=True):
        np.testing.assert_allclose(np.concatenate([before, after[1:]]), one, rtol=1e-5, atol=1e-6)

    once, twice = no_grads(p), no_grads(p)
    dx = backward(op, p, whole, to_s, to_y, once, graded, smooth)
    dx_late = backward(op, part_of(p, late, first), second, to_s[late], to_y[late], twice, graded, smooth)
    dx_early = backward(op, part_of(p, early), first, to_s[early], to_y[early], twice, graded, smooth)
    np.testing.assert_allclose(np.concatenate([dx_early, dx_late]), dx, rtol=1e-4, atol=1e-5)
    for name, values in once.items():
        np.testing.assert_allclose(twice[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_same_run_gives_the_same_bits(op):
    """Whatever the number of threads."""
    p = draw(3, 9, 2 * BLOCK + 3)
    to_s, to_y = single(np.random.default_rng(5).normal(0, 1, (2, *p["x"].shape)))
    results, available = [], numba.get_num_threads()
    try:
        for threads in (1, available):
            numba.set_num_threads(threads)
            grads, rows = no_grads(p), forward(op, p, True, False)
            results.append([*rows, backward(op, p, rows, to_s, to_y, grads, True, False), *grads.values()])
    finally:
        numba.set_num_threads(available)
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


def test_decay(op):
    log_tau = single(np.linspace(-2, 5, 300))
    decay = np.full_like(log_tau, np.nan)
    op("decay_forward", decay, log_tau)
    np.testing.assert_allclose(decay, ref.per_token(log_tau), rtol=1e-5)

    d_decay = single(np.random.default_rng(6).normal(0, 1, log_tau.size))
    expected = gradient(lambda inputs: np.sum(d_decay * ref.per_token(inputs["log_tau"])), {"log_tau": log_tau}, "log_tau")
    handed_over, d_log_tau = d_decay.copy(), np.full_like(log_tau, 0.5)
    op("decay_backward", d_log_tau, handed_over, log_tau)
    np.testing.assert_allclose(d_log_tau - 0.5, expected, rtol=1e-4, atol=1e-6)
    assert not handed_over.any()
