import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import single
from neurogen_numba.kernels.rng import key as rng_key
from neurogen_numba.kernels.rng import uniform


def check(op, C, B, E, V, seed, tokens=None):
    rng = np.random.default_rng(seed)
    weight, tokens = single(rng.normal(0, 1, (V, E))), rng.integers(0, V, (C, B)) if tokens is None else tokens
    tokens, x = tokens.astype(np.int32), np.full((C, B, E), np.nan, np.float32)
    op("embedding_forward", x, weight, tokens)
    np.testing.assert_array_equal(x, ref.embedding(tokens, weight))

    before, dx = single(rng.normal(0, 1, (V, E))), single(rng.normal(0, 1, (C, B, E)))
    d_weight, expected = before.copy(), before.astype(np.float64)
    op("embedding_backward", d_weight, dx, tokens)
    np.add.at(expected, tokens, dx.astype(np.float64))
    np.testing.assert_allclose(d_weight, expected, rtol=1e-5, atol=1e-4)
    again = before.copy()
    op("embedding_backward", again, dx, tokens)
    np.testing.assert_array_equal(again, d_weight)
    unseen = np.setdiff1d(np.arange(V), tokens)
    np.testing.assert_array_equal(d_weight[unseen], before[unseen])


@given(st.integers(1, 4), st.sampled_from([1, 2, 7]), st.integers(1, 20), st.integers(0, 99))
def test_rows_in_and_gradients_back(op, C, B, E, seed):
    check(op, C, B, E, 5, seed)  # few tokens, so that they repeat


@pytest.mark.parametrize("tokens", [np.zeros((7, 3)), np.arange(21).reshape(7, 3), np.arange(21)[::-1].reshape(7, 3) // 2])
def test_all_the_same_and_all_different(op, tokens):
    check(op, 7, 3, 3, 21, 1, tokens)


@pytest.mark.parametrize("C, B, E, V", [(64, 32, 512, 65), (64, 64, 300, 50257), (2, 300, 130, 3)])
def test_as_many_as_in_training(op, full_size, C, B, E, V):
    check(op, C, B, E, V, V)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_word_is_dropped_wherever_it_stands(op, rate):
    rng = np.random.default_rng(3)
    x, tokens, key = single(rng.normal(0, 1, (5, 3, 70))), rng.integers(0, 6, (5, 3)).astype(np.int32), np.array([rng_key(7)], np.uint64)
    before = x.copy()
    op("scale_words", x, tokens, 2.5, np.float32(rate), key)
    with np.errstate(over="ignore"):  # random bits wrap around
        kept = np.array([uniform(key[0], np.uint64(token)) >= np.float32(rate) for token in range(6)])
    assert rate == 0 or 0 < kept.sum() < 6
    np.testing.assert_allclose(x, before * 2.5 * kept[tokens][..., None] / (1 - rate), rtol=1e-6)
