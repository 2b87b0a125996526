"""Rules of learning other than backpropagation through time: what their gradients are, and what they drop."""

import numpy as np
import pytest

import tiny
from neurogen_numba import backends
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import ConfigError
from neurogen_numba.learning.online import OnlineLearner
from neurogen_numba.planning import budget

pytestmark = pytest.mark.usefixtures("one_thread")

CHUNK, B, VOCABULARY = tiny.BRAIN.chunk, 3, 11
LATE = "lateral_* feedback_* go_retain"  # projections that lead from a chunk to later ones alone
RULES = {"bptt": {}, "eprop": {}, "random": {"learning": "eprop", "learning_signal": "random"}}


def model_of(backend, learning="eprop", brain=None, **training):
    training = {"learning": learning} | RULES.get(learning, {}) | training
    config = tiny.config(brain={"vocabulary": VOCABULARY, **(brain or {})}, **training)
    model = NeuroGenModel.from_config(config, backend=backend)
    for name in ("thalamus", "wernicke", "hippocampus", "pfc", "basal_ganglia", "broca"):
        model.brain.parameters.value[f"{name}.bias"][...] = 0.3
    model.brain.refresh()
    return model


def text(length, seed=0):
    return np.random.default_rng([7, seed]).integers(0, VOCABULARY, (length, B)).astype(np.int32)


def gradients(model, length, updates=1):
    """name -> gradient of a segment of `length` tokens, and (loss, accuracy)."""
    ids, act = text(length + 1), model.activity(length, B, learning=True)
    for _ in range(updates):
        act.reset()
        loss, accuracy, _ = model.update(act, ids[:-1], ids[1:], 0.0)
    return {name: model.backend.to_numpy(x).copy() for name, x in model.brain.parameters.gradient.items()}, (loss, accuracy)


def distance(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("length", [5 * CHUNK, 3 * CHUNK + 3])
def test_where_no_synapse_leads_to_later_tokens_the_gradient_is_that_of_backpropagation(length):
    """Broca's, over many chunks: only the decoder reads it. Its synapses, with delays, parameters and gate. One neuron a hypercolumn,
    because e-prop drops what neighbours do to each other by the normalisation."""
    brain = {"without": LATE, "hypercolumn": 1}
    (expected, before), (found, after) = (gradients(model_of("cpu", rule, brain), length) for rule in ("bptt", "eprop"))
    assert after == pytest.approx(before)
    names = [name for name in expected if name.startswith(("broca.", "decoder.")) or "_broca." in name]
    assert len(names) == 14
    for name in names:
        assert distance(found[name], expected[name]) < 1e-5, name


def test_within_a_chunk_every_gradient_is_that_of_backpropagation():
    (expected, _), (found, _) = (gradients(model_of("cpu", rule), CHUNK) for rule in ("bptt", "eprop"))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_traces_recover_much_of_what_a_chunk_alone_drops():
    brain, ids = {"without": LATE, "hypercolumn": 1}, text(5 * CHUNK + 1)
    (expected, _), (found, _) = (gradients(model_of("cpu", rule, brain), 5 * CHUNK) for rule in ("bptt", "eprop"))
    model = model_of("cpu", "bptt", brain)
    act = model.activity(CHUNK, B, learning=True)  # a gradient that ends with its chunk
    model.update(act, ids[:-1], ids[1:], 0.0)
    cut = model.brain.parameters.gradient
    for name in ("thalamus_wernicke", "wernicke_retain", "hippocampus_store", "wernicke_pfc", "pfc_basal_ganglia"):
        name = f"{name}.weight"
        assert 1e-3 < distance(found[name], expected[name]) < 0.8 * distance(cut[name], expected[name]), name


def test_a_segment_of_any_length_begins_without_traces_and_repeats_its_bits():
    model = model_of("cpu")
    once, _ = gradients(model, 4 * CHUNK)
    again, _ = gradients(model, 4 * CHUNK, updates=2)
    for name, values in once.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)


