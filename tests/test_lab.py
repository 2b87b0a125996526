"""The lab: kernels on checked arrays, and kernels of a user beside ours and in their place, on the CPU and in CUDA."""

import copy
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
from matplotlib.figure import Figure
from numba import cuda

import neurogen_numba as ng
import reference
import tiny
from conftest import SIMULATED
from neurogen_numba import backends
from neurogen_numba.backends.cpu import CpuBackend
from neurogen_numba.backends.cpu_synapses import CpuSynapticState
from neurogen_numba.errors import ConfigError
from neurogen_numba.inference.generation import Sampling, Session
from neurogen_numba.kernels import neuron
from neurogen_numba.lab.cases import CASES
from neurogen_numba.lab.vocabulary import BUNDLES, OPERATIONS

lab, ROOT = ng.lab, Path(__file__).resolve().parent.parent
BACKENDS = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Kernels on checked arrays


@each_backend
def test_lif_is_the_population_of_the_reference(rng, backend):
    drive = rng.uniform(0, 0.6, (30, 5))
    found = lab.lif(drive, tau_v=5, tau_a=np.arange(3, 8), beta=0.5, backend=backend)
    v, a, z = np.zeros((3, 5))
    for t in range(30):
        v = np.exp(-1 / 5) * v - z + drive[t] - 0.5 * a
        z = reference.event(v)
        a = np.exp(-1 / np.arange(3, 8)) * (a - z) + z
        close(found.v[t], v)
        close(found.a[t], a)
        np.testing.assert_array_equal(found.z[t], z)
    assert found.z.sum() > 5
    one = lab.lif(drive[:, 0], tau_v=5, tau_a=3, beta=0.5, backend=backend)
    np.testing.assert_array_equal(one.v, found.v[:, 0])


@each_backend
def test_bundles_are_those_of_the_reference(rng, backend):
    wires = lab.wiring(40, 50, fan_in=32, delays=3, bundle=16)
    x, d = rng.standard_normal((6, 2, 40)), rng.standard_normal((6, 2, 50))
    history = np.concatenate([np.zeros((3, 2, 40)), x])
    current = partial(reference.synapses, history, 3, wires.block, wires.delay, N=50)
    close(lab.bundles_forward(x, *wires, targets=50, backend=backend), current(weight=wires.weight))
    gradient = lab.bundles_backward(d, *wires, sources=40, backend=backend)
    d_weight = lab.bundles_weight_grad(x, d, wires.block, wires.delay, bundle=16, backend=backend)
    loss = (current(weight=wires.weight) * d).sum()
    close((gradient * x).sum(), loss, rtol=1e-3)  # both are linear in x and in the weights
    close((d_weight * wires.weight).sum(), loss, rtol=1e-3)


@each_backend
def test_memories_logits_and_noise(rng, backend):
    f, u, retain = rng.standard_normal((4, 2, 5)), rng.standard_normal((4, 2, 5)), rng.standard_normal(5)
    close(lab.working_memory(f, u, retain, backend=backend), reference.working_memory(f, u, retain, np.zeros((2, 5))))
    q, v, w = rng.standard_normal((4, 2, 16)), rng.standard_normal((4, 2, 16)), rng.standard_normal((4, 2, 2))
    empty, write_scale = (np.zeros((2, 2, 8, 8)), np.zeros((2, 16))), np.ones(2)
    wanted, *_ = reference.delta_memory(q, v, w, np.zeros(2), np.full(2, 6.0), *empty, write_scale, 2)
    close(lab.memory(q, v, w, backend=backend), wanted, rtol=1e-3, atol=1e-4)
    logits, targets = rng.standard_normal((6, 9)), np.array([0, 8, 3, 3, 2, 1])
    p = reference.softmax(logits)
    close(lab.softmax(logits, backend=backend), p)
    loss, gradient = lab.cross_entropy(logits, targets, backend=backend)
    close(loss.mean(), reference.cross_entropy(logits, targets)[0])
    close(gradient, p - np.eye(9)[targets])
    np.testing.assert_array_equal(lab.sample(logits, temperature=0, backend=backend), logits.argmax(axis=1))
    close(lab.decay(np.linspace(-2, 5, 9), backend=backend), reference.per_token(np.linspace(-2, 5, 9)))
    dropped = lab.dropout(np.ones((20, 20)), 0.25, backend=backend)
    assert set(np.unique(dropped)) == {0, np.float32(4 / 3)} and 0.6 < dropped.astype(bool).mean() < 0.9
    noise = lab.poisson((5, 3, 20), 0.3, 2.0, backend=backend)
    assert set(np.unique(noise)) == {0, 2} and 0.2 < noise.astype(bool).mean() < 0.4


