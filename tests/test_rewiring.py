"""Structural plasticity: which bundles are removed, which grow, and that nothing else changes."""

import dataclasses
import json

import numpy as np
import pytest

import tiny
from neurogen_numba import backends
from neurogen_numba.brain.connectome import Arc, check_bundles, draw_bundles, generator, grow_bundles, real_weights
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import ConfigError
from neurogen_numba.learning import rewiring
from neurogen_numba.learning.report import Notice
from neurogen_numba.learning.rewiring import Rewiring, random_walk, share_at
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.train import configure, parser
from same import assert_equal_runs

pytestmark = pytest.mark.usefixtures("one_thread")

ARC = Arc("a", "x.axon", "y.current", 16 * 20, 16 * 5, 48, first_delay=8, delays=4, most=16)
FULL = Arc("a", "x.axon", "y.current", 16 * 2, 16 * 5, 48, delays=2, most=16)  # three of four pairs
BRAIN = {"fan_in": 16, "memory_fan_in": 16, "feedback": 16, "vocabulary": 12}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def made(request):
    """`made(rewire="set")`: a tiny model that rewires, on either backend."""
    if request.param == "cuda":
        request.getfixturevalue("full_size")
    backend = backends.get(request.param, 0, "fp32")
    return lambda brain=None, **training: NeuroGenModel.from_config(
        tiny.config(brain=BRAIN | (brain or {}), **{"rewire_interval": 1, "rewire_share": 0.5, **training}), backend=backend
    )


def tokens(batch=4, length=16, seed=0):
    """Inputs and targets [length, batch] int32."""
    ids = np.random.default_rng(seed).integers(12, size=(length + 1, batch)).astype(np.int32)
    return ids[:-1], ids[1:]


def weights(model):
    return {p.arc.name: model.backend.to_numpy(p.weight).copy() for p in model.brain.projections}


def wiring(model):
    return {p.arc.name: np.stack([p.block, p.delay]) for p in model.brain.projections}


def changed(before, after):
    """name -> the flat indices of the bundles that are others now."""
    return {name: np.flatnonzero((before[name] != after[name]).any(axis=0).reshape(-1)) for name in before}


