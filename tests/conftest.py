"""What every test shares: the `gpu` marker, the settings of Hypothesis and the flag --kills."""

import gc
import os
import sys

import numpy as np
import pytest
from hypothesis import settings

from neurogen_numba.kernels.population import Axon

NO_AXON = object()
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

# Speed is the machine's, not the code's; and what was green once must not turn red by the luck of a draw.
settings.register_profile("neurogen", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("simulated", settings.get_profile("neurogen"), max_examples=10)
settings.load_profile("simulated" if SIMULATED else "neurogen")


if SIMULATED:
    import simulator

    simulator.install()


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=5, help="moments at which test_kill.py kills a run")


def pytest_configure(config):
    # As in an active environment: hints then say `neurogen`.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    # Numba's compiler makes millions of objects that stay. To look for garbage among them takes a tenth of the time.
    gc.set_threshold(100_000, 20, 20)
    if SIMULATED:
        # NumPy warns of integers that wrap around, as random numbers and rings are meant to, and of NaN where a kernel looks for it.
        for what in ("overflow", "invalid value"):
            config.addinivalue_line("filterwarnings", f"ignore:{what} encountered in scalar:RuntimeWarning")


@pytest.fixture(scope="module")
def one_thread():
    """Kernels on one thread: for a brain of a few dozen neurons, waking a second one takes longer than the work, above all on a busy
    machine."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request):
    """Every backend: the CPU, and CUDA where there is a GPU or the simulator."""
    from neurogen_numba import backends

    return backends.get(request.param, 0, "fp32")


@pytest.fixture(scope="session")
def op(backend):
    """`op("lif_forward", ...)` runs an operation of the backend on NumPy arrays, in place: they go to the device and come back.
    No synapse reads the axon NO_AXON."""

    def call(name, *arguments):
        there = [backend.asarray(x) if isinstance(x, np.ndarray) else backend.no_axon if x is NO_AXON else x for x in arguments]
        getattr(backend, name)(*there)
        for original, moved in zip(arguments, there, strict=True):
            if isinstance(original, np.ndarray) and original.flags.writeable:
                original[...] = backend.to_numpy(moved)

    return call


@pytest.fixture
def written(backend):
    """`written(C, B, N, run)`: what `run(axon, first)` has an operation write of a signal of N numbers: its ring [C + 2, B, N or more],
    which begins with the row of the chunk's first token. On a GPU it wraps around."""

    def write(C, B, N, run):
        words, rows, on_cpu, first = -(-N // 64), C + 2, backend.name == "cpu", 3
        rows, start = (4 + rows, 1) if on_cpu else (rows, rows - 1)
        masks = [backend.zeros((words, rows, B), "uint64") for _ in range(2)]
        axon = Axon(backend.zeros((words, rows, B, 64)), backend.asarray(np.array([start], np.int32)), *masks)
        run(axon, first)
        ring = np.moveaxis(backend.to_numpy(axon.ring), 0, 2).reshape(rows, B, -1)
        if on_cpu:
            assert not ring[:4].any()
            return ring[4:]
        return np.roll(ring, -((start + first) % rows), 0)

    return write


@pytest.fixture
def full_size():
    """Skips a test that the simulator would take minutes for."""
    if SIMULATED:
        pytest.skip("too large for the simulator")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        from numba import cuda  # slow to import, and most runs need none of it

        if not cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU"))
