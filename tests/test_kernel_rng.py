import numba
import numpy as np
import pytest

from neurogen_numba.kernels.rng import key, mix, uniform

KEY = key(1, 2, 3)


def draws(which, first, count):
    return uniform(which, np.arange(first, first + count, dtype=np.uint64))


def test_the_numbers_are_those_of_splitmix64():
    # The sequence that implementations of SplitMix64 are commonly checked with: seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert mix(np.uint64(1234567), np.arange(5, dtype=np.uint64)).tolist() == published


def test_keys_and_numbers_stay_what_they_were():
    # A saved run that goes on must draw what it would have drawn.
    assert int(KEY) == 2869315087210772132
    np.testing.assert_array_equal(draws(KEY, 0, 4) * 2**24, [7678858, 7731042, 7542427, 9735719])


def test_compiled_code_draws_the_same():
    compiled = numba.njit(uniform)
    assert [compiled(KEY, np.uint64(index)) for index in range(50)] == draws(KEY, 0, 50).tolist()


def test_numbers_fill_the_unit_interval_evenly():
    u = draws(KEY, 0, 100_000)
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    counts = np.bincount((u * 64).astype(int), minlength=64)
    expected = len(u) / 64
    assert np.sum((counts - expected) ** 2 / expected) < 63 + 5 * np.sqrt(2 * 63)  # chi-square, five standard deviations


def test_the_largest_number_is_below_one():
    # Backwards through the mixing function, from 64 ones to the place that they are drawn at.
    def unmultiplied(x, factor):
        return x * pow(factor, -1, 2**64) % 2**64

    x = 2**64 - 1
    x = unmultiplied(x ^ x >> 31 ^ x >> 62, 0x94D049BB133111EB)
    x = unmultiplied(x ^ x >> 27 ^ x >> 54, 0xBF58476D1CE4E5B9)
    x = x ^ x >> 30 ^ x >> 60
    index = np.array([unmultiplied(x - int(KEY), 0x9E3779B97F4A7C15) - 1], np.uint64)
    assert mix(KEY, index) == 2**64 - 1
    assert uniform(KEY, index) == np.nextafter(np.float32(1), np.float32(0))


@pytest.mark.parametrize("other, first", [(KEY, 1), (KEY, 2**40), (key(1, 2, 4), 0), (key(1, 3, 2), 0), (key(2, 2, 3), 0)])
def test_other_places_and_other_keys_know_nothing_of_each_other(other, first):
    correlation = np.corrcoef(draws(KEY, 0, 10_000), draws(other, first, 10_000))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(10_000)


def test_every_word_of_a_key_counts_and_so_does_their_order():
    keys = [key(0), key(0, 0), key(1), key(1, 0), key(0, 1), key(1, 2, 3), key(3, 2, 1), key(2**32)]
    assert len(set(keys)) == len(keys)
    assert all(isinstance(one, np.uint64) for one in keys)