X, WIRES = np.zeros((4, 2, 40)), lab.wiring(40, 50, fan_in=32, delays=3, bundle=16)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lab.lif(np.zeros((3, 4, 5))), "lif: x must be numbers [T, N]; given: x [3, 4, 5] float64"),
        (lambda: lab.lif(np.zeros((3, 4)), tau_v=[1, 2]), "tau_v must be numbers [N = 4]; given: x [3, 4] float64, tau_v [2] int64"),
        (lambda: lab.lif(np.zeros(3), tau_a=0), "tau_a is a time constant in tokens and must be above 0"),
        (lambda: lab.lif(["a"]), "x [1, 1] <U1"),
        (lambda: lab.bundles_forward(X[:, :, :16], *WIRES), "block [4, 2] int32 must be from 0 to 0 (16 sources are as many blocks of 16)"),
        (
            lambda: lab.bundles_forward(X, WIRES.block, WIRES.delay[:2], WIRES.weight),
            "given: x [4, 2, 40] float64, block [4, 2] int32, delay [2, 2]",
        ),
        (lambda: lab.bundles_forward(X, *WIRES, targets=20), "block must be integers [tiles = 2, J = 2]"),
        (lambda: lab.bundles_forward(X, WIRES.block - 1, WIRES.delay, WIRES.weight), "must be from 0 to 2"),
        (lambda: lab.bundles_forward(X, WIRES.block / 1, WIRES.delay, WIRES.weight), "block must be integers"),
        (lambda: lab.bundles_forward(X, WIRES.block, WIRES.delay, WIRES.weight[:, :, :8]), "with BS one of [16, 32, 64]"),
        (lambda: lab.bundles_backward(X, *WIRES, sources=40), "[tiles = 3, J = 2]"),
        (lambda: lab.bundles_weight_grad(X, X[:3], WIRES.block, WIRES.delay, 16), "d must be numbers [T = 4, B = 2, N = 40]"),
        (lambda: lab.wiring(40, 50, bundle=20), "16, 32, 64 neurons on a side, not 20"),
        (lambda: lab.memory(X, X, np.zeros((4, 2, 3))), "does not divide into the 3 heads"),
        (lambda: lab.working_memory(X, X[:, :1], np.zeros(40)), "u_in must be numbers [T = 4, B = 2, M = 40]"),
        (lambda: lab.cross_entropy(np.zeros((2, 5)), [0, 5]), "targets [2] int32 must be from 0 to 4"),
        (lambda: lab.sample(np.zeros((2, 5)), top_p=0), "given: temperature 1.0, top_k 0, top_p 0"),
        (lambda: lab.dropout(np.zeros((2, 5)), 1), "below 1, not 1"),
    ],
)
def test_an_array_that_does_not_fit_is_named(call, message):
    with pytest.raises(ConfigError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


# Kernels of a user


def forward(current, x, block, delay, weight):
    """The simplest kernel of bundles that is right."""
    C, B, N = current.shape
    H, M = x.shape[0] - C, x.shape[2]
    _, BS, BT = weight.shape
    for tile in range(block.shape[0]):
        for j in range(block.shape[1]):
            first, late, bundle = block[tile, j] * BS, delay[tile, j], tile * block.shape[1] + j
            for t in range(C):
                for b in range(B):
                    for m in range(min(BS, M - first)):
                        for n in range(min(BT, N - tile * BT)):
                            current[t, b, tile * BT + n] += x[H + t - late, b, first + m] * weight[bundle, m, n]


def backward(source_grad, d, block, delay, weight):
    C, B, M = source_grad.shape
    _, BS, BT = weight.shape
    for tile in range(block.shape[0]):
        for j in range(block.shape[1]):
            first, late, bundle = block[tile, j] * BS, delay[tile, j], tile * block.shape[1] + j
            for t in range(C):
                for b in range(B):
                    for m in range(min(BS, M - first)):
                        for n in range(min(BT, d.shape[2] - tile * BT)):
                            source_grad[t, b, first + m] += d[t + late, b, tile * BT + n] * weight[bundle, m, n]


def weight_grad(weight_grad, x, d, block, delay):
    T, B, N = d.shape
    H, M = x.shape[0] - T, x.shape[2]
    _, BS, BT = weight_grad.shape
    for tile in range(block.shape[0]):
        for j in range(block.shape[1]):
            first, late, bundle = block[tile, j] * BS, delay[tile, j], tile * block.shape[1] + j
            for t in range(T):
                for b in range(B):
                    for m in range(min(BS, M - first)):
                        for n in range(min(BT, N - tile * BT)):
                            weight_grad[bundle, m, n] += x[H + t - late, b, first + m] * d[t, b, tile * BT + n]


def forward_thread(current, x, block, delay, weight):
    """A thread per number of the current."""
    i = cuda.grid(1)
    C, B, N = current.shape
    if i >= current.size:
        return
    t, b, n = i // (B * N), i // N % B, i % N
    H, M = x.shape[0] - C, x.shape[2]
    _, BS, BT = weight.shape
    tile, total = n // BT, np.float32(0)
    for j in range(block.shape[1]):
        first, row = block[tile, j] * BS, H + t - delay[tile, j]
        for m in range(min(BS, M - first)):
            total += x[row, b, first + m] * weight[tile * block.shape[1] + j, m, n % BT]
    current[t, b, n] += total


LOOPS = {"bundles_forward": numba.njit(forward), "bundles_backward": numba.njit(backward), "bundles_weight_grad": numba.njit(weight_grad)}


def of_python(name):
    return {"bundles_forward": forward, "bundles_backward": backward, "bundles_weight_grad": weight_grad}[name]


def learned():
    """Losses and all parameters of a tiny brain after two updates on the CPU, each without some of the weights."""
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}, weight_drop=0.3), backend="cpu")
    ids = np.random.default_rng(0).integers(0, 30, (2, 17))
    losses = [model.train_step(input_ids=ids[:, :-1], target_ids=ids[:, 1:])[0] for _ in range(2)]
    return np.array(losses), np.array(model.brain.parameters.flat_value)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_model_learns_the_same_with_a_kernel_of_ones_own(name):
    losses, weights = learned()
    with lab.swap(name, LOOPS[name]):
        swapped = learned()
    close(swapped[0], losses)
    np.testing.assert_allclose(swapped[1], weights, atol=2e-3)
    np.testing.assert_array_equal(learned()[1], weights)


