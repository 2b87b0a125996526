"""A whole training step on a GPU: the same as on the CPU, and itself again however it is run.

In the simulator a step of the tiny brain takes seconds, so there all comparisons share one; what only a card has (streams, recorded steps,
16-bit products) is tested on a card.
"""

import contextlib

import numba
import numpy as np
import pytest
from numba import types

import tiny
from compiled import known
from conftest import SIMULATED
from neurogen_numba import backends
from neurogen_numba.backends.base import Streams
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.presets import get_preset
from neurogen_numba.text.stories import story

pytestmark = pytest.mark.gpu
on_a_card = pytest.mark.skipif(SIMULATED, reason="the simulator has no streams, no recorded steps and no 16-bit products")

CONFIG = tiny.config(brain={"vocabulary": 20, "chunk": 2}, dropout=0.1)
TOKENS, BATCH = 4, 2


def segment(tokens=TOKENS, batch=BATCH, seed=0):
    """(inputs, targets), time-major."""
    ids = np.random.default_rng(seed).integers(0, CONFIG.brain.vocabulary, (tokens + 1, batch)).astype(np.int32)
    return ids[:-1], ids[1:]


def distance(x, y):
    """Of two arrays, as a share of their size."""
    return np.linalg.norm(x - y) / max(1e-12, np.linalg.norm(x))


# The same as on the CPU


def signature(arguments):
    """The types with which Numba compiles a kernel for these arguments, as text."""

    def type_of(x):
        if isinstance(x, tuple):
            entries = [type_of(entry) for entry in x]
            if hasattr(x, "_fields"):
                alike = len(set(entries)) == 1
                return types.NamedUniTuple(entries[0], len(x), type(x)) if alike else types.NamedTuple(entries, type(x))
            return types.UniTuple(entries[0], len(x))
        if getattr(x, "ndim", 0):
            return types.Array(numba.from_dtype(np.dtype(str(x.dtype))), x.ndim, "C" if x.flags.c_contiguous else "A")
        return {bool: types.boolean, int: types.int64, float: types.float64}.get(type(x)) or numba.from_dtype(x.dtype)

    return tuple(str(type_of(x)) for x in arguments)


@contextlib.contextmanager
def watched():
    """The launches of kernels in this context: {(kernel, signature)}."""
    from neurogen_numba.backends.cuda import CudaBackend

    seen, launch = set(), CudaBackend.launch

    def watch(backend, kernel, grid, threads, *arguments, shared=0):
        function = kernel.fn if SIMULATED else kernel.py_func
        seen.add((f"{function.__module__.rpartition('.')[2]}.{function.__name__}", signature(arguments)))
        launch(backend, kernel, grid, threads, *arguments, shared=shared)

    CudaBackend.launch = watch
    try:
        yield seen
    finally:
        CudaBackend.launch = launch


class Learned:
    """A model that has read one segment, so that much is under way, and then learned from another at rate 0, so that its weights are still
    as drawn; and what came of that."""

    def __init__(self, backend):
        self.model = NeuroGenModel.from_config(CONFIG, backend=backend)
        act = self.model.activity(TOKENS, BATCH, learning=True)
        self.model.brain.forward_logits(act, segment()[0])
        act.advance(TOKENS)
        self.loss, self.accuracy, self.norm = self.model.update(act, *segment(seed=1), 0.0)
        numpy = self.model.backend.to_numpy
        self.gradient = {name: numpy(array) for name, array in self.model.brain.parameters.gradient.items()}
        self.state = act.state()
        self.written = self.model.generate(segment()[0][:2, 0], 2 + 3, temperature=0.0)


@pytest.fixture(scope="module")
def cpu():
    return Learned(backends.get("cpu"))


@pytest.fixture(scope="module")
def gpu():
    with current_stream_kept(), watched() as launches:
        learned = Learned(card())
    learned.launches = launches
    return learned


