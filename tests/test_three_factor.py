"""Learning by dopamine: what modules and the decoder learn from it, and a bandit."""

import numpy as np
import pytest

import tiny
from neurogen_numba import tasks
from neurogen_numba.benchmarks import bandit
from neurogen_numba.brain.learning_signal import DOPAMINE_SCALE
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

CHUNK, B, VOCABULARY = tiny.BRAIN.chunk, 3, 11


def model_of(brain=None, **training):
    brain = {"vocabulary": VOCABULARY, "neuromodulation": True, **(brain or {})}
    return NeuroGenModel.from_config(tiny.config(brain=brain, **{"learning": "three-factor", **training}), backend="cpu")


def text(length):
    return np.random.default_rng(7).integers(0, VOCABULARY, (length, B)).astype(np.int32)


def test_modules_learn_from_dopamine_and_from_no_gradient_of_the_decoder():
    model, ids = model_of(), text(3 * CHUNK + 1)
    act = model.activity(3 * CHUNK, B, learning=True)
    act.reward([2.0, 0.0, -1.0])
    model.update(act, ids[:CHUNK], ids[1 : CHUNK + 1], 0.0)
    model.load_segment(act, ids[CHUNK : 2 * CHUNK], ids[CHUNK + 1 : 2 * CHUNK + 1])
    model._gradients(act, True, False)
    dopamine, weight = act.levels["dopamine"], act.weight[0]
    assert np.unique(dopamine).size == B
    act.d_decoder_input[...] = np.nan
    signals = {"pfc.axon": act.signals["pfc.axon"].gradient, "broca.trace": act.signals["broca.trace"].gradient}
    act.learning_signal.write(signals, 0, CHUNK)
    for name, x in (("pfc.axon", act.v["pfc"][1:] > 1), ("broca.trace", act.y["broca"][1:])):
        expected = -dopamine[:, None] * weight * DOPAMINE_SCALE * (x - np.mean(x, (0, 1)))
        np.testing.assert_allclose(signals[name], expected, rtol=1e-3, atol=1e-18, err_msg=name)


def test_the_decoder_learns_choices_in_proportion_to_dopamine_and_all_else_as_always():
    model, ids = model_of(), text(CHUNK + 1)
    act, choices, gradients = model.activity(CHUNK, B, learning=True), np.zeros((CHUNK, B), bool), []
    choices[3, 1] = True
    for chosen in (None, choices):
        act.reset()
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
