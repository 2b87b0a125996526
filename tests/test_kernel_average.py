import numpy as np
import pytest

from gradients import single


@pytest.mark.parametrize("size", [1, 7, 4096, 5000])
def test_the_average_moves_by_its_share(op, size):
    rng = np.random.default_rng(size)
    mean, p = single(rng.normal(0, 1, size)), single(rng.normal(0, 1, size))
    for share in (1.0, 0.25, 0.0):
        expected = mean + np.float64(np.float32(share)) * (p.astype(np.float64) - mean)
        op("average", mean, p, single([share]))
        np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7)
        if share == 1:
            np.testing.assert_allclose(mean, p, rtol=1e-6, atol=1e-6)
            p = single(rng.normal(0, 1, size))


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_exchange_loses_no_bit(op, size):
    x, y = (single(np.random.default_rng(seed).normal(0, 1, size)) for seed in (1, 2))
    before = x.copy(), y.copy()
    op("exchange", x, y)
    np.testing.assert_array_equal((x, y), before[::-1])
