"""Learning by dopamine: what modules and the decoder learn from it, and a bandit."""

import functools

import numpy as np
import pytest

import tiny
from neurogen_numba import backends, tasks
from neurogen_numba.benchmarks import bandit
from neurogen_numba.brain.exploration import STEP
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

CHUNK, B, VOCABULARY = tiny.BRAIN.chunk, 3, 11


def model_of(brain=None, backend="cpu", **training):
    brain = {"vocabulary": VOCABULARY, "neuromodulation": True, **(brain or {})}
    return NeuroGenModel.from_config(tiny.config(brain=brain, **{"learning": "three-factor", **training}), backend=backend)


def text(length):
    return np.random.default_rng(7).integers(0, VOCABULARY, (length, B)).astype(np.int32)


def values_of(model):
    return {name: model.backend.to_numpy(x).copy() for name, x in model.brain.parameters.value.items()}


def negated_backward(decoder, act, first, last, d_logits, add):
    type(decoder).backward(decoder, act, first, last, -d_logits, add)


def test_modules_move_by_dopamine_times_the_perturbation_and_by_no_gradient_of_the_decoder():
    """Neither the gradient of the logits nor the decoder's weights reach a module: with the same dopamine they move alike."""
    moved = []
    for negated in (False, True):
        model, ids, tried, surprise = model_of(), text(CHUNK + 1), [], []
        act, before = model.activity(CHUNK, B, learning=True), values_of(model)
        exploration = act.exploration
        if negated:
            model.brain.decoder.backward = functools.partial(negated_backward, model.brain.decoder)
        for reading in ("turn", "observe"):  # called after the first, and after the second
            then = getattr(exploration, reading)

            def note(*arguments, act=act, model=model, then=then, tried=tried, surprise=surprise):
                tried.append(values_of(model))
                surprise.append(act.losses.mean(0, dtype=np.float64))
                then(*arguments)

            setattr(exploration, reading, note)
        act.reward([2.0, 0.0, -1.0])  # of what was done before the perturbation
        model.update(act, ids[:-1], ids[1:], 0.001)
        after, sigma, xi = values_of(model), exploration.sigma, exploration.xi
        dopamine = surprise[1] - surprise[0]
        step = STEP * 0.001 * dopamine.mean() / np.sqrt((dopamine**2).mean()) * xi
        for index, name in enumerate((*exploration.scaled, *exploration.shifted)):
            for found, by in ((tried[0], (sigma * xi)[index]), (tried[1], -(sigma * xi)[index]), (after, step[index])):
                expected = before[name] * np.exp(by) if name in exploration.scaled else before[name] + by
                np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.abs(after["decoder.weight"] - before["decoder.weight"]).max() > 0
        rest = set(before) - {*exploration.scaled, *exploration.shifted, "decoder.weight", "decoder.bias"}
        assert all((after[name] == before[name]).all() for name in rest)
        moved.append(after)
    assert (moved[0]["decoder.weight"] != moved[1]["decoder.weight"]).any()
    for name in (*exploration.scaled, *exploration.shifted):
        np.testing.assert_array_equal(moved[0][name], moved[1][name], err_msg=name)


