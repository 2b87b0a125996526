"""Neurons: a scalar step over one token, its adjoint, and the learned constants.

    @neuron(state=("v", "u"), learned={"alpha": TimeConstant("of the membrane", (2, 20)), "omega": Learned("angle per token", (0.1, 1))})
    def resonator(v, u, i, alpha, omega):
        return alpha * (cos(omega) * v - sin(omega) * u) + i, alpha * (sin(omega) * v + cos(omega) * u)

A step gets the state of the token before, the drive i and what is learned; it returns the new state. The first state is the membrane
potential: there is an event where it is above 1. `event(v)` in a step stands for that, and its derivative for the surrogate slope.

From one source come the functions of all modes: numbers in it become float32, and `event`, `slope` and functions of `math` those of the
mode (`Source`). The CUDA kernels and the CPU loops are made from them (kernels/population.py).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import linecache
import math
import os
import re
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba.extending import register_jitable

from ..config import NEURONS, did_you_mean
from ..errors import ConfigError
from ..kernels import exponential, surrogate
from ..kernels.jit import ZERO, made
from ..kernels.normalize import DIVISIVE, NONE
from ..kernels.population import Physics

event = surrogate.event
LOG_TAU = (-2.0, 5.0)  # bounds of the logarithm of a time constant in tokens
COMMON = ("gain", "bias", "log_tau_y")  # that every neuron learns: input gain, bias of the drive, time constant of the output trace
STATES = ("y", "history", "out_history")  # that every module has besides: output trace, what is on the axons and readouts
_KNOWN: dict[str, Neuron] = {}  # reference -> the neuron that this process defined last
NUMBER = "_number_"  # begins the names that numbers in a source get
_LIBRARIES = ("numba", "numpy", "math", "builtins", "neurogen_numba")  # whose functions are used as they are


def slope(v):
    """The surrogate slope at a membrane potential v, in an adjoint that is written by hand."""
    return surrogate.make_surrogate().slope(v)


@dataclass(frozen=True)
class Learned:
    """A learned constant of each neuron, which the step gets as it is.

    start: what it is drawn from at first, uniformly; in_pfc: the same in PFC, if it differs. An update never leaves [low, high].
    serotonin: scaled by the factor of serotonin (kernels/neuromodulation.py).
    """

    meaning: str
    start: tuple[float, float]
    low: float = -math.inf
    high: float = math.inf
    in_pfc: tuple[float, float] | None = None
    serotonin: bool = False

    def __post_init__(self):
        what = type(self).__name__
        if not isinstance(self.meaning, str):
            raise ConfigError(f"{what}: first its meaning in words, then start: {what}('what it is', (0.1, 1)), not {self.meaning!r}")
        for name, pair in (("start", self.start), ("in_pfc", self.in_pfc)):
            if not (_is_pair(pair) or (pair is None and name == "in_pfc")):
                raise ConfigError(f"{what} {self.meaning!r}: {name}: two numbers, lowest and highest, are needed, not {pair!r}")
            if pair and pair[0] > pair[1]:
                raise ConfigError(f"{what} {self.meaning!r}: {name}: {pair} is reversed; write ({pair[1]}, {pair[0]})")
        if not _is_pair((self.low, self.high)) or self.low > self.high:
            raise ConfigError(
                f"{what} {self.meaning!r}: low={self.low!r} and high={self.high!r} are reversed or no numbers; the lower one is low"
            )

    def computed(self) -> str:
        """As text, without its meaning."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "meaning"]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"

    def start_problem(self, start: tuple[float, float]) -> str:
        """Why these first values do not fit; empty if they do."""
        return "" if self.low <= start[0] <= start[1] <= self.high else f"which is not within its bounds [{self.low:g}, {self.high:g}]"

    def parameter(self, argument: str) -> str:
        """The name of what is learned, in the table of parameters, for an argument of the step."""
        return argument

    def draw(self, rng, module: str, size: int) -> np.ndarray:
        """Initial values [size] of what is learned."""
        return rng.uniform(*self._start(module), size)

    def example(self, rng, size: int) -> np.ndarray:
        """Some values [size] float64 that the step may get."""
        return rng.uniform(*self.start, size)

    def _start(self, module):
        return self.in_pfc if self.in_pfc and module == "pfc" else self.start


