"""Compiled kernels on disk: whatever is wrong with the files or their folder costs the time to compile, and nothing else."""

import ctypes
import errno
import os
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numba
import numpy as np
import pytest
from numba.core.caching import CacheImpl

from neurogen_numba import doctor
from neurogen_numba.backends import probe
from neurogen_numba.kernels import cache, fingerprint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where kernels are kept in this test."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))  # Numba reads its variables again whenever one has changed
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    cache._warn_once.cache_clear()
    return tmp_path


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kernel():
    """A kernel that nobody has compiled yet in this process."""

    def double(x):
        return x + x

    return cache.cached(numba.njit(double))


def compiled_anew(dispatcher):
    assert dispatcher(21) == 42
    return not sum(dispatcher.stats.cache_hits.values())


def test_a_kernel_is_compiled_once(folder):
    assert compiled_anew(kernel()) and not compiled_anew(kernel())
    (file,) = folder.rglob(f"*{cache.SUFFIX}")
    assert [path for path in folder.rglob("*") if path.is_file()] == [file]  # nothing unfinished is left


@pytest.mark.parametrize("harm", ["empty", "truncated", "flipped", "of other sources", "garbage"])
def test_a_damaged_file_is_dropped(folder, harm, monkeypatch, capsys):
    kernel()(21)
    (file,) = folder.rglob(f"*{cache.SUFFIX}")
    data = file.read_bytes()
    if harm == "of other sources":  # as an update of this package brings them
        monkeypatch.setattr(cache, "_sources", lambda: b"other")
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes({"empty": b"", "truncated": data[:middle], "flipped": flipped, "garbage": bytes(100)}[harm])
    assert compiled_anew(kernel()) and not compiled_anew(kernel())
    assert capsys.readouterr().err == ""


def test_a_full_disk_costs_a_notice(folder, monkeypatch, capsys):
    monkeypatch.setattr(cache.os, "replace", full)
    assert compiled_anew(kernel()) and compiled_anew(kernel())
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and "No space left on device" in output and "NUMBA_CACHE_DIR" in output
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def no_place(folder, monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])


def test_without_a_folder_kernels_are_compiled_in_memory_with_one_notice(no_place, capsys):
    assert compiled_anew(kernel()) and compiled_anew(kernel())
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and "no folder is writable" in output


def test_doctor_looks_at_the_folder(folder, monkeypatch):
    check = doctor.kernel_cache(None)
    assert check.ok is True and check.value.startswith(str(folder))
    monkeypatch.setattr(doctor, "tempfile", SimpleNamespace(TemporaryFile=full))
    check = doctor.kernel_cache(None)
    assert check.ok is False and "No space left on device" in check.value and "NUMBA_CACHE_DIR" in check.mend


def test_doctor_names_what_mends_a_folder_that_is_missing(no_place):
    check = doctor.kernel_cache(None)
    assert check.ok is False and "NUMBA_CACHE_DIR" in check.mend and "pip" not in check.mend


USE = """
import numpy as np
from neurogen_numba.kernels.reset import reset_cpu
x = np.ones((1, 2, 3), np.float32)
reset_cpu(x, np.array([1, 0], np.uint8))
print(x.sum())
"""


