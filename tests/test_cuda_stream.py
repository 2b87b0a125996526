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


class Runtime:
    """CUDA's, which has one card that is current."""

    def __init__(self, asked):
        self.card, self.asked = 0, asked

    def getDevice(self):
        return self.card

    def setDevice(self, card):
        self.asked.append(f"card {card}")
        self.card = card


@pytest.fixture
def runtime(asked):
    return Runtime(asked)


def backend_on(card, runtime):
    def noting(name, answer=None):
        return lambda *_: runtime.asked.append(name) or answer

    made = object.__new__(cuda.CudaBackend)
    made._device, made._stream = card, f"stream of {card}"
    made._current = made._cupy_stream = SimpleNamespace(use=noting("use"), synchronize=noting("wait"))
    calls = {"array": noting("copy there"), "zeros": noting("zeros"), "asnumpy": noting("copy back")}
    made._xp = SimpleNamespace(**calls, cuda=SimpleNamespace(runtime=runtime))
    return made


@pytest.fixture
def backend(runtime):
    return backend_on(0, runtime)


def test_arrays_are_made_on_the_stream_of_the_kernels(backend, asked):
    backend.asarray(np.ones(3))
    backend.zeros(3)
    assert asked == ["use", "copy there", "use", "zeros"]


def test_nothing_is_read_before_the_kernels_have_written_it(backend, asked):
    backend.to_numpy(np.ones(3))
    assert asked == ["use", "wait", "copy back"]


def test_each_of_two_cards_is_made_current_before_it_is_used(backend, runtime, asked):
    other, launched = backend_on(1, runtime), []

    class Kernel:
        def __getitem__(self, how):
            return lambda *_: launched.append((runtime.card, how[2]))

    other.zeros(3)
    backend.zeros(3)
    assert asked == ["card 1", "use", "zeros", "card 0", "use", "zeros"]
    for one in (other, other, backend):
        one.launch(Kernel(), 1, 32)
    assert launched == [(1, "stream of 1"), (1, "stream of 1"), (0, "stream of 0")]
    assert asked[6:] == ["card 1", "card 0"]  # nothing is changed that is right


def test_memory_is_asked_of_the_own_card(runtime):
    backend = backend_on(1, runtime)
    free = {0: 7, 1: 2**30}
    runtime.memGetInfo = lambda: (free[runtime.card], 2**31)
    pool = SimpleNamespace(free_bytes=lambda: 5, get_limit=lambda: 0, total_bytes=lambda: runtime.card)
    backend._xp.get_default_memory_pool = lambda: pool
    assert backend.memory() == (2**30 + 5, 2**31) and runtime.card == 1
    runtime.card = 0
    assert backend.memory_used() == 1


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
    backend._xp.zeros = backend._xp.array = full
    backend._kept, backend._current.ptr = {}, 5
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
