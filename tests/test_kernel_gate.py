import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single
from neurogen_numba.kernels.gate import gate_backward_cpu, gate_forward_cpu


def draw(seed, *shape):
    return single(np.random.default_rng(seed).normal(0, 2, (3, *shape)))


@given(st.integers(1, 3), st.sampled_from([1, 15, 17]), st.integers(1, 40), st.integers(0, 99))
def test_gated_currents(C, B, N, seed):
    c, g, gated = draw(seed, C, B, N)
    gate_forward_cpu(gated, c, g)
    np.testing.assert_allclose(gated, ref.gate(c, g), rtol=1e-5, atol=1e-6)
    own = c.copy()
    gate_forward_cpu(own, own, g)
    np.testing.assert_array_equal(own, gated)


def test_no_question_asked_lets_everything_pass():
    c, _, gated = draw(1, 2, 2, 5)
    gate_forward_cpu(gated, c, np.zeros_like(c))
    np.testing.assert_array_equal(gated, c)


def test_gradient_overwrites_what_was_there():
    c, g, d_gated = draw(2, 2, 3, 5)
    inputs, loss = {"c": c, "g": g}, lambda inputs: np.sum(d_gated * ref.gate(inputs["c"], inputs["g"]))
    dc, dg = np.full((2, *c.shape), np.nan, np.float32)
    gate_backward_cpu(dc, dg, d_gated, c, g)
    np.testing.assert_allclose(dc, gradient(loss, inputs, "c"), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dg, gradient(loss, inputs, "g"), rtol=1e-4, atol=1e-5)
    own, dg_again = d_gated.copy(), np.full_like(g, np.nan)
    gate_backward_cpu(own, dg_again, own, c, g)  # dc may be d_gated
    np.testing.assert_array_equal(own, dc)
    np.testing.assert_array_equal(dg_again, dg)
