import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single
from neurogen_numba.kernels.normalize import normalize_backward_cpu, normalize_forward_cpu


def normalised(c, hypercolumn):
    """(x, r) of float64 currents c [C, B, N]."""
    C, B, N = c.shape
    x, r = single(c), np.full((C, B, -(-N // hypercolumn)), np.nan, np.float32)
    normalize_forward_cpu(x, r, hypercolumn)
    return x, r


@given(st.integers(1, 3), st.sampled_from([1, 2, 17]), st.integers(1, 40), st.integers(1, 33), st.integers(0, 99))
def test_currents_are_normalised_in_place(C, B, N, hypercolumn, seed):
    c = np.random.default_rng(seed).normal(0, 3, (C, B, N))
    x, r = normalised(c, hypercolumn)
    np.testing.assert_allclose(x, ref.normalise(c, hypercolumn), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c * np.repeat(r, hypercolumn, 2)[:, :, :N], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("N, hypercolumn", [(1, 4), (4, 4), (7, 3), (5, 1)])
def test_gradient(N, hypercolumn):
    rng = np.random.default_rng(N)
    c, to_x = single(rng.normal(0, 2, (2, 3, N))), single(rng.normal(0, 1, (2, 3, N)))
    expected = gradient(lambda inputs: np.sum(to_x * ref.normalise(inputs["c"], hypercolumn)), {"c": c}, "c")
    dx = to_x.copy()
    normalize_backward_cpu(dx, *normalised(c, hypercolumn), hypercolumn)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-5)


def test_a_hypercolumn_is_alone():
    c = np.random.default_rng(1).normal(0, 1, (2, 2, 11))
    alone = normalised(c, 4)[0]
    c[1, 0, 5] = np.nan  # neuron 5 is in the second hypercolumn, 4 to 7
    touched = normalised(c, 4)[0]
    assert np.isnan(touched[1, 0, 4:8]).all()
    touched[1, 0, 4:8] = alone[1, 0, 4:8]
    np.testing.assert_array_equal(touched, alone)


def test_silence_stays_silent():
    x, r = normalised(np.zeros((1, 2, 6)), 4)
    assert not x.any()
    np.testing.assert_allclose(r, 0.05**-0.5, rtol=1e-6)