@pytest.mark.gpu
def test_a_model_on_cuda_runs_a_kernel_of_ones_own():
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend=backends.get("cuda", precision="fp32"))
    ids, kernel, calls = np.arange(9), cuda.jit(forward_thread), []
    logits = model.logits(ids)
    with lab.swap("bundles_forward", kernel):
        close(model.logits(ids), logits)

    def launched(*given):
        calls.append(len(given))
        lab.launch(kernel, -(-given[0].size // 8), 8, *given)

    with lab.swap("bundles_forward", launched):
        close(model.logits(ids[:1]), logits[:1])
    assert set(calls) == {5}


@each_backend
@pytest.mark.parametrize("name", BUNDLES)
def test_a_kernel_of_ones_own_gets_the_values_that_ours_reads(rng, backend, name):
    backend = backends.get(backend, precision="fp32")
    x, d = rng.standard_normal((6, 2, 40)), rng.standard_normal((6, 2, 50))
    given = {
        "bundles_forward": (x, *WIRES),
        "bundles_backward": (d, *WIRES, 40),
        "bundles_weight_grad": (x, d, WIRES.block, WIRES.delay, 16),
    }[name]
    calls, how = [], {"targets": 50} if name == "bundles_forward" else {}

    def kernel(output, *inputs):
        calls.append(name)
        arrays = dict(zip(BUNDLES[name][0], map(backend.to_numpy, (output, *inputs)), strict=True))
        output[...] = backend.asarray(CASES[name].reference(**arrays)[BUNDLES[name][0][0]], "float32")

    run = partial(getattr(lab, name), *given, backend=backend, **how)
    ours = run()
    with lab.swap(name, kernel):
        close(run(), ours)
    assert calls == [name]


@each_backend
def test_a_swapped_operation_runs_in_steps_that_were_recorded_before(backend):
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend=backends.get(backend, precision="fp32"))
    session = Session(model, Sampling(temperature=0), 1)
    session.feed(np.zeros((1, 1), np.int32))

    def written():
        return np.ravel(session.write(2)).tolist()

    for _ in range(3):  # the third time from a recording
        written()

    def seventh(tokens, logits, bias, temperature, top_k, top_p, key, step, size):
        tokens[...] = 7

    with pytest.raises(KeyError), lab.swap("sample", seventh):
        assert written() == [7] * 2
        raise KeyError
    assert model.backend.recording and written() != [7] * 2


IDS = np.arange(12)


@numba.njit
def beyond(decayed, log_tau):
    for n in range(decayed.size + 1):
        decayed[n] = log_tau[n]


def test_an_index_beyond_an_array_inside_a_model_is_an_error_and_not_a_crash():
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend="cpu")
    before = model.logits(IDS)
    with pytest.raises(ConfigError, match=r"beyond leaves an array of decay_forward .*decayed \[24\]"), lab.swap("decay_forward", beyond):
        pytest.fail("models derive their decays when the context begins")
    np.testing.assert_array_equal(model.logits(IDS), before)


