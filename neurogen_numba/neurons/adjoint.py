"""The adjoint of a neuron's step, derived by SymPy and written as plain Python.

SymPy runs the step on symbols, differentiates what comes out, and shares common subexpressions. `event` stands for itself, with the
surrogate slope as its derivative. The state after the token is stored, and not computed again: a membrane potential that was stored in 16
bits keeps its events.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import ConfigError
from ..kernels import exponential, surrogate
from .definition import Neuron, Source, event, slope

KNOWN = ("exp", "log", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh", "atan")  # functions of math and numpy
AXON = "event({v}_after) + slope({v}_after) * {v}_after if graded else slope({v}_after)"  # ds/dv of the axon (kernels/surrogate.py)


def derive(neuron: Neuron) -> Source:
    """The adjoint of a neuron, with the arguments of `Neuron.adjoint_arguments`. Raises ConfigError for a step that SymPy cannot run."""
    try:
        import sympy
    except ImportError:
        raise ConfigError(f"{neuron.name}: SymPy derives its adjoint; `pip install sympy`, or write @{neuron.name}.adjoint") from None
    Event, Slope, meanings = _functions(sympy)
    symbols = {name: sympy.Symbol(name, real=True) for name in neuron.adjoint_arguments}
    inputs = [symbols[name] for name in (*neuron.state, "i", *neuron.learned)]
    try:
        outputs = [sympy.sympify(output) for output in neuron.step.compile(meanings, sympy.sympify)(*inputs)]
    except Exception as error:
        unknown = [function.__name__ for function in neuron.step.functions() if function not in meanings]
        why = f"it does not know {', '.join(unknown)}" if unknown else f"{type(error).__name__}: {error}"
        if "truth value" in str(error):
            why = "it has a branch; write that with min, max or event, for example event(v) * a + (1 - event(v)) * b"
        raise ConfigError(
            f"{neuron.name}: SymPy cannot follow the step: {why}; it knows + - * / **, event, min, max, abs, {', '.join(KNOWN)}, "
            f"and no branches; or write @{neuron.name}.adjoint by hand"
        ) from None
    after = {output: symbols[f"{state}_after"] for output, state in zip(outputs, neuron.state, strict=True) if not output.is_Atom}
    total = sum(symbols[f"d{state}"] * output for state, output in zip(neuron.state, outputs, strict=True))
    gradients = [sympy.diff(total, symbol).xreplace(after) for symbol in inputs]
    shared, gradients = sympy.cse(gradients, symbols=sympy.numbered_symbols("x", exclude=symbols.values()), optimizations="basic")
    printer, v = _printer(sympy, Event, Slope), neuron.state[0]
    lines = [f"def {neuron.name}_adjoint({', '.join(neuron.adjoint_arguments)}):", f"    d{v} = d{v} + ds * ({AXON.format(v=v)})"]
    lines += [f"    {name} = {printer.doprint(value)}" for name, value in shared]
    lines += [f"    return {', '.join(map(printer.doprint, gradients))},"]
    names = {name: getattr(math, name) for name in KNOWN} | {"exp": exponential.exp, "event": event, "slope": slope}
    return Source.of_text("\n".join(lines), names)


def _functions(sympy):
    """(event, slope, replacements of the functions of a step) for SymPy."""

    class Slope(sympy.Function):
        pass

    class Event(sympy.Function):
        def fdiff(self, argindex=1):
            return Slope(self.args[0])

    replacements = {getattr(module, name): getattr(sympy, name) for module in (math, np) for name in KNOWN if hasattr(module, name)}
    replacements |= {event: Event, surrogate.event: Event, exponential.exp: sympy.exp, np.arctan: sympy.atan, np.float32: sympy.sympify}
    return Event, Slope, replacements | {"min": sympy.Min, "max": sympy.Max, "abs": sympy.Abs}


def _printer(sympy, Event, Slope):
    from sympy.printing.pycode import PythonCodePrinter

    class Printer(PythonCodePrinter):
        def _print_Float(self, number):
            return repr(float(number))

        def _print_Pow(self, power, **how):
            base, exponent = self.parenthesize(power.base, sympy.printing.precedence.PRECEDENCE["Pow"]), power.exp
            if exponent.is_Integer and 1 < abs(exponent) <= 4:
                product = "*".join([base] * abs(int(exponent)))
                return f"({product})" if exponent > 0 else f"(1/({product}))"
            return f"(1/{base})" if exponent == -1 else super()._print_Pow(power, **how)

        def _print_Heaviside(self, step):
            return f"(1 if {self._print(step.args[0])} > 0 else 0)"

        def _print_sign(self, sign):
            x = self._print(sign.args[0])
            return f"(1 if {x} > 0 else -1 if {x} < 0 else 0)"

    for function, name in ((Event, "event"), (Slope, "slope")):
        setattr(Printer, f"_print_{function.__name__}", lambda self, call, name=name: f"{name}({self._print(call.args[0])})")
    return Printer({"fully_qualified_modules": False})
