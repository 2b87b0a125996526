"""Neuromodulators: what moves their levels, what these do, and that it is the same however the text comes."""

import numpy as np
import pytest

import reference as ref
import tiny
from gradients import single
from neurogen_numba import backends
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES
from neurogen_numba.errors import CheckpointError, ConfigError
from neurogen_numba.inference.generation import Sampling, Session
from neurogen_numba.kernels import neuromodulation as rows_of

pytestmark = pytest.mark.usefixtures("one_thread")

SENSITIVITY = "neuromodulation.sensitivity"
VOCABULARY = 11
CHUNK, FEW = tiny.BRAIN.chunk, 2  # tokens of a chunk; of one in tests that the simulator runs


def model_of(backend, on=True, sensitivity=0.0, chunk=CHUNK, **training):
    """A tiny brain; sensitivity: how far from 0 its sensitivities are drawn."""
    config = tiny.config(brain={"vocabulary": VOCABULARY, "neuromodulation": on, "chunk": chunk}, **training)
    model = NeuroGenModel.from_config(config, backend=backend)
    if sensitivity:
        drawn = np.random.default_rng(5).uniform(-sensitivity, sensitivity, rows_of.TARGETS)
        model.brain.parameters.value[SENSITIVITY][...] = backend.asarray(drawn, "float32")
    value = model.brain.parameters.value
    for name in ("thalamus", "wernicke", "hippocampus", "pfc", "basal_ganglia", "broca"):
        value[f"{name}.bias"][...] = 0.3
    value["decoder.weight"][...] = 4 * value["decoder.weight"]
    model.brain.refresh()
    return model


def text(length, batch=2, seed=0):
    return np.random.default_rng([7, seed]).integers(0, VOCABULARY, (length, batch)).astype(np.int32)


# Kernels


def test_levels_are_those_of_the_reference(op):
    rng, B, T = np.random.default_rng(0), 3, 5
    rows, state = np.zeros((len(rows_of.ROWS), B), np.float32), {name: np.zeros(B) for name in rows_of.ROWS}
    for segment in range(30):
        losses, targets = single(rng.uniform(0, 4, (T, B))), rng.integers(-2, 5, (T, B)).astype(np.int32)
        targets[0] = abs(targets[0])
        if segment == 3:
            targets[:, 1] = -1  # a sequence at its end
        rows[rows_of.REWARD, 2] = state["reward"][2] = rng.normal()
        op("observe", rows, losses, targets, np.float32(T))
        for t in range(T):
            state = ref.note(state, np.where(targets[t] < 0, np.nan, losses[t]), T)
        if segment == 3:
            assert rows[rows_of.TOKENS].tolist() == [0, T, 0], "a change waits for a loss"
            rows[rows_of.TOKENS, 1] = state["tokens"][1] = 0  # the reference would change at the next loss, kernels do at a chunk's end
        np.testing.assert_allclose(rows, [state[name] for name in rows_of.ROWS], rtol=1e-4, atol=1e-5)


def test_factors_are_those_of_the_reference_and_slopes_theirs(op):
    rng, B = np.random.default_rng(1), 3
    rows, sensitivity = single(rng.normal(size=(len(rows_of.ROWS), B))), single(rng.uniform(-0.8, 0.8, rows_of.TARGETS))
    factors, slopes = np.zeros((2, rows_of.TARGETS, B), np.float32)
    op("modulate", factors, slopes, rows, sensitivity)

    def effects(k):
        found = ref.effects(k, rows[:3].astype(np.float64))
        of_modules = [found[module, what] for what in ("gain", "adaptation") for module in ref.MODULES]
        return np.array([*of_modules, found["write"], found["go"]])

    np.testing.assert_allclose(factors, effects(sensitivity.astype(np.float64)), rtol=1e-6)
    for target in range(rows_of.TARGETS):
        one, other = (effects(sensitivity.astype(np.float64) + sign * 1e-6 * (np.arange(14) == target))[target] for sign in (1, -1))
        if target == rows_of.GO:  # which lowers a bias
            one, other = -one, -other
        else:
            one, other = np.log(one), np.log(other)
        np.testing.assert_allclose(slopes[target], (one - other) / 2e-6, rtol=1e-4, atol=1e-6)