@dataclass(frozen=True)
class TimeConstant(Learned):
    """A learned time constant tau in tokens, of which the step gets the decay exp(-1 / tau). Learned is log(tau), as `log_NAME`."""

    name: str = "tau_v"
    low: float = LOG_TAU[0]
    high: float = LOG_TAU[1]

    def start_problem(self, start):
        if start[0] <= 0:
            return "but a time constant is in tokens, above 0"
        low, high = np.exp((self.low, self.high))
        return "" if low <= start[0] <= start[1] <= high else f"which is not within its bounds, {low:.3g} to {high:.3g} tokens"

    def parameter(self, argument):
        return f"log_{self.name}"

    def draw(self, rng, module, size):
        return rng.uniform(*np.log(self._start(module)), size)

    def example(self, rng, size):
        return np.exp(-1 / np.exp(rng.uniform(*np.log(self.start), size)))


class Source:
    """The source of a scalar function, from which versions are compiled in which its names mean something else."""

    def __init__(self, function: Callable, results: int | None = None):
        """results: how many numbers it returns, where that has to be a tuple."""
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        except (OSError, SyntaxError, TypeError):
            raise ConfigError(f"{function.__name__}: its source cannot be found; define it in a file or a cell of a notebook") from None
        if not isinstance(tree, ast.FunctionDef):
            raise ConfigError(f"{function.__name__}: a function that begins with `def` is needed")
        tree.decorator_list, tree.returns = [], None
        if ast.get_docstring(tree):
            tree.body = tree.body[1:]
        self._function, self._tree, self._results, self.name = function, tree, results, function.__name__

    @classmethod
    def of_text(cls, text: str, names: dict) -> Source:
        """The source of a function that has no file. names: what it may name."""
        source = cls.__new__(cls)
        source._tree = ast.parse(text).body[0]
        source.name, source._results = source._tree.name, None
        source._function = types.FunctionType(compile("0", "", "eval"), names)
        return source

    @property
    def text(self) -> str:
        """The function as it is compiled, in a form that comments and layout do not change."""
        return ast.unparse(self._tree)

    @property
    def arguments(self) -> list[str]:
        return [argument.arg for argument in self._tree.args.args]

    def all(self, renamed: bool = False) -> str:
        """The text, with that of all functions that it calls and the numbers that it names. renamed: arguments and local variables are
        numbered, so that their names do not count."""
        parts = [ast.unparse(numbered(ast.parse(self.text).body[0])) if renamed else self.text]
        for name, value in sorted(self._typed()[1].items()):
            named = _is_numbers(value) and not name.startswith(NUMBER)
            parts += [Source(value).all(renamed)] if _is_helper(value) else [f"{name} = {value!r}"] if named else []
        return "\n".join(parts)

    def functions(self) -> list[Callable]:
        """The functions of libraries that it calls, also through functions of the user."""
        used = [value for value in self._typed()[1].values() if callable(value)]
        inner = [function for value in used if _is_helper(value) for function in Source(value).functions()]
        return [value for value in used if not _is_helper(value)] + inner

    def compile(self, meanings: dict, number: Callable = np.float32) -> Callable:
        """The function in which what is a key of `meanings` is replaced by its value; text is a name that need not stand for anything yet.
        Numbers go through `number`."""
        tree, used = self._typed()
        scope = {name: meaning for name, meaning in meanings.items() if isinstance(name, str)}
        for name, value in used.items():
            known = [meaning for key, meaning in meanings.items() if key is value]
            if known:
                scope[name] = known[0]
            elif _is_numbers(value):
                scope[name] = tuple(map(number, value)) if isinstance(value, tuple) else number(value)
            else:
                scope[name] = register_jitable(Source(value).compile(meanings, number)) if _is_helper(value) else value
        text, file = ast.unparse(tree), f"<{self.name} of NeuroGen>"
        linecache.cache[file] = len(text), None, text.splitlines(True), file  # what tracebacks show
        exec(compile(text, file, "exec"), scope)
        return scope[self.name]

    def _typed(self):
        """(the tree to compile, name -> value of the names in it)."""
        function, tree = self._function, ast.parse(self.text).body[0]
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        names = {**function.__globals__, **{name: cell.cell_contents for name, cell in cells if cell != types.CellType()}}
        assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        typed = _Typed({name: value for name, value in names.items() if name not in {*assigned, *self.arguments}}, self._results)
        return ast.fix_missing_locations(typed.visit(tree)), typed.used


