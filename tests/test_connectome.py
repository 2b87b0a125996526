"""The projections are those of the reference, which tests/test_reference.py compares with docs/model.md; synapses are drawn accordingly."""

import math
import re

import numpy as np
import pytest

import reference as ref
from neurogen_numba import backends
from neurogen_numba.brain.brain import Brain as WiredBrain
from neurogen_numba.brain.connectome import Arc, arcs, check_bundles, draw_bundles, real_weights
from neurogen_numba.config import MODULES, Brain, Config, Module
from neurogen_numba.errors import CheckpointError

READOUTS = {"wernicke": 21, "basal_ganglia": 5, "broca": 12}


def small(outputs=READOUTS, feedback=3, lateral=2, fan_in=40, bundle=16):
    """A brain in which no two sizes that the table speaks of are equal."""
    sizes = {"thalamus": 35, "wernicke": 50, "hippocampus": 37, "pfc": 39, "basal_ganglia": 19, "broca": 41}
    modules = {name: Module(n, {"pfc": 7, **outputs}.get(name, 0), lateral) for name, n in sizes.items()}
    rest = {"delays": 5, "memory_heads": 2, "memory_width": 4, "memory_fan_in": 4, "chunk": 3}
    return Brain(**modules, fan_in=fan_in, bundle=bundle, feedback=feedback, **rest)


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


@pytest.mark.parametrize("fan_in", [6, 16, 40, 96, 128])
@pytest.mark.parametrize("bundle", [16, 32, 64])
def test_every_arc_has_the_references_bundles(bundle, fan_in):
    brain = small(fan_in=fan_in, bundle=bundle)
    config = Config("test", brain).to_dict()["brain"]
    size = ref.sizes(config)
    expected = {p.name: p for p in ref.projections(config)}
    for arc in arcs(brain):
        p = expected[arc.name]
        M, N, bundle = size[p.source], size[p.target], ref.bundle_size(config, p)
        tiles, K, blocks = ref.bundles_of(config, p, M, N)
        assert (arc.bundle, arc.tiles, arc.bundles_per_tile, arc.blocks) == (bundle, tiles, K, blocks)
        assert arc.weight_shape == (tiles * K, bundle, bundle)


@pytest.mark.parametrize("outputs", [READOUTS, {}], ids=["readouts", "no readouts"])
def test_no_arc_leads_back_within_a_chunk(outputs):
    brain = small(outputs)
    order = ["thalamus", "wernicke", "memory", "hippocampus", "working_memory", "pfc", "basal_ganglia", "broca"]

    def position(name):
        return order.index(re.sub(r"^readout_", "", name).split(".")[0])

    for arc in arcs(brain):
        if position(arc.source) >= position(arc.target) and not arc.name.startswith("readout_"):
            assert arc.first_delay >= brain.chunk, arc


def test_arcs_without_synapses_do_not_exist():
    left_out = {"feedback_thalamus", "feedback_wernicke", "go_retain", *(f"lateral_{name}" for name in MODULES)}
    assert {arc.name for arc in arcs(small())} - {arc.name for arc in arcs(small(feedback=0, lateral=0))} == left_out


# An arc whose bundles are a small share of its pairs (drawn one by one), a large share (ranked), all of them, and more than there are.
SPARSE = Arc("sparse", "a.axon", "b.current", 200, 100, 32, first_delay=2, delays=5, most=16)
RANKED = Arc("ranked", "a.axon", "b.current", 40, 100, 80, delays=4, most=32)
WHOLE = Arc("whole", "a.axon", "b.current", 20, 40, 96, delays=3, most=32)
TOO_MANY = Arc("too many", "a.axon", "b.current", 20, 40, 999, delays=3, most=16)


@pytest.mark.parametrize("arc", [SPARSE, RANKED, WHOLE, TOO_MANY], ids=lambda arc: arc.name)
def test_each_tile_reads_different_pairs_of_block_and_delay(arc):
    block, delay = draw_bundles(arc, 3)
    assert block.dtype == delay.dtype == "int32"
    assert block.shape == delay.shape == (arc.tiles, arc.bundles_per_tile)
    assert block.min() >= 0 and block.max() < arc.blocks and arc.first_delay <= delay.min() and delay.max() <= arc.longest_delay
    pair = delay.astype(int) * arc.blocks + block
    assert (np.diff(pair, axis=1) > 0).all(), "in ascending order of (delay, block), and none twice"


def test_how_many_bundles_a_tile_reads():
    assert [arc.bundles_per_tile for arc in (SPARSE, RANKED, WHOLE, TOO_MANY)] == [2, 5, 3, 6]
    assert [arc.synapses_per_target for arc in (SPARSE, RANKED, WHOLE, TOO_MANY)] == [32, 80, 60, 60]


@pytest.mark.parametrize("delays", [9, 8], ids=["one by one", "ranked"])
def test_short_delays_are_the_likelier(delays):
    """With two draws out of the delays of one block, the chance of each delay can be written down."""
    arc = Arc("skewed", "a.axon", "b.current", 16, 16 * 20_000, 32, first_delay=5, delays=delays, most=16)
    assert (arc.bundles_per_tile, arc.tiles) == (2, 20_000)
    _, delay = draw_bundles(arc, 0)
    p = np.exp(-0.1 * np.arange(delays))
    p /= p.sum()
    chance = [p[d] + sum(p[e] * p[d] / (1 - p[e]) for e in range(delays) if e != d) for d in range(delays)]
    # Standard deviation at most 1 / (2 sqrt(20,000)) = 0.0035; the most and the least likely delay lie 0.13 apart or more.
    np.testing.assert_allclose(np.bincount(delay.ravel() - 5, minlength=delays) / arc.tiles, chance, rtol=0, atol=0.014)


