"""`model.connectome`: the projections of a model as a table and as a graph, counted by hand."""

import sys

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES, Module
from neurogen_numba.errors import ConfigError


@pytest.fixture(scope="module")
def model():
    config = tiny.config(brain={"vocabulary": 11, "wernicke": Module(48, outputs=20, lateral=4)})
    return NeuroGenModel.from_config(config, backend="cpu")


def test_a_projection_counts_its_synapses_without_padding(model):
    """Wernicke has 48 neurons: three tiles of 16, each reading one bundle from the two blocks of the 24 neurons of the Thalamus, the second
    of which has only 8."""
    view = model.connectome["thalamus_wernicke"]
    assert (view.source, view.target, view.signal, view.current) == ("thalamus", "wernicke", "thalamus.axon", "wernicke.current")
    assert (view.bundle, view.delays, view.fan_in, view.inhibitory) == (16, (0, 5), 16, False)
    assert view.synapses == sum({0: 16, 1: 8}[block] * 16 for block in view.block.ravel())
    assert view.weight.shape == (3, 16, 16) and view.delay.shape == view.block.shape == (3, 1)
    assert view.synapses == np.count_nonzero(view.weight)
    assert view.mean_weight == pytest.approx(np.abs(view.weight[view.weight != 0]).mean(), rel=1e-5)


def test_every_projection_is_there_by_name(model):
    connectome = model.connectome
    names = [arc.name for arc in model.brain.arcs]
    assert [view.name for view in connectome] == names and len(connectome) == len(names)
    assert connectome.memory_broca is connectome["memory_broca"]
    assert {*names, "to_networkx", "projections"} <= set(dir(connectome))
    assert connectome._ipython_key_completions_() == names
    for view in connectome:
        assert view.synapses == np.count_nonzero(view.weight), view.name
        assert view.source in (*MODULES, "memory", "working_memory") and view.target in (*MODULES, "memory", "working_memory")
    with pytest.raises(ConfigError, match="no projection 'memry_broca'; did you mean 'memory_broca'"):
        connectome["memry_broca"]
    with pytest.raises(AttributeError, match="did you mean 'memory_broca'"):
        connectome.memry_broca  # noqa: B018


def test_it_prints_as_a_table(model):
    connectome = model.connectome
    lines = repr(connectome).splitlines()
    assert lines[0] == f"Connectome: {sum(view.synapses for view in connectome):,} synapses in {len(connectome)} projections"
    assert lines[1].split() == ["projection", "from", "to", "synapses", "delays", "bundle", "mean", "|w|"]
    assert len(lines) == 2 + len(connectome) and len({len(line) for line in lines[1:]}) == 1
    row = next(line for line in lines if line.startswith("feedback_thalamus ")).split()
    assert row[1:3] == ["pfc.axon", "thalamus.current"] and row[4:7] == ["8", "to", "15"]
    text = repr(connectome.feedback_thalamus)
    assert text.startswith("feedback_thalamus: pfc.axon -> thalamus.current, ") and " inhibitory synapses, " in text
    assert ", delay 0, " in repr(connectome.memory_broca)


def test_weights_are_those_of_the_moment(model):
    before = model.connectome.memory_broca
    with model.lesion("memory_broca"):
        assert before.mean_weight == 0 and model.connectome.memory_broca.mean_weight == 0
    assert before.mean_weight > 0


def test_it_becomes_a_graph(model):
    networkx = pytest.importorskip("networkx")
    graph = model.connectome.to_networkx()
    assert isinstance(graph, networkx.MultiDiGraph) and set(graph.nodes) == {*MODULES, "memory", "working_memory"}
    assert graph.nodes["wernicke"] == {"kind": "module", "neurons": 48, "outputs": 20, "neuron": "lif_a"}
    assert graph.nodes["pfc"]["outputs"] == 32, "its `outputs` are the slots of the working memory"
    assert graph.nodes["memory"] == {"kind": "memory", "size": 16} and graph.nodes["working_memory"] == {"kind": "memory", "size": 8}
    assert graph.number_of_edges() == len(model.connectome)
    edge, view = graph.edges["memory", "broca", "memory_broca"], model.connectome.memory_broca
    assert edge == {
        "signal": "memory.out",
        "current": "broca.current",
        "synapses": view.synapses,
        "fan_in": 16,
        "bundle": 16,
        "inhibitory": False,
        "mean_weight": view.mean_weight,
        "first_delay": 0,
        "last_delay": 0,
    }
    assert graph.has_edge("wernicke", "wernicke", "readout_wernicke") and graph.has_edge("basal_ganglia", "broca", "go_broca")


def test_without_networkx_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ConfigError, match="needs the package networkx: pip install"):
        model.connectome.to_networkx()
