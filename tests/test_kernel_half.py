import numpy as np
import pytest

from gradients import single
from neurogen_numba.kernels.half import from_bfloat16, load, store, to_bfloat16


def numbers():
    """Floats of all sizes, and those at and around the middle between two bfloat16."""
    bits = np.random.default_rng(1).integers(0, 2**32, 3000, dtype=np.uint32)
    bits[:1000] = (bits[:1000] & 0xFFFF0000) | 0x8000
    bits[1000:1500] = (bits[1000:1500] & 0xFFFF0000) | 0x7FFF
    return np.append(bits.view(np.float32), single([0, -0.0, np.inf, -np.inf, 1, 3.4028235e38]))


def test_bfloat16_as_bits():
    dtype = pytest.importorskip("ml_dtypes").bfloat16
    x = numbers()
    x = x[~np.isnan(x)]
    ours = np.array([to_bfloat16(value) for value in x], np.uint16)
    np.testing.assert_array_equal(ours, x.astype(dtype).view(np.uint16))
    np.testing.assert_array_equal([from_bfloat16(bits) for bits in ours], x.astype(dtype).astype(np.float32))
    for bits in (0x7F800001, 0xFFFFFFFF, 0x7FC00000):  # NaN, and not infinity or 0 by rounding
        assert np.isnan(from_bfloat16(to_bfloat16(np.uint32(bits).view(np.float32))))


@pytest.mark.parametrize("kind, step", [("float32", 0), ("float16", 2.0**-11), ("uint16", 2.0**-8)])
def test_every_kind_of_float_is_stored_and_loaded(kind, step):
    x, value = np.zeros((2, 3), kind), np.float32(1.2345)
    store(x, 1, 2, value)
    kept = load(x, 1, 2)
    assert kept.dtype == np.float32 and abs(kept / value - 1) <= step
    assert np.count_nonzero(x) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (2, 4101)])
def test_numbers_are_rounded_to_the_nearest(kind, shape):
    from neurogen_numba import backends

    ml_dtypes = pytest.importorskip("ml_dtypes")
    backend, x = backends.get("cuda", 0, "fp32"), single(np.random.default_rng(shape[1]).normal(0, 2, shape))
    out = backend.zeros(shape, kind)
    backend.assign(out, backend.asarray(x))
    expected = x.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind).astype(np.float32)
    np.testing.assert_array_equal(backend.to_numpy(out).astype(np.float32), expected)
