"""Neurons as step and adjoint: those that ship with NeuroGen, those that a user writes, and what becomes of them in runs."""

import copy
import json
import linecache
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import neurogen_numba as ng
import reference as ref
import tiny
from gradients import gradient, single
from neurogen_numba import backends, presets, show
from neurogen_numba.brain.activity import Activity
from neurogen_numba.brain.brain import Brain
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.chat import main as chat
from neurogen_numba.config import MODULES, NEURONS, SURROGATES, Config
from neurogen_numba.configure import named_neurons
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.generate import main as generate
from neurogen_numba.kernels.dropout import mask_offset
from neurogen_numba.kernels.population import NeuronParameters, NeuronState, flat
from neurogen_numba.migrate import main as migrate
from neurogen_numba.neurons import adjoint, check, definition, get
from neurogen_numba.neurons.loading import match_sources
from neurogen_numba.runs import main as runs
from neurogen_numba.text.tokenizer import ByteTokenizer
from neurogen_numba.train import main as train

pytestmark = pytest.mark.usefixtures("one_thread")
WITH_NEURONS = pytest.mark.parametrize("name", NEURONS)
LEARNED = {"alpha": ng.TimeConstant("membrane's", (2.0, 20.0)), "omega": ng.Learned("angle per token", (0.1, 1.0), 0.0, 3.0)}


@ng.neuron(state=("v", "u"), learned=LEARNED, input_scale="alpha")
def resonator(v, u, i, alpha, omega):
    """A neuron as a user writes it, with numbers and functions of `math` as they come."""
    v = v * (1 - ng.event(v))
    return alpha * (math.cos(omega) * v - math.sin(omega) * u) + i, alpha * (math.sin(omega) * v + math.cos(omega) * u)


# Shipped ones


def test_those_that_ship_are_those_that_the_configuration_knows():
    assert set(NEURONS) == set(ref.NEURONS)
    assert [get(name).reference for name in NEURONS] == list(NEURONS)
    assert tiny.config().brain.pfc.neuron == NEURONS[0] == "lif_a"


@pytest.mark.parametrize(
    "one, surrogate, width",  # every neuron, and every surrogate with an adjoint by hand and a derived one
    [
        *((one, "triangle", 1.0) for one in (*map(get, NEURONS), resonator)),
        *((one, *wide) for one in (get("lif_a"), resonator) for wide in (("triangle", 2.5), ("fast_sigmoid", 0.7), ("arctan", 1.0))),
    ],
    ids=str,
)
def test_an_adjoint_is_that_of_the_step(one, surrogate, width):
    worst = ng.check_gradient(one, surrogate, width, show=False)
    assert list(worst) == [*one.state, "i", *one.learned] and max(worst.values()) < 1e-6


def test_the_adjoint_by_hand_is_the_one_that_is_derived():
    rng, one = np.random.default_rng(3), get("lif_a")
    arctan = one.physics("arctan").surrogate
    meanings = {definition.event: arctan.event, definition.slope: arctan.slope}
    derived, given = one.derived.compile(meanings, np.float64), one._adjoint.compile(meanings, np.float64)
    gradient_of = one._gradient.compile(meanings, np.float64)
    for graded in (True, False):
        ds, dv, da, v, a, w, b, i, alpha, rho, beta = rng.normal(0.5, 0.7, 11)
        carried = gradient_of(dv, da, w, b, alpha, rho, beta)
        expected = derived(ds, *carried, v, a, w, b, i, alpha, rho, beta, graded)
        found = given(ds, dv, da, v, a, w, b, i, alpha, rho, beta, graded)
        np.testing.assert_allclose([*gradient_of(*found[:2], v, a, alpha, rho, beta), *found[2:]], expected, rtol=1e-6)