@pytest.mark.gpu
def test_both_backends_have_the_same_gradients():
    brain = {"chunk": 3}  # a chunk and a part of one are few tokens for the simulator
    found = [gradients(model_of(backends.get(name, 0, "fp32"), brain=brain), 5)[0] for name in ("cpu", "cuda")]
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=2e-3, atol=2e-3 * np.abs(values).max(), err_msg=name)


def test_random_feedback_reaches_every_module_and_no_gradient_passes_from_one_to_another():
    model = model_of("cpu", "random")
    before, _ = gradients(model, 3 * CHUNK)
    assert all(before[f"{name}.bias"].any() for name in ("thalamus", "wernicke", "hippocampus", "pfc", "basal_ganglia"))
    weight = model.brain.parameters.value["wernicke_broca.weight"]
    act = model.activity(CHUNK, B, learning=True)
    signals = {"wernicke.axon": act.signals["wernicke.axon"].gradient}
    act.d_decoder_input[...] = np.random.default_rng(3).standard_normal(act.d_decoder_input.shape)
    act.learning_signal.write(signals, 0, CHUNK)
    expected = act.d_decoder_input @ act.learning_signal.feedback["wernicke.axon"]
    np.testing.assert_allclose(signals["wernicke.axon"], expected, rtol=1e-4, atol=1e-5)
    weight[...] = -weight  # symmetric signals would change
    act.learning_signal.write(signals, 0, CHUNK)
    np.testing.assert_allclose(signals["wernicke.axon"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule, optimizer", [*((rule, "adamw") for rule in RULES), ("eprop", "muon")])
def test_each_rule_learns(rule, optimizer):
    model, ids = model_of("cpu", rule, optimizer=optimizer), np.tile(text(9), (6, 1))[: 4 * CHUNK + 1]
    act = model.activity(4 * CHUNK, B, learning=True)
    losses = [model.update(act, ids[:-1], ids[1:], 0.01)[0] for _ in range(40)]
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"learning": "bpt"}, "training.learning: unknown 'bpt'; did you mean 'bptt'?"),
        ({"learning_signal": "randm"}, "training.learning_signal: unknown 'randm'; did you mean 'random'?"),
        ({"learning_signal": "random"}, "random is for training.learning = eprop; drop it"),
        ({"learning": "eprop", "optimizer": "adafactor"}, "updates the decoder after each chunk"),
        ({"learning": "three-factor"}, "needs brain.neuromodulation = true"),
        (
            {"learning": "three-factor", "brain": {"neuromodulation": True, "without": "dopamine"}},
            "dopamine, which brain.without leaves out; drop one of them",
        ),
        (
            {"learning": "three-factor", "brain": {"neuromodulation": True}, "optimizer": "muon"},
            "muon is for gradients of synapses, which three-factor does not have; use adamw",
        ),
        (
            {"learning": "three-factor", "brain": {"neuromodulation": True}, "weight_drop": 0.1},
            "three-factor sets the weights anew in every chunk; set it to 0",
        ),
        (
            {"learning": "three-factor", "brain": {"neuromodulation": True}, "rewire_interval": 3},
            "rigl is for gradients of synapses, which three-factor does not have; use --rewire set",
        ),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        tiny.config(**settings)


def test_steps_one_by_one_carry_the_state_and_a_text_is_learned_in_segments():
    model, ids = model_of("cpu", segment=4 * CHUNK), text(4 * CHUNK + 1).T
    fresh = model.train_step(ids[:, :-1], ids[:, 1:], 0.0)
    assert model.train_step(ids[:, :-1], ids[:, 1:], 0.0) == fresh
    assert model.train_step(ids[:, :-1], ids[:, 1:], 0.0, carry_state=True) != fresh
    learner = OnlineLearner(model)
    learner._prepare(1)
    assert learner._act.segment == 4 * CHUNK


def test_memory_does_not_grow_with_the_segment():
    def size(learning, segment):
        config = tiny.config(brain={"vocabulary": VOCABULARY}, learning=learning, segment=segment)
        return sum(budget.plan(config, budget.Card.assumed(config)).values())

    assert size("eprop", 64 * CHUNK) == size("eprop", 4 * CHUNK)
    assert size("bptt", 64 * CHUNK) > size("bptt", 4 * CHUNK)
