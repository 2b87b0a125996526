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


class Capturing:
    """A stream that captures: what a step asks of `queue` meanwhile is a graph, which does it when it is launched."""

    def __init__(self):
        self.captured, self.done, self.spoilt = None, [], False

    def queue(self, what):
        (self.done if self.captured is None else self.captured).append(what)

    def begin_capture(self):
        assert self.captured is None
        self.captured = []

    def end_capture(self):
        graph, self.captured = self.captured, None
        if self.spoilt:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return SimpleNamespace(launch=lambda stream: stream.done.extend(graph))


@pytest.fixture
def recorded(backend):
    """(the stream, a recorded step that queues "a" and "b", what it raises in between: to be filled in)."""
    stream = backend._cupy_stream = Capturing()
    failures = []

    def step():
        stream.queue("a")
        if failures:
            raise failures.pop()
        stream.queue("b")

    return stream, backend.record(step), failures


def test_a_step_is_run_and_captured_once_and_repeated_from_then_on(recorded):
    stream, run, failures = recorded
    for times in range(1, 5):
        run()
        assert stream.done == times * ["a", "b"]
        if times == 2:
            failures.append(AssertionError("the step was run again"))


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("failure", [ValueError("why"), KeyboardInterrupt()])
def test_of_a_step_that_fails_while_it_is_captured_nothing_is_kept(recorded, failure, spoilt):
    stream, run, failures = recorded
    run()
    failures.append(failure)
    stream.spoilt = spoilt
    with pytest.raises(type(failure)) as raised:
        run()
    assert raised.value is failure
    assert stream.captured is None and stream.done == ["a", "b"]
    stream.spoilt = False
    run()
    run()
    assert stream.done == 3 * ["a", "b"]


def test_a_capture_that_cannot_be_ended_is_not_kept(recorded):
    stream, run, _ = recorded
    run()
    stream.spoilt = True
    with pytest.raises(RuntimeError, match="Invalidated"):
        run()
    stream.spoilt = False
    run()
    assert stream.done == 2 * ["a", "b"]