def test_loss_and_norm_are_the_cpu_s(cpu, gpu):
    assert gpu.loss == pytest.approx(cpu.loss, rel=1e-5)
    assert gpu.accuracy == cpu.accuracy
    assert gpu.norm == pytest.approx(cpu.norm, rel=1e-4)


def test_every_gradient_is_the_cpu_s(cpu, gpu):
    assert gpu.gradient.keys() == cpu.gradient.keys()
    assert {name: d for name in cpu.gradient if (d := distance(cpu.gradient[name], gpu.gradient[name])) > 3e-4} == {}
    silent = [name for name, array in cpu.gradient.items() if not array.any()]
    assert len(silent) < len(cpu.gradient) / 4, f"a segment in which nothing happens proves nothing: {silent}"


def test_the_state_afterwards_is_the_cpu_s(cpu, gpu):
    assert gpu.state.keys() == cpu.state.keys()
    assert {name: d for name in cpu.state if (d := distance(cpu.state[name], gpu.state[name])) > 1e-4} == {}


def test_the_text_afterwards_is_the_cpu_s(cpu, gpu):
    np.testing.assert_array_equal(gpu.written, cpu.written)


def test_kernels_are_launched_with_the_types_that_are_compiled_without_a_gpu(gpu):
    assert gpu.launches
    assert gpu.launches - known() == set()


def losses_on_stories(backend, updates=200, batch=8, tokens=32):
    """Of updates of `nano` on the bytes of stories."""
    text = np.frombuffer("".join(story(0, number).text for number in range(200)).encode(), np.uint8).astype(np.int32)
    heads = np.arange(batch) * text.size // batch
    model = NeuroGenModel.from_config(get_preset("nano").replace(brain={"vocabulary": 256}), backend=backend)
    act, losses = model.activity(tokens, batch, learning=True), []
    for update in range(updates):
        ids = text[(heads + update * tokens + np.arange(tokens + 1)[:, None]) % text.size]
        losses.append(model.update(act, ids[:-1], ids[1:], 3e-3 * min(1, (update + 1) / 50))[0])
    return losses


@on_a_card
def test_two_hundred_updates_end_where_the_cpu_s_end():
    """Rounding makes other events, and in the end another brain; but no worse one."""
    cpu, gpu = losses_on_stories(backends.get("cpu")), losses_on_stories(card())
    assert gpu[0] == pytest.approx(cpu[0], rel=1e-5)
    assert np.mean(gpu[-20:]) < 1.03 * np.mean(cpu[-20:])
    assert np.mean(gpu[-20:]) < 0.3 * gpu[0]


# Itself again, on a card


def card(precision="fp32"):
    """The backend of card 0; its stream becomes CuPy's, which another backend of this process may have changed."""
    backend = backends.get("cuda", 0, precision)
    if not SIMULATED:
        backend._go_to(backend._cupy_stream)
    return backend


@contextlib.contextmanager
def current_stream_kept():
    """CuPy's stream is afterwards what it was before."""
    if SIMULATED:
        yield
        return
    import cupy

    before = cupy.cuda.get_current_stream()
    try:
        yield
    finally:
        before.use()


@pytest.fixture(autouse=True)
def stream_kept():
    with current_stream_kept():
        yield


class Run:
    """Some updates of a fresh model; `result` is all that they left behind."""

    def __init__(self, backend, batch=4, tokens=16, rate=3e-2):
        self.backend = backend
        self.model = NeuroGenModel.from_config(CONFIG.replace(brain={"chunk": 8}), backend=backend)
        self.act = self.model.activity(tokens, batch, learning=True)
        self.shape, self.rate, self.losses = (tokens, batch), rate, []

    def learn(self, updates, same=False):
        for _ in range(updates):
            number = 0 if same else len(self.losses)
            self.losses.append(self.model.update(self.act, *segment(*self.shape, seed=number), self.rate)[0])
        return self

    def result(self):
        parameters, numpy = self.model.brain.parameters, self.backend.to_numpy
        flat = {name: numpy(getattr(parameters, f"flat_{name}")) for name in ("value", "gradient")}
        flat |= {name: numpy(kept) for name, kept in self.model.optimizer.tensors().items()}
        return flat | self.act.state() | {"losses": np.array(self.losses)}


