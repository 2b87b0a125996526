"""Circuits to NIR and back. `interpreted` runs a graph node by node, by the equations that NIR documents; it shares nothing with nir.py."""

import numpy as np
import pytest

import neurogen_numba as ng
import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import ConfigError

nir = pytest.importorskip("nir")
pytest.importorskip("h5py")


def interpreted(graph, dt=1.0, **inputs):
    """Node -> its values [T, N], over tokens of length dt in which currents are constant; what an edge that closes a circle carries comes a
    token later."""
    tokens, T = next(iter(inputs.values())), len(next(iter(inputs.values())))
    sizes = {name: int(np.prod(next(iter(node.output_type.values())))) for name, node in graph.nodes.items()}
    values = {name: np.zeros((T, size)) for name, size in sizes.items()} | inputs
    membranes = {name: np.zeros(size) for name, size in sizes.items()}
    assert tokens.ndim == 2
    for t in range(T):
        done = set(inputs)
        while len(done) < len(graph.nodes):
            for name, node in graph.nodes.items():
                before = [a for a, b in graph.edges if b == name]
                late = {a for a in before if a not in done and (name, a) in closing(graph)}
                if name in done or not all(a in done or a in late for a in before) and not isinstance(node, nir.Delay):
                    continue
                x = sum((values[a][t - 1] if t else 0 * values[a][0]) if a in late else values[a][t] for a in before)
                if isinstance(node, nir.Delay):
                    lag = round(float(node.delay[0]) / dt)
                    x = values[before[0]][t - lag] if t >= lag else 0 * membranes[name]
                elif isinstance(node, (nir.LI, nir.LIF)):
                    v = membranes[name]
                    if isinstance(node, nir.LIF):
                        v = np.where(v > node.v_threshold, node.v_reset, v)
                    rest = node.v_leak + node.r * x  # tau dv/dt = rest - v
                    membranes[name] = rest + (v - rest) * np.exp(-dt / node.tau)
                    values[f"{name}.v"] = np.append(values.get(f"{name}.v", np.zeros((0, sizes[name]))), membranes[name][None], 0)
                    x = membranes[name] > node.v_threshold if isinstance(node, nir.LIF) else membranes[name]
                elif isinstance(node, nir.Threshold):
                    x = x > node.threshold
                elif isinstance(node, nir.Scale):
                    x = node.scale * x
                elif isinstance(node, (nir.Linear, nir.Affine)):
                    x = node.weight @ x + getattr(node, "bias", 0)
                values[name][t] = x
                done.add(name)
    return values


def closing(graph):
    """(membrane, its reset): the edges that close a circle."""
    return {(a.removesuffix(".reset") + ".membrane", a) for a in graph.nodes if a.endswith(".reset")}


def drives(T=80, N=5, seed=0):
    return np.random.default_rng(seed).uniform(-0.2, 0.8, (T, N))


def alone(tau, **how):
    """A population with a drive of its own for each neuron."""
    one = ng.nir.population(tau, **how)
    return ng.nir.Circuit({"x": len(one.tau)}, {"a": one}, [ng.nir.Projection("x", "a", np.eye(len(one.tau)))])


def test_the_stock_neuron_comes_back_the_same(tmp_path):
    """Our kernel, NIR's equations, and the circuit read from the file have the same membrane."""
    tau, x = np.array([1.5, 3.0, 5.0, 8.0, 20.0]), drives()
    alone(tau).save(tmp_path / "lif.nir")
    kernel = ng.lab.lif(x, tau_v=tau, beta=0, backend="cpu")
    graph, back = nir.read(tmp_path / "lif.nir"), ng.nir.load(tmp_path / "lif.nir")
    assert kernel.z.sum() > 50
    np.testing.assert_allclose(interpreted(graph, x=x)["a.membrane.v"], kernel.v, atol=2e-5)
    np.testing.assert_allclose(back.run(x=x)["a"].v, kernel.v, atol=2e-5)
    np.testing.assert_array_equal(back.run(x=x)["a"].z, kernel.z)
    assert [path.name for path in tmp_path.iterdir()] == ["lif.nir"]


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("dt", [1.0, 1e-3])
def test_gain_bias_and_time_step_survive(reset, dt, tmp_path):
    x, rng = drives(seed=1), np.random.default_rng(2)
    made = alone(rng.uniform(2, 20, 5), gain=rng.uniform(0.5, 1.5, 5), bias=rng.uniform(0, 0.1, 5), reset=reset)
    made.save(tmp_path / "a.nir", dt)
    graph, back = nir.read(tmp_path / "a.nir"), ng.nir.load(tmp_path / "a.nir")
    expected = made.run(x=x)["a"]
    assert expected.z.sum() > 20
    np.testing.assert_allclose(interpreted(graph, dt, x=x)["a.v" if reset == "zero" else "a.membrane.v"], expected.v, atol=1e-9)
    np.testing.assert_allclose(back.run(x=x)["a"].v, expected.v, atol=1e-9)
    assert back.populations["a"].reset == reset


