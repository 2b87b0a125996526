"""A brain of another size: a wider one says what the old one said, and what cannot be taken over is told."""

import dataclasses

import numpy as np
import pytest

import tiny
from neurogen_numba import backends
from neurogen_numba.brain.connectome import Arc, check_bundles
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.brain.projection import Projection
from neurogen_numba.brain.resize import Line, carry_over, descend, parents, repeated
from neurogen_numba.config import MODULES, Module
from neurogen_numba.optim.parameters import Parameters

pytestmark = pytest.mark.usefixtures("one_thread")

# numbers of neurons that the size of a bundle divides
BASE = dataclasses.replace(tiny.BRAIN, vocabulary=20, thalamus=Module(48, lateral=4), hippocampus=Module(32, lateral=4))
IDS = np.random.default_rng(0).integers(0, 20, (4, 25))


def brain_of(modules=None, **settings):
    """The tiny brain, its modules multiplied in `modules`, with other settings."""
    brain = BASE
    for name, factor in (modules or {}).items():
        local = getattr(brain, name)
        brain = dataclasses.replace(
            brain, **{name: dataclasses.replace(local, neurons=factor * local.neurons, outputs=factor * local.outputs)}
        )
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
        brain_of(ALL, embedding=32),
        brain_of(ALL, embedding=96),  # into the Thalamus without a projection
        brain_of(dict.fromkeys(MODULES, 3), fan_in=32, feedback=20, memory_fan_in=30, delays=9, late_delays=9),
        brain_of(memory_heads=6),
    ],
    ids=["the same", "twice", "twice, no projection", "three times, more synapses and delays", "more memory"],
)
def test_a_wider_brain_says_what_the_old_one_said(learned, brain):
    """As long as whole hypercolumns and bundles are repeated."""
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
        check_bundles(arc, projection.block, projection.delay)
        assert projection.block.shape == (arc.tiles, arc.bundles_per_tile)
    assert rows.keys() == model.brain.parameters.table.keys() | learned.brain.parameters.table.keys()
    shapes = {name: row.new for name, row in rows.items() if row.new}
    assert shapes == {name: local.shape for name, local in model.brain.parameters.table.items()}
    losses = [model.train_step(IDS[:, :-1], IDS[:, 1:], 0.01)[0] for _ in range(30)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_what_has_no_counterpart_is_said(learned):
    brain = brain_of(wernicke=dataclasses.replace(tiny.BRAIN.wernicke, outputs=8), broca=dataclasses.replace(tiny.BRAIN.broca, outputs=8))
    model, rows = resized(learned, brain)
    drawn = model_of(brain).brain.parameters.value
    assert rows["memory_write.weight"].how == "reset: it reads readout_wernicke.out, not wernicke.axon"
    assert rows["decoder.weight"].how == "reset: it reads readout_broca.out, not broca.trace"
    assert rows["wernicke.log_tau_y"].how == "new: as drawn" and rows["wernicke.log_tau_y"].old is None
    for name in ("memory_write.weight", "decoder.weight", "wernicke.log_tau_y", "readout_broca.weight"):
        np.testing.assert_array_equal(model.brain.parameters.value[name], drawn[name])
    _, rows = resized(model, brain_of())  # and back
    gone = rows["readout_broca.weight"]
    assert (gone.new, gone.how) == (None, "left out: the new brain has none")


def synapses(projection):
    """(block, delay in tokens, tile) -> weights, and how many sources and targets there are."""
    arc, weight = projection.arc, projection.weight
    tile_numbers = np.repeat(np.arange(arc.tiles), arc.bundles_per_tile)
    each = (array.tolist() for array in (projection.block.ravel(), projection.delay.ravel(), tile_numbers))
    return dict(zip(zip(*each, strict=True), weight.tolist(), strict=True)), arc.sources, arc.targets


@pytest.mark.parametrize(
    "brain",
    [brain_of({"pfc": 2}), brain_of(delays=12), brain_of(chunk=4), brain_of(memory_heads=4, memory_width=4, fan_in=40)],
    ids=["another PFC", "more delays", "earlier feedback", "other heads"],
)
def test_carried_over_is_said_where_the_same_neurons_hear_the_same_ones_as_before(learned, brain):
    model, rows = resized(learned, brain)
    old = {projection.arc.name: projection for projection in learned.brain.projections}
    same = {projection.arc.name for projection in model.brain.projections if synapses(projection) == synapses(old[projection.arc.name])}
    assert len(same) > 5
    assert same == {name for name in old if rows[f"{name}.weight"].how == "carried over"}


def test_the_table_tells_weights_from_wiring(learned):
    def listed(name, *modules, **settings):
        return resized(learned, brain_of(*modules, **settings))[1][f"{name}.weight"].how

    assert listed("pfc_broca", {"pfc": 2}) == "repeated, wired anew"
    assert listed("hippocampus_pfc", {"pfc": 2}) == "repeated"  # more of them read the same neurons
    assert listed("lateral_pfc", {"pfc": 2}) == "repeated, wired anew"
    assert listed("lateral_hippocampus", chunk=4).startswith("repeated, ") and "another delay" in listed("lateral_hippocampus", chunk=4)
    assert "50 % of the bundles are new and begin at 0" in listed("pfc_broca", fan_in=32)


def test_each_takes_after_another():
    assert parents(4, 8).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert parents(5, 3).tolist() == [0, 1, 2]
    wider, smaller = repeated(2, 5), repeated(5, 3)
    assert wider.n_children.tolist() == [3, 2] and smaller.n_children.tolist() == [1, 1, 1, 0, 0]
    assert [wider.child(np.array([1]), which)[0] for which in range(4)] == [1, 3, 1, 3]
    assert smaller.child(np.arange(5), 0).tolist() == [0, 1, 2, 0, 1]  # who has none is read through another
    np.testing.assert_allclose(wider.spread(np.array([[3.0], [4.0]]))[:, 0], [1, 2, 1, 2, 1])
    np.testing.assert_allclose(smaller.spread(np.eye(5)).sum(0), np.ones(5))  # nobody's weight is lost


def projection_of(sources, targets, fan_in, block, delay, first=0, delays=1):
    """A projection with bundles of 16, all weights of bundle i being i + 1."""
    backend = backends.get("cpu")
    made = Projection(Arc("a", "a.axon", "a.current", sources, targets, fan_in, first, delays, most=16), backend)
    made.bind(Parameters(made.parameters(), backend))
    made.set_structure(block, delay)
    made.weight[...] = np.arange(1, len(made.weight) + 1)[:, None, None]
    return made


def test_bundles_descend_with_delay_and_weight():
    old = projection_of(32, 16, 32, [[1, 0]], [[3, 5]], first=3, delays=4)
    new = projection_of(64, 32, 48, [[0, 1, 2]] * 2, [[4, 4, 4]] * 2, first=4, delays=4)
    listed = descend(old, new, repeated(32, 64), repeated(16, 32))
    assert listed.kept == 1 and listed.moved == 0.5 and listed.filled == pytest.approx(2 / 3)
    for tile in range(2):
        found = {
            (int(delay), int(block) % 2, float(weight[0, 0]))
            for delay, block, weight in zip(new.delay[tile], new.block[tile], new.weight[3 * tile : 3 * tile + 3], strict=True)
            if weight.any()
        }
        assert found == {(4, 1, 1.0), (5, 0, 2.0)}  # delay 3 is no more, the nearest is 4
        assert len({*zip(new.delay[tile].tolist(), new.block[tile].tolist(), strict=True)}) == 3


def test_of_too_many_bundles_the_strongest_stay():
    old, new = projection_of(64, 16, 64, [[0, 1, 2, 3]], [[0] * 4]), projection_of(64, 16, 32, [[0, 1]], [[0, 0]])
    listed = descend(old, new, Line(np.arange(64), np.arange(64)), repeated(16, 16))
    assert (new.block.tolist(), new.weight[:, 0, 0].tolist()) == ([[2, 3]], [3, 4])
    assert listed.kept == pytest.approx((9 + 16) / (1 + 4 + 9 + 16))


def test_rows_of_the_decoder_become_embeddings_of_their_own():
    tied = model_of(brain_of(tied=True, embedding=tiny.BRAIN.broca.output_size))
    for _ in range(10):
        tied.train_step(IDS[:, :-1], IDS[:, 1:], 0.01)
    untied, rows = resized(tied, brain_of(embedding=tiny.BRAIN.broca.output_size))
    assert np.abs(untied.logits(IDS) - tied.logits(IDS)).max() < 1e-4
    assert (rows["embedding.weight"].old, rows["embedding.weight"].how) == (None, "the decoder's rows, carried over")
    again, rows = resized(tied, tied.config.brain)
    np.testing.assert_array_equal(again.logits(IDS), tied.logits(IDS))
    assert rows.keys() == tied.brain.parameters.table.keys()
    _, rows = resized(untied, tied.config.brain)
    assert rows["embedding.weight"].how == "left out: the new brain has none"
    assert rows["embedding_thalamus.weight"].how == "reset: it reads the decoder's rows"
    twice = brain_of(ALL, tied=True, embedding=2 * tiny.BRAIN.broca.output_size)
    assert np.abs(resized(tied, twice)[0].logits(IDS) - tied.logits(IDS)).max() < 1e-3
