import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import single
from neurogen_numba.config import SURROGATES
from neurogen_numba.kernels.surrogate import carried, event, make_surrogate

POTENTIALS = single([-3, -1e-6, 0, 1e-6, 0.3, 0.999, 1, 1.001, 1.7, 1.999, 2, 2.001, 9])


smooth, slope = make_surrogate(smooth=True)


@pytest.mark.parametrize("smooth", [False, True])
def test_events_are_those_of_the_equations(smooth):
    ours = [make_surrogate(smooth=smooth).event(v) for v in POTENTIALS]
    np.testing.assert_allclose(ours, ref.event(POTENTIALS, smooth), atol=1e-7)


def test_at_the_threshold_nothing_fires_yet():
    one = np.float32(1)
    assert event(one) == 0
    assert event(np.nextafter(one, np.float32(2))) == 1


def test_slope_is_that_of_the_smooth_event():
    ours, wide = [slope(v) for v in POTENTIALS], POTENTIALS.astype(np.float64)
    np.testing.assert_allclose(ours, ref.psi(POTENTIALS), atol=1e-7)
    np.testing.assert_allclose(ours, (ref.event(wide + 1e-6, True) - ref.event(wide - 1e-6, True)) / 2e-6, atol=1e-6)


@given(st.floats(-1024, 1024, width=32))
def test_far_from_the_threshold_nothing_learns(v):
    v = np.float32(v)
    assert (slope(v) == 0) == (abs(v - np.float32(1)) >= 1)
    assert 0 <= smooth(v) <= 0.5
    assert event(v) in (0, 1)


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", SURROGATES)
def test_a_slope_is_that_of_its_smooth_event_at_any_width(kind, width):
    smooth, slope = make_surrogate(kind, width, smooth=True)
    v = single(np.linspace(1 - 4 * width, 1 + 4 * width, 801))
    slopes, events = np.array([slope(x) for x in v]), np.array([smooth(x) for x in v], np.float64)
    np.testing.assert_allclose(slopes, ref.psi(v, kind, width), atol=1e-6)
    np.testing.assert_allclose(events, ref.event(v, True, kind, width), atol=1e-5 * width)
    far = np.abs(v.astype(np.float64) - 1) >= width * (1 + 1e-6)
    assert (slopes[far] == 0).all() if kind == "triangle" else (slopes > 0).all()
    assert slope(np.float32(1)) == 0.5


def test_an_axon_carries_the_potential_or_the_bare_event():
    v, z = np.float32(1.5), np.float32(0.25)
    assert carried(v, z, True) == np.float32(0.375)
    assert carried(v, z, False) == z