def test_bundles_with_delays_are_what_our_kernel_computes(tmp_path):
    wires = ng.lab.wiring(sources=48, targets=40, fan_in=32, delays=4, bundle=16, seed=3)
    synapses = ng.nir.projections("x", "a", wires, 48, 40)
    made = ng.nir.Circuit({"x": 48}, {"a": ng.nir.population(np.full(40, 5.0))}, synapses)
    x = (np.random.default_rng(4).random((30, 48)) < 0.2).astype(np.float32)
    current = ng.lab.bundles_forward(x[:, None], *wires, targets=40, backend="cpu")[:, 0]
    expected = ng.lab.lif(current, tau_v=5, beta=0, backend="cpu")
    assert {p.delay for p in synapses} == set(wires.delay.ravel().tolist()) and expected.z.any()
    made.save(tmp_path / "b.nir")
    for v in (made.run(x=x)["a"].v, ng.nir.load(tmp_path / "b.nir").run(x=x)["a"].v, interpreted(made.to_nir(), x=x)["a.membrane.v"]):
        np.testing.assert_allclose(v, expected.v, atol=2e-5)


def test_a_circle_with_a_delay_comes_back(tmp_path):
    weight = np.array([[0.0, 1.2], [0.9, 0.0]])
    one = ng.nir.population([4.0, 6.0])
    made = ng.nir.Circuit({"x": 2}, {"a": one}, [ng.nir.Projection("x", "a", np.eye(2)), ng.nir.Projection("a", "a", weight, 2)])
    made.save(tmp_path / "c.nir")
    x = drives(N=2)
    np.testing.assert_allclose(ng.nir.load(tmp_path / "c.nir").run(x=x)["a"].v, made.run(x=x)["a"].v, atol=1e-9)
    with pytest.raises(ConfigError, match="without delay lead in a circle through a"):
        ng.nir.Circuit({"x": 2}, {"a": one}, [ng.nir.Projection("a", "a", weight)])


def test_a_graph_of_another_tool_is_read():
    """A chain as PyTorch libraries write it: affine, LIF with threshold and resistance of its own, time in seconds."""
    tau, r, threshold, ones = np.full(3, 0.02), np.full(3, 2.0), np.full(3, 0.5), np.ones(3)
    weight = np.random.default_rng(5).normal(0, 1, (3, 4))
    nodes = nir.Affine(weight, 0.1 * ones), nir.LIF(tau, r, 0.05 * ones, threshold), nir.Linear(np.ones((2, 3))), nir.LIF(*[np.ones(2)] * 4)
    graph, x = nir.NIRGraph.from_list(*nodes), drives(N=4, seed=6) * 3
    found = ng.nir.load(graph, dt=1e-3).run(input=x)
    values = interpreted(graph, 1e-3, input=x)
    assert found["lif"].z.any()
    np.testing.assert_allclose(0.5 * found["lif"].v, values["lif.v"], atol=1e-9)
    np.testing.assert_allclose(found["lif_1"].v, values["lif_1.v"], atol=1e-9)


ONE = np.ones(2)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([nir.CubaLIF(*[ONE] * 5)], "node 'cubalif' is of the kind CubaLIF; known: Input, Output, LIF"),
        ([nir.LIF(ONE, ONE, ONE, ONE, 0.1 * ONE)], "lif: a reset to 0 is needed, not to 0.1"),
        ([nir.Delay(np.array([0.5, 1])), nir.LIF(*[ONE] * 4)], "delay: one delay of a whole number of tokens is needed, not 0.5 to 1.0"),
        ([nir.LI(*[ONE] * 3), nir.Threshold(ONE)], "threshold: its events must subtract the threshold from li"),
        ([nir.LI(*[ONE] * 3), nir.LIF(*[ONE] * 4)], "lif reads the membrane li; synapses carry events"),
        ([nir.Threshold(ONE)], "threshold: a Threshold must read one LI, not input"),
    ],
)
def test_what_is_not_understood_is_refused(nodes, words):
    with pytest.raises(ConfigError) as refused:
        ng.nir.load(nir.NIRGraph.from_list(*nodes))
    assert words in str(refused.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.nir").write_text("no HDF5")
    with pytest.raises(ConfigError, match="a.nir cannot be read as NIR"):
        ng.nir.load(tmp_path / "a.nir")


def test_a_brain_is_refused_in_one_sentence(tmp_path):
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}), backend="cpu")
    with pytest.raises(ConfigError) as refused:
        ng.nir.export(model, tmp_path / "a.nir")
    sentence = str(refused.value)
    assert all(
        words in sentence for words in ("hypercolumn", "associative memory", "carry the membrane", "the neuron lif_a", "nir.Circuit")
    )
    assert not list(tmp_path.iterdir())
    ng.nir.export(alone([3.0]), tmp_path / "a.nir")
    assert ng.nir.load(tmp_path / "a.nir").populations["a"].tau == pytest.approx([3.0])
