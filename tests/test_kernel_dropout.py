import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SIMULATED
from gradients import single
from neurogen_numba.kernels.dropout import mask_offset
from neurogen_numba.kernels.rng import key, uniform

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # random bits wrap around; the simulator's NumPy wonders

KEY, PLACE = np.array([key(4, 5)]), np.uint64(1000)


def dropped(op, x, rate, key=KEY, offset=PLACE):
    x = single(x)
    op("dropout", x, np.float32(rate), key, offset if isinstance(offset, tuple) else mask_offset(offset))
    return x


@pytest.mark.parametrize("rate", [0, 0.5])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_what_is_kept_is_scaled_and_rounded(backend, op, kind, rate):
    if backend.name == "cpu" and kind != "float32":
        pytest.skip("products on the CPU are float32")
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if kind == "bfloat16" else kind
    x = single(np.random.default_rng(3).normal(0, 1, (5, 7)))
    out, there = backend.zeros((5, 7), kind), [backend.asarray(array) for array in (x, KEY)]
    backend.scaled_dropout(out, there[0], 3.0, np.float32(rate), there[1], mask_offset(PLACE))
    expected = dropped(op, np.float32(3) * x, rate)
    np.testing.assert_array_equal(backend.to_numpy(out), expected.astype(dtype))
    np.testing.assert_array_equal(backend.to_numpy(there[0]), x)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.9375, width=32))
def test_a_value_is_dropped_or_scaled_up(op, rows, size, rate):
    x = single(np.random.default_rng(rows).normal(0, 1, (rows, size)))
    places = np.arange(PLACE, PLACE + np.uint64(x.size), dtype=np.uint64).reshape(x.shape)
    expected = np.where(uniform(KEY, places) >= np.float32(rate), x / (1 - rate), 0)
    np.testing.assert_allclose(dropped(op, x, rate), expected, rtol=1e-6)


def test_more_values_than_threads_at_once(op, full_size):
    x = np.ones((1100, 1001))
    places = np.arange(PLACE, PLACE + np.uint64(x.size), dtype=np.uint64).reshape(x.shape)
    np.testing.assert_array_equal(dropped(op, x, 0.5), np.where(uniform(KEY, places) >= 0.5, 2, 0))


def test_the_mean_stays_and_the_rate_is_kept(op):
    masked = dropped(op, np.ones((60, 60) if SIMULATED else (300, 300)), 0.25)
    assert (masked == 0).mean() == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / masked.size))
    np.testing.assert_array_equal(np.unique(masked), single([0, 1 / 0.75]))


def test_rate_zero_changes_nothing(op):
    x = single(np.random.default_rng(1).normal(0, 1, (5, 7)))
    np.testing.assert_array_equal(dropped(op, x, 0), x)


def test_some_rows_are_masked_as_they_are_among_all(op):
    whole = dropped(op, np.ones((9, 13)), 0.5)
    part = dropped(op, np.ones((4, 13)), 0.5, offset=PLACE + np.uint64(3 * 13))
    np.testing.assert_array_equal(part, whole[3:7])
    assert (dropped(op, np.ones((9, 13)), 0.5, key=np.array([key(4, 6)])) != whole).any()


def test_some_sequences_are_masked_as_they_are_among_all(op):
    """Tokens of 5 sequences, of which one process has the third and the fourth."""
    whole = dropped(op, np.ones((3 * 5, 13)), 0.5).reshape(3, 5, 13)
    part = dropped(op, np.ones((3 * 2, 13)), 0.5, offset=mask_offset(int(PLACE) + 2 * 13, 2 * 13, 3 * 13))
    np.testing.assert_array_equal(part.reshape(3, 2, 13), whole[:, 2:4])
