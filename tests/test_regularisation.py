"""What keeps a model from learning its text by heart: dropped synapses, dropped words, averaged weights."""

import copy
import zlib

import numpy as np
import pytest

from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import DROPOUTS, Config, Text, Training
from neurogen_numba.distributed.communicator import SOLO
from neurogen_numba.distributed.team import assemble
from neurogen_numba.errors import ConfigError
from neurogen_numba.kernels import rng
from neurogen_numba.planning.budget import Card, plan
from test_model import BRAIN, TINY, VOCABULARY, model, text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def made(request):
    """`made(weight_drop=0.3)`: a small model on either backend."""
    from neurogen_numba import backends

    if request.param == "cuda":
        request.getfixturevalue("full_size")
    backend = backends.get(request.param, 0, "fp32")
    return lambda **training: NeuroGenModel.from_config(TINY.replace(training=training), backend=backend)


def gradients(made):
    return {name: made.backend.to_numpy(gradient) for name, gradient in made.brain.parameters.gradient.items()}


def weights(made):
    """The flat weights of all synapses, NumPy."""
    return made.backend.to_numpy(made.brain.synapses.weight)


def kept_share(key, places, rate):
    """The factor of each value, [K] float32."""
    with np.errstate(over="ignore"):
        return (rng.uniform(key, places) >= np.float32(rate)) / (1 - np.float32(rate))


def test_dropped_synapses_take_no_part_in_a_segment(made):
    """A step with dropped weights is a step of a brain that has the thinned weights; their gradient has the same mask."""
    thinned, whole, ids = made(weight_drop=0.4), made(), text(2, 13)
    size = weights(whole).size
    mask = kept_share(rng.key(0, 0, zlib.crc32(b"synapses")), np.arange(size, dtype=np.uint64), 0.4)
    assert 0.3 < (mask == 0).mean() < 0.5
    whole.brain.synapses.weight[...] = whole.backend.asarray(weights(whole) * mask.astype(np.float32))
    whole.brain.refresh()
    assert thinned.train_step(ids[:, :-1], ids[:, 1:]) == pytest.approx(whole.train_step(ids[:, :-1], ids[:, 1:]), rel=1e-6)
    synapses = thinned.brain.synapses
    expected = whole.backend.to_numpy(whole.brain.synapses.gradient) * mask
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(thinned.backend.to_numpy(synapses.gradient), expected, rtol=1e-4, atol=1e-7)
    others, same = gradients(thinned), gradients(whole)
    for name in others:
        if not any(name == f"{arc.name}.weight" for arc in thinned.brain.arcs):
            np.testing.assert_allclose(others[name], same[name], rtol=1e-4, atol=1e-7, err_msg=name)


def test_nothing_is_dropped_in_the_last_part_of_a_run(made):
    rates, ids = dict.fromkeys(DROPOUTS, 0.4), text(2, 13).T
    found = {}
    for name, training in {"whole": {}, "dropped": rates, "ended": rates | {"dropout_end": 0.5}}.items():
        team = assemble(SOLO, lambda training=training: made(batch=2, **training))
        found[name], recordings = [], []
        for step in range(1, 7):  # on a GPU, an update is replayed from its third time on
            team.act.reset()
            found[name].append(team.update(ids[:-1], ids[1:], 0.0, None, step, 6)[::2])
            recordings.append(list(team.act.recorded.values()))
        kept = [before == after for before, after in zip(recordings, recordings[1:], strict=False)]
        assert kept == [True, True, name != "ended", True, True], "only a change of the rates needs new recordings"
    assert found["ended"] == found["dropped"][:3] + found["whole"][3:]
    assert len(set(found["dropped"])) == 6 and len(set(found["whole"])) == 1


def test_without_learning_all_synapses_are_used(made):
    thinned, ids = made(weight_drop=0.4), text(2, 13)
    thinned.train_step(ids[:, :-1], ids[:, 1:])
    np.testing.assert_array_equal(thinned.logits(ids), copy.copy(thinned).logits(ids))


def test_each_update_drops_other_synapses_and_again_the_same(made):
    first, second, ids = made(weight_drop=0.4), made(weight_drop=0.4), text(2, 13)
    drawn = []
    for _ in range(3):
        losses = {trained.train_step(ids[:, :-1], ids[:, 1:], learning_rate=0)[0] for trained in (first, second)}
        assert len(losses) == 1
        drawn += losses
    assert len(set(drawn)) == 3
    np.testing.assert_array_equal(weights(first), weights(second))