def test_both_readings_of_a_chunk_begin_from_the_same_state():
    """Without a perturbation they have the same losses, no module moves, and the state is that of reading the text once."""
    model, ids, rewards = model_of(), text(4 * CHUNK + 1), [2.0, 0.0, -1.0]
    act, once, before = model.activity(2 * CHUNK, B, learning=True), model.activity(CHUNK, B), values_of(model)
    act.exploration.sigma[:] = 0
    for first in (0, 2 * CHUNK):
        act.reward(rewards)
        once.reward(rewards)
        inputs, targets = ids[first : first + 2 * CHUNK], ids[first + 1 : first + 2 * CHUNK + 1]
        model.update(act, inputs, targets, 0.0, reset=np.array([False, first > 0, False]))
        assert not act.exploration.step.any()
        if first:
            once.reset(model.backend.asarray([0, 1, 0], "uint8"))
        for begin in (0, CHUNK):
            model.score(once, inputs[begin : begin + CHUNK], targets[begin : begin + CHUNK])
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    expected = once.state()
    for name, value in act.state().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_step_that_is_not_finite_is_not_made():
    model = model_of()
    act, before = model.activity(CHUNK, B, learning=True), values_of(model)
    with act.exploration.exploring():
        act.exploration.perturb(0)
        act.exploration.step[:] = np.nan
    with act.exploration.moving():
        pass
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_surprise_that_is_not_finite_moves_no_module():
    """Not even by the other chunks of the segment."""
    model, ids = model_of(), text(2 * CHUNK + 1)
    act, before = model.activity(2 * CHUNK, B, learning=True), values_of(model)
    surprises = iter([np.array([1.0, np.nan, 2.0]), np.ones(B), np.ones(B), 2 * np.ones(B)])  # of both readings of two chunks
    act.exploration._surprise = lambda: next(surprises)
    model.update(act, ids[:-1], ids[1:], 0.01)
    for name in (*act.exploration.scaled, *act.exploration.shifted):
        np.testing.assert_array_equal(model.brain.parameters.value[name], before[name], err_msg=name)


def test_a_chunk_without_targets_moves_no_module():
    model, ids = model_of(), text(CHUNK + 1)
    act = model.activity(CHUNK, B, learning=True)
    for _ in range(2):
        model.update(act, ids[:-1], ids[1:], 0.01)
    before = values_of(model)
    model.update(act, ids[:-1], np.full_like(ids[1:], -1), 0.01)
    for name in (*act.exploration.scaled, *act.exploration.shifted):
        np.testing.assert_array_equal(model.brain.parameters.value[name], before[name], err_msg=name)


@pytest.mark.parametrize(
    "where, called, moved",  # which call in an update is interrupted, and whether parameters differ there
    [
        ("brain.refresh", 1, True),
        ("exploration.turn", 1, True),
        ("exploration.observe", 1, True),
        ("brain.refresh", 3, False),  # when `exploring` ends
        ("brain.refresh", 4, True),  # when `moving` begins
        ("optimizer.apply", 1, True),
    ],
)
def test_an_update_that_is_interrupted_moves_no_module(where, called, moved, monkeypatch):
    model, ids = model_of(), text(CHUNK + 1)
    act = model.activity(CHUNK, B, learning=True)
    model.update(act, ids[:-1], ids[1:], 0.01)
    before, calls, found = values_of(model), [], []
    owner = act.exploration if where.startswith("exploration") else getattr(model, where.partition(".")[0])
    name = where.partition(".")[2]
    whole = getattr(owner, name)

    def interrupted(*arguments):
        calls.append(where)
        if len(calls) == called:
            found.append(values_of(model))
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    act.exploration._surprise = lambda: np.full(B, -model.brain.parameters.value["broca.bias"].mean())  # a step that is not 0
    with pytest.raises(KeyboardInterrupt):
        model.update(act, ids[:-1], ids[1:], 0.01)
    assert (found[0]["broca.bias"] != before["broca.bias"]).all() == moved
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    model.update(act, ids[:-1], ids[1:], 0.01)
    assert (values_of(model)["broca.bias"] != before["broca.bias"]).all()


def test_rewiring_finds_the_weights_unperturbed():
    model, ids, found = model_of(), text(CHUNK + 1), []
    act, before = model.activity(CHUNK, B, learning=True), values_of(model)
    model.update(act, ids[:-1], ids[1:], 0.01, rewire=lambda act: found.append(values_of(model)))
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert (values_of(model)["broca.bias"] != before["broca.bias"]).all()


def test_dopamine_alone_adjusts_a_module():
    """The bias of Broca: a surprise that falls with it raises it."""
    model, ids = model_of(), text(CHUNK + 1)
    act = model.activity(CHUNK, B, learning=True)
    bias = model.brain.parameters.value["broca.bias"]
    act.exploration._surprise = lambda: np.full(B, -bias.mean())
    for _ in range(60):
        model.update(act, ids[:-1], ids[1:], 0.01)
    assert bias.mean() > 1
    others = [model.brain.parameters.value[f"{name}.bias"].mean() for name in ("thalamus", "wernicke", "pfc")]
    assert max(others) < bias.mean() / 2