def test_a_factor_is_exactly_one_where_nothing_is_sensitive_and_where_no_level_has_moved(op):
    rng = np.random.default_rng(2)
    rows, sensitivity = single(rng.normal(0, 9, (9, 4))), single(rng.normal(size=14))
    for levels, k in ((rows, np.zeros(14, np.float32)), (np.zeros((9, 4), np.float32), sensitivity)):
        factors, slopes = np.zeros((2, 14, 4), np.float32)
        op("modulate", factors, slopes, levels, k)
        assert (factors[: rows_of.GO] == 1).all() and (factors[rows_of.GO] == 0).all()


@pytest.mark.parametrize("after_a_sigmoid", [False, True])
def test_the_gradient_of_a_sensitivity_adds_up_over_tokens_and_neurons(op, after_a_sigmoid):
    rng = np.random.default_rng(3)
    x, logit, bias, slope = (single(rng.normal(size=shape)) for shape in ((5, 3, 7), (5, 3, 7), 7, 3))
    total = np.ones(1, np.float32)
    none = np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32)
    op("sensitivity_backward", total, x, slope, *((logit, bias) if after_a_sigmoid else none))
    shares = x.astype(np.float64) * slope[:, None]
    shares = shares / (1 - ref.sigmoid(logit + bias)) if after_a_sigmoid else shares
    np.testing.assert_allclose(total, 1 + shares.sum(), rtol=1e-4)


def test_a_level_that_is_left_out_stays_neutral(backend):
    brain = {"vocabulary": VOCABULARY, "neuromodulation": True, "without": "dopamine serotonin", "chunk": FEW}
    less, ids = NeuroGenModel.from_config(tiny.config(brain=brain), backend=backend), text(2 * FEW + 1)
    act = less.activity(2 * FEW, 2, learning=True)
    act.reward(1.0)
    less.update(act, ids[:-1], ids[1:], 0.0)
    dopamine, norepinephrine, serotonin = (backend.to_numpy(level) for level in act.levels.values())
    assert norepinephrine.all() and not dopamine.any() and not serotonin.any()
    gradient = backend.to_numpy(less.brain.parameters.gradient[SENSITIVITY])
    assert gradient[: len(MODULES)].any() and not gradient[len(MODULES) :].any()


# The same while training, reading and writing


def test_an_untrained_brain_is_bit_for_bit_the_one_without(backend, full_size):
    ids = text(4 * CHUNK + 1)
    with_them, without = (model_of(backend, on) for on in (True, False))
    np.testing.assert_array_equal(with_them.logits(ids.T), without.logits(ids.T))
    acts = [model.activity(2 * CHUNK, 2, learning=True) for model in (with_them, without)]
    inputs, targets = ids[: 2 * CHUNK], ids[1 : 2 * CHUNK + 1]
    losses = [model.update(act, inputs, targets, 0.0)[0] for model, act in zip((with_them, without), acts, strict=True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)  # the decoder's product is cut otherwise
    for one, other in zip(*(model_act.v.values() for model_act in acts), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(one), backend.to_numpy(other))
    gradients = [{name: backend.to_numpy(g) for name, g in model.brain.parameters.gradient.items()} for model in (with_them, without)]
    assert np.abs(gradients[0].pop(SENSITIVITY)).max() > 0
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():  # the decoder's is summed chunk by chunk
        np.testing.assert_allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


def levels_of(act):
    return act.brain.backend.to_numpy(act.modulators)


def test_reading_in_any_pieces_and_writing_give_the_levels_of_training(backend, full_size):
    model, length = model_of(backend, sensitivity=0.2), 3 * CHUNK + 5
    ids = text(length + 1, seed=1)
    whole = model.activity(3 * CHUNK, 2)
    model.score(whole, ids[: 3 * CHUNK], ids[1 : 3 * CHUNK + 1])
    model.score(whole, ids[3 * CHUNK : length], ids[3 * CHUNK + 1 :])
    expected = levels_of(whole)
    assert np.abs(expected[:3]).min() > 0, "levels have moved"
    for pieces in ([length], [1] * length, [3, 9, 1, 5, length - 18]):
        session, first = Session(model, Sampling(), 2), 0
        for piece in pieces:
            session.feed(ids[first : first + piece])
            first += piece
        found = levels_of(session.act)
        np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-3, err_msg=str(pieces))
        state = session.state()
        for name, values in whole.state().items():
            if not name.startswith("neuromodulation."):  # the last token is judged when the next one is known
                np.testing.assert_allclose(state[name], values, rtol=2e-3, atol=2e-3, err_msg=f"{name} {pieces}")


