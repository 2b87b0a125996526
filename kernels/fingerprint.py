"""A hash of a kernel as it would be compiled now: its bytecode, and the value of every name in it, recursively.

Numba freezes the globals and closure cells of a function when it compiles it, but its cache key contains neither. With Numba's key, a
patched function would be ignored, or its code saved for the next process. The fingerprint contains both.
"""

import functools
import hashlib
import sys
import types
from typing import NamedTuple

import numpy as np
from numba.core.typing.templates import builtin_registry

# Functions and classes of these libraries are hashed by name only: Numba's version is in the seal, Python's in the name of the file.
_BY_NAME = {"numba", "numba_cuda", "numpy", "llvmlite", *sys.stdlib_module_names}
_OF_EVERY_CLASS = {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"}
_DESCRIPTORS = types.GetSetDescriptorType, types.MemberDescriptorType, type(NamedTuple("_", [("a", int)]).a)  # of fields
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice)


class Walk:
    """A traversal from the dispatcher of a kernel over everything that its code refers to.

    digest: SHA-256 of all content; None if a value cannot be hashed, for example a pointer. functions: function -> its code and the values
    of the names in it; dispatchers: all that were visited, the kernel's first.
    """

    def __init__(self, dispatcher):
        self.functions, self.dispatchers, self.known = {}, [], True
        self._references, self._modules, self._todo = {}, set(), [dispatcher]
        digest = hashlib.sha256()
        for thing in self._todo:  # `_describe` appends to it
            digest.update(repr(self._describe(thing)).encode())
        self.digest = digest.digest() if self.known else None

    def _describe(self, thing):
        """The content of a function, dispatcher, class or intrinsic. The objects that it refers to are queued."""
        if hasattr(thing, "py_func"):
            self.dispatchers.append(thing)
            self.known &= not thing.targetoptions.get("link")  # linked files are not hashed
            return "dispatcher", _canonical(thing.targetoptions), self._reference(thing.py_func)
        if isinstance(thing, types.FunctionType):
            self.functions[thing] = self._function(thing)
            return self.functions[thing]
        if isinstance(thing, type):
            return "class", thing.__module__, thing.__qualname__, tuple(self._attributes(thing))
        return "intrinsic", thing._name, self._reference(thing._defn)

    def _attributes(self, thing):
        """The attributes of a class, without those that Python adds."""
        for name, value in vars(thing).items():
            value = getattr(value, "__func__", getattr(value, "fget", value))  # of static and class methods, of properties
            if name not in _OF_EVERY_CLASS and not isinstance(value, _DESCRIPTORS):
                yield name, self._content(value, ())

    def _function(self, function):
        """(digest of its code, (name, value) of every name in it)."""
        code, scope = function.__code__, function.__globals__
        digest, names = _code(code)
        cells = function.__closure__ or ()
        held = [(name, self._content(cell.cell_contents, names)) for name, cell in zip(code.co_freevars, cells, strict=True)]
        held += [(name, self._content(scope[name], names)) for name in names if name in scope]
        held += [("defaults", self._content((function.__defaults__, tuple((function.__kwdefaults__ or {}).items())), names))]
        held += [("overload", self._reference(overload)) for overload in overloads(function)]
        return digest, tuple(held)

    def _content(self, value, names):
        """A representation, by `repr`, of a value that a function with these names refers to."""
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if isinstance(value, (np.generic, np.ndarray)) and not value.dtype.hasobject:
            return "array", str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
        if isinstance(value, np.dtype):
            return "dtype", repr(value)
        if isinstance(value, tuple):
            return type(value).__qualname__, tuple(self._content(entry, names) for entry in value)
        if isinstance(value, dict):
            return "dict", tuple((repr(name), self._content(entry, names)) for name, entry in value.items())
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] in _BY_NAME or (id(value), names) in self._modules:
                return "module", value.__name__
            self._modules.add((id(value), names))  # visited: imports may be circular
            held = tuple((name, self._content(vars(value)[name], names)) for name in names if name in vars(value))
            return "module", value.__name__, held
        if _identified_by_name(value):
            return "name", getattr(value, "__module__", None), getattr(value, "__qualname__", value.__name__)
        if any(kind.__name__ in ("Type", "Signature") and _library(kind) in _BY_NAME for kind in type(value).__mro__):
            return "type", str(value)
        is_class = isinstance(value, type) and not hasattr(value, "class_type")  # jitclasses have a class_type
        if is_class or isinstance(value, types.FunctionType) or hasattr(value, "py_func") or type(value).__name__ == "_Intrinsic":
            return self._reference(value)
        self.known = False
        return "unknown", id(value)

    def _reference(self, thing):
        if id(thing) not in self._references:
            self._references[id(thing)] = _Reference(thing, len(self._references))
            self._todo.append(thing)
        return self._references[id(thing)]


class _Reference:
    """An object that the walk describes later. In a digest it is its number on the walk; across walks, references to one object are
    equal."""

    def __init__(self, thing, number):
        self.thing, self.number = thing, number

    def __repr__(self):
        return f"#{self.number}"

    def __eq__(self, other):
        return isinstance(other, _Reference) and self.thing is other.thing

    __hash__ = None


def overloads(function) -> list:
    """The `numba.extending.overload` implementations that Numba compiles instead of this function."""
    return [template._overload_func for template in templates(function) if hasattr(template, "_overload_func")]


def templates(function) -> list:
    """The templates by which Numba resolves calls of a function."""
    known = builtin_registry.globals
    while _indexed["count"] < len(known):
        value, kind = known[_indexed["count"]]
        _indexed["count"] += 1
        if isinstance(value, types.FunctionType):
            _indexed["of"].setdefault(value, []).extend(getattr(kind, "templates", ()))
    return _indexed["of"].get(function, [])


_indexed = {"count": 0, "of": {}}  # entries of Numba's registry read so far; function -> templates


def _library(thing):
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def _identified_by_name(thing):
    """Whether a name is enough: for functions and classes of a library, and for classes of this package, whose sources are hashed in
    cache.py."""
    if isinstance(thing, (types.BuiltinFunctionType, np.ufunc)):
        return True
    by_name = _BY_NAME | ({"neurogen_numba"} if isinstance(thing, type) else set())
    return isinstance(thing, (type, types.FunctionType)) and _library(thing) in by_name


def _canonical(options):
    """Options of a decorator, in a form whose `repr` does not depend on the order of sets and dictionaries."""
    if isinstance(options, dict):
        return sorted((str(name), _canonical(value)) for name, value in options.items())
    if isinstance(options, (set, frozenset, list, tuple)):
        entries = map(_canonical, options)
        return sorted(entries) if isinstance(options, (set, frozenset)) else list(entries)
    return repr(options) if isinstance(options, _PLAIN) else str(options)


@functools.cache
def _code(code):
    """(SHA-256 of a function's bytecode and constants, the names that it uses), nested functions included. Line numbers do not count."""
    inner = [_code(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    constants = [_canonical(constant) for constant in code.co_consts if not isinstance(constant, types.CodeType)]
    shape = code.co_argcount, code.co_kwonlyargcount, code.co_flags, code.co_varnames, code.co_freevars, code.co_cellvars
    content = code.co_code, code.co_names, constants, shape, [digest for digest, _ in inner]
    names = dict.fromkeys((*code.co_names, *(name for _, more in inner for name in more)))
    return hashlib.sha256(repr(content).encode()).digest(), tuple(names)
