import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import single
from neurogen_numba.kernels.embedding import embedding_backward_cpu, embedding_forward_cpu

V = 5  # few, so that tokens repeat


@given(st.integers(1, 4), st.sampled_from([1, 2, 17]), st.integers(1, 20), st.integers(0, 99))
def test_rows_in_and_gradients_back(C, B, E, seed):
    rng = np.random.default_rng(seed)
    weight, tokens = single(rng.normal(0, 1, (V, E))), rng.integers(0, V, (C, B)).astype(np.int32)
    x = np.full((C, B, E), np.nan, np.float32)
    embedding_forward_cpu(x, weight, tokens)
    np.testing.assert_array_equal(x, ref.embedding(tokens, weight))

    before, dx = single(rng.normal(0, 1, (V, E))), single(rng.normal(0, 1, (C, B, E)))
    d_weight = before.copy()
    embedding_backward_cpu(d_weight, dx, tokens)
    chosen = np.eye(V)[tokens]  # [C, B, V]: a row is a product with it, and the way back one with its transpose
    np.testing.assert_allclose(d_weight, before + np.einsum("cbv,cbe->ve", chosen, dx), rtol=1e-5, atol=1e-5)
    unseen = np.setdiff1d(np.arange(V), tokens)
    np.testing.assert_array_equal(d_weight[unseen], before[unseen])