class _Typed(ast.NodeTransformer):
    """Gives numbers and words like `math.cos` a name, and lets a function of one result return a tuple. Integers in `range` and in
    subscripts stay.

    names: what they stand for; `used` has those that occur.
    """

    def __init__(self, names, results):
        self._names, self._results, self.used = names, results, {}

    def visit_Constant(self, node):
        if not _is_number(node.value):
            return node
        name = f"{NUMBER}{len(self.used)}"
        self.used[name] = node.value
        return ast.Name(name, ast.Load())

    def visit_Call(self, node):
        """Integers stay integers in the arguments of `range`: numbers that stand there, and names."""
        if isinstance(node.func, ast.Name) and node.func.id == "range" and "range" not in self._names:
            return ast.Call(node.func, [_Integers(self._names, self.used).visit(argument) for argument in node.args], node.keywords)
        return self.generic_visit(node)

    def visit_Subscript(self, node):
        return ast.Subscript(self.visit(node.value), _Integers(self._names, self.used).visit(node.slice), node.ctx)

    def visit_BinOp(self, node):
        whole = isinstance(node.op, ast.Pow) and isinstance(node.right, ast.Constant) and isinstance(node.right.value, int)
        return ast.BinOp(self.visit(node.left), node.op, node.right if whole else self.visit(node.right))

    def visit_Name(self, node):
        if node.id in self._names:
            self.used[node.id] = self._names[node.id]
        return node

    def visit_Attribute(self, node):
        module = self._names.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if not isinstance(module, types.ModuleType) or not hasattr(module, node.attr):
            return self.generic_visit(node)
        name = f"{node.value.id}_{node.attr}"
        self.used[name] = getattr(module, node.attr)
        return ast.Name(name, node.ctx)

    def visit_Return(self, node):
        value = self.visit(node.value) if node.value else node.value
        single = self._results == 1 and not isinstance(value, ast.Tuple)
        return ast.Return(ast.Tuple([value], ast.Load()) if single else value)


def numbered(tree):
    """The tree of a function whose arguments and local variables are called local_0, local_1, ..."""
    stored = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    new = {name: f"local_{number}" for number, name in enumerate(dict.fromkeys([*arguments, *stored]))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = new.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg = new[node.arg]
    return tree


class _Integers(ast.NodeTransformer):
    """Writes the value in the place of a name that stands for an integer; `used` gets the name for the hash."""

    def __init__(self, names, used):
        self._names, self._used = names, used

    def visit_Name(self, node):
        value = self._names.get(node.id)
        if not isinstance(value, int):
            return node
        self._used[node.id] = value
        return ast.Constant(value)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_pair(value):
    """Whether a value is two numbers, also those of NumPy."""
    numbers = (int, float, np.integer, np.floating)
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(each, numbers) and each == each for each in value)


def _is_numbers(value):
    return _is_number(value) or (isinstance(value, tuple) and bool(value) and all(map(_is_number, value)))


def _is_helper(value):
    """Whether a value is a function of the user's own."""
    return isinstance(value, types.FunctionType) and (value.__module__ or "").partition(".")[0] not in _LIBRARIES


