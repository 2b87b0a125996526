import numpy as np
import pytest

from gradients import single
from neurogen_numba.kernels.reduce import BLOCK


@pytest.mark.parametrize("size", [1, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_every_block_adds_up_its_own(op, size):
    x = single(np.random.default_rng(size).normal(0, 2, size))
    partial = np.full(-(-size // BLOCK), np.nan)
    op("sum_of_squares", partial, x)
    expected = [np.sum(x[first : first + BLOCK].astype(np.float64) ** 2) for first in range(0, size, BLOCK)]
    np.testing.assert_allclose(partial, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_number_breaks_the_norm(op, value):
    x, partial, norm = np.ones(BLOCK + 9, np.float32), np.zeros(2), np.zeros(1, np.float32)
    x[-3] = value
    op("sum_of_squares", partial, x)
    assert partial[0] == BLOCK
    assert not np.isfinite(partial[1])
    op("norm", norm, partial)
    assert not np.isfinite(norm[0])  # an update is refused by this


@pytest.mark.parametrize("size", [1, 2, 31, 33, 130, 2500])
def test_norm(op, size):
    partial, norm = np.random.default_rng(size).uniform(0, 1e6, size), np.full(1, np.nan, np.float32)
    op("norm", norm, partial)
    np.testing.assert_allclose(norm, [np.sqrt(partial.sum())], rtol=1e-6)


def test_a_sum_as_large_as_a_float32_holds_no_more(op):
    norm = np.zeros(1, np.float32)
    op("norm", norm, np.full(9, 1e60))
    np.testing.assert_allclose(norm, [3e30], rtol=1e-6)


@pytest.mark.parametrize("R, N", [(1, 1), (2, 9), (3, 8), (15, 5), (17, 3), (130, 2), (17, 70)])
def test_rows_are_added(op, R, N):
    rng = np.random.default_rng(R * N)
    x, total = single(rng.normal(0, 2, (R, N))), single(rng.normal(0, 2, N))
    expected = total + x.sum(0, dtype=np.float64)
    op("add_rows", total, x)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("R, N", [(2048, 50257), (4096, 8), (1000, 513), (129, 8200)])
def test_as_many_rows_as_in_training(op, full_size, R, N):
    x, total = np.random.default_rng(N).standard_normal((R, N), np.float32), np.zeros(N, np.float32)
    op("add_rows", total, x)
    np.testing.assert_allclose(total, x.sum(0, dtype=np.float64), rtol=1e-4, atol=1e-3)
    again = np.zeros(N, np.float32)
    op("add_rows", again, x)
    np.testing.assert_array_equal(again, total)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_rows_of_every_kind_spaced_out(backend, kind):
    if backend.name == "cpu" and kind != "float32":
        pytest.skip("products on the CPU are float32")
    if kind == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x, total = backend.matrix(150, 6, kind), backend.asarray(single([1, 2, 3, 4, 5, 6]))
    x[...] = backend.asarray(single(np.random.default_rng(3).normal(0, 2, (150, 6))))
    expected = np.arange(1, 7) + backend.to_numpy(x).astype(np.float64).sum(0)
    backend.add_rows(total, x)
    np.testing.assert_allclose(backend.to_numpy(total), expected, rtol=1e-5, atol=1e-5)