class Scan:
    """A few neurons of a kind, their currents, and their passes on a backend, in the smooth test mode or not."""

    def __init__(self, one, graded=True, smooth=True, surrogate="triangle", width=1.0, shape=(3, 2, 5), hypercolumn=3):
        self.one, self.graded, self.smooth, self.surrogate, self.hypercolumn = one, graded, smooth, (surrogate, width), hypercolumn
        self.C, self.B, self.N = shape
        rng = np.random.default_rng(2)
        self.c, self.ds, self.dy = (single(rng.normal(0, 1, shape)) for _ in range(3))
        self.given_arrays = {name: single(what.example(rng, self.N)) for name, what in one.learned.items()}
        self.given_arrays |= {"gain": single(rng.uniform(0.3, 1, self.N)), "bias": single(rng.normal(0.3, 0.3, self.N))}
        self.given_arrays |= {"gamma": single(rng.uniform(0.1, 0.8, self.N))}
        self.state = {name: single(rng.normal(0.5, 0.4, shape[1:])) for name in (*one.state, "y")}
        self.gain_scale, self.factor = single(rng.uniform(0.5, 1.5, (2, self.B)))

    def reference(self, changed=None):
        given_arrays = {"current": self.c, **self.given_arrays, **{f"state {name}": value for name, value in self.state.items()}}
        given_arrays = {name: np.asarray(value, np.float64) for name, value in (given_arrays | (changed or {})).items()}
        state = {name: given_arrays[f"state {name}"] for name in self.state}
        factors = {name: self.factor.astype(np.float64) for name, what in self.one.learned.items() if what.serotonin}
        how = {"graded": self.graded, "hypercolumn": self.hypercolumn, "gain_scale": self.gain_scale, "factors": factors}
        return ref.neurons(
            self.one.name, given_arrays["current"], given_arrays, state, event=lambda v: ref.event(v, self.smooth, *self.surrogate), **how
        )

    def arguments(self, backend, tokens):
        """What both passes share."""
        there, none = backend.asarray, backend.zeros((1, 1, 1))[:0]
        constants = tuple(there(self.given_arrays[name]) for name in self.one.learned)
        parameters = NeuronParameters(constants, *(there(self.given_arrays[name]) for name in ("gain", "bias", "gamma")))
        dropout = np.float32(0), there(np.zeros(1, np.uint64)), mask_offset(0)
        scales = there(self.gain_scale), there(self.factor), self.hypercolumn, dropout, self.graded
        return there(self.c[tokens]), none, parameters, *scales, self.one.physics(*self.surrogate, self.smooth)

    def run(self, backend, tokens=slice(None), before=None):
        """(states, y, r) after a forward pass over some of the tokens, NumPy; row 0 is the state before."""
        C, H = len(self.c[tokens]), -(-self.N // self.hypercolumn)
        before, rows = before or self.state, {}
        for name in self.state:
            rows[name] = np.full((C + 1, self.B, self.N), np.nan, np.float32)
            rows[name][0] = before[name]
        *values, y = (backend.asarray(array) for array in rows.values())
        r = backend.zeros((C, self.B, H))
        axons = backend.no_axon, backend.no_axon
        backend.population_forward(NeuronState(tuple(values), y), r, *axons, 0, *self.arguments(backend, tokens))
        return [backend.to_numpy(array) for array in (*values, y, r)]

    def run_back(self, backend, forward, tokens, carry, grads):
        """The gradient of the currents; moves carry and adds to grads."""
        there, none, (*values, y, r) = backend.asarray, backend.zeros((1, 1, 1))[:0], forward
        shape = self.c[tokens].shape
        d_current, carried = backend.zeros((1, shape[0] * self.B, self.N)), [there(carry[name]) for name in self.state]
        names = (*self.one.learned, "gain", "bias", "gamma")
        *constants, gain, bias, gamma = (there(grads[name]) for name in names)
        d, state = NeuronParameters(tuple(constants), gain, bias, gamma), NeuronState(tuple(map(there, values)), there(y))
        arrays = there(self.ds[tokens]), there(self.dy[tokens]), state, there(r)
        both = NeuronState(tuple(carried[:-1]), carried[-1])
        backend.population_backward(d_current, none, both, d, *arrays, *self.arguments(backend, tokens))
        for name, array in [*zip(self.state, carried, strict=True), *zip(names, flat(d), strict=True)]:
            (carry if name in carry else grads)[name][...] = backend.to_numpy(array)
        return backend.to_numpy(d_current).reshape(shape)

    def gradients(self, backend):
        """Those of currents and of what is learned, over two chunks, and what is carried out of them."""
        cut = slice(0, 1), slice(1, None)
        first = self.run(backend, cut[0])
        second = self.run(backend, cut[1], dict(zip(self.state, (rows[-1] for rows in first), strict=False)))
        carry = {name: np.zeros((self.B, self.N), np.float32) for name in self.state}
        grads = {name: np.zeros(self.N, np.float32) for name in self.given_arrays}
        late = self.run_back(backend, second, cut[1], carry, grads)
        early = self.run_back(backend, first, cut[0], carry, grads)
        return grads | {"current": np.concatenate([early, late])}, carry


@WITH_NEURONS
def test_a_scan_is_that_of_the_equations(backend, name):
    case = Scan(get(name), smooth=False)
    expected, found = case.reference(), case.run(backend)
    assert np.abs(expected["v"] - 1).min() > 1e-4 and (expected["v"] > 1).any()
    np.testing.assert_allclose(found[0][1:], expected["v"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[-2][1:], expected["y"], rtol=1e-4, atol=1e-5)


def test_gradients_of_a_scan_are_those_of_finite_differences(backend):
    """Three states and a derived adjoint; tests/test_brain.py has the same for LIF-A, serotonin and an adjoint by hand. The adjoints of
    the others are checked above: each backward kernel takes many seconds to compile."""
    case = Scan(get("resonate_and_fire"))

    def loss(changed):
        record = case.reference(changed)
        return np.sum(case.ds * record["s"]) + np.sum(case.dy * record["y"])

    found, carry = case.gradients(backend)
    inputs = {"current": case.c, **case.given_arrays, **{f"state {name}": value for name, value in case.state.items()}}
    for what in found:
        np.testing.assert_allclose(found[what], gradient(loss, inputs, what), rtol=2e-3, atol=3e-4, err_msg=what)
    smooth_surrogate = case.one.physics(smooth=True).surrogate
    _, _, gradient_of = case.one.functions(smooth_surrogate)
    k = {
        name: value * (case.factor[:, None] if case.one.learned[name].serotonin else 1)
        for name, value in list(case.given_arrays.items())[:-3]
    }
    for b, n in np.ndindex(case.B, case.N):
        states = [case.state[state][b, n] for state in case.one.state]
        constants = [np.broadcast_to(value, (case.B, case.N))[b, n] for value in k.values()]
        complete = gradient_of(*(carry[state][b, n] for state in case.one.state), *states, *constants)
        for state, value in zip(case.one.state, complete, strict=True):
            expected = ref.finite_difference(loss, inputs, f"state {state}", (b, n))
            np.testing.assert_allclose(value, expected, rtol=2e-3, atol=3e-4, err_msg=state)


def learned_in(config, updates=30, neuron=None, rate=0.02):
    """The losses of a tiny brain that reads the same few tokens again and again."""
    model = NeuroGenModel.from_config(config, backend="cpu", neuron=neuron)
    ids = np.random.default_rng(0).integers(0, 12, (4, 17))
    return [model.train_step(ids[:, :-1], ids[:, 1:], learning_rate=rate)[0] for _ in range(updates)]


def test_a_brain_of_another_neuron_learns():
    """The stock neuron learns elsewhere; the adjoints of the others are checked above. Each takes 20 seconds to compile."""
    losses = learned_in(tiny.config(brain={"vocabulary": 12}), 150, "adlif", rate=0.005)
    assert all(map(math.isfinite, losses)) and min(losses[-20:]) < 0.9 * losses[0]


def test_modules_may_differ():
    config = tiny.config(brain={"vocabulary": 12}).with_neuron("adlif", "pfc", "broca").with_neuron("lif", "thalamus")
    model = NeuroGenModel.from_config(config, backend="cpu")
    value, state = model.brain.parameters.value, model.activity(4, 2).state()
    assert "pfc.a" in value and "wernicke.beta" in value and "pfc.beta" not in value and "thalamus.log_tau_a" not in value
    assert "pfc.w" in state and "wernicke.a" in state and "thalamus.a" not in state and "broca.y" in state
    assert learned_in(config)[-1] < learned_in(config, 1)[0]


@pytest.mark.parametrize("name, memory", [("lif", "half"), ("resonate_and_fire", "recompute")])
def test_activations_may_be_kept_in_less_memory(name, memory):
    config = tiny.config(brain={"vocabulary": 12}).with_neuron(name)
    full, less = (learned_in(config.replace(training={"activation_memory": how}), 3) for how in ("full", memory))
    np.testing.assert_allclose(less, full, rtol=2e-2 if memory == "half" else 1e-5)


# Surrogates


def test_a_wide_surrogate_has_the_whole_gradient_alone_and_in_a_batch():
    """Blocks without a neuron near the threshold must not depend on other sequences to be asked for their gradient."""
    config = tiny.config(brain={"vocabulary": 12, "surrogate": "triangle", "surrogate_width": 3.0}).with_neuron("lif")
    brain = Brain(config.brain, backends.get("cpu"))
    brain.initialise(0)
    ids, found = np.random.default_rng(5).integers(0, 12, (16, 6)).astype(np.int32), []
    for batch, all_blocks in ((1, True), (1, False), (6, False)):
        act = Activity(brain, 16, batch, learning=True)
        brain.parameters.clear_gradient()
        logits = brain.forward_logits(act, ids[:, :batch]).reshape(16, batch, -1)
        for name in MODULES if all_blocks else ():
            act.synapses.axon(f"{name}.axon").needs_grad[...] = 2**64 - 1
        d = np.zeros_like(logits)
        d[:, 0] = np.random.default_rng(6).normal(0, 1, logits[:, 0].shape)
        brain.backward_logits(act, d.reshape(16 * batch, -1))
        found.append({name: value.copy() for name, value in brain.parameters.gradient.items()})
    for name, whole in found[0].items():
        for gradients in found[1:]:
            np.testing.assert_allclose(gradients[name], whole, rtol=1e-3, atol=1e-4 * np.abs(whole).max() + 1e-9, err_msg=name)


def test_who_wants_a_gradient_follows_the_surrogate():
    from neurogen_numba.kernels.population import Axon, make_write_events_cpu
    from neurogen_numba.kernels.surrogate import make_surrogate

    v = single(np.linspace(-4, 6, 64))[None, None]
    for kind, width in [*((kind, 1.0) for kind in SURROGATES), ("triangle", 3.0)]:
        masks = [np.zeros((1, 1, 1), np.uint64) for _ in range(2)]
        axon = Axon(np.zeros((1, 1, 1, 64), np.float32), np.zeros(1, np.int32), *masks)
        dropout = np.float32(0), np.zeros(1, np.uint64), mask_offset(0)
        make_write_events_cpu(make_surrogate(kind, width))(axon, 0, v, *dropout, True)
        bits = np.unpackbits(masks[1].view(np.uint8), bitorder="little")
        np.testing.assert_array_equal(bits, ((v > 1) | (ref.psi(v, kind, width) > 0)).ravel())


@pytest.mark.parametrize(
    "fields, words", [({"surrogate": "arctn"}, "did you mean 'arctan'"), ({"surrogate_width": 0}, "0.01 to 100, not 0")]
)
def test_a_surrogate_that_there_is_not_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        tiny.config(brain=fields)


# Neurons of a user's own


def test_a_derived_adjoint_can_be_read(capsys):
    assert resonator.adjoint_source.startswith("def resonator_adjoint(ds, dv, du, v, u, v_after, u_after, i, alpha, omega, graded):\n")
    assert "slope(v_after)" in resonator.adjoint_source and "cos(omega)" in resonator.adjoint_source
    assert resonator(0.5, 0.0, 0.25, 1.0, 0.0) == (0.75, 0.0)  # a step in plain Python
    ng.check_gradient(resonator)
    output = capsys.readouterr().out
    assert all(f"│ {name} " in output for name in ("v", "u", "i", "alpha", "omega")) and "WRONG" not in output


def test_a_wrong_adjoint_is_found_and_named(capsys):
    @ng.neuron(state=("v",), learned={"alpha": LEARNED["alpha"]})
    def leaky(v, i, alpha):
        return alpha * v - ng.event(v) + i

    @leaky.adjoint
    def wrong(ds, dv, v, v_after, i, alpha, graded):
        dv = dv + ds * (ng.event(v_after) + ng.slope(v_after) * v_after if graded else ng.slope(v_after))
        return (alpha - ng.slope(v)) * dv, dv, 2 * dv * v

    with pytest.raises(ConfigError, match="leaky: its adjoint is wrong in the derivative with respect to alpha: .* by [0-9.]+ %$"):
        ng.check_gradient(leaky)
    assert "WRONG" in capsys.readouterr().out


def step_of(text, **names):
    """A function of a text, in a file of its own as a user would have it."""
    scope = {"__name__": "a_test", "event": ng.event, "math": math, "np": np, **names}
    folder = linecache.cache
    name = f"<step {len(folder)}>"
    folder[name] = len(text), None, text.splitlines(True), name
    exec(compile(text, name, "exec"), scope)
    return scope["step"]


ONE = {"alpha": LEARNED["alpha"]}


@pytest.mark.parametrize(
    "text, state, learned, words",
    [
        (
            "def step(v, i, alpha): return alpha * v + i",
            ("v", "u"),
            ONE,
            "step: a step takes its states, i, and what is learned: .*'u' is not an",
        ),
        ("def step(v, u, i): return v, u", ("v",), {}, "argument 'u' is no state, not i and not learned"),
        ("def step(i, v): return v + i", ("v",), {}, r"\(v, i\); the order differs"),
        ("def step(v, i): return v, i", ("v",), {}, "the step returns 2 numbers, but has 1 states, v"),
        ("def step(v, u, i): return v + i", ("v", "u"), {}, "the step returns 1 numbers, but has 2 states, v, u"),
        ("def step(v, i): return v + nothing", ("v",), {}, "the step does not run: NameError: name 'nothing'"),
        ("def step(v, y, i): return v, y", ("v", "y"), {}, "every neuron has a 'y' already"),
        ("def step(v, i, gain): return v * gain + i", ("v",), {"gain": ng.Learned("g", (0, 1))}, "every neuron has a 'gain' already"),
        ("def step(v, i, dv): return v * dv + i", ("v",), {"dv": ng.Learned("g", (0, 1))}, "'dv' names two things"),
        (
            "def step(v, i, k): return v * k + i",
            ("v",),
            {"k": ng.Learned("g", (0, 2), 0, 1)},
            r"k starts in \(0, 2\), which is not within its bounds \[0, 1\]",
        ),
        (
            "def step(v, i, k): return v * k + i",
            ("v",),
            {"k": ng.TimeConstant("m", (-2, 20))},
            r"k starts in \(-2, 20\), but a time constant is in tokens, above 0",
        ),
        (
            "def step(v, i, k): return v * k + i",
            ("v",),
            {"k": ng.TimeConstant("m", (2, 2000))},
            r"which is not within its bounds, 0.135 to 148 tokens",
        ),
        ("def step(v, i): v + i", ("v",), {}, "the step returns nothing; end it with `return`, for example `return v`"),
        ("def step(v, i, k): return v * k + i", ("v",), {"k": 0.5}, "a Learned or a TimeConstant is needed, not 0.5"),
        ("def step(v, i): return v + i", (), {}, "names of its states are needed"),
    ],
)
def test_what_does_not_fit_together_is_told(text, state, learned, words):
    with pytest.raises(ConfigError, match=words):
        ng.neuron(state=state, learned=learned)(step_of(text))


@pytest.mark.parametrize(
    "kind, arguments, words",
    [
        (ng.Learned, ("x", 0.5), "Learned 'x': start: two numbers, lowest and highest, are needed, not 0.5"),
        (ng.Learned, ("x", (0.5,)), "start: two numbers, lowest and highest, are needed"),
        (ng.Learned, ("x", (1.0, 0.1)), r"start: \(1.0, 0.1\) is reversed; write \(0.1, 1.0\)"),
        (ng.Learned, ("x", (0, 1), 3, 0), "low=3 and high=0 are reversed"),
        (ng.Learned, ((0, 1), "x"), r"Learned: first its meaning in words, then start: .*, not \(0, 1\)"),
        (ng.TimeConstant, ("m", (2, 20), -2.0, 5.0, (9, 1)), "TimeConstant 'm': in_pfc: .* is reversed"),
    ],
)
def test_a_learned_constant_that_cannot_be_is_refused(kind, arguments, words):
    with pytest.raises(ConfigError, match=words):
        kind(*arguments)


@pytest.mark.parametrize(
    "text, words",
    [
        ("def step(v, i): return math.erf(v) + i", "SymPy cannot follow the step: it does not know erf; .*write @step.adjoint by hand"),
        (
            "def step(v, i): return v + i if v > 1 else i",
            "SymPy cannot follow the step: it has a branch; write that with min, max or event.*no branches",
        ),
        ("def step(v, i): return v * np.float64(0.5) + i", "the step leaves float32 for float64.*np.float32"),
    ],
)
def test_what_cannot_be_compiled_is_told(text, words):
    one = ng.neuron(state=("v",))(step_of(text))
    if "float64" in text:
        one.adjoint(step_of("def step(ds, dv, v, w, i, graded): return 0.5 * dv, dv"))
    with pytest.raises(ConfigError, match=words):
        one.physics()


def test_an_adjoint_of_another_form_is_told():
    one = ng.neuron(state=("v",))(step_of("def step(v, i): return v + i"))
    with pytest.raises(ConfigError, match=r"takes 2 arguments, but needs \(ds, dv, v, v_after, i, graded\)"):
        one.adjoint(lambda_free := step_of("def step(ds, dv): return dv, dv"))
    assert lambda_free(1, 2) == (2, 2)
    for text, words in {
        "return dv": "the adjoint returns 1 numbers instead of 2: the gradients of v, i",
        "dv": "the adjoint returns nothing; end it with `return`",
        "return dv + x": "the adjoint does not run: NameError",
    }.items():
        with pytest.raises(ConfigError, match=words):
            one.adjoint(step_of(f"def step(ds, dv, v, w, i, graded): {text}"))


NOTES = [
    ("v * alpha - event(v) + i", []),
    ("v * alpha - event(v - 29) + i", ["the axon sends an event where v > 1; this step resets elsewhere"]),
    ("v * alpha - event(v / 30) + i", ["this step resets elsewhere: it calls event on another value than v"]),
    ("v * alpha + i", ["this step never calls event.v.: if it resets the state in another way, no gradient passes"]),
    ("v * alpha - event(v) + math.exp((v - 1) / 0.1) + i", ["d/dv reaches 5e.09 at v = 3: .* bound the step"]),
    ("v * alpha - event(v) + math.exp(min((v - 1) / 0.1, 2)) + i", []),
    ("v * alpha - event(v) + math.exp(20 * i)", ["d/di reaches .* at i = "]),
    ("v * alpha - event(v) + math.sqrt(v + 1.9) + i", ["the step cannot be computed at v = -2, i = .*: ValueError: math domain error"]),
]


@pytest.mark.parametrize("text, words", NOTES)
def test_a_step_with_a_right_adjoint_that_may_not_be_meant_so_has_a_note(text, words):
    found = check.notes(ng.neuron(state=("v",), learned=ONE)(step_of(f"def step(v, i, alpha): return {text}")))
    assert len(found) == len(words) and all(re.search(word, note) for word, note in zip(words, found, strict=True)), found


@WITH_NEURONS
def test_those_that_ship_have_no_note(name):
    assert check.notes(get(name)) == []


def test_a_note_stands_under_the_table(capsys):
    ng.check_gradient(ng.neuron(state=("v",))(step_of("def step(v, i): return 0.5 * v + i")))
    assert re.search("│ right[^N]*Note: the axon sends an event where v > 1; this step never calls", capsys.readouterr().out)


def test_a_steep_step_is_judged_where_finite_differences_are_well_conditioned():
    def defined(adjoint=None):
        one = ng.neuron(state=("v",))(step_of("def step(v, i): return 0.5 * v + math.exp(50 * i)"))
        if adjoint:
            s = "ds * (event(w) + slope(w) * w if graded else slope(w))"
            one.adjoint(step_of(f"def step(ds, dv, v, w, i, graded):\n    dv = dv + {s}\n    return {adjoint}", slope=ng.slope))
        return one

    assert max(ng.check_gradient(defined(), show=False).values()) < 1e-5
    assert max(ng.check_gradient(defined("0.5 * dv, 50 * math.exp(50 * i) * dv"), show=False).values()) < 1e-5
    with pytest.raises(ConfigError, match="wrong in the derivative with respect to v"):
        ng.check_gradient(defined("0.5001 * dv, 50 * math.exp(50 * i) * dv"), show=False)


@pytest.mark.parametrize(
    "expression, words",
    [
        ("math.sqrt(i)", "step: the step cannot be computed at v = .*, i = -.*: ValueError: math domain error; .*max and min"),
        ("v ** 1.5 + i", "step: the step cannot be computed at v = -.*: its result is not finite"),
        ("math.exp(500 * i)", "step: the (step|adjoint) cannot be computed at v = .*, i = .*: "),
        ("math.sqrt(max(v, 0)) + i", "step: the adjoint cannot be computed at v = -.*: its result is not finite"),
        ("math.exp(60 + 9 * v) + i", "its derivative with respect to i cannot be judged: .* too steep for finite differences"),
    ],
)
def test_a_step_that_cannot_be_judged_is_named_with_its_inputs(expression, words):
    with pytest.raises(ConfigError, match=words):
        ng.check_gradient(ng.neuron(state=("v",))(step_of(f"def step(v, i): return {expression}")), show=False)


def test_a_check_takes_names_and_neurons():
    assert ng.check_gradient("lif", show=False) == ng.check_gradient(get("lif"), show=False)
    with pytest.raises(ConfigError, match="did you mean 'lif_a'"):
        ng.check_gradient("lif_b")
    with pytest.raises(ConfigError, match="a neuron, made by @neurogen_numba.neuron, or its name is needed, not 3"):
        ng.check_gradient(3)


def test_branches_of_min_max_and_helpers_are_derived():
    helper = step_of("def step(v): return max(v, -0.5) * SLOWLY", SLOWLY=0.5)
    one = ng.neuron(state=("v",))(step_of("def step(v, i): return clipped(v) + abs(i) - min(i, 1)", clipped=helper))
    assert max(ng.check_gradient(one, show=False).values()) < 1e-6
    physics = one.physics()
    assert type(physics.step(np.float32(1), np.float32(2))[0]) is np.float32


def test_a_loop_over_integers_is_a_step():
    text = "def step(v, i):\n    for k in range(N):\n        v = v * D[k] + i * D[-1]\n    return v\n"
    one = ng.neuron(state=("v",))(step_of(text, N=2, D=(0.5, 0.25)))
    assert one.physics().step(np.float32(1), np.float32(2)) == (0.75,)
    assert max(ng.check_gradient(one, show=False).values()) < 1e-6
    hashes = {ng.neuron(state=("v",))(step_of(text, N=n, D=(0.5, last))).source_hash for n in (1, 2) for last in (0.25, 0.75)}
    assert len(hashes) == 4
    with pytest.raises(ConfigError, match="a loop runs over range.* of integers that are written there or named"):
        ng.neuron(state=("v",))(step_of("def step(v, i):\n    for _ in range(i):\n        v = v * 0.5\n    return v\n"))


def test_the_hash_is_of_what_is_computed_and_not_of_its_layout():
    def of(text, **names):
        return ng.neuron(state=("v",))(step_of(text, **names)).source_hash

    plain = of("def step(v, i):\n    return v * 0.5 + i\n")
    assert of('def step(v, i):\n    "Says what it does."\n    # and why\n    return (v*0.5) + i\n') == plain
    assert of("def step(v, i):\n    return v * 0.6 + i\n") != plain
    half = of("def step(v, i): return v * H + i", H=0.5)
    assert half != of("def step(v, i): return v * H + i", H=0.6)
    helper = [step_of(f"def step(v): return {factor} * v") for factor in (0.5, 0.6)]
    assert of("def step(v, i): return f(v) + i", f=helper[0]) != of("def step(v, i): return f(v) + i", f=helper[1])


def test_the_hash_is_not_of_words_and_of_names_of_local_variables():
    def of(text="def step(v, i, k):\n    x = k * v\n    return x + i\n", meaning="a constant", high=2.0):
        return ng.neuron(state=("v",), learned={"k": ng.Learned(meaning, (0.1, 1), 0.0, high)})(step_of(text)).source_hash

    assert of() == of(meaning="constant, mended") == of("def step(v, i, k):\n    decayed = k * v\n    return decayed + i\n")
    assert of() != of(high=3.0)
    assert of() != of("def step(v, i, k):\n    x = k * v\n    return k + i\n")


def test_a_gradient_of_the_state_is_part_of_the_hash():
    one = ng.neuron(state=("v",))(step_of("def step(v, i): return v + i"))
    before = one.source_hash
    one.state_gradient(step_of("def step(dv, v): return 2 * dv,"))
    assert one.source_hash != before


def test_without_sympy_an_adjoint_by_hand_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "sympy", None)
    one = ng.neuron(state=("v",))(step_of("def step(v, i): return v + i"))
    with pytest.raises(ConfigError, match="pip install sympy"):
        adjoint.derive(one)


# Runs and checkpoints


MINE = """
    import neurogen_numba as ng

    print("mine is imported")

    @ng.neuron(state=("v",), learned={"alpha": ng.TimeConstant("membrane's", (1, 5))}, input_scale="alpha")
    def leaky(v, i, alpha):
        return alpha * v - ng.event(v) + FACTOR * i

    FACTOR = 1.5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a text, a tiny preset and a module `mine` with a neuron, which is forgotten afterwards."""
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config(steps=4, checkpoint_interval=2, eval_interval=4, sample_interval=4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what is compiled is told apart by seconds only
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE).replace("+ FACTOR * i", "+ 1.5 * i"))
    (tmp_path / "sheep.txt").write_text("".join(f"{number} sheep went home.\n" for number in range(300)))
    yield tmp_path
    forget()


