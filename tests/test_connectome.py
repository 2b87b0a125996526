"""Who hears whom is the reference's table, which tests/test_reference.py holds to docs/model.md; and the synapses are drawn as it says."""

import math
import re

import numpy as np
import pytest

import reference as ref
from neurogen_numba import backends
from neurogen_numba.brain.brain import Brain as WiredBrain
from neurogen_numba.brain.connectome import Arc, arcs, draw_synapses
from neurogen_numba.config import MODULES, Brain, Config, Module

READOUTS = {"wernicke": 11, "basal_ganglia": 5, "broca": 12}


def small(outputs=READOUTS, feedback=3, lateral=2):
    """A brain in which no two sizes that the table speaks of are equal."""
    sizes = {"thalamus": 13, "wernicke": 30, "hippocampus": 17, "pfc": 19, "basal_ganglia": 9, "broca": 21}
    modules = {name: Module(n, {"pfc": 7, **outputs}.get(name, 0), lateral) for name, n in sizes.items()}
    return Brain(**modules, fan_in=6, feedback=feedback, delays=5, memory_heads=2, memory_width=4, memory_fan_in=4, chunk=3)


def as_reference(name):
    """The reference's name of a signal or a current."""
    name = re.sub(r"\.(axon|current)$", "", name).replace(".trace", ".y")
    name = re.sub(r"^readout_(\w+?)(\.out)?$", r"\1.out", name)
    return {"memory.out": "memory", "working_memory.out": "working_memory"}.get(name, name)


@pytest.mark.parametrize("outputs", [READOUTS, {}], ids=["readouts", "no readouts"])
def test_every_arc_is_the_references(outputs):
    brain = small(outputs)
    config = Config("test", brain).to_dict()["brain"]
    size = ref.sizes(config)
    expected = {
        p.name: (p.source, p.target, p.first_delay, p.delays, p.fan_in, p.inhibitory, size[p.source], size[p.target])
        for p in ref.projections(config)
    }
    found = {}
    for arc in arcs(brain):
        ends = as_reference(arc.source), as_reference(arc.target)
        found[arc.name] = (*ends, arc.first_delay, arc.delays, arc.fan_in, arc.inhibitory, arc.sources, arc.targets)
    assert found == expected


@pytest.mark.parametrize("outputs", [READOUTS, {}], ids=["readouts", "no readouts"])
def test_no_arc_leads_back_within_a_chunk(outputs):
    brain = small(outputs)
    order = ["thalamus", "wernicke", "memory", "hippocampus", "working_memory", "pfc", "basal_ganglia", "broca"]

    def place(name):
        return order.index(re.sub(r"^readout_", "", name).split(".")[0])

    for arc in arcs(brain):
        if place(arc.source) >= place(arc.target) and not arc.name.startswith("readout_"):
            assert arc.first_delay >= brain.chunk, arc


def test_arcs_without_synapses_do_not_exist():
    left_out = {"feedback_thalamus", "feedback_wernicke", "go_retain", *(f"lateral_{name}" for name in MODULES)}
    assert {arc.name for arc in arcs(small())} - {arc.name for arc in arcs(small(feedback=0, lateral=0))} == left_out


# An arc whose fan-in is a small share of its pairs (drawn one by one), a large share (ranked), all of them, and more than there are.
SPARSE, RANKED = (
    Arc("sparse", "a.axon", "b.current", 40, 60, 16, first_delay=2, delays=5),
    Arc("ranked", "a.axon", "b.current", 9, 50, 12, delays=4),
)
WHOLE, TOO_MANY = Arc("whole", "a.axon", "b.current", 4, 10, 12, delays=3), Arc("too many", "a.axon", "b.current", 4, 10, 99, delays=3)


@pytest.mark.parametrize("arc", [SPARSE, RANKED, WHOLE, TOO_MANY], ids=lambda arc: arc.name)
def test_each_target_hears_its_fan_in_of_different_pairs(arc):
    row_start, target = draw_synapses(arc, 3, "uint16")
    assert (row_start.dtype, target.dtype) == ("uint32", "uint16")
    assert row_start.shape == (arc.delays * arc.sources + 1,) and row_start[0] == 0
    row = np.repeat(np.arange(arc.delays * arc.sources), np.diff(row_start.astype(np.int64)))
    assert len(row) == len(target) == row_start[-1] == arc.targets * arc.synapses_per_target
    assert arc.synapses_per_target == min(arc.fan_in, arc.delays * arc.sources)
    assert (np.bincount(target, minlength=arc.targets) == arc.synapses_per_target).all()
    assert len(set(zip(row.tolist(), target.tolist(), strict=True))) == len(row)


