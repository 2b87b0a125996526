"""`check_gradient`: the adjoint of a neuron against finite differences of its step, in float64 and in the smooth test mode."""

from __future__ import annotations

import numpy as np

from ..config import did_you_mean
from ..errors import ConfigError
from ..kernels.surrogate import SURROGATES, Surrogate, make_surrogate
from .definition import Neuron, event, get, slope

POINTS, STEP = 200, 3e-6  # random points; how far a finite difference goes to either side
ALLOWED = 1e-5  # of an error, relative to the size of the derivatives
FEWEST_POINTS = POINTS // 5  # with a well-conditioned finite difference, to judge a derivative
EPSILON = np.finfo(np.float64).eps
V_RANGE = np.linspace(-2, 3, 101)  # plausible membrane potentials: the threshold is 1
STEEP = 100.0  # a derivative per token above this makes gradients overflow within a segment


def check_gradient(neuron: Neuron | str, surrogate: str = "triangle", width: float = 1.0, show: bool = True) -> dict[str, float]:
    """The worst error of each derivative in a neuron's adjoint, by what it is taken by: states, `i`, what is learned.

    neuron: a Neuron, or its name. At random points, for axons that carry the membrane potential and for bare events, with this surrogate
    slope. An error is relative to the root mean square of its derivative. Points whose finite difference is ill-conditioned are left out.
    show: print a table, and notes on steps that have a right adjoint and still may not be meant so (`notes`). Raises ConfigError where the
    adjoint is wrong, where too few points are left to judge it, and where the step is not finite.
    """
    neuron = get(neuron) if isinstance(neuron, str) else neuron
    if surrogate not in SURROGATES:
        raise ConfigError(f"check_gradient: unknown surrogate {surrogate!r}; {did_you_mean(str(surrogate), SURROGATES)}")
    if not isinstance(neuron, Neuron):
        raise ConfigError(f"check_gradient: a neuron, made by @neurogen_numba.neuron, or its name is needed, not {neuron!r}")
    graded, binary = (_errors(neuron, surrogate, width, carried) for carried in (True, False))
    worst = {name: float(np.maximum(graded[name], binary[name])) for name in _inputs(neuron)}
    if show:
        _show(neuron, worst, notes(neuron, surrogate, width))
    unknown = [name for name, error in worst.items() if np.isinf(error)]
    if unknown:
        raise ConfigError(
            f"{neuron.name}: its derivative with respect to {', '.join(unknown)} cannot be judged: the step is too steep for "
            "finite differences at most of the random points; bound it with min and max"
        )
    wrong = {name: error for name, error in worst.items() if not error <= ALLOWED}
    if wrong:
        name = max(wrong, key=lambda name: (np.isnan(wrong[name]), wrong[name]))
        raise ConfigError(
            f"{neuron.name}: its adjoint is wrong in the derivative with respect to {name}: it differs from finite differences by "
            f"{100 * wrong[name]:.3g} %"
            + (f" (also wrong: {', '.join(other for other in wrong if other != name)})" if len(wrong) > 1 else "")
        )
    return worst


def failure(neuron: Neuron, surrogate: str = "triangle", width: float = 1.0) -> str:
    """Why the step or the adjoint cannot be computed at one of the random inputs; empty if it can at all of them."""
    rng, names, S = np.random.default_rng(0), _inputs(neuron), len(neuron.state)
    step, adjoint, _ = neuron.functions(make_surrogate(surrogate, width), np.float64)
    try:
        for x in zip(*_random_inputs(neuron, rng, POINTS), strict=True):
            after = _run(neuron, "step", step, x, names, x)
            _run(neuron, "adjoint", adjoint, [1.0, *np.ones(S), *x[:S], *after, *x[S:], True], names, x)
    except ConfigError as error:
        return str(error).removeprefix(f"{neuron.name}: ")
    return ""


def notes(neuron: Neuron, surrogate: str = "triangle", width: float = 1.0) -> list[str]:
    """Sentences on a step whose adjoint may be right: its events are not those of the axon, or a derivative is large."""
    return [*_event_note(neuron), *_steepness_note(neuron, surrogate, width)]


def _inputs(neuron):
    return (*neuron.state, "i", *neuron.learned)


def _random_inputs(neuron, rng, points):
    """Inputs of the step [points] float64, in the order of its arguments."""
    states = [rng.normal(0.7, 0.7, points) for _ in neuron.state]
    return [*states, rng.normal(0, 1, points), *(what.example(rng, points) for what in neuron.learned.values())]


def _errors(neuron, surrogate, width, graded):
    """Input of the step -> worst error of the adjoint."""
    rng, names, S = np.random.default_rng(0), _inputs(neuron), len(neuron.state)
    smooth_surrogate = Surrogate(*SURROGATES[surrogate](np.float64(width)))  # its event is the smooth one
    step, adjoint, gradient = neuron.functions(smooth_surrogate, np.float64)
    inputs = _random_inputs(neuron, rng, POINTS)
    found, expected, doubt = np.zeros((3, len(names), POINTS))
    for point in range(POINTS):
        x = [np.float64(values[point]) for values in inputs]
        learned, ds, carried = x[S + 1 :], rng.normal(), list(rng.normal(size=S))
        after = _run(neuron, "step", step, x, names, x)
        d_after = gradient(*carried, *after, *learned)  # what it says of the state after the token

        def terms(*changed, ds=ds, d_after=d_after):
            """The summands of the loss."""
            state = _run(neuron, "step", step, changed, names, changed)
            s = smooth_surrogate.event(state[0]) * (state[0] if graded else 1)
            return np.array([*(d * value for d, value in zip(d_after, state, strict=True)), ds * s])

        result = _run(neuron, "adjoint", adjoint, [ds, *carried, *x[:S], *after, x[S], *learned, graded], names, x)
        if len(result) != len(names):
            raise ConfigError(f"{neuron.name}: the adjoint returns {len(result)} numbers instead of {len(names)}")
        found[:, point] = [*gradient(*result[:S], *x[:S], *learned), *result[S:]]
        rounding = 20 * EPSILON * np.abs(terms(*x)).sum() / STEP  # 20: rounding inside the step is amplified
        for k in range(len(names)):
            near, far = (_difference(terms, x, k, distance) for distance in (STEP, 2 * STEP))
            expected[k, point], doubt[k, point] = near, abs(near - far) + rounding
    return {name: _worst(*rows) for name, *rows in zip(names, found, expected, doubt, strict=True)}


