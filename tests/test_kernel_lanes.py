import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradients import single
from neurogen_numba.kernels.lanes import LANES, add_from_lanes_cpu, add_scaled, dot, load, store, to_lanes_cpu

SIZES = st.integers(1, 3), st.sampled_from([1, 15, 16, 17, 33]), st.integers(1, 20), st.integers(0, 99)


def lane_order(x):
    """x [C, B, N] as [C, G, N, LANES], with NumPy."""
    C, B, N = x.shape
    padded = np.zeros((C, -(-B // LANES) * LANES, N), np.float32)
    padded[:, :B] = x
    return padded.reshape(C, -1, LANES, N).swapaxes(2, 3)


def draw(seed, *shape):
    return single(np.random.default_rng(seed).normal(0, 1, shape))


@given(*SIZES)
def test_there(C, B, N, seed):
    x = draw(seed, C, B, N)
    grouped = np.full((C, -(-B // LANES), N, LANES), np.nan, np.float32)
    to_lanes_cpu(grouped, x)
    np.testing.assert_array_equal(grouped, lane_order(x))


@given(*SIZES)
def test_and_back_on_top_of_what_is_there(C, B, N, seed):
    x, there = draw(seed, C, B, N), draw(seed + 1, C, B, N)
    grouped, total = single(lane_order(x)), there.copy()
    grouped[:, -1, :, (B - 1) % LANES + 1 :] = np.nan  # empty lanes are nobody's
    add_from_lanes_cpu(total, grouped)
    np.testing.assert_array_equal(total, there + x)


@numba.njit
def multiply_add(out, rows, scale, row):
    store(out, row, add_scaled(load(out, row), scale, load(rows, row)))


@numba.njit
def dot_of_rows(a, b, row):
    return dot(load(a, row), load(b, row))


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_arithmetic_of_lanes(offset):
    """On arrays that begin anywhere: only 4 bytes of alignment are promised."""
    a, b = (draw(seed, 3 * LANES + offset)[offset:].reshape(3, LANES) for seed in (1, 2))
    assert dot_of_rows(a, b, 1) == pytest.approx(np.dot(a[1].astype(np.float64), b[1]), abs=1e-5)
    expected = a.astype(np.float64)
    expected[2] += np.float32(0.3) * b[2].astype(np.float64)
    multiply_add(a, b, np.float32(0.3), 2)
    np.testing.assert_allclose(a, expected, rtol=1e-6)