def test_a_dropped_word_gets_no_gradient(made):
    trained, ids = made(word_dropout=0.5), text(2, 41)
    trained.train_step(ids[:, :-1], ids[:, 1:])
    key = rng.key(0, 0, zlib.crc32(b"words"))
    kept = kept_share(key, np.arange(VOCABULARY, dtype=np.uint64), 0.5) > 0
    read = np.isin(np.arange(VOCABULARY), ids[:, :-1])
    moved = np.abs(gradients(trained)["embedding.weight"]).sum(axis=1) > 0
    assert 2 < (kept & read).sum() < read.sum()
    np.testing.assert_array_equal(moved, kept & read)


# Averages


def learned(made, steps=5, average=3, **training):
    trained, ids = made(average=average, **training), text(2, 13)
    history = []
    for _ in range(steps):
        trained.train_step(ids[:, :-1], ids[:, 1:])
        history.append(trained.backend.to_numpy(trained.brain.parameters.flat_value))
    return trained, history


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw8bit", "adafactor"])
def test_the_average_reaches_back_over_an_eighth_of_the_updates_until_it_is_full(made, optimizer):
    trained, history = learned(made, optimizer=optimizer, steps=12, average=2)
    mean = np.zeros(history[0].shape)
    for step, value in enumerate(history, 1):
        mean += (value - mean) / min(1 + (step - 1) / 8, 2)
    np.testing.assert_allclose(trained.backend.to_numpy(trained.optimizer.average), mean, rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_lent_and_given_back(made):
    (trained, history), ids = learned(made), text(1, 9, seed=4)
    other = copy.copy(trained)
    other.brain.parameters.flat_value[...] = other.optimizer.average
    other.brain.refresh()
    before = trained.logits(ids)
    with pytest.raises(KeyError), trained.averaged():
        np.testing.assert_array_equal(trained.logits(ids), other.logits(ids))
        raise KeyError
    np.testing.assert_array_equal(trained.logits(ids), before)
    np.testing.assert_array_equal(trained.backend.to_numpy(trained.brain.parameters.flat_value), history[-1])
    assert (before != other.logits(ids)).any()


def test_without_an_average_or_an_update_the_weights_stay(made):
    for trained in (made(), made(average=3)):
        before = trained.logits(text(1, 9))
        with trained.averaged():
            np.testing.assert_array_equal(trained.logits(text(1, 9)), before)


def test_a_checkpoint_keeps_both_and_lends_the_average(made, tmp_path):
    trained, ids = learned(made)[0], text(2, 13)
    trained.save(tmp_path / "saved")
    lent = NeuroGenModel.load(tmp_path / "saved", backend=trained.backend)
    with trained.averaged():
        np.testing.assert_array_equal(lent.logits(ids), trained.logits(ids))
    resumed = NeuroGenModel.restore(tmp_path / "saved", backend=trained.backend)[0]
    for each in (trained, resumed):
        each.train_step(ids[:, :-1], ids[:, 1:])
    np.testing.assert_array_equal(*(each.backend.to_numpy(each.brain.parameters.flat_value) for each in (trained, resumed)))
    np.testing.assert_array_equal(*(each.backend.to_numpy(each.optimizer.average) for each in (trained, resumed)))


# Settings


@pytest.mark.parametrize("setting, wrong", [("weight_drop", 1.0), ("weight_drop", -0.1), ("word_dropout", 1.5), ("average", -1)])
def test_settings_out_of_range_are_named(setting, wrong):
    with pytest.raises(ConfigError, match=f"training.{setting}: at least 0"):
        Training(**{setting: wrong})


def test_the_plan_counts_what_they_take():
    config = Config("tiny", BRAIN, Training(batch=2, segment=8), Text(vocabulary=VOCABULARY))

    def bytes_of(**training):
        return sum(plan(config.replace(training=training), Card(2**30, "float32")).values())

    plain, learned_numbers = bytes_of(), model().brain.parameters.flat_value.size
    assert bytes_of(average=9) - plain == 4 * learned_numbers
    assert bytes_of(weight_drop=0.2) - plain == pytest.approx(4 * model().brain.synapses.weight.size, abs=100)  # and the keys
    assert bytes_of(word_dropout=0.2) == pytest.approx(plain, abs=100)