def _run(neuron, what, function, arguments, names, x):
    """The results of a step or an adjoint. Raises ConfigError with its inputs x where it fails or returns numbers that are not finite."""
    try:
        with np.errstate(all="ignore"):
            results = function(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        why = "" if np.isfinite(np.array(results, np.float64)).all() else "its result is not finite"
    except (ArithmeticError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        where = ", ".join(f"{name} = {value:.3g}" for name, value in zip(names, x, strict=True))
        raise ConfigError(
            f"{neuron.name}: the {what} cannot be computed at {where}: {why}; states and i may have any sign and size: keep arguments of "
            "sqrt, log, ** and exp in range with max and min"
        ) from None
    return results


def _difference(terms, x, k, distance):
    """Central finite difference of the loss by input k of x."""
    up, down = (terms(*x[:k], x[k] + sign * distance, *x[k + 1 :]) for sign in (1, -1))
    return (up - down).sum() / (2 * distance)


def _worst(found, expected, doubt):
    """The worst error of a derivative over the well-conditioned points, relative to its size; arrays [POINTS]. Infinite where these points
    are too few."""
    best = np.argsort(doubt)[: POINTS // 2]
    size = np.sqrt(np.mean(expected[best] ** 2)) + 1e-2
    sound = doubt <= ALLOWED / 2 * size
    return float(np.abs(found - expected)[sound].max() / size) if sound.sum() >= FEWEST_POINTS else np.inf


def _event_note(neuron):
    """A sentence where the step calls `event` on something other than the first state, before or after the token, or nowhere."""
    rng, elsewhere, calls, v = np.random.default_rng(1), 0, 0, neuron.state[0]

    def recorded(x):
        asked.append(x)
        return np.float64(x > 1)

    step = neuron.step.compile({event: recorded, slope: make_surrogate().slope}, np.float64)
    for x in zip(*_random_inputs(neuron, rng, POINTS), strict=True):
        asked = []
        after = _run(neuron, "step", step, x, _inputs(neuron), x)
        calls += len(asked)
        elsewhere += not np.isclose(np.array(asked)[:, None], [x[0], after[0]]).any(axis=1).all() if asked else 0
    axon = f"the axon sends an event where {v} > 1"
    if not calls:
        return [f"{axon}; this step never calls event({v}): if it resets the state in another way, no gradient passes the reset"]
    return [f"{axon}; this step resets elsewhere: it calls event on another value than {v}; rescale so that the threshold is 1"] * bool(
        elsewhere
    )


def _steepness_note(neuron, surrogate, width):
    """A sentence where a derivative of the new state is large at a plausible membrane potential."""
    rng, names, S = np.random.default_rng(2), _inputs(neuron), len(neuron.state)
    real = Surrogate(event, SURROGATES[surrogate](np.float64(width))[1])
    step, adjoint, gradient = neuron.functions(real, np.float64)
    inputs = _random_inputs(neuron, rng, len(V_RANGE))
    largest = {v: (0.0, 0.0) for v in (neuron.state[0], "i")}  # input -> (largest derivative, input there)
    for x in zip(V_RANGE, *inputs[1:], strict=True):
        try:
            after = _run(neuron, "step", step, x, names, x)
            for carried in np.eye(S):
                result = _run(neuron, "adjoint", adjoint, [0.0, *carried, *x[:S], *after, x[S], *x[S + 1 :], False], names, x)
                derivatives = gradient(*result[:S], *x[:S], *x[S + 1 :])[0], result[S]
                for name, value, given in zip(largest, derivatives, (x[0], x[S]), strict=True):
                    largest[name] = max(largest[name], (abs(float(value)), float(given)))
        except ConfigError as error:
            return [str(error)]
    return [
        f"d/d{name} reaches {size:.0e} at {name} = {value:.2g}: gradients may overflow in training; bound the step there, for an "
        "exponential with exp(min(x, limit))"
        for name, (size, value) in largest.items()
        if size > STEEP
    ]


def _show(neuron, worst, sentences):
    from rich.console import Console
    from rich.table import Table

    how = "derived" if neuron.adjoint_is_derived else "hand-written"
    table = Table("derivative", "of", "worst error", "", title=f"{how} adjoint of {neuron.name}, against finite differences")
    for name, error in worst.items():
        kind = "state" if name in neuron.state else "input" if name == "i" else "learned"
        table.add_row(name, kind, f"{error:.1e}", "right" if error <= ALLOWED else "not judged" if np.isinf(error) else "WRONG")
    console = Console()
    console.print(table)
    for sentence in sentences:
        console.print(f"Note: {sentence}.", highlight=False)