class Neuron:
    """A neuron, made by `neuron`. Calling it makes a step, in plain Python.

    reference: its name where it is shipped, else MODULE:NAME. `state`: names of its states; `learned`: argument -> `Learned`.
    """

    def __init__(self, step: Callable, state: tuple[str, ...], learned: dict[str, Learned], input_scale: str | float):
        self.name, self._step = step.__name__, step
        self.state, self.learned, self.input_scale = tuple(state), dict(learned), input_scale
        module = step.__module__ or "__main__"
        self.reference = self.name if module.startswith(f"{__package__}.") else f"{module}:{step.__qualname__}"
        self.step = Source(step, len(self.state))
        self._adjoint = self._gradient = None
        self._check()
        functools.update_wrapper(self, step)
        _KNOWN.pop(self.reference, None)  # so that the last one is last
        _KNOWN[self.reference] = self

    def __call__(self, *arguments):
        return self._step(*arguments)

    def __repr__(self) -> str:
        return f"<neuron {self.reference}>"

    @property
    def full_name(self) -> str:
        """The neuron, and where it is defined, for messages: "the neuron mine:resonator of mine.py, line 7"."""
        code = self._step.__code__
        cell = not os.path.isfile(code.co_filename) or "ipykernel" in code.co_filename
        return f"the neuron {self.reference} of {'a cell' if cell else code.co_filename}, line {code.co_firstlineno}"

    def _check(self):
        name, states, needed = self.name, self.state, [*self.state, "i", *self.learned]
        if not states or not all(isinstance(state, str) and state.isidentifier() for state in states):
            raise ConfigError(f"{name}: state: the names of its states are needed, for example ('v', 'a'), not {states!r}")
        for argument, what in self.learned.items():
            if not isinstance(what, Learned):
                raise ConfigError(f"{name}: learned[{argument!r}]: a Learned or a TimeConstant is needed, not {what!r}")
            for start in (what.start, what.in_pfc or what.start):
                if problem := what.start_problem(start):
                    raise ConfigError(f"{name}: {argument} starts in {start}, {problem}; change one of them")
        parameters = [what.parameter(argument) for argument, what in self.learned.items()]
        for argument, parameter in zip(self.learned, parameters, strict=True):
            same = [other for other, of in zip(self.learned, parameters, strict=True) if of == parameter and other != argument]
            if same:
                raise ConfigError(
                    f"{name}: the learned constants {argument} and {same[0]} would both be called {parameter} in a checkpoint; tell them "
                    'apart by name=, for example TimeConstant(..., name="tau_a")'
                )
        for known, taken in ((self.adjoint_arguments, ()), (states, STATES), (parameters, COMMON)):
            for index, each in enumerate(known):
                if each in taken:
                    raise ConfigError(f"{name}: every neuron has a {each!r} already; choose another name")
                if each in known[:index]:
                    raise ConfigError(f"{name}: {each!r} names two things: a step's adjoint takes ({', '.join(known)}); rename one")
        if self.step.arguments != needed:
            missing = [f"{each!r} is not an argument" for each in needed if each not in self.step.arguments]
            extra = [f"argument {each!r} is no state, not i and not learned" for each in self.step.arguments if each not in needed]
            why = ", ".join([*missing, *extra]) or "the order differs"
            raise ConfigError(f"{name}: a step takes its states, i, and what is learned: ({', '.join(needed)}); {why}")
        if isinstance(self.input_scale, str) and not isinstance(self.learned.get(self.input_scale), TimeConstant):
            raise ConfigError(f"{name}: input_scale: a number, or a TimeConstant in `learned`, is needed, not {self.input_scale!r}")
        self._try()

    def _try(self):
        """Run the step once. Raises ConfigError where it fails, or returns something else than the state."""
        count = self._count("step", self.step)
        if count != len(self.state):
            raise ConfigError(f"{self.name}: the step returns {count} numbers, but has {len(self.state)} states, {', '.join(self.state)}")

    def _count(self, what, source):
        """The number of results of a function, which runs once. Raises ConfigError where that fails or returns nothing."""
        function = source.compile({slope: surrogate.make_surrogate().slope})
        try:
            with np.errstate(all="ignore"):
                found = function(*[np.float32(0.5)] * len(source.arguments))
        except Exception as error:
            hint = "; a loop runs over range(...) of integers that are written there or named" if "as an integer" in str(error) else ""
            raise ConfigError(f"{self.name}: the {what} does not run: {type(error).__name__}: {error}{hint}") from error
        results = found if isinstance(found, tuple) else (found,)
        if any(result is None for result in results):
            raise ConfigError(f"{self.name}: the {what} returns nothing; end it with `return`, for example `return v`")
        return len(results)

    def adjoint(self, function: Callable) -> Callable:
        """Decorator: the adjoint of the step, written by hand; without one it is derived (adjoint.py).

        function(ds, d_STATE..., STATE before..., STATE after..., i, LEARNED..., graded) -> (d_STATE before..., d_i, d_LEARNED...). ds: of
        what the axon carries, dL/ds; d_STATE: what it returned of the token after, else 0. `event` and `slope` are those of this module.
        """
        source = Source(function)
        if len(source.arguments) != len(self.adjoint_arguments):
            needed = ", ".join(self.adjoint_arguments)
            raise ConfigError(f"{self.name}: the adjoint takes {len(source.arguments)} arguments, but needs ({needed})")
        inputs, count = (*self.state, "i", *self.learned), self._count("adjoint", source)
        if count != len(inputs):
            raise ConfigError(
                f"{self.name}: the adjoint returns {count} numbers instead of {len(inputs)}: the gradients of {', '.join(inputs)}"
            )
        self._adjoint = source
        return function

    def state_gradient(self, function: Callable) -> Callable:
        """Decorator: the gradient of the state, where the adjoint hands on something else from token to token.

        function(d_STATE..., STATE..., LEARNED...) -> gradient of the state.
        """
        self._gradient = Source(function)
        return function

    @property
    def adjoint_arguments(self) -> list[str]:
        after = [f"{state}_after" for state in self.state]
        return ["ds", *(f"d{state}" for state in self.state), *self.state, *after, "i", *self.learned, "graded"]

    @property
    def adjoint_is_derived(self) -> bool:
        """Whether SymPy derives the adjoint; else it is written by hand."""
        return self._adjoint is None

    @functools.cached_property
    def derived(self) -> Source:
        """The adjoint as SymPy derives it. Raises ConfigError where it cannot."""
        from .adjoint import derive

        return derive(self)

    @property
    def adjoint_source(self) -> str:
        """The adjoint as Python text, given or derived."""
        return (self._adjoint or self.derived).text

    @property
    def source(self) -> str:
        """Everything that defines its equations except the surrogate, as text: functions, numbers that they name, what is learned."""
        return self._described(False)

    @property
    def source_hash(self) -> str:
        """SHA-256 of `source`, in which names of local variables do not count."""
        return hashlib.sha256(self._described(True).encode()).hexdigest()

    def _described(self, renamed):
        functions = [source.all(renamed) for source in (self.step, self._adjoint, self._gradient) if source]
        constants = [f"{name} = {what.computed()}" for name, what in self.learned.items()]
        return "\n".join([*functions, f"state = {self.state!r}", *constants, f"input_scale = {self.input_scale!r}"])

    def functions(self, made_surrogate: surrogate.Surrogate, number: Callable = np.float32) -> tuple[Callable, Callable, Callable]:
        """(step, adjoint, gradient of the state) with this surrogate; `number` makes the numbers in them."""
        meanings = {event: made_surrogate.event, slope: made_surrogate.slope, math.exp: exponential.exp, np.exp: exponential.exp}
        gradient = self._gradient.compile(meanings, number) if self._gradient else lambda *given: given[: len(self.state)]
        return self.step.compile(meanings, number), (self._adjoint or self.derived).compile(meanings, number), gradient

    def physics(self, kind: str = "triangle", width: float = 1.0, smooth: bool = False, normalized: bool = True) -> Physics:
        """The functions that the loops call. Raises ConfigError if a function cannot be compiled, or leaves float32."""
        try:
            physics = _physics(self, self.source_hash, kind, float(width), smooth)
        except ConfigError as error:
            raise ConfigError(f"{error}; see {self.full_name}") from None
        return physics if normalized else physics._replace(normalization=NONE)


