"""A disk cache of compiled kernels. A damaged file, a full disk or a read-only folder costs the time to compile, and nothing else.

Numba chooses the folder. Its own cache has no checksums and does not notice a change in a function that a kernel calls. Here the name of a
file contains a hash of the kernel and of everything that it calls, as both are in this process (fingerprint.py). A patched function or
constant therefore has its own file. The file holds one compiled kernel behind a SHA-256 over the kernel, the sources of this package and
Numba's version. If the content of a kernel cannot be hashed, the kernel is neither loaded nor saved.

Numba also caches in memory the functions that it compiles into kernels. That cache is cleared for functions whose content has changed, so
a kernel that is compiled after a patch has the patch. A kernel that was compiled before a patch keeps its code until `rebuild`.
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

_SEAL_BYTES = hashlib.sha256().digest_size
SUFFIX = ".kernel"


def cached(dispatcher):
    """Attach the disk cache to the dispatcher of a kernel, for the CPU or for CUDA. Returns the dispatcher."""
    try:
        dispatcher.enable_caching()
        cache = dispatcher._cache
        cache._cache_file = _Files(cache.cache_path, cache._impl.filename_base)
        cache._dispatcher = dispatcher
        cache.__class__ = _fault_tolerant(type(cache))
    except Exception as error:  # no folder can be written, or a variable of the environment names something else
        _warn(error)
    return dispatcher


def folder() -> Path:
    """The folder of the compiled kernels. Raises RuntimeError if no folder is writable."""
    return Path(FunctionCache(cached).cache_path)


class _Files:
    """The files of one kernel, one per combination of argument types and processor. Replaces Numba's IndexDataCacheFile."""

    def __init__(self, directory, name):
        self._folder, self._name = Path(directory), name

    def load(self, key):
        """The data that was saved under a key; None if the file is missing, damaged or from other sources."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        seal, data = content[:_SEAL_BYTES], content[_SEAL_BYTES:]
        return pickle.loads(data) if seal == _sealed(data) else None

    def save(self, key, data):
        """Write a file atomically: on failure the previous one stays. Raises OSError."""
        data, path = dumps(data), self._path(key)
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=f"{path.name}.")
        try:
            with open(descriptor, "wb") as file:
                file.write(_sealed(data) + data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def flush(self):
        """Delete all files of this kernel."""
        for path in self._folder.glob(f"{self._name}.*{SUFFIX}"):
            path.unlink(missing_ok=True)

    def _path(self, key):
        return self._folder / f"{self._name}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}{SUFFIX}"


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
def _fault_tolerant(kind):
    """A subclass of Numba's cache class `kind` that never raises: after a failure the kernel is compiled."""

    class FaultTolerant(kind):
        def load_overload(self, sig, target_context):
            self._content = None
            found = None
            try:
                self._content = _fingerprint(self._dispatcher)
                found = super().load_overload(sig, target_context) if self._content else None
            except Exception:  # then Numba compiles the kernel and saves it again
                pass
            if found is None and getattr(_asking, "of", None) is self._dispatcher:
                raise _Absent
            return found

        def save_overload(self, sig, data):
            try:
                if self._content:
                    super().save_overload(sig, data)
            except Exception as error:
                _warn(error)

        def _index_key(self, sig, codegen):
            key = sig, codegen.magic_tuple(), self._content
            if hasattr(self, "_launch_config_key"):  # of CUDA
                key += self._launch_config_key, sys.modules["numba_cuda"].__version__
            return key

    return FaultTolerant


_asking = threading.local()  # of: the dispatcher of `available`


class _Absent(Exception):
    """A kernel is not on disk."""


def available(dispatcher, signature: tuple) -> bool:
    """Whether a kernel is compiled for these types of arguments: in memory, or on disk, from which it is loaded now."""
    if signature in dispatcher.overloads:
        return True
    if not hasattr(dispatcher._cache, "_cache_file"):  # there is no disk cache
        return False
    _asking.of = dispatcher
    try:
        dispatcher.compile(signature)
    except _Absent:
        return False
    finally:
        _asking.of = None
    return True


# Functions compiled in this process


_seen = {}  # function -> its content when a kernel that calls it was last compiled
_compiled = {}  # id of a dispatcher -> the dispatcher
_old = []  # replaced machine code, which a recorded step may still run


def _fingerprint(dispatcher) -> bytes | None:
    """The fingerprint of a kernel, or None if the kernel must be neither loaded nor saved. Clears Numba's memory of functions that have
    changed."""
    walk = fingerprint.Walk(dispatcher)
    changed = [function for function, content in walk.functions.items() if _seen.get(function) != content]
    if any(function in _seen for function in changed):  # functions that call a changed one contain its old code
        changed += _seen
        for known in _compiled.values():
            _forget(known)
    for function in changed:
        for template in fingerprint.templates(function):
            memo = getattr(template, "_impl_cache", {})
            _old.append(dict(memo))
            memo.clear()
    # A jitted function that a user called directly, before any kernel did: the content it was compiled from is unknown.
    unseen = [known for known in walk.dispatchers[1:] if known.overloads and id(known) not in _compiled]
    _compiled.update((id(known), known) for known in walk.dispatchers if known not in unseen)
    _seen.update(walk.functions)
    return None if unseen else walk.digest


def _forget(dispatcher):
    """Make a dispatcher compile again at its next call."""
    _old.append(dict(dispatcher.overloads))
    dispatcher._reset_overloads()


def rebuild():
    """Recompile, at its next call, each kernel whose functions or constants have changed since it was compiled, for example after
    `neuron.decay = mine`. Steps that a model has recorded keep their code."""
    for dispatcher in list(_compiled.values()):
        _fingerprint(dispatcher)


@functools.cache
def _warn_once(why):
    complain(f"neurogen: compiled kernels cannot be saved ({why}), so each start compiles them; NUMBA_CACHE_DIR names another folder")


def _warn(error):
    _warn_once("no folder is writable" if isinstance(error, RuntimeError) else getattr(error, "strerror", None) or str(error))
