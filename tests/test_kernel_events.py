import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import single
from neurogen_numba.kernels.events import list_events_cpu, list_values_cpu, spread_events_cpu
from neurogen_numba.kernels.lanes import LANES
from neurogen_numba.kernels.rng import key

BATCHES = st.sampled_from([1, 15, 16, 17, 33])
NOWHERE = np.zeros(1, np.uint64), np.uint64(0)  # key and place, where nothing is dropped


def empty_lists(C, B, M):
    """index, value, fired, listed, full of what an earlier token may have left."""
    G = -(-B // LANES)
    index, value = np.full((C, G, M), M + 7, np.uint16), np.full((C, G, M, LANES), np.nan, np.float32)
    return index, value, np.full((C, G), -1, np.int32), np.full((C, G), -1, np.int32)


def listed_events(v, graded=True, smooth=False, drop=0.0, key_and_place=NOWHERE):
    lists = empty_lists(*v.shape)
    list_events_cpu(*lists, v, np.float32(drop), *key_and_place, graded, smooth)
    return lists


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("graded", [False, True])
@given(st.integers(1, 3), BATCHES, st.integers(1, 30), st.sampled_from([-2.0, 0.0, 1.0]), st.integers(0, 99))
def test_lists_name_who_fired_and_who_was_near(graded, smooth, C, B, M, mean, seed):
    sixteenths = np.round(np.random.default_rng(seed).normal(16 * mean, 16, (C, B, M)))  # some at 0, 1 or 2, where things begin and end
    v = single(sixteenths / 16)
    index, value, fired, listed = listed_events(v, graded, smooth)
    z = ref.event(v, smooth)
    s = z * v if graded else z
    for t, g in np.ndindex(fired.shape):
        own = slice(g * LANES, (g + 1) * LANES)
        events = np.flatnonzero((s[t, own] != 0).any(0))
        near = np.setdiff1d(np.flatnonzero((ref.psi(v[t, own]) > 0).any(0)), events)
        np.testing.assert_array_equal(index[t, g, : fired[t, g]], events)
        np.testing.assert_array_equal(index[t, g, fired[t, g] : listed[t, g]], near)
        carried = np.zeros((events.size, LANES))
        carried[:, : s[t, own].shape[0]] = s[t, own][:, events].T
        np.testing.assert_allclose(value[t, g, : fired[t, g]], carried, rtol=1e-5, atol=1e-6)


def test_silence_makes_empty_lists():
    _, _, fired, listed = listed_events(np.full((2, 17, 9), -1, np.float32))
    assert not fired.any() and not listed.any()


def test_every_neuron_may_fire():
    v = np.full((1, 17, 9), 1.5, np.float32)
    index, _, fired, listed = listed_events(v)
    assert (fired == 9).all() and (listed == 9).all()
    np.testing.assert_array_equal(index, np.tile(np.arange(9), (1, 2, 1)))


@given(st.integers(1, 3), BATCHES, st.integers(1, 30), st.integers(0, 99))
def test_back_to_activity(C, B, M, seed):
    v, x = single(np.random.default_rng(seed).normal(0.5, 1, (C, B, M))), np.full((C, B, M), np.nan, np.float32)
    spread_events_cpu(x, *listed_events(v)[:3])
    np.testing.assert_array_equal(x, np.where(v > 1, v, 0))


@given(st.integers(1, 3), BATCHES, st.integers(1, 30), st.integers(0, 99))
def test_plain_values_are_all_carried(C, B, M, seed):
    x, again = single(np.random.default_rng(seed).normal(0, 1, (C, B, M))), np.full((C, B, M), np.nan, np.float32)
    index, value, fired, listed = empty_lists(C, B, M)
    list_values_cpu(index, value, fired, listed, x)
    assert (fired == M).all() and (listed == M).all()
    assert not value[:, -1, :, (B - 1) % LANES + 1 :].any()  # empty lanes
    spread_events_cpu(again, index, value, fired)
    np.testing.assert_array_equal(again, x)


def test_a_dropped_axon_stays_on_the_list_and_the_others_speak_up():
    v = np.full((4, 17, 30), 1.5, np.float32)
    lists = listed_events(v, drop=0.25, key_and_place=(np.array([key(1)]), np.uint64(5)))
    assert (lists[2] == 30).all()  # the neuron fired, whoever hears it
    carried = np.empty_like(v)
    spread_events_cpu(carried, *lists[:3])
    np.testing.assert_array_equal(np.unique(carried), single([0, 1.5 / 0.75]))
    assert (carried == 0).mean() == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / v.size))
    assert len({sequence.tobytes() for sequence in carried.reshape(-1, 30)}) == 4 * 17  # no two tokens or sequences share a mask
