import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single
from neurogen_numba.kernels.lanes import LANES
from neurogen_numba.kernels.synapse import first_not_below, synapse_backward_cpu, synapse_forward_cpu

HISTORY = 6  # tokens before the segment


class Wiring:
    """Delayed synapses from M sources to N targets, and what the sources say: s [HISTORY + T, B, M], most of it silence.

    near [HISTORY + T, B, M]: sources that did not fire but are listed, because they sit near the threshold.
    """

    def __init__(self, T, B, M, N, first_delay=0, delays=3, fan_in=4, seed=1):
        rng = np.random.default_rng(seed)
        drawn = ref.draw_synapses(rng, M, N, first_delay, delays, fan_in)
        self.row_start, self.target = drawn["row_start"].astype(np.uint32), drawn["target"].astype(np.uint16)
        self.weight = single(rng.normal(0, 1, self.target.size))
        self.T, self.B, self.M, self.N, self.first_delay, self.delays = T, B, M, N, first_delay, delays
        shape = HISTORY + T, B, M
        self.s = single(rng.normal(0, 1, shape) * (rng.random(shape) < 0.3))
        self.near = (self.s == 0) & (rng.random(shape) < 0.3)

    def current(self, inputs):
        """[T, B, N] of float64 s and weight."""
        wiring = HISTORY, self.row_start.astype(int), self.target, inputs["weight"], self.first_delay, self.delays, self.N
        return ref.synapses(inputs["s"], *wiring)

    def lists(self):
        """index, value, fired, listed of s and near; what lies behind their ends is garbage."""
        R, B, M = self.s.shape
        G = -(-B // LANES)
        index, value = np.full((R, G, M), M - 1, np.uint16), np.full((R, G, M, LANES), np.nan, np.float32)
        fired, listed = np.zeros((2, R, G), np.int32)
        for r, g in np.ndindex(R, G):
            own = slice(g * LANES, min(B, (g + 1) * LANES))
            events = np.flatnonzero(self.s[r, own].any(0))
            near = np.setdiff1d(np.flatnonzero(self.near[r, own].any(0)), events)
            fired[r, g], listed[r, g] = events.size, events.size + near.size
            index[r, g, : listed[r, g]] = np.concatenate([events, near])
            value[r, g, : events.size] = 0
            value[r, g, : events.size, : own.stop - own.start] = self.s[r, own][:, events].T
        return index, value, fired, listed

    def constants(self):
        return self.row_start, self.target, self.weight, self.first_delay, self.delays

    def forward(self, current, first, last):
        """Add to current [C, G, N, LANES] of tokens first ... last - 1."""
        index, value, fired, _ = self.lists()
        synapse_forward_cpu(current, index, value, fired, HISTORY + first, *self.constants())

    def backward(self, ds, d_weight, d_current, first_row=0, tasks=2):
        """Add to ds [C, G, M, LANES], of sources whose first is row `first_row` of the lists, and to d_weight."""
        synapse_backward_cpu(ds, d_weight, lane_order(d_current), *self.lists(), first_row, HISTORY, *self.constants(), tasks)

    def listed(self):
        """Where the lists name a source, in lane order: for all lanes of its group."""
        return np.broadcast_to(lane_order((self.s != 0) | self.near).any(3, keepdims=True), self.lanes(HISTORY + self.T, self.M).shape)

    def lanes(self, rows, size, fill=0.0):
        return np.full((rows, -(-self.B // LANES), size, LANES), fill, np.float32)


def lane_order(x):
    """x [C, B, N] as [C, G, N, LANES]."""
    C, B, N = x.shape
    padded = np.zeros((C, -(-B // LANES) * LANES, N), np.float32)
    padded[:, :B] = x
    return np.ascontiguousarray(padded.reshape(C, -1, LANES, N).swapaxes(2, 3))


def sequences(grouped, B):
    """Inverse of lane_order."""
    return grouped.swapaxes(2, 3).reshape(grouped.shape[0], -1, grouped.shape[2])[:, :B]


@given(
    st.integers(1, 5),
    st.sampled_from([1, 15, 16, 17]),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([(0, 1), (0, 4), (4, 2), (6, 1), (1, 6)]),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_currents_are_added_to_what_is_there(T, B, M, N, delays, fan_in, seed):
    wiring = Wiring(T, B, M, N, *delays, fan_in, seed)
    current = wiring.lanes(T, N, fill=0.5)
    wiring.forward(current, 0, T)
    expected = wiring.current({"s": wiring.s.astype(np.float64), "weight": wiring.weight})
    np.testing.assert_allclose(sequences(current, B) - 0.5, expected, rtol=1e-4, atol=1e-5)
    assert (current[:, -1, :, (B - 1) % LANES + 1 :] == 0.5).all()  # empty lanes hear nothing


def test_a_chunk_is_its_part_of_the_segment():
    wiring = Wiring(T=7, B=17, M=8, N=6)
    whole, parts = wiring.lanes(7, 6), wiring.lanes(7, 6)
    wiring.forward(whole, 0, 7)
    for first, last in ((0, 3), (3, 4), (4, 7)):
        wiring.forward(parts[first:last], first, last)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("T, B, first_delay, delays", [(1, 1, 0, 1), (4, 2, 0, 3), (3, 17, 2, 2), (4, 2, 3, 4)])
def test_gradient(T, B, first_delay, delays):
    wiring = Wiring(T, B, M=5, N=4, first_delay=first_delay, delays=delays)
    d_current = single(np.random.default_rng(2).normal(0, 1, (T, B, 4)))
    inputs = {"s": wiring.s, "weight": wiring.weight}
    expected = {name: gradient(lambda changed: np.sum(d_current * wiring.current(changed)), inputs, name) for name in inputs}

    rows = HISTORY + T
    ds, d_weight = wiring.lanes(rows, 5, fill=0.5), np.full_like(wiring.weight, 0.25)
    wiring.backward(ds, d_weight, d_current)
    np.testing.assert_allclose(d_weight - 0.25, expected["weight"], rtol=1e-4, atol=1e-5)
    listed = wiring.listed()
    np.testing.assert_allclose(ds[listed] - 0.5, lane_order(expected["s"])[listed], rtol=1e-4, atol=1e-5)
    assert (ds[~listed] == 0.5).all()  # nobody asked for the gradient of the others
    assert 0 < listed.mean() < 1


def test_gradient_in_chunks_is_that_of_the_segment():
    wiring = Wiring(T=7, B=17, M=8, N=6)
    d_current = single(np.random.default_rng(3).normal(0, 1, (7, 17, 6)))
    whole, parts = wiring.lanes(HISTORY + 7, 8), wiring.lanes(HISTORY + 7, 8)
    d_whole, d_parts = np.zeros((2, wiring.weight.size), np.float32)
    wiring.backward(whole, d_whole, d_current)
    for first, last in ((10, 13), (6, 10), (4, 6), (0, 4)):
        wiring.backward(parts[first:last], d_parts, d_current, first_row=first)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_allclose(d_parts, d_whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tasks", [2, 3, 7, 8, 50])
def test_no_bit_depends_on_the_number_of_tasks(tasks):
    wiring = Wiring(T=5, B=33, M=40, N=30, fan_in=9)
    d_current = single(np.random.default_rng(4).normal(0, 1, (5, 33, 30)))
    results = []
    for shared_by in (1, tasks):
        ds, d_weight = wiring.lanes(HISTORY + 5, 40), np.zeros_like(wiring.weight)
        wiring.backward(ds, d_weight, d_current, tasks=shared_by)
        results.append((ds, d_weight))
    for alone, shared in zip(*results, strict=True):
        np.testing.assert_array_equal(shared, alone)


def test_silence_costs_and_changes_nothing():
    wiring = Wiring(T=3, B=17, M=8, N=6)
    wiring.s[:], wiring.near[:], wiring.weight[:] = 0, False, np.nan
    current, ds, d_weight = wiring.lanes(3, 6, fill=0.5), wiring.lanes(HISTORY + 3, 8, fill=0.5), np.full_like(wiring.weight, 0.5)
    wiring.forward(current, 0, 3)
    wiring.backward(ds, d_weight, np.full((3, 17, 6), np.nan))
    for touched in (current, ds, d_weight):
        assert (touched == 0.5).all()


@pytest.mark.parametrize("silent", [0, 3, 7])
def test_synapses_of_a_silent_source_are_not_looked_at(silent):
    wiring = Wiring(T=4, B=17, M=8, N=6)
    wiring.s[:, :, silent], wiring.near[:, :, silent] = 0, False
    results = []
    for weight in (wiring.weight, np.where(sources(wiring) == silent, np.float32(np.nan), wiring.weight)):
        wiring.weight = weight
        current, ds, d_weight = wiring.lanes(4, 6), wiring.lanes(HISTORY + 4, 8), np.zeros_like(weight)
        wiring.forward(current, 0, 4)
        wiring.backward(ds, d_weight, np.ones((4, 17, 6)))
        results.append((current, ds, d_weight))
    assert np.isnan(wiring.weight).any()
    for one, with_nan in zip(*results, strict=True):
        np.testing.assert_array_equal(one, with_nan)


def sources(wiring):
    """The source of every synapse."""
    return np.repeat(np.arange(wiring.delays * wiring.M) % wiring.M, np.diff(wiring.row_start))


@pytest.mark.parametrize("spoken", range(-HISTORY, 4))
def test_one_event_arrives_after_its_delays_and_not_beyond_the_segment(spoken):
    wiring = Wiring(T=4, B=1, M=1, N=1, first_delay=2, delays=3, fan_in=3)  # one synapse for each delay of 2, 3 and 4 tokens
    wiring.weight[:] = 1, 10, 100
    wiring.s[:], wiring.near[:] = 0, False
    wiring.s[HISTORY + spoken] = 2
    arriving = {spoken + delay: weight for delay, weight in zip((2, 3, 4), (1, 10, 100), strict=True) if 0 <= spoken + delay < 4}

    current = wiring.lanes(4, 1)
    wiring.forward(current, 0, 4)
    assert current[:, 0, 0, 0].tolist() == [2 * arriving.get(t, 0) for t in range(4)]

    ds, d_weight, d_current = wiring.lanes(HISTORY + 4, 1), np.zeros(3, np.float32), np.arange(1, 5).reshape(4, 1, 1)
    wiring.backward(ds, d_weight, d_current)
    assert ds[HISTORY + spoken, 0, 0, 0] == sum(weight * (t + 1) for t, weight in arriving.items())
    assert d_weight.tolist() == [2 * (spoken + delay + 1) if spoken + delay in arriving else 0 for delay in (2, 3, 4)]


@given(st.lists(st.integers(0, 20)), st.integers(0, 21))
def test_binary_search(values, bound):
    ascending = np.array(sorted(values), np.uint16)
    assert first_not_below(ascending, bound) == np.searchsorted(ascending, bound)