@pytest.mark.skipif(os.name != "posix", reason="the limits of a shell, and a home that no user can have")
@pytest.mark.parametrize("harm", ["truncated", "full disk", "no place"])
def test_a_kernel_is_right_whatever_became_of_the_folder(harm, tmp_path):
    """A loop of the package, in processes of their own."""
    package, location = tmp_path / "package", tmp_path / "kept"
    for folder in ("kernels", "neurogen_numba"):
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    location.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(location), "PYTHONDONTWRITEBYTECODE": "1"}
    use = f"{shlex.quote(sys.executable)} -c {shlex.quote(USE)}"
    if harm == "no place":
        (package / "kernels/__pycache__").write_text("")  # the superuser may write everywhere else
        environment |= dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/proc/nobody")
    elif harm == "full disk":
        use = f"ulimit -f 1; {use}"
    else:
        subprocess.run(use, shell=True, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
        for file in (path for path in location.rglob("*") if path.is_file()):
            os.truncate(file, file.stat().st_size - 20)
    done = subprocess.run(use, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "3.0\n" and done.stderr.count("\n") == (harm in ("full disk", "no place")), done.stderr


# What a kernel calls


PATCH = """
import sys
import numpy as np
from numba.extending import register_jitable
from neurogen_numba.kernels import cache, neuron

@register_jitable
def mine(log_tau):
    return np.float32(7)

def use():
    found, decayed = np.zeros(1, np.float32), np.zeros(1, np.float32)
    neuron.decay_backward_cpu(found, np.ones(1, np.float32), np.zeros(1, np.float32))  # by way of decay_slope, which calls decay
    neuron.decay_forward_cpu(decayed, np.zeros(1, np.float32))
    return round(float(found[0]), 3), round(float(decayed[0]), 3)

if "patched" in sys.argv:
    neuron.decay = mine
print(use())
if "later" in sys.argv:
    neuron.decay = mine
    cache.rebuild()
    print(use())
print(*(sum(loop.stats.cache_hits.values()) for loop in (neuron.decay_backward_cpu, neuron.decay_forward_cpu)))
"""
CLEAN, PATCHED = (0.368, 0.368), (7.0, 7.0)


def patched(folder, *how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", PATCH, *how], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *values, hits = done.stdout.splitlines()
    return [eval(value) for value in values], hits


def test_a_patched_function_is_used_and_not_kept_for_others(tmp_path):
    assert patched(tmp_path) == ([CLEAN], "0 0")
    assert patched(tmp_path, "patched") == ([PATCHED], "0 0"), "a warm cache, then a patch: it has files of its own"
    assert patched(tmp_path, "later") == ([CLEAN, PATCHED], "2 2"), "both find their files; a patch after the kernels were loaded"


def test_what_was_compiled_in_this_process_before_a_patch_is_compiled_anew(folder):
    """Numba remembers the functions that a kernel calls; the kernel that is made after the patch must not get them."""
    scope = {"register_jitable": numba.extending.register_jitable}
    exec("def inner(x): return x + x\n@register_jitable\ndef outer(x): return inner(x)\n", scope)
    scope["inner"] = numba.extending.register_jitable(scope["inner"])

    def make(how):
        outer = scope["outer"]

        def call(x):
            return outer(x)

        return how(numba.njit(call))

    assert make(lambda plain: plain)(21) == 42  # by a kernel that is not kept, too
    assert make(cache.cached)(21) == 42
    scope["inner"] = numba.extending.register_jitable(lambda x: x * x)
    assert make(cache.cached)(21) == 441 and make(cache.cached)(2) == 4


def kernel_of(source, **scope):
    """The kernel `f` of a user, kept."""
    exec(compile(source, __file__, "exec"), scope)
    return cache.cached(numba.njit(scope["f"]))


def digest(source, **scope):
    exec(source, scope)
    return fingerprint.Walk(numba.njit(scope["f"])).digest


def module(**content):
    made = ModuleType("mine")
    vars(made).update(content)
    return made


@numba.njit
def one():
    return 1


@pytest.mark.parametrize(
    "before, after",
    [
        (("def f(x): return x * 2.0", {}), ("def f(x): return x * 3.0", {})),
        (("def f(x): return x * 0.0", {}), ("def f(x): return x * -0.0", {})),
        (("def f(x, y=1): return x + y", {}), ("def f(x, y=2): return x + y", {})),
        (("def f(x): return x + A", {"A": 1}), ("def f(x): return x + A", {"A": 2})),
        (("def f(x): return x + A", {"A": 1}), ("def f(x): return x + A", {"A": np.float32(1)})),
        (("def f(x): return x + A[0]", {"A": np.zeros(2)}), ("def f(x): return x + A[0]", {"A": np.ones(2)})),
        (("def f(x): return x + m.A", {"m": module(A=1)}), ("def f(x): return x + m.A", {"m": module(A=2)})),
        (("def f(x): return g(x)", {"g": lambda x: x}), ("def f(x): return g(x)", {"g": lambda x: -x})),
        (("def f(x): return g() + x", {"g": one}), ("def f(x): return g() + x", {"g": numba.njit(fastmath=True)(one.py_func)})),
        (("def f(x): return (lambda y: y + 1)(x)", {}), ("def f(x): return (lambda y: y + 2)(x)", {})),
        (("def m(a):\n def g(x): return a\n return g\nf = m(1)", {}), ("def m(a):\n def g(x): return a\n return g\nf = m(2)", {})),
        (("def f(x): raise A", {"A": type("A", (Exception,), {})}), ("def f(x): raise A", {"A": type("B", (Exception,), {})})),
        (("def f(x): return A(x)", {"A": namedtuple("A", "y")}), ("def f(x): return A(x)", {"A": namedtuple("A", "z")})),
    ],
)
def test_a_kernel_of_ones_own_is_known_by_all_that_is_compiled_in(before, after):
    (source, scope), (other, other_scope) = before, after
    assert digest(source, **scope) == digest(source, **scope) == digest("\n\n" + source, **scope)
    assert None is not digest(source, **scope) != digest(other, **other_scope)


def test_overloads_and_intrinsics_count():
    def of(number):
        @numba.extending.intrinsic
        def g(context, x):
            return x(x), lambda context, builder, signature, arguments: builder.add(arguments[0], signature.return_type(number))

        def h(x):
            pass

        numba.extending.overload(h)(lambda x: lambda x: number)
        return [digest("def f(x): return g(x)", g=g) for g in (g, h)]

    assert of(1) == of(1) and not set(of(1)) & set(of(2))


def test_modules_that_import_one_another_are_walked_once():
    m = module(A=1)
    m.n = module(m=m, f=one)
    assert digest("def f(x): return m.n.f() + m.A", m=m) != digest("def f(x): return m.n.f() + m.A", m=module(A=2, n=m.n))


def test_what_was_compiled_unseen_is_not_kept(folder):
    """A helper that was called before keeps what it was compiled from, as Numba has it: the kernel that calls it then is nobody else's."""
    helper = numba.njit(lambda x: x + x)
    assert helper(1) == 2
    kernel = kernel_of("def f(x): return helper(x)", helper=helper)
    assert kernel(2) == 4 and not list(folder.rglob(f"*{cache.SUFFIX}"))


def test_a_function_without_a_cache_may_call_one_that_has_it(folder):
    """While Numba compiles the one, it comes to the other, which looks at what both call."""
    shared = numba.extending.register_jitable(lambda x: x + x)
    kernel = kernel_of("def f(x): return shared(x)", shared=shared)
    assert numba.njit(lambda x: shared(x) + kernel(x))(3) == 12


def test_a_kernel_with_a_pointer_is_not_kept(folder):
    pointer = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(abs)
    kernel = kernel_of("def f(x): return A(x)", A=pointer)
    assert kernel(-2.0) == 2 and not list(folder.rglob(f"*{cache.SUFFIX}"))


def test_every_kernel_of_the_package_has_the_same_fingerprint_in_every_process():
    code = """
import importlib, pkgutil
from neurogen_numba import kernels
from neurogen_numba.kernels import bundles, fingerprint, population
from neurogen_numba.neurons import get
found = {"gather": bundles.make_gather_fp32(32, 16, False, False)}
found |= {"population": population.make_population_forward(get("lif_a").physics(), True, True, True)}
for module in pkgutil.iter_modules(kernels.__path__):
    content = vars(importlib.import_module(f"{kernels.__name__}.{module.name}"))
    found |= {f"{module.name}.{name}": thing for name, thing in content.items() if hasattr(thing, "targetoptions")}
for name, kernel in found.items():
    print(name, fingerprint.Walk(kernel).digest)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_ENABLE_CUDASIM": "0"}
    output = [
        subprocess.run([sys.executable, "-c", code], env=environment | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in "12"
    ]
    assert output[0].stdout == output[1].stdout and output[0].stdout.count("\n") > 40 and " None" not in output[0].stdout


# Variables of the environment


@pytest.mark.parametrize(
    "variable",
    [
        "NUMBA_NUM_THREADS=0",
        "NUMBA_NUM_THREADS=",
        "NUMBA_NUM_THREADS=two",
        "NUMBA_NUM_THREADS=1000000",
        "NUMBA_THREADING_LAYER=hamsters",
        "NUMBA_THREADING_LAYER_PRIORITY=hamsters",
        "NUMBA_DISABLE_JIT=1",
        "NUMBA_OPT=fast",
        "NUMBA_CPU_FEATURES=avx",
    ],
)
def test_a_variable_that_numba_cannot_use_is_named(variable, tmp_path):
    name, _, value = variable.partition("=")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    words = [sys.executable, "-m", "neurogen_numba"]
    train = [*words, "train", "--backend", "cpu", "--steps", "1"]
    done = subprocess.run(train, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and name in done.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_doctor_names_the_variable_and_does_not_install_numba_again(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "0")
    (check,) = [check for check in doctor.examine(doctor.Machine(probe.Found(), 0, Path("."))) if check.name == "Numba"]
    assert check.ok is False and "NUMBA_NUM_THREADS=0" in check.value and check.mend == "correct NUMBA_NUM_THREADS"


def test_small_kernels_put_no_warning_into_the_log_of_a_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"}
    code = "import neurogen_numba.kernels.launch; from numba.cuda.core import config; print(config.CUDA_LOW_OCCUPANCY_WARNINGS)"
    environment |= {"PYTHONPATH": str(ROOT), "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("no numba-cuda")
    assert done.stdout == "0\n", done.stderr
