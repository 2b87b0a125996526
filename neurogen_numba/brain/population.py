"""A population of LIF-A neurons: current -> (gate) -> normalise -> neuron -> events, forward and backward."""

from __future__ import annotations

import math

import numpy as np

from ..config import Brain
from ..kernels.population import NeuronParameters, NeuronState
from .buffers import Parameter, Parameters
from .component import Component
from .connectome import generator

LOG_TAU = (-2.0, 5.0)  # bounds of the logarithm of a time constant in tokens
MAX_BETA = 3.0
TAU_MEMBRANE, TAU_MEMBRANE_PFC, TAU_ADAPTATION, TAU_TRACE = (0.5, 8.0), (0.5, 30.0), (2.0, 16.0), (0.2, 4.0)  # tokens, at the start


class Population(Component):
    """The LIF-A neurons of one module. traced: a readout or the decoder reads the output trace y."""

    def __init__(self, name: str, brain: Brain, backend, traced: bool):
        self.name, self.stream, self.backend, self.traced = name, name, backend, traced
        self.size = getattr(brain, name).neurons
        # the embedding gathers the current of the Thalamus, and adds the tokens to it
        self.inputs = {"thalamus": (), "broca": ("broca.current", "broca.gate")}.get(name, (f"{name}.current",))
        self.outputs = (f"{name}.axon",) + ((f"{name}.trace",) if traced else ())
        self.state_sizes = (self.size,) * (3 if traced else 2)  # membrane, adaptation, trace
        self.hypercolumn, self.graded = brain.hypercolumn, brain.events == "graded"
        # per-token constants, derived from the parameters, and the accumulators of their gradients
        self.alpha, self.rho, self.gain, self.input_scale = (backend.zeros(self.size) for _ in range(4))
        self.d = {what: backend.zeros(self.size) for what in ("alpha", "rho", "gain", "gamma")}
        self.gamma = backend.zeros(self.size)
        if not traced:
            self.gamma, self.d["gamma"] = self.gamma[:0], self.gamma[:0]
        self.none = backend.zeros((1, 1, 1))[:0]  # stands for the arrays of a missing gate or trace

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
        alpha, rho, gain, gamma = self.alpha, self.rho, self.gain, self.gamma
        self.constants = NeuronParameters(alpha, rho, self.value["beta"], gain, self.value["bias"], gamma)
        d, gradient = self.d, self.gradient
        self.d_constants = NeuronParameters(d["alpha"], d["rho"], gradient["beta"], d["gain"], gradient["bias"], d["gamma"])

    def refresh(self):
        """Compute the per-token constants from the parameters."""
        value = self.value
        self.backend.decay_forward(self.alpha, value["log_tau_v"])
        self.backend.decay_forward(self.rho, value["log_tau_a"])
        np.multiply(value["gain"], self.input_scale, out=self.gain)
        if self.traced:
            self.backend.decay_forward(self.gamma, value["log_tau_y"])

    def allocate(self, act):
        """Allocate [T, B, N] arrays; v, a and y have one more row, row 0, for the token before the first."""
        T, B, N = act.buffered_tokens, act.batch, self.size
        act.v[self.name], act.a[self.name] = act.state_rows(N), act.state_rows(N)
        act.r[self.name] = self.backend.zeros((T, B, -(-N // self.hypercolumn)))
        if self.traced:
            act.y[self.name] = act.state_rows(N)
            act.signals[f"{self.name}.trace"].x = act.y[self.name][1:]
        if act.learning:
            for carry in (act.dv, act.da, act.dy) if self.traced else (act.dv, act.da):
                carry[self.name] = self.backend.zeros((B, N))

    def forward(self, act, first, last):
        """Compute membranes, adaptation, trace and axon from the module's current."""
        self._forward(act, first, last, *(act.synapses.axon(f"{self.name}.{signal}") for signal in ("axon", "trace")))

    def recompute(self, act, first, last):
        self._forward(act, first, last, self.backend.no_axon, self.backend.no_axon)

    def _forward(self, act, first, last, axon, trace):
        state = self._state(act, first, last)
        self.backend.population_forward(state=state, axon=axon, trace=trace, first=first, **self._inputs(act, first, last))

    def backward(self, act, first, last):
        """Compute the gradient of the current from those of axon and trace."""
        name, chunk, none = self.name, slice(0, last - first), self.none
        d_current, offset, scale = act.current_grad(f"{name}.current", first, last)
        self.backend.population_backward(
            d_current=d_current,
            offset=offset,
            d_gate=act.current_grad("broca.gate", first, last)[0] if name == "broca" else none,
            carry=NeuronState(act.dv[name], act.da[name], act.dy[name] if self.traced else none[:, 0]),
            d=self.d_constants,
            ds=act.signals[f"{name}.axon"].gradient[chunk],
            dy=act.signals[f"{name}.trace"].gradient[chunk] if self.traced else none,
            state=self._state(act, first, last),
            scale=scale,
            **self._inputs(act, first, last),
        )

    def _state(self, act, first, last):
        """The state rows of tokens first - 1 ... last - 1."""
        chunk = act.buffer_slice(first, last)
        rows = slice(chunk.start, chunk.stop + 1)
        return NeuronState(act.v[self.name][rows], act.a[self.name][rows], act.y[self.name][rows] if self.traced else self.none)

    def _inputs(self, act, first, last):
        """The arguments that `population_forward` and `population_backward` share."""
        chunk = act.buffer_slice(first, last)
        return {
            "r": act.r[self.name][chunk],
            "c": act.currents[f"{self.name}.current"].value[chunk],
            "gate": act.currents["broca.gate"].value[chunk] if self.name == "broca" else self.none,
            "parameters": self.constants,
            "gain_scale": act.gain_scale,
            "beta_scale": act.beta_scale,
            "hypercolumn": self.hypercolumn,
            "dropout": act.dropout.arguments(f"{self.name}.axon", first, self.size),
            "graded": self.graded,
            "smooth": act.smooth,
        }

    def finish(self):
        """Accumulate the gradients of the per-token constants into those of the parameters."""
        value, gradient, d = self.value, self.gradient, self.d
        self.backend.decay_backward(gradient["log_tau_v"], d["alpha"], value["log_tau_v"])
        self.backend.decay_backward(gradient["log_tau_a"], d["rho"], value["log_tau_a"])
        if self.traced:
            self.backend.decay_backward(gradient["log_tau_y"], d["gamma"], value["log_tau_y"])
        np.multiply(d["gain"], self.input_scale, out=d["gain"])
        np.add(gradient["gain"], d["gain"], out=gradient["gain"])
        d["gain"][...] = 0