def test_what_models_derive_is_that_of_the_kernel_inside_and_ours_afterwards():
    def drawn():
        return ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend="cpu")

    def half(decayed, log_tau):
        decayed[...] = 0.5

    model = drawn()
    before = model.logits(IDS)
    with lab.swap("decay_forward", half):
        assert np.abs(model.logits(IDS) - before).max() > 1e-4
        inside = drawn()
        np.testing.assert_array_equal(inside.logits(IDS), model.logits(IDS))
    for each in (model, inside):
        np.testing.assert_array_equal(each.logits(IDS), before)


def test_a_loop_without_checks_is_the_one_that_was_given(monkeypatch):
    kernel = numba.njit(lambda decayed, log_tau: None)
    monkeypatch.setattr(sys.modules["neurogen_numba.lab.swap"], "with_checks", lambda kernel: pytest.fail("checked"))
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend="cpu")
    with lab.swap("decay_forward", kernel, check=False):
        model.brain.refresh()
    assert kernel.signatures


def test_a_token_beyond_the_vocabulary_is_an_error(capsys):
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend="cpu")
    session = Session(model, Sampling(temperature=0), 1)

    def thirty(tokens, logits, bias, temperature, top_k, top_p, key, step, size):
        tokens[...] = 30

    with lab.swap("sample", thirty), pytest.raises(ConfigError, match=r"swap sample: thirty: tokens .* from 0 to 29 \(size\), not 30"):
        session.feed(np.zeros((1, 1), np.int32))
        session.write(2)


def test_a_swap_outside_of_a_with_statement_says_so():
    before, unused = dict(vars(CpuSynapticState)), lab.swap("bundles_forward", forward)
    assert "with ng.lab.swap(...):" in repr(unused) and dict(vars(CpuSynapticState)) == before


def test_after_a_swap_everything_is_as_before():
    before = dict(vars(CpuBackend)), dict(vars(CpuSynapticState))
    with lab.swap("bundles_forward", forward), lab.swap("adamw", lambda p, g, m, v, decay, low, high, norm, numbers: None):
        with lab.swap("bundles_forward", forward):
            assert not CpuBackend.recording
        assert not CpuBackend.recording
    assert (dict(vars(CpuBackend)), dict(vars(CpuSynapticState))) == before


