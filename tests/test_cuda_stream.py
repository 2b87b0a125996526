"""What the CUDA backend asks of CuPy's streams, told to stand-ins: it works without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

from neurogen_numba.backends import cuda

pytestmark = pytest.mark.skipif(cuda.SIMULATED, reason="the simulator has no streams")


@pytest.fixture
def asked():
    return []


@pytest.fixture
def backend(asked):
    def noting(name, answer=None):
        return lambda *_: asked.append(name) or answer

    made = object.__new__(cuda.CudaBackend)
    made._current = made._cupy_stream = SimpleNamespace(use=noting("use"), synchronize=noting("wait"))
    made._xp = SimpleNamespace(array=noting("copy there"), zeros=noting("zeros"), asnumpy=noting("copy back"))
    return made


def test_arrays_are_made_on_the_stream_of_the_kernels(backend, asked):
    backend.asarray(np.ones(3))
    backend.zeros(3)
    assert asked == ["use", "copy there", "use", "zeros"]


def test_nothing_is_read_before_the_kernels_have_written_it(backend, asked):
    backend.to_numpy(np.ones(3))
    assert asked == ["use", "wait", "copy back"]