def forget():
    """As if the process began anew."""
    sys.modules.pop("mine", None)
    definition._KNOWN.pop("mine:leaky", None)


NAMED = ["--set", "brain.pfc.neuron=mine:leaky"]


def refused(code, capsys, *words):
    output = capsys.readouterr()
    assert code == 2 and output.err.count("\n") == 1 and "Traceback" not in output.err, output.err
    assert all(word in output.err for word in words), output.err
    return output


def test_a_run_with_a_neuron_of_ones_own(folder, capsys, monkeypatch):
    assert train(["--preset", "tiny", "--data", "sheep.txt", *NAMED]) == 0
    assert f"neurogen chat runs/tiny-1 {' '.join(NAMED)}\n" in capsys.readouterr().out
    assert runs([]) == 0 and f"neurogen train --resume runs/tiny-1 {' '.join(NAMED)}" in capsys.readouterr().out
    saved = json.loads(next(folder.glob("runs/tiny-1/checkpoints/*/neurons.json")).read_text())
    one = get("mine:leaky")
    assert saved["pfc"] == {"neuron": "mine:leaky", "sha256": one.source_hash, "source": one.source}
    assert saved["broca"] == {"neuron": "lif_a", "sha256": get("lif_a").source_hash}
    monkeypatch.setattr("builtins.input", lambda prompt="": "/quit")
    commands = (generate, ["--length", "3"]), (evaluate, ["--max-tokens", "50"]), (chat, []), (train, ["--resume", "--steps", "6"])
    for command, flags in commands:
        forget()
        capsys.readouterr()
        output = refused(command(flags), capsys, "pfc is made of the neuron mine:leaky", "--set brain.pfc.neuron=mine:leaky")
        assert "imported" not in output.out  # a checkpoint runs nothing
        assert command([*flags, *NAMED]) == 0
        assert "mine is imported" in capsys.readouterr().out
    forget()
    assert refused(migrate(["tiny-1", "runs/more", "--set", "brain.wernicke.neurons=64"]), capsys, "mine:leaky")
    assert migrate(["tiny-1", "runs/more", "--set", "brain.wernicke.neurons=64", *NAMED]) == 0
    assert generate(["more", "--length", "3"]) == 0  # by now it is defined