@pytest.mark.parametrize("use", [lambda *given: lab.swap(*given).__enter__(), lambda name, kernel: lab.compare(kernel, name)])
def test_wrong_names_and_signatures_are_explained(use):
    with pytest.raises(ConfigError, match="no kernel is called 'bundle_forward'; did you mean 'bundles_forward'"):
        use("bundle_forward", forward)
    with pytest.raises(
        ConfigError,
        match=r"backward\(source_grad, d, block, delay, weight\) does not take the arguments of decay_forward: decayed, log_tau",
    ):
        use("decay_forward", numba.njit(backward))
    with pytest.raises(ConfigError, match="must be a function, not 3"):
        use("decay_forward", 3)


def test_arguments_the_other_way_round_are_explained():
    with pytest.raises(ConfigError, match="swap: the name of ours comes first, then the kernel"), lab.swap(forward, "bundles_forward"):
        pass
    with pytest.raises(ConfigError, match="compare: the kernel comes first, then the name of ours"):
        lab.compare("bundles_forward", forward)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"firing": 2.0}, "firing is the share of sources with an event, from 0 to 1, not 2.0"),
        ({"tokens": 0}, "bundles_forward: tokens must be an integer of at least 1, not 0"),
        ({"batch": 2.5}, "batch must be an integer of at least 1, not 2.5"),
    ],
)
def test_sizes_out_of_range_are_explained(sizes, message):
    with pytest.raises(ConfigError, match=message):
        lab.compare(nothing, "bundles_forward", backend="cpu", **sizes)


def test_kernels_lists_arguments_and_shapes():
    listed = lab.kernels()
    assert set(listed) == {*BUNDLES, *OPERATIONS} and "product" not in listed
    assert "logits" in repr(listed) and "[tiles" in repr(listed)


# patch


def slower(log_tau):
    return np.float32(0.99)


@each_backend
def test_models_from_before_and_from_inside_a_patch_use_it_there_only(backend):
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend=backends.get(backend, precision="fp32"))
    clean = model.logits(np.arange(9))
    with pytest.raises(KeyError), lab.patch(neuron, "decay", slower):
        assert (lab.decay(np.zeros(3), backend=model.backend) == np.float32(0.99)).all()
        inside, patched = copy.copy(model), model.logits(np.arange(9))
        np.testing.assert_array_equal(inside.logits(np.arange(9)), patched)
        raise KeyError
    assert np.abs(patched - clean).max() > 0 and neuron.decay is not slower
    for each in (model, inside):
        np.testing.assert_array_equal(each.logits(np.arange(9)), clean)


def test_a_step_that_was_recorded_before_a_patch_runs_with_it():
    model = ng.NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 30}), backend="cpu")
    act, recorded = model.activity(1, 1), []
    model.run(act, "step", lambda: recorded.append(len(recorded)), lambda step: step)
    kept = dict(act.recorded)
    model.run(act, "step", None, lambda step: step)
    assert act.recorded == kept
    with lab.patch(neuron, "decay", slower):
        model.run(act, "step", lambda: recorded.append("inside"), lambda step: step)
    model.run(act, "step", lambda: recorded.append("after"), lambda step: step)
    assert recorded == [0, 1, "inside", "after"]


@pytest.mark.parametrize(
    "given, message",
    [
        ((neuron, "deacy", slower), "neurogen_numba.kernels.neuron has no function 'deacy'; did you mean 'decay'"),
        ((neuron, "ONE", slower), "has no function 'ONE'"),
        ((neuron, "decay", 3), "neurogen_numba.kernels.neuron.decay must be replaced by a function, not 3"),
        ((neuron, "decay", lambda tau: tau), "<lambda>(tau) needs the parameters of neurogen_numba.kernels.neuron.decay: (log_tau)"),
        (("neuron", "decay", slower), "the first argument must be a module"),
    ],
)
def test_a_patch_that_does_not_fit_is_explained(given, message):
    before = neuron.decay
    with pytest.raises(ConfigError) as error, lab.patch(*given):
        pass
    assert message in str(error.value) and neuron.decay is before


