"""`patch`: a context in which kernels call a user's function in the place of one of ours; `rebuild` after patches by hand."""

from __future__ import annotations

import inspect
import types

from numba.extending import register_jitable

from ..brain.brain import refresh_all
from ..config import did_you_mean
from ..errors import ConfigError
from ..kernels import cache, fingerprint
from ..system.contexts import context
from .vocabulary import function_of


def rebuild():
    """Recompile, at its next call, each kernel whose functions or constants have changed since it was compiled. All models record their
    steps anew, and compute again what they derive from their parameters."""
    cache.rebuild()
    refresh_all(recordings=True)


@context("ng.lab.patch")
def patch(module, name: str, function):
    """A context manager: kernels call `function` in the place of the function `name` of a module of `neurogen_numba.kernels`.

    function: of Python, which Numba can compile, with the parameters of ours. Models from before the context use it inside, and ours
    again at the end, also after an exception; so do models from inside. A module that imported the function by name has its own name for
    it, which needs a patch of its own. Contexts nest.

    Raises ConfigError for a name that is no function of the module, and for a function with other parameters.
    """
    before = _checked(module, name, function)
    try:
        setattr(module, name, function)
        rebuild()
        yield
    finally:
        setattr(module, name, before)
        rebuild()


def _checked(module, name, function):
    """The function that is replaced. Makes the other one callable from kernels."""
    if not isinstance(module, types.ModuleType):
        raise ConfigError(f"patch: the first argument must be a module, as neurogen_numba.kernels.neuron, not {module!r}")
    where = f"{module.__name__}.{name}"
    known = [what for what, value in vars(module).items() if isinstance(function_of(value), types.FunctionType)]
    if name not in known:
        raise ConfigError(f"patch: {module.__name__} has no function {name!r}; {did_you_mean(str(name), known)}")
    code = function_of(function)
    if not isinstance(code, types.FunctionType):
        raise ConfigError(f"patch: {where} must be replaced by a function, not {function!r}")
    ours, yours = (list(inspect.signature(of).parameters) for of in (function_of(vars(module)[name]), code))
    if ours != yours:
        raise ConfigError(f"patch: {code.__name__}({', '.join(yours)}) needs the parameters of {where}: ({', '.join(ours)})")
    if code is function and not fingerprint.templates(function):
        register_jitable(function)
    return vars(module)[name]