@functools.cache
def _physics(one: Neuron, source: str, kind: str, width: float, smooth: bool) -> Physics:
    made_surrogate = surrogate.make_surrogate(kind, width, smooth)
    step, adjoint, _ = one.functions(made_surrogate)
    names = ", ".join(one.learned)
    scaled = ", ".join(f"{name} * factor" if what.serotonin else name for name, what in one.learned.items())
    slopes = " + ".join(f"d_{name} * {name}" for name, what in one.learned.items() if what.serotonin)
    scope = {"ZERO": ZERO}
    exec(f"def modulate(constants, factor):\n    {names}, = constants\n    return {scaled}," if names else NO_CONSTANTS, scope)
    gradients = ", ".join(f"d_{name}" for name in one.learned)
    lines = f"    {names}, = constants\n    {gradients}, = d_constants\n    return {slopes}" if slopes else "    return ZERO"
    exec(f"def factor_gradient(d_constants, constants):\n{lines}", scope)
    name = f"{one.name}_{source[:16]}_{kind}_{width!r}_{smooth}".replace(".", "_").replace("-", "_")
    functions = ("step", step), ("adjoint", adjoint), *((what, scope[what]) for what in ("modulate", "factor_gradient"))
    step, adjoint, modulate, factor_gradient = (made(function, f"{what}_{name}") for what, function in functions)
    if one.reference not in NEURONS:
        _check_types(one, step, adjoint)
    return Physics(step, adjoint, modulate, factor_gradient, made_surrogate, DIVISIVE, len(one.state))