# compare


def nothing(*given):
    pass


@each_backend
@pytest.mark.parametrize("name", CASES)
def test_our_kernels_are_right_and_a_kernel_that_does_nothing_is_not(backend, name):
    found = lab.compare(nothing, name, backend=backends.get(backend, precision="fp32"), repeats=1, **CASES[name].small)
    assert found.errors[1] < 1e-5 and not found.right and found.bytes > 0
    assert "no" in repr(found) and name in repr(found)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_right_kernel_is_right(name):
    found = lab.compare(LOOPS[name], name, repeats=1, tokens=2, batch=2, sources=64, targets=64)
    assert found.right and found.kernel == of_python(name).__name__ and min(found.microseconds) > 0 and found.registers is None
    figure, mine = found.plot(), Figure()
    assert [bar.get_width() for bar in figure.axes[0].patches][:2] == list(found.microseconds)
    assert found.plot(mine.subplots()) is mine and figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [*BUNDLES, "add_rows"])
def test_a_kernel_that_overwrites_where_ours_accumulates_is_not_right(name):
    def overwriting(output, *inputs):
        names = BUNDLES[name][0] if name in BUNDLES else ("total", "x")
        arrays = dict(zip(names, (np.zeros_like(output), *inputs), strict=True))
        output[...] = CASES[name].reference(**arrays)[names[0]]

    assert not lab.compare(overwriting, name, repeats=1, backend="cpu", **CASES[name].small).right


@pytest.mark.parametrize(
    "name, reference", [(name, case.reference) for name, case in CASES.items() if name not in (*BUNDLES, "add_rows", "adamw")]
)
def test_a_kernel_that_accumulates_where_ours_overwrites_is_not_right(name, reference):
    def accumulating(*given):
        inputs = dict(zip(lab.kernels()[name][0], given, strict=True))
        for output, value in reference(**inputs).items():
            inputs[output][...] += value.astype(inputs[output].dtype)

    assert not lab.compare(accumulating, name, repeats=1, backend="cpu", **CASES[name].small).right


@pytest.mark.gpu
@pytest.mark.parametrize("of", [lambda kernel: kernel, lambda kernel: kernel[24, 32]])
def test_a_right_cuda_kernel_is_right(of):
    found = lab.compare(of(cuda.jit(forward_thread)), "bundles_forward", repeats=1, **CASES["bundles_forward"].small)
    assert found.right and (found.registers is None) == SIMULATED


def test_an_index_beyond_an_array_is_an_error_and_not_a_crash():
    line = r"\(index 37 is out of bounds for axis 0 with size 37 at `decayed\[n\] = log_tau\[n\]`\)"
    with pytest.raises(ConfigError, match=rf"beyond leaves an array of decay_forward {line}; given: decayed \[37\], log_tau \[37\]"):
        lab.compare(beyond, "decay_forward")
    given = {"decayed": [0, 0], "log_tau": [0, 0]}  # of any size: Python might take long
    with pytest.raises(ConfigError, match=r"beyond leaves an array of decay_forward \(index is out of bounds\)"):
        lab.compare(beyond, "decay_forward", given=given)


def test_the_simulator_names_the_array_and_warns_of_no_integer_that_wraps():
    code = """
import numpy as np
from numba import cuda
import neurogen_numba as ng
from neurogen_numba.lab.cases import CASES
@cuda.jit
def beyond(decayed, log_tau):
    decayed[cuda.grid(1) + 1] = 0
try:
    ng.lab.compare(beyond, "decay_forward", neurons=37)
except ValueError as error:
    print(error)
ng.lab.compare(lambda *given: None, "bundles_forward", backend="cuda", repeats=1, **CASES["bundles_forward"].small)
"""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert re.fullmatch(r"beyond leaves an array of decay_forward \(.*\); given: decayed \[37\], log_tau \[37\]\n", done.stdout), (
        done.stderr
    )
    assert done.returncode == 0 and "overflow" not in done.stderr


