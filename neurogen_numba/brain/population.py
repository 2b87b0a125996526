"""A population of LIF-A neurons: current -> (gate) -> normalise -> neuron -> events, forward and backward."""

from __future__ import annotations

import math

import numpy as np

from ..config import Brain
from .buffers import Parameter, Parameters
from .connectome import generator

LOG_TAU = (-2.0, 5.0)  # bounds of the logarithm of a time constant in tokens
MAX_BETA = 3.0
TAU_MEMBRANE, TAU_MEMBRANE_PFC, TAU_ADAPTATION, TAU_TRACE = (0.5, 8.0), (0.5, 30.0), (2.0, 16.0), (0.2, 4.0)  # tokens, at the start


class Population:
    """The neurons of one module. `traced`: somebody reads the output trace y."""

    def __init__(self, name: str, brain: Brain, backend, traced: bool):
        self.name, self.lane, self.backend, self.traced = name, name, backend, traced
        self.size = getattr(brain, name).neurons
        # what the Thalamus receives, the embedding has received already, and added the tokens to it
        self.inputs = {"thalamus": (), "broca": ("broca.current", "broca.gate")}.get(name, (f"{name}.current",))
        self.outputs = (f"{name}.axon",) + ((f"{name}.trace",) if traced else ())
        self.kept = (self.size,) * (3 if traced else 2)  # membrane, adaptation, trace
        self.hypercolumn, self.graded = brain.hypercolumn, brain.events == "graded"
        # per-token constants, derived from the parameters, and where a pass collects their gradients
        self.alpha, self.rho, self.gain, self.input_scale = (backend.zeros(self.size) for _ in range(4))
        self.d = {what: backend.zeros(self.size) for what in ("alpha", "rho", "gain")}
        if traced:
            self.gamma, self.d["gamma"] = backend.zeros(self.size), backend.zeros(self.size)

    def parameters(self):
        def per_neuron(what, meaning, low=-math.inf, high=math.inf):
            return Parameter(f"{self.name}.{what}", (self.size,), meaning, low=low, high=high)

        yield per_neuron("log_tau_v", "logarithm of the membrane's time constant, tokens", *LOG_TAU)
        yield per_neuron("log_tau_a", "logarithm of the adaptation's time constant, tokens", *LOG_TAU)
        if self.traced:
            yield per_neuron("log_tau_y", "logarithm of the output trace's time constant, tokens", *LOG_TAU)
        yield per_neuron("beta", "adaptation coupling; a negative one would be positive feedback", 0.0, MAX_BETA)
        yield per_neuron("gain", "input gain, on top of the fixed sqrt(1 - alpha_0^2)")
        yield per_neuron("bias", "bias of the drive")

    def initialise(self, parameters: Parameters, seed: int):
        rng = generator(seed, self.name)

        def log_uniform(bounds):
            return self.backend.asarray(rng.uniform(*np.log(bounds), self.size), "float32")

        value = parameters.value
        value[f"{self.name}.log_tau_v"][:] = log_uniform(TAU_MEMBRANE_PFC if self.name == "pfc" else TAU_MEMBRANE)
        value[f"{self.name}.log_tau_a"][:] = log_uniform(TAU_ADAPTATION)
        if self.traced:
            value[f"{self.name}.log_tau_y"][:] = log_uniform(TAU_TRACE)
        value[f"{self.name}.beta"][:] = self.backend.asarray(rng.uniform(0, 0.5, self.size), "float32")
        value[f"{self.name}.gain"][:] = 1
        self.backend.decay_forward(self.alpha, value[f"{self.name}.log_tau_v"])
        self.input_scale[...] = (1 - self.alpha**2) ** 0.5

    def bind(self, parameters: Parameters):
        names = ("log_tau_v", "log_tau_a", "beta", "gain", "bias") + (("log_tau_y",) if self.traced else ())
        self.value = {what: parameters.value[f"{self.name}.{what}"] for what in names}
        self.gradient = {what: parameters.gradient[f"{self.name}.{what}"] for what in names}

    def refresh(self):
        """Per-token constants from the parameters, once after every update."""
        value = self.value
        self.backend.decay_forward(self.alpha, value["log_tau_v"])
        self.backend.decay_forward(self.rho, value["log_tau_a"])
        np.multiply(value["gain"], self.input_scale, out=self.gain)
        if self.traced:
            self.backend.decay_forward(self.gamma, value["log_tau_y"])

    def allocate(self, act):
        """Arrays of a segment [T, B, N]; v, a and y have a row more, the first, for the token before it."""
        T, B, N = act.span, act.batch, self.size
        act.v[self.name], act.a[self.name] = act.rows(N), act.rows(N)
        act.r[self.name] = self.backend.zeros((T, B, -(-N // self.hypercolumn)))
        act.x[self.name] = self.backend.zeros((T, B, N)) if self.name == "broca" else act.currents[f"{self.name}.current"].value
        if self.traced:
            act.y[self.name] = act.rows(N)
            act.signals[f"{self.name}.trace"].x = act.y[self.name][1:]
        if act.learning:
            for carry in (act.dv, act.da, act.dy):
                carry[self.name] = self.backend.zeros((B, N))

    def forward(self, act, first, last):
        """Membranes, adaptation, trace and event lists of tokens first ... last - 1, from the module's current."""
        self.again(act, first, last)
        v = act.v[self.name][self._rows(act, first, last)]
        dropout = act.dropout.at(f"{self.name}.axon", first, self.size)
        act.synapses.write_events(f"{self.name}.axon", first, last, v[1:], dropout, self.graded, act.smooth)
        if self.traced:
            act.send(f"{self.name}.trace", first, last)

    def again(self, act, first, last):
        """As `forward`, without sending."""
        name, here, rows = self.name, act.here(first, last), self._rows(act, first, last)
        x, v, a = act.x[name][here], act.v[name][rows], act.a[name][rows]
        if name == "broca":
            self.backend.gate_forward(x, act.currents["broca.current"].value[here], act.currents["broca.gate"].value[here])
        self.backend.normalize_forward(x, act.r[name][here], self.hypercolumn)
        self.backend.lif_forward(
            v, a, x, self.gain, self.value["bias"], self.alpha, self.rho, self.value["beta"], act.gain_scale, act.beta_scale, act.smooth
        )
        if self.traced:
            self.backend.trace_forward(act.y[name][rows], v, self.gamma, self.graded, act.smooth)

    @staticmethod
    def _rows(act, first, last):
        """The rows of tokens first ... last - 1, and that of the token before them."""
        here = act.here(first, last)
        return slice(here.start, here.stop + 1)

    def backward(self, act, first, last):
        """From the gradients of axon and trace to that of the current; adds to the parameters' gradients."""
        name, here, before = self.name, act.here(first, last), self._rows(act, first, last)
        x, v, a = act.x[name][here], act.v[name][before], act.a[name][before]
        ds = act.signals[f"{name}.axon"].gradient[: last - first]
        if act.dropout.axon_rate:
            self.backend.dropout(ds.reshape(-1, self.size), *act.dropout.at(f"{name}.axon", first, self.size))
        if self.traced:
            dy, y = act.signals[f"{name}.trace"].gradient[: last - first], act.y[name][before]
            self.backend.trace_backward(ds, act.dy[name], self.d["gamma"], dy, y, v, self.gamma, self.graded, act.smooth)
        current = act.currents[f"{name}.current"]
        dx, value = current.gradient[: last - first], self.value
        self.backend.lif_backward(
            dx,
            act.dv[name],
            act.da[name],
            self.d["gain"],
            self.gradient["bias"],
            self.d["alpha"],
            self.d["rho"],
            self.gradient["beta"],
            ds,
            v,
            a,
            x,
            self.gain,
            self.alpha,
            self.rho,
            value["beta"],
            act.gain_scale,
            act.beta_scale,
            self.graded,
            act.smooth,
        )
        self.backend.normalize_backward(dx, x, act.r[name][here], self.hypercolumn)
        if name == "broca":
            gate = act.currents["broca.gate"]
            self.backend.gate_backward(dx, gate.gradient[: last - first], dx, current.value[here], gate.value[here])

    def finish(self):
        """Carry the gradients of the per-token constants over to the parameters."""
        value, gradient, d = self.value, self.gradient, self.d
        self.backend.decay_backward(gradient["log_tau_v"], d["alpha"], value["log_tau_v"])
        self.backend.decay_backward(gradient["log_tau_a"], d["rho"], value["log_tau_a"])
        if self.traced:
            self.backend.decay_backward(gradient["log_tau_y"], d["gamma"], value["log_tau_y"])
        np.multiply(d["gain"], self.input_scale, out=d["gain"])
        np.add(gradient["gain"], d["gain"], out=gradient["gain"])
        d["gain"][...] = 0
