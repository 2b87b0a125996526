"""A brain of another size: a wider one says what the old one said, and what cannot be taken over is told."""

import dataclasses

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.connectome import Arc
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.brain.resize import Line, carry_over, descend, in_proportion, proportional
from neurogen_numba.config import MODULES

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = np.random.default_rng(0).integers(0, 20, (4, 25))


def brain_of(modules=None, **settings):
    """The tiny brain, its modules multiplied in `modules`, with other settings."""
    brain = dataclasses.replace(tiny.BRAIN, vocabulary=20)
    for name, factor in (modules or {}).items():
        own = getattr(brain, name)
        brain = dataclasses.replace(brain, **{name: dataclasses.replace(own, neurons=factor * own.neurons, outputs=factor * own.outputs)})
    return dataclasses.replace(brain, **settings)


def model_of(brain):
    return NeuroGenModel.from_config(dataclasses.replace(tiny.config(), brain=brain), backend="cpu")


@pytest.fixture(scope="module")
def learned():
    """A tiny brain that has learned a little, so that no array is as it was drawn."""
    model = model_of(brain_of())
    for _ in range(60):
        model.train_step(IDS[:, :-1], IDS[:, 1:], 0.01)
    return model


def resized(learned, brain):
    model = model_of(brain)
    return model, {row.name: row for row in carry_over(learned.brain, model.brain)}


ALL = dict.fromkeys(MODULES, 2)


@pytest.mark.parametrize(
    "brain",
    [
        brain_of(),
        brain_of(ALL, hypercolumn=32, embedding=32),
        brain_of(ALL, hypercolumn=32, embedding=48),  # into the Thalamus without a projection
        brain_of(dict.fromkeys(MODULES, 3), hypercolumn=48, fan_in=13, feedback=5, memory_fan_in=11, delays=9, late_delays=9),
        brain_of(memory_heads=6),
    ],
    ids=["the same", "twice", "twice, no projection", "three times, more synapses and delays", "more memory"],
)
def test_a_wider_brain_says_what_the_old_one_said(learned, brain):
    """As long as every hypercolumn has the neurons that it had, each as many times."""
    model, _ = resized(learned, brain)
    before, now = learned.logits(IDS), model.logits(IDS)
    assert np.abs(before).max() > 5
    assert np.abs(now - before).max() < 1e-3


def test_the_same_size_is_the_same_to_the_bit(learned):
    model, rows = resized(learned, brain_of())
    for name, value in learned.brain.parameters.value.items():
        np.testing.assert_array_equal(model.brain.parameters.value[name], value)
        assert rows[name].how == "carried over"
    for name, value in learned.brain.structure().items():
        np.testing.assert_array_equal(model.brain.structure()[name], value)
    assert not any(kept.any() for kept in model.optimizer.tensors().values()) and model.optimizer.steps == 0