def test_another_neuron_than_it_was_trained_with_is_refused(folder, capsys):
    assert train(["--preset", "tiny", "--data", "sheep.txt", *NAMED]) == 0
    forget()
    (folder / "mine.py").write_text((folder / "mine.py").read_text().replace("1.5", "1.6"))
    capsys.readouterr()
    assert refused(generate(["--length", "3", *NAMED]), capsys, "trained with another source of the neuron mine:leaky")
    assert refused(generate(["--set", "brain.broca.neuron=mine:leaky"]), capsys, "trained with another source")
    (folder / "mine.py").write_text((folder / "mine.py").read_text().replace("1.6", "1.5"))
    forget()
    assert refused(generate(["--set", "brain.broca.neuron=mine:leaky"]), capsys, "brain.broca.neuron=mine:leaky: it was trained with lif_a")
    assert refused(generate(["--set", "brain.pfc.neuron=lif"]), capsys, "it was trained with mine:leaky")
    assert refused(generate(["--set", "brain.pfc.neurons=9"]), capsys, "a trained model keeps its settings")
    assert generate(["--length", "3", *NAMED]) == 0


@pytest.mark.parametrize(
    "named, words",
    [
        ("nothing:leaky", "nothing cannot be imported: ModuleNotFoundError"),
        ("mine:resonator", "mine has no neuron 'resonator'"),
        ("lif_b", "unknown 'lif_b'; did you mean 'lif_a'?"),
        ("mine:", "a neuron of your own is named MODULE:NAME"),
        ("wrong:leaky", "leaky: every neuron has a 'y' already"),
    ],
)
def test_a_neuron_that_there_is_not_is_told(folder, capsys, named, words):
    (folder / "wrong.py").write_text(
        textwrap.dedent(MINE).replace('state=("v",)', 'state=("v", "y")').replace("leaky(v, i", "leaky(v, y, i")
    )
    assert refused(train(["--preset", "tiny", "--data", "sheep.txt", "--set", f"brain.pfc.neuron={named}"]), capsys, words)
    assert not (folder / "runs").exists() or not list((folder / "runs").iterdir())


