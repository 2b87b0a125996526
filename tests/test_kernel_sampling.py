import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import single
from neurogen_numba.kernels.rng import key
from neurogen_numba.kernels.sampling import sample_cpu

KEY = key(6, 7)
LOGITS = single([0.5, 2, -1, 2, 1.2, -3, 0])  # the two 2s are a tie


def sampled(logits, temperature=1.0, top_k=0, top_p=1.0, key=KEY, step=0):
    tokens = np.full(len(logits), -1, np.int32)
    sample_cpu(tokens, single(logits), np.float32(temperature), np.int64(top_k), np.float32(top_p), key, np.uint64(step))
    return tokens


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
@pytest.mark.parametrize("top_k, top_p", [(0, 1), (1, 1), (3, 1), (100, 1), (0, 1e-6), (0, 0.5), (0, 0.85), (3, 0.8)])
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature, top_k, top_p):
    rows, steps = 400, 50
    expected = rows * steps * ref.sample_distribution(LOGITS, temperature, top_k, top_p)
    drawn = [sampled(np.tile(LOGITS, (rows, 1)), temperature, top_k, top_p, step=step) for step in range(steps)]
    counts = np.bincount(np.concatenate(drawn), minlength=len(LOGITS))
    possible = expected > 0
    assert not counts[~possible].any()
    freedom = possible.sum() - 1
    chi_square = np.sum((counts - expected)[possible] ** 2 / expected[possible])
    assert chi_square <= freedom + 5 * np.sqrt(2 * freedom)


@given(st.integers(1, 40), st.sampled_from([1, 15, 17]), st.floats(0.125, 4), st.integers(0, 9), st.floats(0.125, 1), st.integers(0, 999))
def test_nothing_impossible_is_drawn(V, B, temperature, top_k, top_p, seed):
    logits = single(np.random.default_rng(seed).normal(0, 2, (B, V)))
    tokens = sampled(logits, temperature, top_k, top_p)
    for token, row in zip(tokens, logits, strict=True):
        # A share of top_p that is met exactly may go either way in float32.
        assert ref.sample_distribution(row, temperature, top_k, min(1, top_p + 1e-5))[token] > 0


def test_temperature_zero_takes_the_first_of_the_most_probable():
    logits = np.stack([LOGITS, LOGITS[::-1], -LOGITS, np.zeros(7)])
    assert sampled(logits, temperature=0).tolist() == [np.argmax(ref.sample_distribution(row, 0)) for row in logits] == [1, 3, 5, 0]


def test_large_logits_and_a_small_temperature_do_not_overflow():
    assert sampled([[1e4, 0, -1e4], [-1e30, 0, 1e30]], temperature=0.01).tolist() == [0, 2]


def test_a_draw_depends_on_its_key_step_and_sequence_alone():
    logits = np.tile(LOGITS, (17, 1))
    tokens = sampled(logits)
    np.testing.assert_array_equal(sampled(logits), tokens)
    changed = logits.copy()
    changed[3] = -LOGITS
    np.testing.assert_array_equal(np.delete(sampled(changed), 3), np.delete(tokens, 3))
    for other in (sampled(logits, step=1), sampled(logits, key=key(6, 8)), np.roll(tokens, 1)):
        assert (other != tokens).any()


def test_logits_are_left_alone():
    logits = np.tile(LOGITS, (2, 1))
    tokens = np.zeros(2, np.int32)
    sample_cpu(tokens, logits, np.float32(0.5), np.int64(3), np.float32(0.9), KEY, np.uint64(0))
    np.testing.assert_array_equal(logits, np.tile(LOGITS, (2, 1)))
