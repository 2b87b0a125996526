"""What the CUDA backend asks of CuPy's streams, told to stand-ins: it works without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

from neurogen_numba.backends import cuda
from neurogen_numba.cli import command
from neurogen_numba.errors import OutOfMemory

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


def full(*_):
    raise MemoryError("Out of memory allocating 4,096 bytes")


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda backend: backend.zeros((2**18, 1024)), r"decoder, an array \[262144, 1024\] float32 needs 1.00 GiB"),
        (lambda backend: backend.asarray(np.ones(2**27, np.int8)), r"decoder, an array \[134217728\] int8 needs 0.12 GiB"),
        (lambda backend: backend._scratch("tops", 2**28), r"decoder, workspace, tops, an array \[268435456\] float32 needs 1.00 GiB"),
    ],
)
def test_an_array_without_room_is_named(backend, make, what, monkeypatch):
    backend._xp, backend._kept, backend._current.ptr = SimpleNamespace(zeros=full, array=full), {}, 5
    monkeypatch.setattr(backend, "memory", lambda: (2**28, 2**30))
    words = f"^out of GPU memory: activity, {what}, 0.25 of 1.00 GiB are free$"
    with pytest.raises(OutOfMemory, match=words), backend.part("activity"), backend.part("decoder"):
        make(backend)
    assert backend.parts == ()


@pytest.mark.parametrize(
    "name, advice",
    [
        ("train", "lower --batch-size or --seq-length, or take a smaller --preset"),
        ("sim", "lower --batch-size, or take a smaller --preset"),
        ("chat", "take a smaller model"),
    ],
)
def test_the_advice_names_flags_that_the_command_has(name, advice, capsys):
    @command(name)
    def body(argv=None):
        raise OutOfMemory("out of GPU memory: of everything")

    assert body([]) == 2
    assert capsys.readouterr().err == f"neurogen {name}: out of GPU memory: of everything; {advice}\n"
