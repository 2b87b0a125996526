import numpy as np
import pytest

from gradients import single
from neurogen_numba.kernels.reduce import BLOCK, sum_of_squares_cpu


@pytest.mark.parametrize("size", [1, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_every_block_adds_up_its_own(size):
    x = single(np.random.default_rng(size).normal(0, 2, size))
    partial = np.full(-(-size // BLOCK), np.nan)
    sum_of_squares_cpu(partial, x)
    expected = [np.sum(x[first : first + BLOCK].astype(np.float64) ** 2) for first in range(0, size, BLOCK)]
    np.testing.assert_allclose(partial, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_number_breaks_the_sum(value):
    x, partial = np.ones(BLOCK + 9, np.float32), np.zeros(2)
    x[-3] = value
    sum_of_squares_cpu(partial, x)
    assert partial[0] == BLOCK
    assert not np.isfinite(partial[1])  # an update is refused by this
