"""Circuits of leaky integrate-and-fire neurons, read from and written to NIR (Pedersen et al. 2024, "Neuromorphic intermediate
representation", Nature Communications 15:8122).

    v[t] = alpha v[t-1] + gain I[t] + bias           membrane potential in units of the threshold; an event z[t] = 1 where v[t] > 1
    before the next token, v -= 1 (reset "subtract", the neuron `lif`) or v = 0 (reset "zero", the `LIF` of NIR)

A token lasts `dt`. NIR's equation tau dv/dt = v_leak - v + R I, solved over a token in which I is constant, has alpha = exp(-dt / tau),
gain = (1 - alpha) R and bias = (1 - alpha) v_leak. NIR's `LIF` resets to a potential. To subtract the threshold takes three nodes: `LI`,
`Threshold`, and a `Scale` from its events back to the current.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import BackendError, ConfigError

if TYPE_CHECKING:
    from .brain.model import NeuroGenModel
    from .lab import Wiring

RESETS = "subtract", "zero"


class Population(NamedTuple):
    """Neurons: time constant tau in tokens, gain and bias, each [N]; reset: "subtract" or "zero"."""

    tau: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    reset: str = "subtract"


class Projection(NamedTuple):
    """Synapses from an input or a population to a population: weight [targets, sources], delay in tokens."""

    source: str
    target: str
    weight: np.ndarray
    delay: int = 0


class Trace(NamedTuple):
    """The traces of a population: membrane potential v and events z, float64 [T, N]."""

    v: np.ndarray
    z: np.ndarray


def population(tau, gain=1.0, bias=0.0, reset: str = "subtract") -> Population:
    """A population of neurons with time constants tau [N], in tokens; gain and bias: numbers, or [N]. Raises ConfigError."""
    tau = np.array(tau, np.float64, ndmin=1)
    if reset not in RESETS or not (tau > 0).all() or tau.ndim != 1:
        raise ConfigError(f"nir.population: tau [N] above 0 and reset {' or '.join(RESETS)} are needed, not {tau.shape} and {reset!r}")
    return Population(tau, *(np.broadcast_to(np.float64(x), tau.shape).copy() for x in (gain, bias)), reset)


def projections(source: str, target: str, wires: Wiring, sources: int, targets: int) -> list[Projection]:
    """Bundles of synapses (`lab.wiring`) as projections, one for each delay."""
    size, found = wires.weight.shape[1], {}
    rounded = [-(-n // size) * size for n in (targets, sources)]
    for bundle, (block, delay) in enumerate(zip(wires.block.ravel(), wires.delay.ravel(), strict=True)):
        weight = found.setdefault(int(delay), np.zeros(rounded))
        tile = bundle // wires.block.shape[1]
        weight[tile * size : (tile + 1) * size, block * size : (block + 1) * size] += wires.weight[bundle].T
    return [Projection(source, target, weight[:targets, :sources], delay) for delay, weight in sorted(found.items())]


class Circuit:
    """Populations joined by projections.

    inputs: name -> number of values. Raises ConfigError where a projection names nothing that is there, its weight has another shape, or
    synapses without delay lead in a circle.
    """

    def __init__(self, inputs: Mapping[str, int], populations: Mapping[str, Population], projections: Sequence[Projection]):
        self.inputs, self.populations, self.projections = dict(inputs), dict(populations), list(projections)
        sizes = self.inputs | {name: len(one.tau) for name, one in self.populations.items()}
        for one in self.projections:
            if one.source not in sizes or one.target not in self.populations:
                raise ConfigError(f"nir: a projection from {one.source!r} to {one.target!r}; known: {', '.join(sizes)}")
            if np.shape(one.weight) != (sizes[one.target], sizes[one.source]) or one.delay < 0:
                needed = f"weight [{sizes[one.target]}, {sizes[one.source]}] and a delay of 0 or more"
                raise ConfigError(f"nir: {one.source} to {one.target}: {needed} are needed, not {np.shape(one.weight)} and {one.delay}")
        self._order = self._sorted()

    def _sorted(self):
        """Populations, each after those that it reads without delay."""
        order, left = [], set(self.populations)
        while left:
            ready = [n for n in left if not any(p.target == n and p.delay == 0 and p.source in left for p in self.projections)]
            if not ready:
                raise ConfigError(f"nir: synapses without delay lead in a circle through {', '.join(sorted(left))}; give one a delay")
            order += sorted(ready)
            left -= set(ready)
        return order

    def run(self, **inputs) -> dict[str, Trace]:
        """Simulate the populations from rest with these inputs, name -> [T, N]. Raises ConfigError if they do not fit."""
        given = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
        lengths = {len(x) for x in given.values()}
        if {name: x.shape[1:] for name, x in given.items()} != {name: (n,) for name, n in self.inputs.items()} or len(lengths) != 1:
            needed = ", ".join(f"{name} [T, {size}]" for name, size in self.inputs.items())
            raise ConfigError(f"nir: inputs {needed} are needed, not {', '.join(f'{name} {list(x.shape)}' for name, x in given.items())}")
        (tokens,) = lengths
        traces = {name: Trace(*np.zeros((2, tokens, len(one.tau)))) for name, one in self.populations.items()}
        sent = given | {name: trace.z for name, trace in traces.items()}
        for t in range(tokens):
            for name in self._order:
                one, (v, z) = self.populations[name], traces[name]
                into = [p for p in self.projections if p.target == name and p.delay <= t]
                current = sum((p.weight @ sent[p.source][t - p.delay] for p in into), np.zeros(len(one.tau)))
                alpha, before = np.exp(-1 / one.tau), v[t - 1] if t else np.zeros(len(one.tau))
                fired = before > 1
                kept = alpha * before - fired if one.reset == "subtract" else alpha * np.where(fired, 0, before)
                v[t] = kept + one.gain * current + one.bias
                z[t] = v[t] > 1
        return traces

    def to_nir(self, dt: float = 1.0) -> Any:
        """The circuit as a `nir.NIRGraph`. dt: how long a token lasts, in the unit of its time constants and delays."""
        nir, nodes, edges = _library(), {}, []
        for name, size in self.inputs.items():
            nodes[name] = nir.Input({"input": np.array([size])})
        for name, one in self.populations.items():
            rest, ones = 1 - np.exp(-1 / one.tau), np.ones_like(one.tau)
            equation = one.tau * dt, one.gain / rest, one.bias / rest
            if one.reset == "zero":
                nodes[name] = nir.LIF(*equation, v_threshold=ones)
            else:
                nodes[f"{name}.membrane"], nodes[name] = nir.LI(*equation), nir.Threshold(ones)
                nodes[f"{name}.reset"] = nir.Scale(-1 / one.gain)
                edges += [(f"{name}.membrane", name), (name, f"{name}.reset"), (f"{name}.reset", f"{name}.membrane")]
            nodes[f"{name}.out"] = nir.Output({"output": np.array(one.tau.shape)})
            edges.append((name, f"{name}.out"))
        for number, p in enumerate(self.projections):
            target_node = p.target if self.populations[p.target].reset == "zero" else f"{p.target}.membrane"
            row = [p.source, f"synapses.{number}", target_node]
            nodes[row[1]] = nir.Linear(np.asarray(p.weight, np.float64))
            if p.delay:
                row.insert(1, f"delay.{number}")
                nodes[row[1]] = nir.Delay(np.full(p.weight.shape[1], p.delay * dt))
            edges += zip(row, row[1:], strict=False)
        return nir.NIRGraph(nodes, edges, metadata={"dt": dt})

    def save(self, path: str | os.PathLike[str], dt: float = 1.0):
        """Write the circuit as a NIR file, atomically. Raises BackendError if it cannot be written."""
        path, graph = Path(path), self.to_nir(dt)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            _library().write(unfinished, graph)
            os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise BackendError(f"{path} cannot be written: {error.strerror or error}") from None


def export(model: NeuroGenModel | Circuit, path: str | os.PathLike[str], dt: float = 1.0):
    """As `Circuit.save`. Raises ConfigError for a model, with the parts that NIR cannot express."""
    if isinstance(model, Circuit):
        model.save(path, dt)
        return
    brain, made = model.config.brain, {str(part.neuron.name) for part in model.brain.populations}
    reasons = [
        "currents that are divided by the root mean square of a hypercolumn",
        "an associative memory",
        "a working memory with a gate",
    ]
    reasons += ["events that carry the membrane potential"] if brain.events == "graded" else []
    reasons += [f"the neuron {name}" for name in sorted(made - {"lif"})]
    known = "nir.Circuit holds what it can express: populations of lif neurons and their synapses"
    raise ConfigError(f"NIR cannot express this brain: it has no node for {', '.join(reasons)}; {known}")


def load(source: Any, dt: float | None = None) -> Circuit:
    """The circuit in a NIR file, or in a `nir.NIRGraph`. dt: how long a token lasts; else as the file says, else 1.

    Raises ConfigError for nodes that are not understood, delays that are not a number of tokens, and a reset to another potential than 0.
    """
    nir = _library()
    if isinstance(source, (str, os.PathLike)):
        try:
            graph = nir.read(source)
        except Exception as error:  # h5py and nir raise whatever they stumble over
            raise ConfigError(f"{os.fspath(source)} cannot be read as NIR: {error}") from None
    else:
        graph = source
    return _Reader(nir, graph, float(dt or graph.metadata.get("dt", 1.0))).circuit()


class _Reader:
    """A graph as a circuit."""

    def __init__(self, nir, graph, dt):
        self.nir, self.nodes, self.dt = nir, graph.nodes, dt
        self.into = {name: [source for source, target in graph.edges if target == name] for name in graph.nodes}
        known = nir.Input, nir.Output, nir.LIF, nir.LI, nir.Threshold, nir.Linear, nir.Affine, nir.Scale, nir.Delay
        for name, node in self.nodes.items():
            if not isinstance(node, known):
                names = ", ".join(kind.__name__ for kind in known)
                raise ConfigError(f"nir: node {name!r} is of the kind {type(node).__name__}; known: {names}")

    def circuit(self):
        inputs, populations, projections = {}, {}, []
        for name, node in self.nodes.items():
            if isinstance(node, self.nir.Input):
                inputs[name] = int(np.prod(node.input_type["input"]))
            elif isinstance(node, self.nir.LIF):
                if np.any(node.v_reset):
                    raise ConfigError(f"nir: {name}: a reset to 0 is needed, not to {node.v_reset.min()}")
                populations[name] = self._population(node, node.v_threshold, "zero")
                paths = list(self._paths(name))
            elif isinstance(node, self.nir.Threshold):
                membrane = self._membrane(name)
                populations[name] = one = self._population(self.nodes[membrane], node.threshold, "subtract")
                paths = list(self._paths(membrane))
                resets = [p for p in paths if p[0] == name and p[2] == 0 and np.allclose(one.gain * p[1], -np.eye(len(one.tau)))]
                if len(resets) != 1:
                    raise ConfigError(f"nir: {name}: its events must subtract the threshold from {membrane}, through one Scale or Linear")
                paths = [p for p in paths if p is not resets[0]]
            if name in populations:
                one = populations[name]
                constant = sum((bias for *_, bias in paths), np.zeros(len(one.tau)))
                populations[name] = one._replace(bias=one.bias + one.gain * constant)
                projections += [Projection(source, name, weight, delay) for source, weight, delay, _ in paths]
        return Circuit(inputs, populations, projections)

    def _membrane(self, name):
        """The node of the membrane that a threshold reads."""
        sources = self.into[name]
        if len(sources) != 1 or not isinstance(self.nodes[sources[0]], self.nir.LI):
            raise ConfigError(f"nir: {name}: a Threshold must read one LI, not {', '.join(sources) or 'nothing'}")
        return sources[0]

    def _population(self, node, threshold, reset):
        tau, r, leak, threshold = (np.asarray(x, np.float64).ravel() for x in (node.tau, node.r, node.v_leak, threshold))
        rest = 1 - np.exp(-self.dt / tau)
        return Population(tau / self.dt, rest * r / threshold, rest * leak / threshold, reset)

    def _paths(self, name) -> Iterator[tuple]:
        """(source, weight, delay in tokens, constant current) of each path from an input or from events to a node."""
        for before in self.into[name]:
            node = self.nodes[before]
            if isinstance(node, (self.nir.Input, self.nir.LIF, self.nir.Threshold)):
                size = int(np.prod(next(iter(node.output_type.values()))))
                yield before, np.eye(size), 0, np.zeros(size)
                continue
            if isinstance(node, self.nir.LI):
                raise ConfigError(f"nir: {name} reads the membrane {before}; synapses carry events, those of a Threshold")
            for source, weight, delay, bias in self._paths(before):
                if isinstance(node, self.nir.Delay):
                    tokens = np.asarray(node.delay, np.float64).ravel() / self.dt
                    if not np.allclose(tokens, np.round(tokens[0])):
                        raise ConfigError(
                            f"nir: {before}: one delay of a whole number of tokens is needed, not {tokens.min()} to {tokens.max()}"
                        )
                    yield source, weight, delay + round(float(tokens[0])), bias
                elif isinstance(node, self.nir.Scale):
                    scale = np.asarray(node.scale, np.float64).ravel()
                    yield source, scale[:, None] * weight, delay, scale * bias
                else:
                    node_bias = np.asarray(getattr(node, "bias", 0.0), np.float64)
                    yield source, node.weight @ weight, delay, node.weight @ bias + node_bias


def _library():
    try:
        import nir
    except ImportError:
        raise ConfigError('NIR needs the package nir: pip install "neurogen-numba[nir]"') from None
    return nir