def test_what_was_written_and_is_read_again_gives_the_same_state(backend, full_size):
    model = model_of(backend, sensitivity=0.2)
    session, again = Session(model, Sampling(seed=3), 2), Session(model, Sampling(), 2)
    prompt = text(CHUNK - 3, seed=2)
    session.feed(prompt)
    drawn = np.concatenate([session.write(4), session.write(2 * CHUNK)])
    again.feed(np.concatenate([prompt, drawn]))
    one, other = session.state(), again.state()
    assert one.keys() == other.keys() and np.abs(levels_of(session.act)[:3]).min() > 0
    for name in one.keys() - {"drawn", "last_tokens"}:
        np.testing.assert_allclose(one[name], other[name], rtol=2e-3, atol=2e-3, err_msg=name)


def test_a_session_goes_on_bit_for_bit_from_its_state(backend, full_size):
    model = model_of(backend, sensitivity=0.2)
    session, loaded = Session(model, Sampling(seed=3)), Session(model, Sampling(seed=3))
    session.feed(text(CHUNK + 3, 1))
    session.write(5)
    state = session.state()
    loaded.feed(text(5, 1, seed=9))  # leaves something behind
    loaded.load_state(state)
    more = text(CHUNK, 1, seed=4)
    for one in (session, loaded):
        one.feed(more)
    np.testing.assert_array_equal(session.write(20), loaded.write(20))
    for name, values in session.state().items():
        np.testing.assert_array_equal(values, loaded.state()[name], err_msg=name)
    with pytest.raises(CheckpointError, match="'scores' is missing"):
        loaded.load_state({name: values for name, values in state.items() if name != "scores"})


def test_logits_are_those_of_reading_token_by_token(backend, full_size):
    model = model_of(backend, sensitivity=0.3)
    ids = text(2 * CHUNK + 3, 1)
    session = Session(model, Sampling())
    for t in range(len(ids)):
        session.feed(ids[t : t + 1])
    last = backend.to_numpy(session.act.logits[0, :VOCABULARY] + model.brain.decoder.bias[:VOCABULARY])
    np.testing.assert_allclose(model.logits(ids.T)[0, -1], last, rtol=1e-3, atol=1e-3)


# Learning


@pytest.mark.gpu
def test_the_gradient_of_the_sensitivities_is_the_same_on_both_backends():
    found, ids = [], text(2 * FEW + 1, 3)
    for name in ("cpu", "cuda"):
        model = model_of(backends.get(name, 0, "fp32"), sensitivity=0.2, chunk=FEW)
        act = model.activity(2 * FEW, 3, learning=True)
        act.reward([1.0, -0.5, 2.0])  # so that dopamine moves with the first change
        model.update(act, ids[:-1], ids[1:], 0.0)
        found.append(model.backend.to_numpy(model.brain.parameters.gradient[SENSITIVITY]))
    assert (found[0] != 0).all()
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-3 * np.abs(found[0]).max())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("memory", ["full", "recompute", "half"])
def test_sensitivities_learn_and_stay_in_bounds(optimizer, memory):
    model = model_of(backends.get("cpu"), optimizer=optimizer, activation_memory=memory)
    ids = np.tile(text(8, 2), (5, 1))[: 4 * CHUNK + 1]
    losses = [model.train_step(ids[:-1].T, ids[1:].T, 0.01)[0] for _ in range(12)]
    assert losses[-1] < losses[0]
    k = model.brain.parameters.value[SENSITIVITY]
    assert (k != 0).all() and np.abs(k).max() <= 1
    if memory != "half":
        plain = model_of(backends.get("cpu"), optimizer=optimizer)
        for _ in range(12):
            plain.train_step(ids[:-1].T, ids[1:].T, 0.01)
        np.testing.assert_allclose(k, plain.brain.parameters.value[SENSITIVITY], atol=1e-4)