@pytest.mark.parametrize("delays", [8, 7], ids=["one by one", "ranked"])
def test_short_delays_are_the_likelier(delays):
    """With two draws out of so many delays of one source, the chance of each delay can be written down."""
    arc = Arc("skewed", "a.axon", "b.current", 1, 20_000, 2, first_delay=5, delays=delays)
    row_start, _ = draw_synapses(arc, 0, "uint16")
    p = np.exp(-0.1 * np.arange(delays))
    p /= p.sum()
    chance = [p[d] + sum(p[e] * p[d] / (1 - p[e]) for e in range(delays) if e != d) for d in range(delays)]
    # Standard deviation at most 1 / (2 sqrt(20,000)) = 0.0035; the most and the least likely delay lie 0.13 apart or more.
    np.testing.assert_allclose(np.diff(row_start.astype(np.int64)) / arc.targets, chance, rtol=0, atol=0.014)


def test_every_source_is_as_likely():
    for arc in (Arc("one by one", "a.axon", "b.current", 50, 20_000, 2), Arc("ranked", "a.axon", "b.current", 7, 20_000, 2)):
        heard = np.diff(draw_synapses(arc, 0, "uint16")[0].astype(np.int64))
        expected = arc.targets * 2 / arc.sources
        assert abs(heard - expected).max() < 5 * math.sqrt(expected), arc


@pytest.mark.parametrize("arc", [SPARSE, RANKED], ids=lambda arc: arc.name)
def test_a_seed_is_a_wiring(arc):
    first, again, other = (draw_synapses(arc, seed, "uint16") for seed in (1, 1, 2))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def wired(seed):
    brain = WiredBrain(small(), backends.get("cpu"))
    brain.initialise(seed)
    return brain


def test_weights_have_the_size_and_the_sign_that_the_model_says():
    brain = wired(0)
    pooled = []
    for projection in brain.projections:
        arc, weight = projection.arc, projection.weight
        assert weight.shape == ((arc.sources, arc.targets) if arc.dense else (arc.targets * arc.synapses_per_target,)), arc
        if arc.inhibitory:
            assert (weight < 0).all(), arc
        else:
            assert (weight < 0).any() and (weight > 0).any(), arc
        pooled.append(weight.ravel() * math.sqrt(arc.synapses_per_target))
    inhibitory = {projection.arc.name for projection in brain.projections if projection.arc.inhibitory}
    assert inhibitory == {"feedback_thalamus", "go_retain"}
    scaled = np.concatenate(pooled)  # all of N(0, 1), but for the signs
    assert abs((scaled**2).mean() - 1) < 5 * math.sqrt(2 / scaled.size)


def test_a_projection_is_dense_where_every_target_hears_every_plain_value():
    dense = {projection.arc.name for projection in wired(0).projections if projection.arc.dense}
    assert dense == {"go_broca"}  # 5 outputs of the basal ganglia, fan-in 6
    covered = Arc("covered", "a.axon", "b.current", 4, 10, 4)
    assert not covered.dense, "what fires stays sparse"
    late = Arc("late", "readout_wernicke.out", "working_memory.retain", 5, 9, 5, first_delay=16)
    assert not late.dense, "what comes later stays sparse"


def test_a_brain_of_a_seed_is_the_same_brain():
    first, again, other = wired(1), wired(1), wired(2)
    np.testing.assert_array_equal(first.parameters.flat_value, again.parameters.flat_value)
    assert not np.array_equal(first.parameters.flat_value, other.parameters.flat_value)
    one, same, another = (brain.structure() for brain in (first, again, other))
    assert one.keys() == same.keys() == another.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, same[name])
        if name.endswith((".target", ".input_scale")):
            assert not np.array_equal(array, another[name]), name


def test_no_two_projections_are_drawn_alike():
    one, another = (Arc(name, "a.axon", "b.current", 20, 20, 6, delays=4) for name in ("one", "another"))
    assert not np.array_equal(draw_synapses(one, 0, "uint16")[1], draw_synapses(another, 0, "uint16")[1])
    weights = wired(0).parameters.value
    assert weights["memory_query.weight"].shape == weights["memory_value.weight"].shape
    assert not np.array_equal(weights["memory_query.weight"], weights["memory_value.weight"])


def test_structure_goes_from_one_brain_to_another():
    source, target = wired(1), wired(2)
    shapes = source.structure_shapes()
    assert {name: (array.shape, str(array.dtype)) for name, array in source.structure().items()} == shapes
    target.load_structure(source.structure())
    for name, array in source.structure().items():
        np.testing.assert_array_equal(target.structure()[name], array)