def test_inputs_and_a_reference_of_ones_own():
    given = {"norm": np.zeros(1, np.float32), "partial": np.array([1.0, 3.0])}

    @numba.njit
    def norm(norm, partial):
        norm[0] = np.sqrt(partial.sum())

    assert lab.compare(norm, "norm", given=given, reference=lambda norm, partial: {"norm": np.array([2.0])}, repeats=1).right
    with pytest.raises(ConfigError, match="norm: given= and reference= must be given"):
        lab.compare(norm, "norm")
    with pytest.raises(ConfigError, match="norm: reference= must be given"):
        lab.compare(norm, "norm", given=given)
    with pytest.raises(ConfigError, match="decay_forward has no size 'neuron'; known: neurons"):
        lab.compare(nothing, "decay_forward", neuron=3)


def small(name, **changed):
    """The inputs of the small check of a kernel, some of them replaced."""
    return CASES[name].make(np.random.default_rng(0), **CASES[name].small) | changed


MUON = {name: np.ones(4096) for name in "pgm"} | {name: [1] for name in ("decay", "low", "high", "norm")} | {"numbers": [1] * 4}


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_ones_own_need_no_reference_where_ours_is_there(name):
    given = {what: value.tolist() if isinstance(value, np.ndarray) else value for what, value in small(name).items()}
    given = {what: given[what] for what in reversed(given) if what not in ("axon", "first")}  # by name, in any order
    assert not (found := lab.compare(nothing, name, given=given, backend="cpu", repeats=1)).right and found.errors[1] < 1e-4


@pytest.mark.parametrize(
    "name, given, message",
    [
        (
            "decay_forward",
            small("decay_forward", decayed=np.zeros(5)),
            "log_tau must be numbers [N = 5]; given: decayed [5] float64, log_tau [37]",
        ),
        ("decay_forward", {"log_tau": np.zeros(5)}, "given has no decayed; it needs all of: decayed, log_tau"),
        ("decay_forward", small("decay_forward", log_tao=1), "given has 'log_tao', which is no argument; did you mean 'log_tau'"),
        ("decay_forward", small("decay_forward", log_tau=["a"] * 37), "log_tau must be numbers [N = 37]"),
        ("decay_forward", small("decay_forward", log_tau=[[1], [2, 3]]), "every list needs rows of one length"),
        ("decay_forward", [1], "given must be a dict, argument -> array or number, not list"),
        ("bundles_forward", small("bundles_forward", x=X[:, :, :20]), "x must be numbers [H+C = 4, B = 3, M = 20]"),
        ("bundles_forward", small("bundles_forward", x=np.zeros((6, 3, 40))), "x needs 5 + 2 rows, for delays up to 2"),
        ("bundles_forward", small("bundles_forward", block=WIRES.block + 2), "block [4, 2] int32 must be from 0 to 2"),
        ("bundles_backward", small("bundles_backward", d=np.ones((7, 3, 50))), "d must be 0 from row 5 on"),
        ("bundles_weight_grad", small("bundles_weight_grad", weight_grad=np.zeros((8, 16, 8))), "weight_grad [8, 16, 8] float32 must be"),
        ("working_memory_forward", small("working_memory_forward", m=np.zeros((3, 2, 37))), "m must be numbers [C+1 = 4, B = 2, M = 37]"),
        ("embedding_forward", small("embedding_forward", tokens=np.full((3, 2), 5)), "tokens [3, 2] int32 must be from 0 to 4"),
        ("cross_entropy", small("cross_entropy", size=65), "size 65 is more than the 64 columns of logits"),
        ("cross_entropy", small("cross_entropy", size=None), "size must be a number, not None"),
        ("muon", MUON | {"side": 7}, "side must be one of (16, 32, 64), not 7"),
        ("population_forward", {}, "does not know the shapes of population_forward"),
    ],
)
def test_inputs_of_ones_own_that_do_not_fit_are_explained(name, given, message):
    with pytest.raises(ConfigError) as error:
        lab.compare(nothing, name, given=given, reference=lambda **_: {}, backend="cpu")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "returned, message",
    [
        (np.zeros(37), "reference must return a dict, output -> array, as {'decayed': ...}, not ndarray"),
        (None, "not NoneType"),
        ({}, "not an empty one"),
        ({"decaied": np.zeros(37)}, "returns 'decaied', which is no array of it; did you mean 'decayed'"),
        ({"decayed": np.zeros(3)}, "reference returns decayed [3], but it is [37]"),
    ],
)
def test_a_reference_that_returns_something_else_is_explained(returned, message):
    with pytest.raises(ConfigError) as error:
        lab.compare(nothing, "decay_forward", neurons=37, reference=lambda **_: returned, backend="cpu")
    assert message in str(error.value)


