"""What the CUDA backend asks of CuPy's streams, told to stand-ins: it works without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from neurogen_numba.backends import cuda
from neurogen_numba.backends.compiling import noted
from neurogen_numba.brain.activity import Activity
from neurogen_numba.brain.model import NeuroGenModel
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


def test_where_no_memory_can_be_locked_copies_come_all_the_same(backend, runtime, monkeypatch):
    class Refused(Exception):
        pass

    rooms, locked = [], [np.zeros(3)]

    def lock(shape, dtype):
        if locked:
            return locked.pop()
        raise Refused

    cupyx = pytest.importorskip("cupyx")
    monkeypatch.setattr(cupyx, "empty_pinned", lock)
    runtime.CUDARuntimeError, room = Refused, locked[0]
    backend._xp.asnumpy = lambda array, out: rooms.append(out)
    backend.fetch(np.ones(3))
    backend.fetch(np.ones(3))
    assert rooms[0] is room and rooms[1] is None


class Capturing:
    """A stream that captures: what a step asks of `queue` meanwhile is a graph, which does it when it is launched."""

    def __init__(self):
        self.captured, self.done, self.broken = None, [], False

    def queue(self, what):
        if noted():  # the step's launches are noted before it runs: its kernels are compiled
            return
        (self.done if self.captured is None else self.captured).append(what)

    def begin_capture(self):
        assert self.captured is None
        self.captured = []

    def end_capture(self):
        graph, self.captured = self.captured, None
        if self.broken:
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


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("failure", [ValueError("why"), KeyboardInterrupt()])
def test_of_a_step_that_fails_while_it_is_captured_nothing_is_kept(recorded, failure, broken):
    stream, run, failures = recorded
    run()
    failures.append(failure)
    stream.broken = broken
    with pytest.raises(type(failure)) as raised:
        run()
    assert raised.value is failure
    assert stream.captured is None and stream.done == ["a", "b"]
    stream.broken = False
    run()
    run()
    assert stream.done == 3 * ["a", "b"]


def test_a_capture_that_cannot_be_ended_is_not_kept(recorded):
    stream, run, _ = recorded
    run()
    stream.broken = True
    with pytest.raises(RuntimeError, match="Invalidated"):
        run()
    stream.broken = False
    run()
    assert stream.done == 2 * ["a", "b"]


# The order of work where modules overlap


class Stream:
    """`before`: all that is done before whatever this stream is asked for next. The work itself is done in the order of the calls."""

    def __init__(self, non_blocking=True):
        self.before = set()

    def wait_event(self, event):
        self.before |= event.before


class Event:
    def __init__(self, disable_timing):
        self.before = set()

    def record(self, stream):
        self.before = set(stream.before)


class Overlapping:
    """A brain of three chunks, the last one short, on the CPU, whose components are told where they are on their streams.

    done: (component, chunk, what was before it) in the order of the calls.
    """

    def __init__(self, monkeypatch, feedback_chunks):
        config = tiny.config(brain={"vocabulary": 9, "feedback_chunks": feedback_chunks, "fan_in": 16})
        self.brain = brain = NeuroGenModel.from_config(config, backend="cpu").brain
        self.chunk, self.tokens = brain.config.chunk, 2 * brain.config.chunk + 3
        self.chunks = range(3)
        self.streams = streams = object.__new__(cuda.CudaBackend)
        streams._streams, streams._cupy_stream = {}, Stream()
        streams._xp = SimpleNamespace(cuda=SimpleNamespace(Stream=Stream, Event=Event))
        streams._go_to = lambda stream: setattr(streams, "_current", stream)
        monkeypatch.setattr(brain.backend, "streams", streams.streams)
        self.main, self.done = streams._cupy_stream, []
        for component in brain.components:
            for way in ("forward", "backward"):
                monkeypatch.setattr(component, way, self.noting(component, getattr(component, way)))
        self.main.before.add("the beginning")
        self.act = Activity(brain, self.tokens, 1, learning=True)
        self.act.load_tokens(np.arange(self.tokens, dtype=np.int32)[:, None] % 9)

    def noting(self, component, work):
        def noted(act, first, last):
            before = self.streams._current.before
            self.done.append((component, first // self.chunk, set(before)))
            work(act, first, last)
            before.add((component, first // self.chunk))

        return noted

    def everything(self):
        return {"the beginning"} | {(component, chunk) for component in self.brain.components for chunk in self.chunks}


@pytest.fixture(params=[1, 2], ids=lambda chunks: f"feedback after {chunks}")
def overlapping(request, monkeypatch):
    return Overlapping(monkeypatch, request.param)


def test_a_reader_comes_after_what_it_reads(overlapping):
    overlapping.brain.forward(overlapping.act)
    names, chunk = {component.stream for component in overlapping.brain.components}, overlapping.chunk
    assert len(overlapping.done) == 3 * len(overlapping.brain.components) and len(names) == 6
    for component, stream_name, before in overlapping.done:
        assert "the beginning" in before
        last = min((stream_name + 1) * chunk, overlapping.tokens) - 1
        for arc in overlapping.brain.arcs:
            for source in overlapping.brain.components:
                if arc.target in component.inputs and arc.source in source.outputs:
                    for read in range(max(0, (last - arc.first_delay) // chunk + 1)):
                        assert (source, read) in before, arc.name
    assert overlapping.main.before == overlapping.everything()
    assert any(
        (component, stream_name) not in before
        for component, stream_name, _ in overlapping.done
        for _, later, before in overlapping.done
        if later > stream_name
    )


def test_a_source_gradient_comes_after_the_current_gradients_that_it_sums(overlapping):
    overlapping.brain.forward(overlapping.act)
    overlapping.done.clear()
    overlapping.main.before = {"the beginning"}
    for stream in overlapping.streams._streams.values():
        stream.before.clear()
    overlapping.brain.backward(overlapping.act)
    assert len(overlapping.done) == 3 * len(overlapping.brain.components)
    for component, stream_name, before in overlapping.done:
        assert "the beginning" in before
        for arc in overlapping.brain.arcs:
            for target in overlapping.brain.components:
                if arc.source in component.outputs and arc.target in target.inputs:
                    for late in range((stream_name * overlapping.chunk + arc.first_delay) // overlapping.chunk, 3):
                        assert (target, late) in before, arc.name
    assert overlapping.main.before == overlapping.everything()
    assert any(
        (component, stream_name) not in before
        for component, stream_name, _ in overlapping.done
        for _, later, before in overlapping.done
        if later < stream_name
    )


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_later_feedback_the_further_ahead_the_thalamus_may_be(monkeypatch, chunks):
    overlapping = Overlapping(monkeypatch, chunks)
    overlapping.brain.forward(overlapping.act)
    thalamus, pfc = (next(p for p in overlapping.brain.populations if p.name == name) for name in ("thalamus", "pfc"))
    seen = {
        stream_name: {(pfc, chunk) for chunk in overlapping.chunks} & before
        for component, stream_name, before in overlapping.done
        if component is thalamus
    }
    assert seen == {stream_name: {(pfc, chunk) for chunk in range(stream_name - chunks + 1)} for stream_name in overlapping.chunks}


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
        (lambda backend: backend.zeros((2**18, 1024)), r"decoder, an array \[262144, 1024\] float32 needs 1.07 GB"),
        (lambda backend: backend.asarray(np.ones(2**27, np.int8)), r"decoder, an array \[134217728\] int8 needs 134.22 MB"),
        (lambda backend: backend._scratch("tops", 2**28), r"decoder, workspace, tops, an array \[268435456\] float32 needs 1.07 GB"),
    ],
)
def test_an_array_without_room_is_named(backend, make, what, monkeypatch):
    backend._xp.zeros = backend._xp.array = full
    backend._scratch_arrays, backend._current.ptr = {}, 5
    monkeypatch.setattr(backend, "memory", lambda: (2**28, 2**30))
    words = f"^out of GPU memory: activity, {what}, 268.44 MB of 1.07 GB are free$"
    with pytest.raises(OutOfMemory, match=words), backend.part("activity"), backend.part("decoder"):
        make(backend)
    assert backend.parts == ()


@pytest.mark.parametrize(
    "name, advice",
    [
        ("train", "lower --batch-size or --seq-length, or use a smaller --preset"),
        ("sim", "lower --batch-size, or use a smaller --preset"),
        ("chat", "use a smaller model"),
    ],
)
def test_the_advice_names_flags_that_the_command_has(name, advice, capsys):
    @command(name)
    def body(argv=None):
        raise OutOfMemory("out of GPU memory: of everything")

    assert body([]) == 2
    assert capsys.readouterr().err == f"neurogen {name}: out of GPU memory: of everything; {advice}\n"