BRANCH = """
    import neurogen_numba as ng

    @ng.neuron(state=("v",))
    def branch(v, i):
        return v + i if v > 1 else i
"""


def test_a_step_without_a_derivative_is_refused_before_a_run_is_made(folder, capsys):
    (folder / "branching.py").write_text(textwrap.dedent(BRANCH))
    named = ["--set", "brain.pfc.neuron=branching:branch"]
    refused(train(["--preset", "tiny", "--data", "sheep.txt", *named]), capsys, "it has a branch", "branching.py, line 4")
    with pytest.raises(ConfigError, match="it has a branch"):
        ng.train(tiny.config(), "sheep.txt", neuron=get("branching:branch"))
    definition._KNOWN.pop("branching:branch")
    assert not (folder / "runs").exists()


def test_a_neuron_in_a_file_of_settings(folder, capsys):
    (folder / "mine.toml").write_text('[brain.pfc]\nneuron = "mine:leaky"\n[brain.broca]\nneuron = "adlif"\n')
    assert train(["--preset", "tiny", "--data", "sheep.txt", "--config", "mine.toml"]) == 0


def test_a_library_hands_over_the_neuron_itself(tmp_path):
    config = tiny.config(brain={"vocabulary": 12})
    model = NeuroGenModel.from_config(config, backend="cpu", neuron=resonator)
    assert {population.neuron for population in model.brain.populations} == {resonator}
    assert model.config == config.with_neuron(resonator) == Config.from_dict(json.loads(json.dumps(model.config.to_dict())))
    model.save(tmp_path / "saved")
    loaded = NeuroGenModel.load(tmp_path / "saved", backend="cpu")  # it is defined in this process
    assert loaded.config.brain.broca.neuron == resonator.reference == f"{__name__}:resonator"
    definition._KNOWN.pop(resonator.reference)
    try:
        with pytest.raises(CheckpointError, match="which no checkpoint may import by itself"):
            NeuroGenModel.load(tmp_path / "saved", backend="cpu")
        with pytest.raises(ConfigError, match="is not defined in this process"):
            NeuroGenModel.from_config(model.config, backend="cpu")
    finally:
        definition._KNOWN[resonator.reference] = resonator


