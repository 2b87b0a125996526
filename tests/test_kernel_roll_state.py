import numpy as np
import pytest


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_row_of_the_last_token_comes_before_the_first(op, length):
    """Three arrays [T + 1, numbers of a row] one after the other, all different; what lies behind the last one is nobody's."""
    tokens, sizes = 3, [1, 5, 2000]
    ends = np.cumsum([(tokens + 1) * size for size in sizes])
    table = np.array([[end - (tokens + 1) * size, size] for end, size in zip(ends, sizes, strict=True)])
    x = np.arange(ends[-1] + 10, dtype=np.float32)
    expected = x.copy()
    for begin, size in table:
        expected[begin : begin + size] = x[begin + length * size : begin + (length + 1) * size]
    op("roll_state", x, table, length)
    np.testing.assert_array_equal(x, expected)
