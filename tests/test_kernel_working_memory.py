from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from conftest import NO_AXON
from gradients import gradient, single


def draw(C, B, M, seed=1):
    rng = np.random.default_rng(seed)
    shapes = {"f_in": (C, B, M), "u_in": (C, B, M), "retain": (M,), "m0": (B, M)}
    return {name: single(rng.normal(0, 1.5, shape)) for name, shape in shapes.items()}


def remember(op, f_in, u_in, retain, m0):
    """m [C+1, B, M], its first row m0."""
    m = np.full((len(f_in) + 1, *m0.shape), np.nan, np.float32)
    m[0] = m0
    op("working_memory_forward", m, f_in, u_in, retain, NO_AXON, 0)
    return m


def loss_of(to_m, to_last):
    """A loss that reads m at every token, and once more what is left at the end."""

    def loss(inputs):
        m = ref.working_memory(**inputs)
        return np.sum(to_m * m) + np.sum(to_last * m[-1])

    return loss


def test_slots_are_written_into_the_ring(op, written):
    C, B, M = 4, 3, 70
    inputs, m = draw(C, B, M), np.full((C + 1, B, M), np.nan, np.float32)
    m[0] = inputs["m0"]
    ring = written(C, B, M, partial(op, "working_memory_forward", m, inputs["f_in"], inputs["u_in"], inputs["retain"]))
    np.testing.assert_array_equal(ring[:C, :, :M], m[1:])
    assert np.isfinite(m).all() and not ring[C:].any() and not ring[:, :, M:].any()


@given(st.integers(1, 5), st.sampled_from([1, 2, 17]), st.integers(1, 20), st.integers(0, 99))
def test_forward(op, C, B, M, seed):
    check_forward(op, draw(C, B, M, seed))


def test_forward_of_many_slots(op):
    check_forward(op, draw(2, 2, 300))


def check_forward(op, inputs):
    m = remember(op, **inputs)
    np.testing.assert_array_equal(m[0], inputs["m0"])
    np.testing.assert_allclose(m[1:], ref.working_memory(**inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("C, B, M", [(1, 2, 3), (5, 2, 3), (2, 1, 40)])
def test_gradient(op, C, B, M):
    inputs = draw(C, B, M)
    to_m, to_last = np.random.default_rng(2).normal(0, 1, (C, B, M)), np.random.default_rng(3).normal(0, 1, (B, M))
    expected = {name: gradient(loss_of(to_m, to_last), inputs, name) for name in inputs}
    df_in, du_in = np.full((2, C, B, M), np.nan, np.float32)
    carry = single(to_last)
    m = remember(op, **inputs)
    op("working_memory_backward", df_in, du_in, carry, single(to_m), m, inputs["f_in"], inputs["u_in"], inputs["retain"])
    for ours, name in ((df_in, "f_in"), (du_in, "u_in"), (df_in.sum((0, 1)), "retain"), (carry, "m0")):
        np.testing.assert_allclose(ours, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_two_chunks_are_one(op):
    inputs = draw(7, 3, 5)
    f_in, u_in, retain, m0 = inputs.values()
    whole = remember(op, **inputs)
    first = remember(op, f_in[:3], u_in[:3], retain, m0)
    second = remember(op, f_in[3:], u_in[3:], retain, first[-1])
    np.testing.assert_allclose(np.concatenate([first, second[1:]]), whole, rtol=1e-6)

    dm = single(np.random.default_rng(4).normal(0, 1, (7, 3, 5)))
    once, twice = ({"df": np.empty_like(dm), "du": np.empty_like(dm), "carry": np.ones_like(m0)} for _ in range(2))
    op("working_memory_backward", once["df"], once["du"], once["carry"], dm, whole, f_in, u_in, retain)
    for part, m in ((slice(3, 7), second), (slice(0, 3), first)):
        outputs = twice["df"][part], twice["du"][part], twice["carry"]
        op("working_memory_backward", *outputs, dm[part], m, f_in[part], u_in[part], retain)
    for name, values in once.items():
        np.testing.assert_allclose(twice[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
