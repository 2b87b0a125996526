import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SIMULATED
from gradients import single
from neurogen_numba.kernels.rng import key, uniform

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # random bits wrap around; the simulator's NumPy wonders

KEY = key(7)


def hit(op, shape, rate, strength=1.0, ticks=0, key=KEY, current=None):
    """Currents after the noise of some ticks, of which `ticks` came before."""
    current = np.zeros(shape, np.float32) if current is None else current.copy()
    op("poisson", current, np.float32(rate), np.float32(strength), key, np.array([ticks], np.uint64))
    return current


def expected(current, rate, strength, ticks, key=KEY):
    """The same in float64: every tick, sequence and neuron has a number of its own."""
    places = np.arange(current.size, dtype=np.uint64).reshape(current.shape) + np.uint64(ticks * current[0].size)
    return current.astype(np.float64) + strength * (uniform(key, places) < np.float32(rate))


SIZES = [1, 5, 8, 9, 17] if SIMULATED else [1, 5, 255, 256, 257, 600]  # more than a block, too


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from(SIZES), st.floats(0, 1, width=32), st.integers(0, 2**40))
def test_noise(op, C, B, N, rate, ticks):
    before = single(np.random.default_rng(N).normal(0, 1, (C, B, N)))
    np.testing.assert_allclose(hit(op, None, rate, 2.5, ticks, current=before), expected(before, rate, 2.5, ticks), rtol=1e-6, atol=1e-6)


def test_rate_nought_hits_nobody_and_rate_one_everybody(op):
    assert not hit(op, (3, 2, 40), 0).any()
    assert (hit(op, (3, 2, 40), 1, -0.5) == -0.5).all()


def test_the_rate_is_kept_in_every_tick_sequence_and_neuron(op):
    shape, rate = ((10, 3, 20), 0.2) if SIMULATED else ((200, 30, 100), 0.2)
    hits = hit(op, shape, rate)
    assert set(np.unique(hits)) == {0, 1}
    for axes in (None, (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)):
        shares = hits.mean(axes)
        assert np.abs(shares - rate).max() < 6 * np.sqrt(rate * (1 - rate) * shares.size / hits.size)


def test_hits_know_nothing_of_each_other(op):
    shape, rate = ((10, 3, 20), 0.3) if SIMULATED else ((300, 20, 100), 0.3)
    hits = hit(op, shape, rate) - rate
    for axis in range(3):
        other = np.roll(hits, 1, axis)
        assert abs((hits * other).mean()) < 6 * rate * (1 - rate) / np.sqrt(hits.size)


def test_noise_does_not_depend_on_how_ticks_are_cut(op):
    whole = hit(op, (7, 2, 30), 0.4, ticks=11)
    parts = [hit(op, (last - first, 2, 30), 0.4, ticks=11 + first) for first, last in ((0, 1), (1, 3), (3, 7))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_other_keys_and_ticks_are_other_noise(op):
    whole = hit(op, (4, 2, 30), 0.5)
    assert (hit(op, (4, 2, 30), 0.5, key=key(8)) != whole).any()
    assert (hit(op, (4, 2, 30), 0.5, ticks=4) != whole).any()
    assert (whole[:, 0] != whole[:, 1]).any()