@pytest.mark.parametrize("count", [1, 3])
def test_bundles_that_grow_are_new_to_their_tile(count):
    block, delay = draw_bundles(ARC, 1)
    slots = np.array([0, 2, 3, 4, 14])
    pairs = grow_bundles(ARC, block, delay, slots, count, np.random.default_rng(0))
    assert pairs.shape == (count, 5) and (pairs >= 0).all() and (pairs < 80).all()
    for tile in range(5):
        local = pairs[:, slots // 3 == tile].ravel().tolist()
        there = ((delay[tile] - 8) * 20 + block[tile]).tolist()
        assert len(set(local + there)) == len(local) + 3


@pytest.mark.parametrize("arc, count", [(ARC, 3), (FULL, 2), (dataclasses.replace(ARC, sources=32), 4)])
def test_bundles_are_drawn_one_try_after_the_other(arc, count):
    """As a plain loop draws them from the same random numbers, also where some tiles get full."""
    (block, delay), slots = draw_bundles(arc, 1), np.arange(0, 15, 2)
    rng, odds = np.random.default_rng(2), np.exp(-0.1 * np.arange(arc.delays))
    tiles = np.tile(slots // 3, count)
    taken = {(bundle // 3, pair) for bundle, pair in enumerate(((delay - arc.first_delay) * arc.blocks + block).ravel().tolist())}
    expected = np.full(len(tiles), -1)
    for _ in range(100):
        missing = np.flatnonzero(expected < 0)
        late = rng.choice(arc.delays, len(missing), p=odds / odds.sum())
        for bundle, pair in zip(missing, late * arc.blocks + rng.integers(arc.blocks, size=len(missing)), strict=True):
            if (tiles[bundle], pair) not in taken:
                taken.add((tiles[bundle], pair))
                expected[bundle] = pair
    found = grow_bundles(arc, block, delay, slots, count, np.random.default_rng(2))
    np.testing.assert_array_equal(found.ravel(), expected)
    assert (arc is ARC) == (expected >= 0).all()


def test_a_tile_without_room_keeps_its_bundles():
    block, delay = draw_bundles(FULL, 1)
    pairs = grow_bundles(FULL, block, delay, np.array([3, 4, 6]), 1, np.random.default_rng(0))[0]
    assert (pairs[:2] >= 0).sum() == 1, "one pair is left for two bundles of the second tile"
    assert pairs[2] == ({0, 1, 2, 3} - set((delay[2] * 2 + block[2]).tolist())).pop()


def test_short_delays_grow_more_often():
    arc = dataclasses.replace(ARC, delays=20, targets=16 * 400)
    block, delay = draw_bundles(arc, 1)
    pairs = grow_bundles(arc, block, delay, np.arange(1200), 1, np.random.default_rng(0))[0]
    first, last = (pairs // 20 < 5).mean(), (pairs // 20 >= 15).mean()
    assert first == pytest.approx((1 - np.exp(-0.5)) / (1 - np.exp(-2)), abs=0.05) and last < 0.2


def test_a_random_walk_ends_the_weak():
    norms = np.concatenate([np.full(3000, 1.0), np.full(1000, 0.05)])
    walked = random_walk(norms, 0.1, np.random.default_rng(0))
    assert (walked[:3000] > 0).all() and 0.6 < (walked[3000:] <= 0).mean() < 0.8  # P(0.05 + 0.1 (n - 1) <= 0) = P(n <= 0.5) = 0.69
    assert walked[:3000].mean() == pytest.approx(0.9, abs=0.01) and walked[:3000].std() == pytest.approx(0.1, abs=0.01)


def test_the_share_falls_to_nothing_at_three_quarters():
    training = tiny.config(rewire_share=0.4).training
    shares = [share_at(training, step, 1000) for step in (0, 375, 750)]
    assert shares == pytest.approx([0.4, 0.2, 0.0])


@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_the_smallest_bundles_become_others(made, rule):
    model = made(rewire=rule, rewire_share=1.0)
    act, rewire = model.activity(16, 4, learning=True), Rewiring(model)
    before, small = wiring(model), weights(model)
    for p in model.brain.projections:
        for moment in model.optimizer.of(f"{p.arc.name}.weight"):
            moment[...] = 1
    grown = rewire_now(model, act, lambda act: rewire(act, 375, 1000))  # half of the share
    after = wiring(model)
    others, total = changed(before, after), 0
    for p in model.brain.projections:
        name, norms = p.arc.name, np.linalg.norm(small[p.arc.name].reshape(len(small[p.arc.name]), -1), axis=1)
        check_bundles(p.arc, p.block, p.delay)
        total += len(others[name])
        if p in rewire.projections:
            asked = np.sort(np.argsort(norms, kind="stable")[: round(0.5 * len(norms))])
            assert set(others[name]) <= set(asked)  # a tile may have no room
            for moment in model.optimizer.of(f"{name}.weight"):
                rows = model.backend.to_numpy(moment).reshape(len(norms), -1)
                assert (rows[others[name]] == 0).all() and (np.delete(rows, others[name], axis=0) == 1).all()
            local, old = (array.reshape(len(norms), -1) for array in (model.backend.to_numpy(p.weight), small[name]))
            assert (local[others[name]] == 0).all()
            np.testing.assert_array_equal(np.delete(local, others[name], axis=0), np.delete(old, others[name], axis=0))
        else:
            assert not len(others[name])
    assert grown == total > 10


def test_bundles_take_their_step_of_deep_r(made):
    """Those that live keep their direction and get the norm of the walk; those that it ends become others."""
    model = made(rewire="deep_r", seed=3)
    act, rewire = model.activity(16, 4, learning=True), Rewiring(model)
    before, old = wiring(model), weights(model)
    rewire_now(model, act, lambda act: rewire(act, 1, 10**9))
    others, lived = changed(before, wiring(model)), 0
    for p in rewire.projections:
        name, array = p.arc.name, old[p.arc.name].reshape(len(old[p.arc.name]), -1)
        norms = np.linalg.norm(array, axis=1)
        walked = random_walk(norms, share_at(model.config.training, 1, 10**9), generator(3, f"{name}.rewire.1"))
        assert set(others[name]) <= set(np.flatnonzero(walked <= 0))
        alive = walked > 0
        expected = array[alive] * (walked / norms)[alive, None]
        np.testing.assert_allclose(model.backend.to_numpy(p.weight).reshape(array.shape)[alive], expected, rtol=1e-5)
        lived += alive.sum()
    assert lived > 10 and sum(map(len, others.values())) > 0


def test_each_update_and_each_seed_draws_other_bundles(made):
    def drawn(step, seed=0):
        rewire = Rewiring(made(rewire="set", seed=seed))
        return {p.arc.name: [part.tolist() for part in rewire._choose(p, 0.5, step)] for p in rewire.projections}

    first = drawn(1)
    assert drawn(1) == first and drawn(2) != first
    rewire, other = Rewiring(made(rewire="set")), made(rewire="set", seed=1)
    rewire.training = other.config.training  # the same wiring, and another seed of the run
    assert {p.arc.name: [part.tolist() for part in rewire._choose(p, 0.5, 1)] for p in rewire.projections} != first


def rewire_now(model, act, rewire):
    """Rewire in the backward pass of an update whose rate is 0, and return what `rewire` does; weights stay where they are."""
    found, inputs, targets = [], *tokens()
    model.optimizer.apply = lambda *_: None
    model.update(act, inputs, targets, 0.0, rewire=lambda act: found.append(rewire(act)))
    return found[0]


@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_a_new_bundle_changes_nothing_but_has_a_gradient(made, rule):
    """After a rewiring the model computes what the old one does without the bundles that were removed."""
    model = made(rewire=rule)
    rewire, act = Rewiring(model), model.activity(16, 4, learning=True)
    before = wiring(model)
    rewire_now(model, act, lambda act: rewire(act, 1, 10**9))
    others = changed(before, wiring(model))
    loaded = made(rewire="set")
    for p, old in zip(loaded.brain.projections, model.brain.projections, strict=True):
        p.weight.reshape(len(p.weight), -1)[loaded.backend.asarray(others[p.arc.name], "int64")] = 0
        assert p.arc == old.arc
    without = loaded.logits(tokens()[0].T)
    loaded.brain.load_structure(model.brain.structure())
    np.testing.assert_array_equal(loaded.logits(tokens()[0].T), without)
    np.testing.assert_array_equal(model.logits(tokens()[0].T), without)
    grown = [np.abs(model.backend.to_numpy(p.d_weight)[others[p.arc.name]]).max() for p in rewire.projections if len(others[p.arc.name])]
    assert np.median(grown) > 0
    for name, expected in gradients_of(made(rewire="set"), model.brain.structure()).items():
        found = next(p.d_weight for p in model.brain.projections if p.arc.name == name)
        np.testing.assert_array_equal(model.backend.to_numpy(found), expected)


@pytest.mark.parametrize("learning", ["bptt", "eprop"])
def test_other_bundles_keep_their_gradient(made, learning):
    """With e-prop it is a sum over the chunks of the segment, and the synapses know the last one only."""
    model, before, wired = made(rewire="rigl", learning=learning), {}, {}
    rewire = Rewiring(model)

    def noted(act):
        wired.update(wiring(model))
        before.update({p.arc.name: model.backend.to_numpy(p.d_weight).copy() for p in model.brain.projections})
        rewire(act, 1, 10**9)

    rewire_now(model, model.activity(16, 4, learning=True), noted)
    others, kept = changed(wired, wiring(model)), 0
    for p in model.brain.projections:
        same = np.setdiff1d(np.arange(len(p.d_weight)), others[p.arc.name])
        np.testing.assert_array_equal(model.backend.to_numpy(p.d_weight)[same], before[p.arc.name][same])
        kept += (before[p.arc.name][same] != 0).any(axis=(1, 2)).sum()
    assert kept > 10 and sum(map(len, others.values())) > 10


def test_with_three_factor_new_bundles_begin_as_the_first_ones(made):
    """Drawn as they were, from the real fan-in; the others are as before the update: the rewiring comes after the perturbation."""
    grown, scaled = {}, []
    for step in (1, 2):
        model = made({"neuromodulation": True}, rewire="set", learning="three-factor", average=5)
        rewire, before, old = Rewiring(model), wiring(model), weights(model)
        model.optimizer.steps = 40  # so that the average takes a fifth of an update
        rewire_now(model, model.activity(16, 4, learning=True), lambda act, step=step, rewire=rewire: rewire(act, step, 10**9))
        others, new = changed(before, wiring(model)), weights(model)
        for p in model.brain.projections:
            name, bundles = p.arc.name, others[p.arc.name]
            np.testing.assert_array_equal(np.delete(new[name], bundles, axis=0), np.delete(old[name], bundles, axis=0))
            average = model.backend.to_numpy(model.optimizer.of(f"{name}.weight")[-1])
            np.testing.assert_array_equal(average[bundles], new[name][bundles])
            assert not model.backend.to_numpy(p.d_weight).any()
            sources, targets = real_weights(p.arc, p.block, p.tile)
            fan_in = np.bincount(p.tile, sources.sum(axis=1))[p.tile]
            for bundle in bundles:
                real = sources[bundle][:, None] & targets[bundle]
                assert not new[name][bundle][~real].any() and (new[name][bundle] <= 0).all() == p.arc.inhibitory
                scaled += (new[name][bundle][real] * np.sqrt(fan_in[bundle])).tolist()
                grown[name, bundle, step] = new[name][bundle]
    assert np.std(scaled) == pytest.approx(1, abs=0.05) and (np.array(scaled) != 0).all()
    again = [key for key in grown if key[2] == 2 and (*key[:2], 1) in grown]
    assert len(again) > 10 and all((grown[key] != grown[key[0], key[1], 1]).any() for key in again), "each rewiring draws others"


def gradients_of(model, structure):
    """name -> gradient of the weights if a segment, which ran with the wiring of the model, had been read by this one."""

    def wire(act):
        for p in model.brain.projections:
            p.set_structure(structure[f"{p.arc.name}.block"], structure[f"{p.arc.name}.delay"])
        model.brain.rewire()
        model.brain.synapses.gradient[...] = 0
        act.synapses.accumulate_weight_grad(act.length)

    rewire_now(model, model.activity(16, 4, learning=True), wire)
    return {p.arc.name: model.backend.to_numpy(p.d_weight).copy() for p in model.brain.projections}


def test_rigl_grows_the_candidate_with_the_largest_gradient(made, monkeypatch):
    """Each candidate in turn, wired into a model with the old weights, has the gradient norms by which the best is chosen."""
    monkeypatch.setattr(rewiring, "CANDIDATES", 3)
    model = made(rewire="rigl")
    act, rewire, drawn, before = model.activity(16, 4, learning=True), Rewiring(model), {}, model.brain.structure()
    choose = rewire._choose
    rewire._choose = lambda p, *how: drawn.setdefault(p.arc.name, choose(p, *how))
    rewire_now(model, act, lambda act: rewire(act, 1, 10**9))
    norms = {name: [] for name in drawn}
    for candidate in range(3):
        other = made(rewire="rigl")
        structure = dict(before)
        for p in other.brain.projections:
            if p.arc.name in drawn:
                slots, pairs = drawn[p.arc.name]
                block, delay = rewiring.with_bundles(p, slots, pairs[candidate])
                structure |= {f"{p.arc.name}.block": block, f"{p.arc.name}.delay": delay}
        for name, gradient in gradients_of(other, structure).items():
            if name in drawn:
                norms[name].append(np.linalg.norm(gradient[drawn[name][0]], axis=(1, 2)))
    differ = 0
    for p in model.brain.projections:
        if p.arc.name in drawn:
            slots, pairs = drawn[p.arc.name]
            best = pairs[np.argmax(norms[p.arc.name], axis=0), np.arange(len(slots))]
            pair = ((p.delay - p.arc.first_delay) * p.arc.blocks + p.block).reshape(-1)[slots]
            np.testing.assert_array_equal(pair, best)
            differ += (np.ptp(norms[p.arc.name], axis=0) > 0).sum()
    assert differ > 10


def test_recorded_steps_follow_the_wiring(made):
    """A step that ran before a rewiring is not repeated from its recording of the old wiring."""
    model = made(rewire="set")
    rewire, act = Rewiring(model), model.activity(16, 4)
    inputs, targets = tokens()

    def scored(model, act):
        act.reset()
        return model.score(act, inputs, targets)[0]

    old = [scored(model, act) for _ in range(3)][-1]
    rewire_now(model, model.activity(16, 4, learning=True), lambda act: rewire(act, 1, 10**9))
    for p in rewire.projections:
        p.weight[...] = model.backend.asarray(np.random.default_rng(0).standard_normal(p.weight.shape), "float32") * np.float32(0.1)
    model.brain.refresh()
    new = [scored(model, act) for _ in range(3)][-1]
    assert np.abs(new - old).max() > 1e-3
    np.testing.assert_array_equal(new, scored(model, model.activity(16, 4)))


SETTINGS = {"steps": 12, "rewire_interval": 2, "rewire_share": 0.5, "checkpoint_interval": 4, "eval_interval": 100, "sample_interval": 100}


@pytest.mark.parametrize(
    "rule, how",
    [
        ("rigl", {"learning": "eprop"}),
        ("rigl", {"average": 5}),
        ("set", {"optimizer": "muon"}),
        ("deep_r", {"optimizer": "adamw8bit"}),
        ("set", {"learning": "three-factor", "average": 5}),
        ("deep_r", {"learning": "three-factor"}),
    ],
    ids=str,
)
def test_a_run_that_rewires_resumes_bit_for_bit(tmp_path, rule, how):
    data = tmp_path / "sheep.txt"
    data.write_text("The sheep counts the other sheep. " * 100)
    brain = BRAIN | {"neuromodulation": how.get("learning") == "three-factor"}
    config = tiny.config(text={"data": str(data)}, brain=brain, rewire=rule, **how, **SETTINGS)
    begun = None
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        trainer = Trainer(config, tmp_path / name, "cpu")
        begun = begun or wiring(trainer.model)
        for report in trainer.reports():
            if name == "stopped" and getattr(report, "step", 0) == 6:
                break
        if name == "stopped":
            trainer = Trainer.resume(tmp_path / name, backend="cpu")
            assert trainer.step == 4
            list(trainer.reports())
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")
    results = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "stopped")]
    assert results[0]["bundles_rewired"] == results[1]["bundles_rewired"] > 0
    assert sum(map(len, changed(begun, wiring(trainer.model)).values())) > 0


def test_a_brain_without_room_is_refused(made):
    model = made()
    for p in model.brain.projections:
        p.arc = dataclasses.replace(p.arc, fan_in=p.arc.sources * p.arc.delays)
    with pytest.raises(ConfigError, match="no other bundle can grow; set it to 0, or lower brain.fan_in"):
        Rewiring(model)


@pytest.mark.parametrize(
    "setting, output",
    [
        ({"rewire": "riggle"}, "training.rewire: unknown 'riggle'"),
        ({"rewire_share": 0.0}, "training.rewire_share: above 0 and at most 1"),
        ({"rewire_share": 1.5}, "training.rewire_share: above 0 and at most 1"),
        ({"rewire_interval": -1}, "training.rewire_interval"),
    ],
)
def test_wrong_settings_are_named(setting, output):
    with pytest.raises(ConfigError, match=output):
        tiny.config(**setting)


def test_a_criterion_without_an_interval_is_refused():
    with pytest.raises(ConfigError, match="--rewire set: nothing is rewired without --rewire-interval; add"):
        configure(parser().parse_args(["--rewire", "set"]))
    words = ["--rewire", "set", "--rewire-interval", "9"]
    training = configure(parser().parse_args(words)).training
    assert (training.rewire, training.rewire_interval) == ("set", 9)


@pytest.mark.parametrize("interval, few", [(4, False), (9, True)])  # three quarters of 12 steps are 9
def test_a_run_that_is_too_short_to_rewire_says_so(tmp_path, interval, few):
    (tmp_path / "sheep.txt").write_text("The sheep counts the other sheep. " * 100)
    (tmp_path / "run").mkdir()
    settings = SETTINGS | {"rewire_interval": interval}
    trainer = Trainer(tiny.config(text={"data": str(tmp_path / "sheep.txt")}, brain=BRAIN, **settings), tmp_path / "run", "cpu")
    notices = [report.text for report in trainer.reports() if isinstance(report, Notice)]
    assert ("12 steps are too few to rewire every 9: the wiring stays" in notices) == few
    assert (trainer.rewired == 0) == few