def test_a_neuron_that_is_defined_anew_does_not_take_the_place_of_the_old_one(tmp_path):
    """As in a notebook, whose cell runs again after an edit."""

    def defined(factor):
        step = step_of(f"def step(v, i): return {factor} * v - event(v) + i")
        step.__module__, step.__qualname__ = "notebook", "step"
        return ng.neuron(state=("v",))(step)

    old = defined(0.5)
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 12}), backend="cpu", neuron=old)
    model.save(tmp_path / "saved")
    new = defined(0.6)
    assert get("notebook:step") is new and model.brain.populations[0].neuron is old
    difference = r"\(then: return 0.5 \* v - event\(v\) \+ i; now: return 0.6 \* v - event\(v\) \+ i\); restore"
    for use in (lambda: NeuroGenModel.load(tmp_path / "saved", backend="cpu"), lambda: copy.copy(model)):
        with pytest.raises(
            CheckpointError, match=f"trained with another source of the neuron notebook:step than is defined now {difference}"
        ):
            use()
    defined(0.5)
    assert copy.copy(model).parameters == NeuroGenModel.load(tmp_path / "saved", backend="cpu").parameters
    definition._KNOWN.pop("notebook:step")


@pytest.fixture
def saved_in_a_notebook(folder):
    """A checkpoint with the neuron of mine.py in two modules, as if a cell of a notebook had defined it; it is forgotten by now."""
    text = "def leaky(v, i, alpha):\n    return alpha * v - ng.event(v) + 1.5 * i\nstep = leaky\n"
    step = step_of(text, ng=ng)
    step.__module__ = "__main__"
    one = ng.neuron(state=("v",), learned={"alpha": ng.TimeConstant("membrane's", (1, 5))}, input_scale="alpha")(step)
    config = tiny.config(brain={"vocabulary": 257}).with_neuron(one, "thalamus", "pfc")
    NeuroGenModel.from_config(config, ByteTokenizer(True), backend="cpu").save(folder / "saved")
    definition._KNOWN.pop("__main__:leaky")
    return folder / "saved"


