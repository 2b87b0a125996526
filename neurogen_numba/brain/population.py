"""A population of neurons: current -> (gate) -> normalise -> neuron -> events, forward and backward."""

from __future__ import annotations

import functools

import numpy as np

from .. import neurons
from ..config import Brain
from ..kernels.population import NeuronParameters, NeuronState
from ..neurons import TimeConstant
from ..optim.parameters import Parameter, Parameters
from .component import Component
from .connectome import NORMALIZATION, arcs, generator, left_out
from .neuromodulation import SENSITIVITY, adaptation, gain

TRACE = "output trace"  # beside the arguments of a step, which are identifiers
TRACE_CONSTANT = TimeConstant("output trace's", (0.2, 4.0), name="tau_y")
GAIN = "input gain, on top of the fixed input_scale"


class Population(Component):
    """The neurons of one module. traced: a readout or the decoder reads the output trace y."""

    def __init__(self, name: str, brain: Brain, backend, traced: bool):
        self.name, self.stream, self.backend, self.traced = name, name, backend, traced
        self.size, self.neuron = getattr(brain, name).neurons, neurons.get(getattr(brain, name).neuron)
        settings = {"kind": brain.surrogate, "width": brain.surrogate_width, "normalized": NORMALIZATION not in left_out(brain)}
        self.physics = functools.cache(functools.partial(self.neuron.physics, **settings))
        self.gated = any(arc.target == f"{name}.gate" for arc in arcs(brain))
        self.eligible = (f"{name}.current", f"{name}.gate") if self.gated else (f"{name}.current",)
        # the embedding gathers the current of the Thalamus, and adds the tokens to it
        self.inputs = () if name == "thalamus" else self.eligible
        self.outputs = (f"{name}.axon",) + ((f"{name}.trace",) if traced else ())
        self.state_sizes = (self.size,) * (len(self.neuron.state) + traced)
        self.hypercolumn, self.graded = brain.hypercolumn, brain.events == "graded"
        # what is learned of a neuron, by the argument of its step; time constants first
        learned = self.neuron.learned | ({TRACE: TRACE_CONSTANT} if traced else {})
        self.learned = dict(sorted(learned.items(), key=lambda entry: not isinstance(entry[1], TimeConstant)))
        self.eligible_parameters = len(self.neuron.learned) + 3  # gain, bias and the trace's
        # per-token constants that are derived from the parameters, and the accumulators of their gradients
        self.derived = [argument for argument, what in self.learned.items() if isinstance(what, TimeConstant)]
        self.constant, self.d = ({what: backend.zeros(self.size) for what in (*self.derived, GAIN)} for _ in range(2))
        targets = (gain(name), adaptation(name)) if brain.neuromodulation else ()
        self.to_sensitivity = {target: backend.zeros(self.size) for target in targets}  # what each neuron adds to its gradient
        self.input_scale, self.none = backend.zeros(self.size), backend.zeros((1, 1, 1))[:0]  # none: of a missing gate or trace

    def _parameter(self, argument):
        """The name of what is learned for an argument of the step, or for TRACE."""
        return f"{self.name}.{self.learned[argument].parameter(argument)}"

    def parameters(self):
        for argument, what in self.learned.items():
            meaning = f"logarithm of the {what.meaning} time constant, tokens" if argument in self.derived else what.meaning
            yield Parameter(self._parameter(argument), (self.size,), meaning, low=what.low, high=what.high)
        yield Parameter(f"{self.name}.gain", (self.size,), GAIN)
        yield Parameter(f"{self.name}.bias", (self.size,), "bias of the drive")

    def initialise(self, parameters: Parameters, seed: int):
        rng, value, scale = generator(seed, self.name), parameters.value, self.neuron.input_scale
        for argument, what in self.learned.items():
            value[self._parameter(argument)][:] = self.backend.asarray(what.draw(rng, self.name, self.size), "float32")
        value[f"{self.name}.gain"][:] = 1
        if isinstance(scale, str):
            # fixed from now on: by NumPy, so that a kernel that `lab.swap` replaces for a while leaves nothing behind
            decay = np.exp(-np.exp(-self.backend.to_numpy(value[self._parameter(scale)])))
            scale = self.backend.asarray((1 - decay**2) ** 0.5)
        self.input_scale[...] = scale

    def bind(self, parameters: Parameters):
        def arrays(table, derived):
            values_of = {what: table[self._parameter(what)] for what in self.learned} | derived
            constants = tuple(values_of[what] for what in self.neuron.learned)
            gamma = values_of[TRACE] if self.traced else self.none[:, 0, 0]
            return NeuronParameters(constants, values_of[GAIN], table[f"{self.name}.bias"], gamma)

        self.logs = {what: (parameters.value[self._parameter(what)], parameters.gradient[self._parameter(what)]) for what in self.derived}
        self.gain, self.d_gain = (table[f"{self.name}.gain"] for table in (parameters.value, parameters.gradient))
        self.d_sensitivity = parameters.gradient.get(SENSITIVITY)
        self.constants, self.d_constants = arrays(parameters.value, self.constant), arrays(parameters.gradient, self.d)

    def refresh(self):
        """Compute the per-token constants from the parameters."""
        for what, (log_tau, _) in self.logs.items():
            self.backend.decay_forward(self.constant[what], log_tau)
        self.backend.gain_forward(self.constant[GAIN], self.gain, self.input_scale)

    def allocate(self, act):
        """Allocate [T, B, N] arrays; states and y have one more row, row 0, for the token before the first."""
        T, B, N = act.buffered_tokens, act.batch, self.size
        act.neurons[self.name] = {state: act.state_rows(N) for state in self.neuron.state}
        act.v[self.name] = act.neurons[self.name][self.neuron.state[0]]
        act.r[self.name] = self.backend.zeros((T, B, -(-N // self.hypercolumn)))
        if self.traced:
            act.y[self.name] = act.state_rows(N)
            act.signals[f"{self.name}.trace"].x = act.y[self.name][1:]
        if act.learning:
            rows = act.carry_rows[self.name] = self.backend.zeros((len(self.state_sizes), B, N))
            act.carries[self.name] = NeuronState(tuple(rows[: len(self.neuron.state)]), rows[-1] if self.traced else self.none[:, 0])

    def forward(self, act, first, last):
        """Compute states, trace and axon from the module's current."""
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
            d_gate=act.current_grad(f"{name}.gate", first, last)[0] if self.gated else none,
            carry=act.carries[name],
            d=self.d_constants,
            ds=act.signals[f"{name}.axon"].gradient[chunk],
            dy=act.signals[f"{name}.trace"].gradient[chunk] if self.traced else none,
            state=self._state(act, first, last),
            scale=scale,
            modulation=self._modulation(act, first),
            **self._inputs(act, first, last),
        )

    def update_eligibility(self, act, length, to_currents, transition, traces):
        chunk = self._inputs(act, 0, length)
        del chunk["dropout"]  # events of a chunk act on later tokens inside the neuron only
        to_current, *to_gate = to_currents
        self.backend.population_eligibility(
            to_current=to_current,
            to_gate=to_gate[0] if to_gate else self.none[..., None],
            transition=transition,
            traces=traces,
            h=act.carry_rows[self.name],
            d=self.d_constants,
            state=self._state(act, 0, length),
            **chunk,
        )

    def _state(self, act, first, last):
        """The state rows of tokens first - 1 ... last - 1."""
        chunk = act.buffer_slice(first, last)
        rows = slice(chunk.start, chunk.stop + 1)
        values = tuple(values[rows] for values in act.neurons[self.name].values())
        return NeuronState(values, act.y[self.name][rows] if self.traced else self.none)

    def _inputs(self, act, first, last):
        """The arguments that `population_forward` and `population_backward` share."""
        chunk = act.buffer_slice(first, last)
        return {
            "r": act.r[self.name][chunk],
            "c": act.currents[f"{self.name}.current"].value[chunk],
            "gate": act.currents[f"{self.name}.gate"].value[chunk] if self.gated else self.none,
            "parameters": self.constants,
            "gain_scale": act.factor(gain(self.name), first),
            "beta_scale": act.factor(adaptation(self.name), first),
            "hypercolumn": self.hypercolumn,
            "dropout": act.dropout.arguments(f"{self.name}.axon", first, self.size),
            "graded": self.graded,
            "physics": self.physics(smooth=act.smooth),
        }

    def _modulation(self, act, first):
        """What `population_backward` needs of a brain with neuromodulators."""
        if not act.brain.modulation:
            return ()
        slopes = (act.slopes[first // act.chunk, target] for target in self.to_sensitivity)
        return *slopes, *self.to_sensitivity.values()

    def finish(self):
        """Accumulate the gradients of the per-token constants, and of sensitivities, into those of the parameters."""
        for target, gradient in self.to_sensitivity.items():
            self.backend.add_rows(self.d_sensitivity[target : target + 1], gradient[:, None])
            gradient[...] = 0
        for what, (log_tau, d_log_tau) in self.logs.items():
            self.backend.decay_backward(d_log_tau, self.d[what], log_tau)
        self.backend.gain_backward(self.d_gain, self.d[GAIN], self.input_scale)
