import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single


def normalised(op, c, hypercolumn):
    """(x, r) of float64 currents c [C, B, N]."""
    C, B, N = c.shape
    x, r = single(c), np.full((C, B, -(-N // hypercolumn)), np.nan, np.float32)
    op("normalize_forward", x, r, hypercolumn)
    return x, r


@given(st.integers(1, 3), st.sampled_from([1, 2, 17]), st.integers(1, 40), st.integers(1, 33), st.integers(0, 99))
def test_currents_are_normalised_in_place(op, C, B, N, hypercolumn, seed):
    c = np.random.default_rng(seed).normal(0, 3, (C, B, N))
    x, r = normalised(op, c, hypercolumn)
    np.testing.assert_allclose(x, ref.normalise(c, hypercolumn), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(c * np.repeat(r, hypercolumn, 2)[:, :, :N], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("N, hypercolumn", [(600, 256), (1000, 128), (150, 16), (3, 256), (2500, 2048)])
def test_hypercolumns_as_large_and_as_many_as_in_a_brain(op, N, hypercolumn):
    """The last one is smaller than the others."""
    rng = np.random.default_rng(1)
    c, to_x = rng.normal(0, 3, (2, 3, N)), single(rng.normal(0, 1, (2, 3, N)))
    x, r = normalised(op, c, hypercolumn)
    expected = ref.normalise(c, hypercolumn)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    dx = to_x.copy()
    op("normalize_backward", dx, x, r, hypercolumn)
    for first in range(0, N, hypercolumn):
        own = np.s_[..., first : first + hypercolumn]
        mean = np.mean(to_x[own] * expected[own], axis=-1, keepdims=True)
        np.testing.assert_allclose(dx[own], expected[own] / c[own] * (to_x[own] - expected[own] * mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("N, hypercolumn", [(1, 4), (4, 4), (7, 3), (5, 1), (40, 35)])
def test_gradient(op, N, hypercolumn):
    rng = np.random.default_rng(N)
    c, to_x = single(rng.normal(0, 2, (2, 3, N))), single(rng.normal(0, 1, (2, 3, N)))
    expected = gradient(lambda inputs: np.sum(to_x * ref.normalise(inputs["c"], hypercolumn)), {"c": c}, "c")
    dx = to_x.copy()
    op("normalize_backward", dx, *normalised(op, c, hypercolumn), hypercolumn)
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-5)


def test_a_hypercolumn_is_alone(op):
    c = np.random.default_rng(1).normal(0, 1, (2, 2, 11))
    alone = normalised(op, c, 4)[0]
    c[1, 0, 5] = np.nan  # neuron 5 is in the second hypercolumn, 4 to 7
    touched = normalised(op, c, 4)[0]
    assert np.isnan(touched[1, 0, 4:8]).all()
    touched[1, 0, 4:8] = alone[1, 0, 4:8]
    np.testing.assert_array_equal(touched, alone)


def test_silence_stays_silent(op):
    x, r = normalised(op, np.zeros((1, 2, 6)), 4)
    assert not x.any()
    np.testing.assert_allclose(r, 0.05**-0.5, rtol=1e-6)