NO_CONSTANTS = "def modulate(constants, factor): return constants"


def _check_types(one, step, adjoint):
    """Compile both for float32. Raises ConfigError where that fails, or where they return something else."""
    import numba

    number = numba.types.float32
    given = (
        ("step", step, (number,) * len(one.step.arguments)),
        (
            "adjoint",
            adjoint,
            (number,) * (len(one.adjoint_arguments) - 1) + (numba.types.boolean,),
        ),
    )
    counts = len(one.state), len(one.state) + 1 + len(one.learned)
    for (what, function, arguments), count in zip(given, counts, strict=True):
        try:
            compiled = numba.njit(arguments, no_cpython_wrapper=True)(function)
        except numba.core.errors.NumbaError as error:
            lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()  # without its colours
            why = next(line.strip() for line in lines if line.strip() and not line.startswith("Failed in"))
            raise ConfigError(f"{one.name}: Numba cannot compile the {what}: {why}") from None
        (overload,) = compiled.overloads.values()
        found = overload.signature.return_type
        kinds = list(getattr(found, "types", [found]))
        if len(kinds) != count:
            raise ConfigError(f"{one.name}: the {what} returns {len(kinds)} numbers instead of {count}")
        doubles = [name for name, kind in overload.type_annotation.typemap.items() if kind == numba.types.float64]
        if doubles or any(kind != number for kind in kinds):
            known = [name for name in doubles if name.partition(".")[0].isidentifier() and "$" not in name]
            where = f" ({', '.join(dict.fromkeys(known))})" if known else ""
            remedy = "write np.float32(...) around numbers that come from elsewhere"
            raise ConfigError(f"{one.name}: the {what} leaves float32 for float64{where}, which is slow on a GPU; {remedy}")


def neuron(state: tuple[str, ...], learned: dict[str, Learned] | None = None, input_scale: str | float = 1.0) -> Callable[..., Neuron]:
    """Decorator: makes a plain scalar step function a neuron.

    state: names of its states, the membrane potential first. learned: argument of the step -> `Learned` or `TimeConstant`. input_scale: a
    fixed factor of the drive; or the name of a TimeConstant, whose first decay d gives sqrt(1 - d^2): the drive of a leaky integrator then
    has the same effect whatever its time constant. Raises ConfigError where these do not fit the function.
    """
    if callable(state):
        raise ConfigError(f"{state.__name__}: @neuron needs the names of its states: @neuron(state=('v',))")
    return lambda step: Neuron(step, (state,) if isinstance(state, str) else state, learned or {}, input_scale)


def get(reference: str) -> Neuron:
    """The neuron of this reference: a shipped one, or one that this process has defined. Raises ConfigError where there is none; nothing is
    imported."""
    if reference in NEURONS and reference not in _KNOWN:
        from . import adlif, izhikevich, lif, lif_a, resonate_and_fire  # noqa: F401  they register themselves
    if reference in _KNOWN:
        return _KNOWN[reference]
    if ":" not in reference:
        raise ConfigError(f"unknown neuron {reference!r}; {did_you_mean(reference, NEURONS)}")
    module = reference.partition(":")[0]
    raise ConfigError(f"the neuron {reference} is not defined in this process; import {module} first")


def defined() -> list[Neuron]:
    """The neurons that this process has defined, the last one last."""
    return list(_KNOWN.values())


def defined_with(source_hash: str | None, reference: str) -> Neuron | None:
    """A neuron of this process whose source has this hash, the one with this reference first; None where there is none."""
    found = [one for one in defined() if one.source_hash == source_hash]
    return next((one for one in found if one.reference == reference), found[-1] if found else None)
