import numpy as np
import pytest

from gradients import single
from neurogen_numba import backends
from neurogen_numba.kernels.half import from_bfloat16, to_bfloat16

pytestmark = pytest.mark.gpu
rounded = np.vectorize(to_bfloat16, otypes=[np.uint16])
exact = np.vectorize(from_bfloat16, otypes=[np.float32])


@pytest.mark.parametrize("V, K", [(1, 4), (3, 8), (37, 256), (9, 140), (70, 12), (5, 1100)])
def test_a_row_times_a_matrix(V, K):
    rng, backend = np.random.default_rng(V * K), backends.get("cuda", 0, "fp32")
    x, weight = (rounded(single(rng.normal(0, 1, shape))) for shape in ((1, K), (V, K)))
    out = backend.zeros((1, V + 3))
    backend.product_of_one(out[:, :V], backend.asarray(x), backend.asarray(weight))
    expected = exact(x).astype(float) @ exact(weight).astype(float).T
    np.testing.assert_allclose(backend.to_numpy(out)[:, :V], expected, rtol=1e-5, atol=1e-5 * np.sqrt(K))
    assert not backend.to_numpy(out)[:, V:].any()
