import numpy as np
import pytest

from gradients import single
from neurogen_numba import backends
from neurogen_numba.kernels.half import from_bfloat16, to_bfloat16


@pytest.mark.parametrize("R, V, K", [(1, 1, 4), (1, 37, 140), (3, 8, 5)])
def test_rows_times_a_matrix_and_a_bias(op, R, V, K):
    rng, out = np.random.default_rng(V * K), np.zeros((R, V), np.float32)
    x, weight, bias = (single(rng.normal(0, 1, shape)) for shape in ((R, K), (V, K), V))
    op("affine", out, x, weight, bias)
    np.testing.assert_allclose(out, x.astype(float) @ weight.T.astype(float) + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("V, K", [(1, 4), (3, 8), (37, 256), (9, 140), (70, 12), (5, 1100)])
def test_one_row_times_a_matrix_of_short_numbers(V, K):
    from neurogen_numba.kernels import affine

    rng, backend = np.random.default_rng(V * K), backends.get("cuda", 0, "fp32")
    x, bias, drawn = (single(rng.normal(0, 1, shape)) for shape in ((1, K), V, (V, K)))
    weight = np.vectorize(to_bfloat16, otypes=[np.uint16])(drawn)
    out, there = backend.zeros((1, V + 3)), [backend.asarray(array) for array in (x, weight.view(np.uint64), bias)]
    backend.launch(affine.affine_of_one, 2, affine.THREADS, out, *there, shared=4 * K)
    exact = np.vectorize(from_bfloat16, otypes=[np.float64])(weight)
    np.testing.assert_allclose(backend.to_numpy(out)[:, :V], x @ exact.T + bias, rtol=1e-5, atol=1e-5 * np.sqrt(K))
    assert not backend.to_numpy(out)[:, V:].any()