@pytest.mark.parametrize(
    "brain",
    [
        brain_of(
            {},
            thalamus=dataclasses.replace(tiny.BRAIN.thalamus, neurons=11),
            wernicke=dataclasses.replace(tiny.BRAIN.wernicke, neurons=20, outputs=7),
            pfc=dataclasses.replace(tiny.BRAIN.pfc, neurons=13, outputs=5),
            broca=dataclasses.replace(tiny.BRAIN.broca, neurons=17),
            embedding=7,
            fan_in=3,
            delays=2,
            memory_heads=1,
            memory_width=5,
        ),
        brain_of({}, embedding=24, fan_in=40, feedback=0, memory_fan_in=100, chunk=4, late_delays=3),
    ],
    ids=["smaller", "as many synapses as there are pairs, other delays"],
)
def test_any_brain_becomes_any_other(learned, brain):
    """Every target has as many synapses as it should, no two alike; the brain thinks and learns."""
    model, rows = resized(learned, brain)
    for projection in model.brain.projections:
        arc = projection.arc
        if arc.inhibitory:
            assert (projection.weight <= 0).all()
        if arc.dense:
            continue
        pair = np.repeat(np.arange(arc.sources * arc.delays), np.diff(projection.row_start.astype(int)))
        assert len({*zip(pair.tolist(), projection.target.tolist(), strict=True)}) == arc.targets * arc.synapses_per_target
        assert (np.bincount(projection.target, minlength=arc.targets) == arc.synapses_per_target).all()
    assert rows.keys() == model.brain.parameters.table.keys() | learned.brain.parameters.table.keys()
    shapes = {name: row.new for name, row in rows.items() if row.new}
    assert shapes == {name: own.shape for name, own in model.brain.parameters.table.items()}
    losses = [model.train_step(IDS[:, :-1], IDS[:, 1:], 0.01)[0] for _ in range(30)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_what_has_no_counterpart_is_said(learned):
    brain = brain_of(wernicke=dataclasses.replace(tiny.BRAIN.wernicke, outputs=8), broca=dataclasses.replace(tiny.BRAIN.broca, outputs=8))
    model, rows = resized(learned, brain)
    drawn = model_of(brain).brain.parameters.value
    assert rows["memory_write.weight"].how == "reset: it hears readout_wernicke.out, not wernicke.axon"
    assert rows["decoder.weight"].how == "reset: it reads readout_broca.out, not broca.trace"
    assert rows["wernicke.log_tau_y"].how == "new: as drawn" and rows["wernicke.log_tau_y"].old is None
    for name in ("memory_write.weight", "decoder.weight", "wernicke.log_tau_y", "readout_broca.weight"):
        np.testing.assert_array_equal(model.brain.parameters.value[name], drawn[name])
    _, rows = resized(model, brain_of())  # and back
    gone = rows["readout_broca.weight"]
    assert (gone.new, gone.how) == (None, "left out: the new brain has none")


def synapses(projection):
    """(source, delay in tokens, target, weight) of each, and how many sources and targets there are."""
    arc, weight = projection.arc, projection.weight
    if arc.dense:
        return weight.tolist(), arc.sources, arc.targets
    pair = np.repeat(np.arange(arc.sources * arc.delays), np.diff(projection.row_start.astype(int)))
    delay = pair // arc.sources + arc.first_delay
    each = (array.tolist() for array in (pair % arc.sources, delay, projection.target, weight))
    return {*zip(*each, strict=True)}, arc.sources, arc.targets


@pytest.mark.parametrize(
    "brain",
    [brain_of({"pfc": 2}), brain_of(delays=12), brain_of(chunk=4), brain_of(memory_heads=4, memory_width=4, fan_in=20), brain_of(fan_in=6)],
    ids=["another PFC", "more delays", "earlier feedback", "other heads", "fewer synapses"],
)
def test_carried_over_is_said_where_the_same_neurons_hear_the_same_ones_as_before(learned, brain):
    model, rows = resized(learned, brain)
    old = {projection.arc.name: projection for projection in learned.brain.projections}
    same = {projection.arc.name for projection in model.brain.projections if synapses(projection) == synapses(old[projection.arc.name])}
    assert len(same) > 5
    assert same == {name for name in old if rows[f"{name}.weight"].how == "carried over"}


def test_the_table_tells_weights_from_wiring(learned):
    def told(name, *modules, **settings):
        return resized(learned, brain_of(*modules, **settings))[1][f"{name}.weight"].how

    assert told("pfc_broca", {"pfc": 2}) == "weights carried over, wired anew"
    assert told("hippocampus_pfc", {"pfc": 2}) == "spread in proportion"  # more of them hear the same neurons
    assert told("lateral_pfc", {"pfc": 2}) == "spread in proportion, wired anew"
    assert told("lateral_hippocampus", chunk=4).startswith("weights carried over, 38 % had another delay")
    assert told("pfc_broca", fan_in=6) == "weights carried over, the strongest 6 of 8 per target"
    assert told("pfc_broca", fan_in=10) == "weights carried over, 20 % of the synapses are new and begin at 0"


def test_each_takes_after_the_one_in_its_place():
    assert in_proportion(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert in_proportion(5, 3).tolist() == [0, 1, 3]
    wider, smaller = proportional(2, 5), proportional(5, 3)
    assert wider.n_children.tolist() == [3, 2] and smaller.n_children.tolist() == [1, 1, 0, 1, 0]
    assert [wider.child(np.array([1]), np.array([which]))[0] for which in range(4)] == [3, 4, 3, 4]
    assert smaller.child(np.arange(5), np.zeros(5, int)).tolist() == [0, 1, 1, 2, 2]  # who has none is heard through the nearest
    np.testing.assert_allclose(wider.spread(np.array([[3.0], [4.0]]))[:, 0], [1, 1, 1, 2, 2])
    np.testing.assert_allclose(smaller.spread(np.eye(5)).sum(0), np.ones(5))  # nobody's weight is lost


def arc_of(sources, targets, fan_in, first=0, delays=1):
    return Arc("a", "a.axon", "a.current", sources, targets, fan_in, first, delays)


def test_synapses_descend_with_delay_and_weight():
    old, new = arc_of(2, 1, 2, first=3, delays=4), arc_of(4, 2, 3, first=4, delays=4)
    pair, weight = np.array([[0 * 2 + 1, 2 * 2 + 0]]), np.array([[0.5, -1.0]], np.float32)  # (delay 3, source 1), (delay 5, source 0)
    pair, weight, share = descend(pair, weight, old, new, proportional(2, 4), proportional(1, 2), np.random.default_rng(0))
    assert share == 1
    for pairs, weights in zip(pair, weight, strict=True):
        heard = sorted((int(p) // 4 + 4, int(p) % 4 // 2, float(w)) for p, w in zip(pairs, weights, strict=True))
        # a third synapse shares the weight of the first; delay 3 is no more, the nearest is 4
        assert heard == [(4, 1, 0.25), (4, 1, 0.25), (5, 0, -1.0)]


def test_of_too_many_synapses_the_strongest_stay():
    old, new = arc_of(4, 1, 4), arc_of(4, 1, 2)
    weight = np.array([[0.1, -3.0, 0.2, 2.0]], np.float32)
    same = Line(np.arange(4), np.arange(4))
    pair, weight, _ = descend(np.array([[0, 1, 2, 3]]), weight, old, new, same, proportional(1, 1), np.random.default_rng(0))
    assert (pair.tolist(), weight.tolist()) == ([[1, 3]], [[-3.0, 2.0]])


def test_synapses_without_a_parent_begin_at_nothing():
    old, new = arc_of(3, 1, 1), arc_of(3, 1, 3)
    same = Line(np.arange(3), np.arange(3))
    weight = np.array([[6.0]], np.float32)
    pair, weight, share = descend(np.array([[1]]), weight, old, new, same, proportional(1, 1), np.random.default_rng(0))
    assert sorted(pair[0].tolist()) == [0, 1, 2] and share == pytest.approx(1 / 3)
    assert dict(zip(pair[0].tolist(), weight[0].tolist(), strict=True)) == {0: 0, 1: 6, 2: 0}


def test_rows_of_the_decoder_become_embeddings_of_their_own():
    tied = model_of(brain_of(tied=True, embedding=tiny.BRAIN.broca.output_size))
    for _ in range(10):
        tied.train_step(IDS[:, :-1], IDS[:, 1:], 0.01)
    apart, rows = resized(tied, brain_of(embedding=tiny.BRAIN.broca.output_size))
    assert np.abs(apart.logits(IDS) - tied.logits(IDS)).max() < 1e-4
    assert (rows["embedding.weight"].old, rows["embedding.weight"].how) == (None, "the decoder's rows, carried over")
    again, rows = resized(tied, tied.config.brain)
    np.testing.assert_array_equal(again.logits(IDS), tied.logits(IDS))
    assert rows.keys() == tied.brain.parameters.table.keys()
    _, rows = resized(apart, tied.config.brain)
    assert rows["embedding.weight"].how == "left out: the new brain has none"
    assert rows["embedding_thalamus.weight"].how == "reset: it hears the decoder's rows"
    twice = brain_of(ALL, hypercolumn=32, tied=True, embedding=2 * tiny.BRAIN.broca.output_size)
    assert np.abs(resized(tied, twice)[0].logits(IDS) - tied.logits(IDS)).max() < 1e-3