def test_two_trainings_and_one_that_was_saved_between_end_in_the_same_bits(tmp_path):
    ids = text(6 * 2 * CHUNK + 1, 4)

    def segments(model, act, numbers):
        for number in numbers:
            part = slice(number * 2 * CHUNK, (number + 1) * 2 * CHUNK)
            reset = np.array([number == 2, False, False, number == 4])
            model.update(act, ids[part], ids[1:][part], 0.01, reset)

    def made():
        model = model_of(backends.get("cpu"), sensitivity=0.2)
        return model, model.activity(2 * CHUNK, 4, learning=True)

    (model, act), (other, other_act) = made(), made()
    segments(model, act, range(6))
    segments(other, other_act, range(3))
    other.save(tmp_path / "saved", other_act.state())
    loaded, state, _ = NeuroGenModel.restore(tmp_path / "saved", backend="cpu")
    loaded_act = loaded.activity(2 * CHUNK, 4, learning=True)
    loaded_act.load_state(state)
    segments(loaded, loaded_act, range(3, 6))
    np.testing.assert_array_equal(model.brain.parameters.flat_value, loaded.brain.parameters.flat_value)
    for name, values in act.state().items():
        np.testing.assert_array_equal(values, loaded_act.state()[name], err_msg=name)


def test_a_brain_saved_without_them_loads_as_it_was(tmp_path):
    model = model_of(backends.get("cpu"), on=False)
    act = model.activity(CHUNK, 2)
    assert act.levels == {} and not [name for name in act.state() if "neuromodulation" in name or "dopamine" in name]
    model.save(tmp_path / "saved", act.state() | {"dopamine": np.zeros(2, np.float32)})  # as earlier versions did
    loaded, state, _ = NeuroGenModel.restore(tmp_path / "saved", backend="cpu")
    loaded.activity(CHUNK, 2).load_state(state)


# Reward


def test_a_reward_raises_dopamine_by_itself_and_serotonin_slowly(backend):
    model = model_of(backend, chunk=FEW)
    ids = text(3 * FEW + 1)
    (plain, rewarded), steps = (model.activity(FEW, 2) for _ in range(2)), range(0, 3 * FEW, FEW)
    for first in steps:
        for act in (plain, rewarded):
            if act is rewarded and first == FEW:
                model.reward(0.0)  # of the sequences read last
                rewarded.reward([0.0, 2.0])
            model.score(act, ids[first : first + FEW], ids[first + 1 : first + FEW + 1])
        if first == FEW:
            more = levels_of(rewarded) - levels_of(plain)
            np.testing.assert_allclose(more[:3], [[0, 2], [0, 0], [0, 1]], atol=1e-6)  # the mean over two intervals
    assert (levels_of(rewarded) - levels_of(plain))[rows_of.DOPAMINE].max() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "wrong", [np.nan, np.inf, [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], "much", None, [1.0, np.nan], 1e39, [1.0, 2j], [[1.0], 2.0]]
)
def test_a_reward_of_another_shape_or_not_finite_costs_a_sentence(wrong):
    model = model_of(backends.get("cpu"))
    ids = text(CHUNK + 1)
    with pytest.raises(ConfigError, match=r"^reward: nothing is being read"):
        model.reward(1.0)
    model.train_step(ids[:-1].T, ids[1:].T)
    before = levels_of(model._activity)
    with pytest.raises(ConfigError, match=r"^reward: a finite number is needed, or one for each sequence, of shape \[2\]; not "):
        model.reward(wrong)
    np.testing.assert_array_equal(levels_of(model._activity), before)
    model.reward(np.array([1.0, -1.0]))
    assert levels_of(model._activity)[rows_of.REWARD].tolist() == [1, -1]


def test_a_brain_without_them_has_no_use_for_a_reward():
    model = model_of(backends.get("cpu"), on=False)
    model.train_step(text(CHUNK, 1).T, text(CHUNK, 1).T)
    with pytest.raises(ConfigError, match="has no neuromodulators"):
        model.reward(1.0)


def test_a_segment_that_is_no_whole_chunks_is_refused():
    with pytest.raises(ConfigError, match=r"^training\.segment: .* every brain\.chunk = 8 tokens"):
        tiny.config(brain={"neuromodulation": True}, segment=12)
    for segment in (4, 8, 16, 24):
        tiny.config(brain={"neuromodulation": True}, segment=segment)