def test_a_neuron_of_a_notebook_is_found_in_a_file(saved_in_a_notebook, capsys):
    with pytest.raises(
        CheckpointError, match="run the cell .* that defines it, or put it in a file.*`import mine` in Python, --set .*=mine:leaky"
    ):
        NeuroGenModel.load(saved_in_a_notebook, backend="cpu")
    loaded = show.load(saved_in_a_notebook, "cpu", named_neurons(["brain.pfc.neuron=mine:leaky"]))  # one --set serves both modules
    assert loaded.config.brain.thalamus.neuron == loaded.config.brain.pfc.neuron == "mine:leaky"
    assert loaded.config.brain.broca.neuron == "lif_a"


@pytest.mark.parametrize("home", ["__main__", "mine"])
def test_a_run_without_a_checkpoint_goes_on_with_the_neuron_that_is_named(folder, capsys, home):
    config = tiny.config({"data": str(folder / "sheep.txt")}, steps=1, eval_interval=1).with_neuron(f"{home}:leaky", "pfc")
    run = folder / "runs" / "stopped"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    where = "put it in a file" if home == "__main__" else "`import mine` in Python"
    refused(train(["--resume", "stopped"]), capsys, where, "--set brain.pfc.neuron=mine:leaky")
    assert train(["--resume", "stopped", *NAMED]) == 0
    assert f"runs/stopped {' '.join(NAMED)}" in capsys.readouterr().out


