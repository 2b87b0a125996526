import math

import numba
import numpy as np

from gradients import single
from neurogen_numba.kernels.exponential import exp


@numba.njit
def exponentials(x):
    result = np.empty_like(x)
    for i in range(x.size):
        result[i] = exp(x[i])
    return result


def test_at_most_1_1_units_in_the_last_place_off():
    x = single(np.concatenate([np.linspace(-87.3, 88.7, 200_001), np.linspace(-1, 1, 100_001)]))
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(exponentials(x) - exact) <= 1.1 * np.spacing(single(exact))).all()


def test_beyond_what_float32_holds():
    x = single([-np.inf, -1e30, -104, -100, -88, 88.7, 89, 1e30, np.inf])
    with np.errstate(over="ignore"):
        expected = np.exp(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(exponentials(x), expected, rtol=1e-6, atol=1.5e-45)
    assert np.isnan(exponentials(single([np.nan])))


def test_of_python_and_of_float64_it_is_the_mathematical_one():
    assert exp(0.3) == math.exp(0.3) == exponentials(np.array([0.3]))[0]