def exact(decayed, log_tau):
    decayed[...] = np.exp(-np.exp(-log_tau))


def test_ours_must_be_there_to_compare_with():
    with lab.swap("decay_forward", exact), pytest.raises(ConfigError, match="decay_forward is swapped here, so ours does not run"):
        lab.compare(exact, "decay_forward", backend="cpu")


def test_a_kernel_that_changes_its_input_is_not_right():
    def greedy(decayed, log_tau):
        exact(decayed, log_tau)
        log_tau[0] += 1

    found = lab.compare(greedy, "decay_forward", backend="cpu", repeats=1, neurons=50)
    assert not found.right and repr(found).endswith("worst in `log_tau`, an input, which it changes")
    assert lab.compare(exact, "decay_forward", backend="cpu", repeats=1, neurons=50).right


def test_runs_that_differ_are_told():
    calls = []

    def racing(decayed, log_tau):
        exact(decayed, log_tau)
        calls.append(1)
        decayed[0] *= 1 + 1e-6 * len(calls)

    found = lab.compare(racing, "decay_forward", backend="cpu", repeats=1, neurons=50)
    assert found.right and found.same_bits == (False, True)
    assert repr(found).endswith("do two threads write to the same entry?")


def test_a_share_is_that_of_a_copy_of_as_many_bytes_which_takes_turns(monkeypatch):
    compared, copied = sys.modules["neurogen_numba.lab.compare"], []

    def noted(backend, size):
        copied.append(size)
        return lambda: None

    monkeypatch.setattr(compared, "make_copy", noted)
    monkeypatch.setattr(compared, "times_in_turn", lambda backend, works, repeats: [[4e-6, 5e-6], [2e-6, 3e-6], [1e-6, 9e-6]])
    found = lab.compare(exact, "decay_forward", backend="cpu", neurons=500)
    assert found.bytes == 4000 and copied == [500] and found.microseconds == (4, 2)
    assert found.shares == pytest.approx((0.25, 0.5)) and "25.0 %" in repr(found)


def test_a_wrong_entry_is_named_with_its_index():
    def wrong(decayed, log_tau):
        decayed[...] = np.exp(-np.exp(-log_tau))
        decayed[len(decayed) - 3] = 7

    found = lab.compare(wrong, "decay_forward", backend="cpu", repeats=1, neurons=50)
    assert re.fullmatch(r"`decayed` \[(34|47)\]: 7 instead of 0\.\d+, in the (small|large) check \[(37|50)\]", found.worst)
    assert repr(found).endswith(f"worst in {found.worst}")
    invalid = lab.compare(lambda total, x: total.fill(np.nan), "add_rows", given={"total": [0, 0], "x": [[1, 2]]}, backend="cpu", repeats=1)
    assert invalid.worst == "`total` [0]: nan instead of 1, of [2]" and invalid.errors[0] == np.inf


@pytest.mark.gpu
def test_fewer_threads_than_entries_are_warned_of():
    with pytest.warns(UserWarning, match="forward_thread has 32 threads, and current 750 entries"):
        found = lab.compare(cuda.jit(forward_thread)[1, 32], "bundles_forward", repeats=1, **CASES["bundles_forward"].small)
    assert not found.right


def test_the_page_on_the_lab_runs():
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/lab.md").read_text(), re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "bundles_forward on" in done.stdout and "[0.99 0.99 0.99]" in done.stdout, done.stderr


def test_the_package_imports_without_the_lab():
    code = "import sys, neurogen_numba as ng; assert 'numba' not in sys.modules; ng.lab.kernels"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