@pytest.mark.parametrize("blocks", [50, 7], ids=["one by one", "ranked"])
def test_every_block_is_as_likely(blocks):
    arc = Arc("even", "a.axon", "b.current", 16 * blocks, 16 * 20_000, 32, most=16)
    found = np.bincount(draw_bundles(arc, 0)[0].ravel(), minlength=blocks)
    expected = arc.tiles * 2 / blocks
    assert abs(found - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("arc", [SPARSE, RANKED], ids=lambda arc: arc.name)
def test_a_seed_is_a_wiring(arc):
    first, again, other = (draw_bundles(arc, seed) for seed in (1, 1, 2))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def test_weights_that_stand_for_a_synapse():
    """Of 18 sources and 20 targets, the second block has two sources and the second tile four targets."""
    arc = Arc("ragged", "a.axon", "b.current", 18, 20, 16, delays=2, most=16)
    sources, targets = real_weights(arc, np.array([[1], [0]]))
    np.testing.assert_array_equal(sources, [[True] * 2 + [False] * 14, [True] * 16])
    np.testing.assert_array_equal(targets, [[True] * 16, [True] * 4 + [False] * 12])


@pytest.mark.parametrize(
    "what, position, value",
    [("block", (1, 1), 13), ("block", (0, 0), -1), ("delay", (2, 0), 1), ("delay", (2, 1), 7), ("both", (3, 0), (3, 1))],
)
def test_bundles_that_lead_to_nowhere_or_are_there_twice_are_refused(what, position, value):
    block, delay = draw_bundles(SPARSE, 0)
    check_bundles(SPARSE, block, delay)
    if what == "both":
        block[position], delay[position] = block[value], delay[value]
    else:
        {"block": block, "delay": delay}[what][position] = value
    with pytest.raises(CheckpointError, match="sparse: its bundles lead out of the brain or are there twice"):
        check_bundles(SPARSE, block, delay)


def wired(seed):
    brain = WiredBrain(small(), backends.get("cpu"))
    brain.initialise(seed)
    return brain


def test_weights_have_the_size_and_the_sign_that_the_model_says():
    brain = wired(0)
    pooled, ragged = [], 0
    for projection in brain.projections:
        arc, weight = projection.arc, projection.weight
        assert weight.shape == arc.weight_shape, arc
        sources, targets = real_weights(arc, projection.block)
        real = sources[:, :, None] & targets[:, None, :]
        assert not weight[~real].any(), "what leads nowhere weighs nothing"
        ragged += (~real).any()
        if arc.inhibitory:
            assert (weight[real] < 0).all(), arc
        else:
            assert (weight < 0).any() and (weight > 0).any(), arc
        synapses_of_a_target = sources.sum(axis=1).reshape(arc.tiles, -1).sum(axis=1)
        scaled = weight * np.sqrt(np.repeat(synapses_of_a_target, arc.bundles_per_tile))[:, None, None]
        pooled.append(scaled[real])
    assert ragged
    inhibitory = {projection.arc.name for projection in brain.projections if projection.arc.inhibitory}
    assert inhibitory == {"feedback_thalamus", "go_retain"}
    scaled = np.concatenate(pooled)  # all of N(0, 1), but for the signs
    assert abs((scaled**2).mean() - 1) < 5 * math.sqrt(2 / scaled.size)


def test_who_reads_as_many_as_there_are_reads_all():
    """Also where bundles do not divide them: 37 sources are three blocks, and 37 is nearer to two."""
    arc = Arc("all", "memory.out", "pfc.current", 37, 20, 37, most=16)
    assert (arc.bundles_per_tile, arc.synapses_per_target) == (3, 37)


def test_a_brain_of_a_seed_is_the_same_brain():
    first, again, other = wired(1), wired(1), wired(2)
    np.testing.assert_array_equal(first.parameters.flat_value, again.parameters.flat_value)
    assert not np.array_equal(first.parameters.flat_value, other.parameters.flat_value)
    one, same, another = (brain.structure() for brain in (first, again, other))
    assert one.keys() == same.keys() == another.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, same[name])
        if name.endswith(".input_scale"):
            assert not np.array_equal(array, another[name]), name
    for arc in first.arcs:
        if arc.bundles_per_tile < arc.blocks * arc.delays:  # else there is nothing to choose
            wiring = [np.stack([fixed[f"{arc.name}.block"], fixed[f"{arc.name}.delay"]]) for fixed in (one, another)]
            assert wiring[0].size < 8 or not np.array_equal(*wiring), arc.name


def test_no_two_projections_are_drawn_alike():
    one, another = (Arc(name, "a.axon", "b.current", 200, 200, 64, delays=4, most=16) for name in ("one", "another"))
    assert not np.array_equal(draw_bundles(one, 0)[0], draw_bundles(another, 0)[0])
    weights = wired(0).parameters.value
    assert weights["hippocampus_pfc.weight"].shape == weights["pfc_broca.weight"].shape
    assert not np.array_equal(weights["hippocampus_pfc.weight"], weights["pfc_broca.weight"])


def test_structure_goes_from_one_brain_to_another():
    source, target = wired(1), wired(2)
    shapes = source.structure_shapes()
    assert {name: (array.shape, str(array.dtype)) for name, array in source.structure().items()} == shapes
    target.load_structure(source.structure())
    for name, array in source.structure().items():
        np.testing.assert_array_equal(target.structure()[name], array)