@pytest.mark.parametrize("saved", [None, [], {}, {"pfc": "mine:leaky"}, {"pfc": {"neuron": "mine:leaky", "source": 3}}])
def test_damaged_sources_in_a_checkpoint_are_refused(folder, saved):
    named_neurons(["brain.pfc.neuron=mine:leaky"])
    with pytest.raises(
        CheckpointError, match="old: pfc was trained with another source of the neuron mine:leaky than is defined now; restore"
    ):
        match_sources(tiny.config().with_neuron("mine:leaky", "pfc"), saved, "old")


def test_a_neuron_of_a_notebook_with_another_source_is_refused(saved_in_a_notebook, folder):
    (folder / "mine.py").write_text((folder / "mine.py").read_text().replace("1.5", "1.6"))
    named_neurons(["brain.pfc.neuron=mine:leaky"])
    with pytest.raises(CheckpointError, match="trained with another source of the neuron __main__:leaky than that of mine:leaky"):
        NeuroGenModel.load(saved_in_a_notebook, backend="cpu")


def test_importing_the_package_and_a_checkpoint_of_before_bring_no_sympy():
    code = "import sys, neurogen_numba as ng; from neurogen_numba.neurons import get; get('adlif'); assert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, neurogen_numba, neurogen_numba.configure, neurogen_numba.train; assert not {'sympy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_s_rising_threshold_passes_the_check():
    page = (Path(__file__).parents[1] / "docs/neurons.md").read_text()
    source = re.search(r"```python\n(@ng.neuron\([^`]*def rising[^`]*)```", page)[1]
    scope = {"ng": ng, "__name__": "page"}
    linecache.cache["<page>"] = (len(source), None, source.splitlines(keepends=True), "<page>")
    exec(compile(source, "<page>", "exec"), scope)
    rising = scope["rising"]
    assert max(ng.check_gradient(rising, show=False).values()) < 1e-5
    v, e = 0.0, 0.0
    events = []
    for _ in range(60):
        v, e = rising(v, e, 0.9, 0.9, 0.95, 0.5)
        events.append(v > 1)
    assert sum(events[:20]) > sum(events[40:]) > 0


def test_two_constants_of_one_name_are_told_apart():
    constants = {"alpha": ng.TimeConstant("membrane's", (2, 20)), "rho": ng.TimeConstant("threshold's", (2, 20))}
    with pytest.raises(ConfigError, match="alpha and rho would both be called log_tau_v in a checkpoint; tell them apart by name="):

        @ng.neuron(state=("v", "e"), learned=constants)
        def two(v, e, i, alpha, rho):
            return alpha * v + i, rho * e


def test_the_check_says_how_the_adjoint_was_made(capsys):
    ng.check_gradient("lif_a")
    ng.check_gradient("adlif")
    out = " ".join(capsys.readouterr().out.split())
    assert "hand-written adjoint of lif_a" in out and "derived adjoint of adlif" in out
    with pytest.raises(ConfigError, match="unknown surrogate 'triangel'; did you mean 'triangle'?"):
        ng.check_gradient("lif", surrogate="triangel")


def test_names_of_local_variables_are_no_difference_of_sources():
    from neurogen_numba.neurons.loading import _difference

    then = "def step(v, i):\n    z = event(v)\n    return 0.5 * v - z + i"
    now = "def step(v, i):\n    spike = event(v)\n    return 0.6 * v - spike + i"
    assert _difference(then, now) == " (then: return 0.5 * v - z + i; now: return 0.6 * v - spike + i)"
    assert "nothing" not in _difference("damaged (", now)
