import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single


def draw(seed, *shape):
    return single(np.random.default_rng(seed).normal(0, 2, (3, *shape)))


@given(st.integers(1, 3), st.sampled_from([1, 15, 17]), st.integers(1, 40), st.integers(0, 99))
def test_gated_currents(op, C, B, N, seed):
    c, g, gated = draw(seed, C, B, N)
    op("gate_forward", gated, c, g)
    np.testing.assert_allclose(gated, ref.gate(c, g), rtol=1e-5, atol=1e-6)


def test_an_output_may_be_an_input(op, backend):
    c, g, d_gated = draw(3, 2, 3, 50)
    gated, dc, dg = np.full((3, *c.shape), np.nan, np.float32)
    op("gate_forward", gated, c, g)
    op("gate_backward", dc, dg, d_gated, c, g)
    own, own_g, d_own, d_own_g = (backend.asarray(x) for x in (c, g, d_gated, np.full_like(g, np.nan)))
    backend.gate_backward(d_own, d_own_g, d_own, own, own_g)
    backend.gate_forward(own, own, own_g)
    for ours, expected in ((own, gated), (d_own, dc), (d_own_g, dg)):
        np.testing.assert_array_equal(backend.to_numpy(ours), expected)


def test_no_question_asked_lets_everything_pass(op):
    c, _, gated = draw(1, 2, 2, 5)
    op("gate_forward", gated, c, np.zeros_like(c))
    np.testing.assert_array_equal(gated, c)


def test_gradient_overwrites_what_was_there(op):
    c, g, d_gated = draw(2, 2, 3, 5)
    inputs, loss = {"c": c, "g": g}, lambda inputs: np.sum(d_gated * ref.gate(inputs["c"], inputs["g"]))
    dc, dg = np.full((2, *c.shape), np.nan, np.float32)
    op("gate_backward", dc, dg, d_gated, c, g)
    np.testing.assert_allclose(dc, gradient(loss, inputs, "c"), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dg, gradient(loss, inputs, "g"), rtol=1e-4, atol=1e-5)