def differing(one, other):
    """Names of the results whose bits differ."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name].tobytes() != other[name].tobytes()]


UPDATES = 5  # the first is done, the second is recorded, the others are repeated
SIZES = pytest.mark.parametrize("batch", [4, 64])  # a few columns, and enough that every column has a block of its own


@on_a_card
@SIZES
def test_two_runs_give_the_same_bits(batch):
    one, other = (Run(card(), batch).learn(UPDATES).result() for _ in range(2))
    assert np.isfinite(one["losses"]).all()
    assert differing(one, other) == []


@on_a_card
@SIZES
def test_a_recorded_step_does_what_the_step_does(batch, monkeypatch):
    recorded = Run(card(), batch).learn(UPDATES).result()
    monkeypatch.setattr(card(), "record", lambda step: step)
    assert differing(recorded, Run(card(), batch).learn(UPDATES).result()) == []


@on_a_card
@SIZES
def test_modules_that_overlap_give_the_bits_of_modules_in_order(batch, monkeypatch):
    overlapping = Run(card(), batch).learn(UPDATES).result()
    monkeypatch.setattr(card(), "streams", Streams)
    assert differing(overlapping, Run(card(), batch).learn(UPDATES).result()) == []


@on_a_card
def test_a_recorded_step_writes_into_nothing_that_was_made_later():
    """A temporary array of a step has an address in the recording, too, and CuPy gives that address to the next who asks."""
    backend = card()
    run = Run(backend).learn(3)
    later = [backend.asarray(np.full(2**power, 7.0), "float32") for power in range(2, 19) for _ in range(8)]
    run.learn(3)
    backend.synchronize()
    assert [array.size for array in later if not (backend.to_numpy(array) == 7).all()] == []


@on_a_card
def test_a_recorded_step_reads_nothing_that_was_made_later():
    quiet, disturbed = Run(card()).learn(3), Run(card()).learn(3)
    later = [disturbed.backend.asarray(np.full(2**power, np.nan), "float32") for power in range(2, 19) for _ in range(8)]
    assert differing(quiet.learn(3).result(), disturbed.learn(3).result()) == []
    assert later  # until here


@on_a_card
def test_sampling_draws_the_same_text_again():
    model = Run(card()).learn(2).model
    one, other = (model.generate(segment()[0].T, 40, temperature=1.0, top_k=10, top_p=0.9, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert (one != model.generate(segment()[0].T, 40, temperature=1.0, top_k=10, top_p=0.9, seed=4)).any()


@on_a_card
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_precision_learns(precision):
    """A repeated batch by heart; and the first loss is the one that the CPU finds."""
    losses = Run(card(precision)).learn(300, same=True).losses
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(Run(backends.get("cpu")).learn(1).losses[0], rel=0.02)
    assert np.mean(losses[-20:]) < 0.5 * losses[0]


@on_a_card
def test_a_thousand_updates_need_no_more_memory_than_two():
    backend = card()
    run = Run(backend).learn(2)
    used = backend.memory_used()
    run.learn(998)
    assert backend.memory_used() == used
    assert np.isfinite(run.losses).all()


@on_a_card
def test_another_current_stream_of_cupy_changes_nothing():
    """Results are read after the kernels that write them, also where somebody else used CuPy in between."""
    import cupy

    backend, rows = card(), 400
    logits, bias = backend.asarray(np.random.default_rng(0).standard_normal((rows, 50_304)), "float32"), backend.zeros(50_304)
    for _ in range(20):
        tokens, drawn = backend.asarray(np.full(rows, -1), "int32"), backend.zeros(rows, "uint64")
        cupy.cuda.Stream.null.use()
        backend.sample(tokens, logits, bias, np.float32(1), 40, np.float32(0.9), np.uint64(1), drawn, 50_257)
        assert (backend.to_numpy(tokens) >= 0).all() and (backend.to_numpy(drawn) == 1).all()