def test_training_resumes_bit_for_bit(tmp_path):
    model, ids = model_of(), text(12 * CHUNK + 1)
    act = model.activity(2 * CHUNK, B, learning=True)

    def updates(model, act, which):
        for n in which:
            first = 2 * CHUNK * n
            model.update(act, ids[first : first + 2 * CHUNK], ids[first + 1 : first + 2 * CHUNK + 1], 0.01)

    updates(model, act, range(3))
    model.save(tmp_path / "saved", act.state())
    updates(model, act, range(3, 6))
    loaded, state, _ = NeuroGenModel.restore(tmp_path / "saved", backend="cpu")
    again = loaded.activity(2 * CHUNK, B, learning=True)
    again.load_state(state)
    updates(loaded, again, range(3, 6))
    np.testing.assert_array_equal(model.brain.parameters.flat_value, loaded.brain.parameters.flat_value)


@pytest.mark.gpu
def test_both_backends_move_alike():
    found = []
    for name in ("cpu", "cuda"):
        model, ids = model_of({"chunk": 2}, backends.get(name, 0, "fp32")), text(4 + 1)  # two chunks
        act = model.activity(4, B, learning=True)
        act.reward([2.0, 0.0, -1.0])
        model.update(act, ids[:-1], ids[1:], 0.01)
        found.append(values_of(model))
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-3, atol=1e-4 * np.abs(values).max() + 1e-6, err_msg=name)


def test_the_decoder_learns_choices_in_proportion_to_dopamine_and_all_else_as_always():
    model, ids = model_of(), text(CHUNK + 1)
    act, choices, gradients = model.activity(CHUNK, B, learning=True), np.zeros((CHUNK, B), bool), []
    choices[3, 1] = True
    for chosen in (None, choices):
        act.reset()
        model.optimizer.steps = 0  # the same perturbation
        act.reward([0.5, 3.0, 0.0])
        model.update(act, ids[:-1], ids[1:], 0.0, choices=chosen)
        gradients.append(model.brain.parameters.gradient["decoder.bias"].copy())
    assert act.levels["dopamine"][1] == 3
    slope = (gradients[1] - gradients[0]) / (2 * act.weight[0])  # that of the choice, p - [target], times dopamine - 1
    target = ids[4, 1]
    assert -1 < slope[target] < -0.5
    others = np.delete(slope, target)
    assert (others > 0).all() and others.sum() == pytest.approx(-slope[target], rel=1e-3)


def test_a_bandit_is_learned_whichever_arm_is_better():
    brain = {"vocabulary": bandit.VOCABULARY, "chunk": 16, "broca": {"neurons": 512}}
    better = set()
    for seed in (1, 3):
        game = bandit.Bandit(model_of(brain, segment=16, seed=seed), 16, seed)
        shares = [game.pull(0.01)[0].mean() for _ in range(80)]
        assert np.mean(shares[-20:]) > 0.7
        better.add(game.better)
    assert better == {0, 1}


def test_the_command_plays(capsys):
    flags = "bandit --preset nano --steps 4 --batch-size 2 --eval-interval 2 --backend cpu"
    assert tasks.main(flags.split()) == 0
    output = capsys.readouterr().out
    assert output.count("the better arm") == 3 and "in the last 1 pulls" in output
    assert tasks.main([*flags.split(), "--pairs", "3"]) == 2
    assert "--pairs is not about bandit" in capsys.readouterr().err


def test_a_chunk_that_is_too_short_for_a_pull_is_refused():
    with pytest.raises(ConfigError, match="a pull takes a chunk of 16 tokens or more, not 8"):
        bandit.Bandit(model_of({"vocabulary": bandit.VOCABULARY}), 2, 1)
