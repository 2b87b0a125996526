import numpy as np
import pytest

from gradients import single


@pytest.mark.parametrize("R, N", [(1, 1), (15, 7), (16, 8), (17, 300), (40, 3)])
def test_every_row_gets_the_bias(op, R, N):
    rng = np.random.default_rng(R * N)
    x, bias = single(rng.normal(0, 2, (R, N))), single(rng.normal(0, 2, N))
    expected = x + bias
    op("add_bias", x, bias)
    np.testing.assert_array_equal(x, expected)
