"""Compiled kernels on disk. A damaged file, a full disk or a folder that cannot be written costs the time to compile, and nothing else.

Numba decides the folder. Its own files have no checksum, and it does not notice a change in what a kernel calls. So each file here has
in its name the content of the kernel and of everything that it calls, as it is in this process (fingerprint.py): a patched function or
constant gets a file of its own. The file holds one compiled kernel behind a SHA-256 of that, of all sources of this package, and of
Numba's version. Where the content cannot be told, nothing is loaded and nothing kept.

Numba also keeps in memory the functions that it has compiled for kernels. They are forgotten when their content has changed, so whatever is
compiled after a patch has it. A kernel that was compiled before keeps its code until `rebuild`.
"""

import functools
import hashlib
import os
import pickle
import sys
import tempfile
import threading
from pathlib import Path

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from neurogen_numba.system.streams import complain

from . import fingerprint

_SEAL = hashlib.sha256().digest_size  # bytes
SUFFIX = ".kernel"


def keep(dispatcher):
    """Give the dispatcher of a kernel, for the CPU or for CUDA, its files on disk. Returns the dispatcher."""
    try:
        dispatcher.enable_caching()
        cache = dispatcher._cache
        cache._cache_file = _Files(cache.cache_path, cache._impl.filename_base)
        cache._dispatcher = dispatcher
        cache.__class__ = _forgiving(type(cache))
    except Exception as error:  # no folder can be written, or a variable of the environment names something else
        _tell(error)
    return dispatcher


def folder() -> Path:
    """Where compiled kernels are kept. Raises RuntimeError where no folder can be written to."""
    return Path(FunctionCache(keep).cache_path)


class _Files:
    """The files of one kernel, a file for each combination of argument types and processor; in the place of Numba's IndexDataCacheFile."""

    def __init__(self, place, name):
        self._place, self._name = Path(place), name

    def load(self, key):
        """What was saved under a key; None where there is nothing, or it is damaged or of other sources."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        seal, data = content[:_SEAL], content[_SEAL:]
        return pickle.loads(data) if seal == _sealed(data) else None

    def save(self, key, data):
        """Write a file whole, or leave the one before as it was. Raises OSError."""
        data, path = dumps(data), self._path(key)
        descriptor, temporary = tempfile.mkstemp(dir=self._place, prefix=f"{path.name}.")
        try:
            with open(descriptor, "wb") as file:
                file.write(_sealed(data) + data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def flush(self):
        """Forget everything that is kept of this kernel."""
        for path in self._place.glob(f"{self._name}.*{SUFFIX}"):
            path.unlink(missing_ok=True)

    def _path(self, key):
        return self._place / f"{self._name}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}{SUFFIX}"


def _sealed(data):
    return hashlib.sha256(_sources() + data).digest()


@functools.cache
def _sources() -> bytes:
    """The SHA-256 of every source that a kernel may call into, and of Numba's version."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()


@functools.cache
def _forgiving(kind):
    """Numba's cache `kind`, whose failures cost what it would have saved."""

    class Forgiving(kind):
        def load_overload(self, sig, target_context):
            self._content = None
            found = None
            try:
                self._content = _look(self._dispatcher)
                found = super().load_overload(sig, target_context) if self._content else None
            except Exception:  # compiled anew, and saved in its place
                pass
            if found is None and getattr(_asking, "of", None) is self._dispatcher:
                raise _Absent
            return found

        def save_overload(self, sig, data):
            try:
                if self._content:
                    super().save_overload(sig, data)
            except Exception as error:
                _tell(error)

        def _index_key(self, sig, codegen):
            key = sig, codegen.magic_tuple(), self._content
            if hasattr(self, "_launch_config_key"):  # of CUDA
                key += self._launch_config_key, sys.modules["numba_cuda"].__version__
            return key

    return Forgiving


_asking = threading.local()  # of: the dispatcher of `available`


class _Absent(Exception):
    """A kernel is not on disk."""


def available(dispatcher, signature: tuple) -> bool:
    """Whether a kernel is compiled for these types of arguments: in memory, or on disk, from which it is loaded now."""
    if signature in dispatcher.overloads:
        return True
    if not hasattr(dispatcher._cache, "_cache_file"):  # nothing is kept
        return False
    _asking.of = dispatcher
    try:
        dispatcher.compile(signature)
    except _Absent:
        return False
    finally:
        _asking.of = None
    return True


# What is compiled in this process


_seen = {}  # function -> its content when a kernel that calls it was last compiled
_compiled = {}  # id of a dispatcher -> it
_old = []  # compiled code that somebody may still run


def _look(dispatcher) -> bytes | None:
    """The fingerprint of a kernel; None where it is not to be loaded or kept. Forgets what was compiled from another content of its
    functions."""
    walk = fingerprint.Walk(dispatcher)
    changed = [function for function, content in walk.functions.items() if _seen.get(function) != content]
    if any(function in _seen for function in changed):  # other functions that call them hold them, too
        changed += _seen
        for known in _compiled.values():
            _forget(known)
    for function in changed:
        for template in fingerprint.templates(function):
            memo = getattr(template, "_impl_cache", {})
            _old.append(dict(memo))
            memo.clear()
    # A function with a decorator of its own that was called before, and not by a kernel: nobody looked at what it was compiled from.
    unseen = [known for known in walk.dispatchers[1:] if known.overloads and id(known) not in _compiled]
    _compiled.update((id(known), known) for known in walk.dispatchers if known not in unseen)
    _seen.update(walk.functions)
    return None if unseen else walk.digest


def _forget(dispatcher):
    """Have a dispatcher compile anew at its next call."""
    _old.append(dict(dispatcher.overloads))
    dispatcher._reset_overloads()


def rebuild():
    """Have kernels compiled anew at their next call if a function or a constant that they use has changed since they were compiled, such
    as `neuron.slope = mine`. Models that have recorded steps keep the code that they recorded."""
    for dispatcher in list(_compiled.values()):
        _look(dispatcher)


@functools.cache
def _tell_once(why):
    complain(f"neurogen: compiled kernels cannot be kept ({why}), so each start compiles them; NUMBA_CACHE_DIR names another folder")


def _tell(error):
    _tell_once("no folder for them can be written" if isinstance(error, RuntimeError) else getattr(error, "strerror", None) or str(error))
