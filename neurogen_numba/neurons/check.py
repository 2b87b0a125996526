"""`check_gradient`: the adjoint of a neuron against finite differences of its step, in float64 and in the smooth test mode."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from ..kernels.surrogate import SURROGATES, Surrogate
from .definition import Neuron

POINTS, STEP = 200, 1e-6  # random points; how far a finite difference goes to either side
ALLOWED = 1e-5  # of an error, relative to the size of the derivatives


def check_gradient(neuron: Neuron, surrogate: str = "triangle", width: float = 1.0, show: bool = True) -> dict[str, float]:
    """The worst error of each derivative in a neuron's adjoint, by what it is taken by: states, `i`, what is learned.

    At random points, for axons that carry the membrane potential and for bare events, with this surrogate slope. An error is relative to
    the root mean square of its derivative. show: print a table. Raises ConfigError where the adjoint is wrong.
    """
    worst = {name: max(_errors(neuron, surrogate, width, graded)[name] for graded in (True, False)) for name in _inputs(neuron)}
    if show:
        _show(neuron, worst)
    wrong = {name: error for name, error in worst.items() if not error <= ALLOWED}
    if wrong:
        name = max(wrong, key=lambda name: (np.isnan(wrong[name]), wrong[name]))
        raise ConfigError(
            f"{neuron.name}: its adjoint is wrong in the derivative with respect to {name}: it differs from finite differences by "
            f"{100 * wrong[name]:.3g} %"
            + (f" (also wrong: {', '.join(other for other in wrong if other != name)})" if len(wrong) > 1 else "")
        )
    return worst


def _inputs(neuron):
    return (*neuron.state, "i", *neuron.learned)


def _errors(neuron, surrogate, width, graded):
    """Input of the step -> worst error of the adjoint."""
    rng, names, S = np.random.default_rng(0), _inputs(neuron), len(neuron.state)
    smooth_surrogate = Surrogate(*SURROGATES[surrogate](np.float64(width)))  # its event is the smooth one
    step, adjoint, gradient = neuron.functions(smooth_surrogate, np.float64)
    inputs = {name: rng.normal(0.7, 0.7, POINTS) for name in neuron.state} | {"i": rng.normal(0, 1, POINTS)}
    inputs |= {name: what.example(rng, POINTS) for name, what in neuron.learned.items()}
    found, expected = np.zeros((2, len(names), POINTS))
    for point in range(POINTS):
        x = [np.float64(inputs[name][point]) for name in names]
        learned, ds, carried = x[S + 1 :], rng.normal(), list(rng.normal(size=S))
        after = step(*x)
        d_after = gradient(*carried, *after, *learned)  # what it says of the state after the token

        def loss(*changed, ds=ds, d_after=d_after):
            state = step(*changed)
            return sum(d * value for d, value in zip(d_after, state, strict=True)) + ds * smooth_surrogate.event(state[0]) * (
                state[0] if graded else 1
            )

        *d_state, d_i = (result := adjoint(ds, *carried, *x[:S], *after, x[S], *learned, graded))[: S + 1]
        found[:, point] = [*gradient(*d_state, *x[:S], *learned), d_i, *result[S + 1 :]]
        for k in range(len(names)):
            up, down = ([*x[:k], x[k] + sign * STEP, *x[k + 1 :]] for sign in (1, -1))
            expected[k, point] = (loss(*up) - loss(*down)) / (2 * STEP)
    size = np.sqrt(np.mean(expected**2, axis=1)) + 1e-3
    return dict(zip(names, map(float, np.abs(found - expected).max(axis=1) / size), strict=True))


def _show(neuron, worst):
    from rich.console import Console
    from rich.table import Table

    table = Table("derivative", "of", "worst error", "", title=f"adjoint of {neuron.name}, against finite differences")
    for name, error in worst.items():
        kind = "state" if name in neuron.state else "input" if name == "i" else "learned"
        table.add_row(name, kind, f"{error:.1e}", "right" if error <= ALLOWED else "WRONG")
    Console().print(table)
