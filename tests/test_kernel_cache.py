"""Compiled kernels on disk: whatever is wrong with the files or their folder costs the time to compile, and nothing else."""

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
from numba.core.caching import CacheImpl

from neurogen_numba import doctor
from neurogen_numba.backends import probe
from neurogen_numba.kernels import cache

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where kernels are kept in this test."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))  # Numba reads its variables again whenever one has changed
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    cache._tell_once.cache_clear()
    return tmp_path


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kernel():
    """A kernel that nobody has compiled yet in this process."""

    def double(x):
        return x + x

    return cache.keep(numba.njit(double))


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
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said and "NUMBA_CACHE_DIR" in said
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def no_place(folder, monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])


def test_without_a_folder_kernels_are_compiled_in_memory_with_one_notice(no_place, capsys):
    assert compiled_anew(kernel()) and compiled_anew(kernel())
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no folder for them can be written" in said


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
@pytest.mark.parametrize("harm", ["truncated", "empty", "full disk", "no place"])
def test_a_kernel_is_right_whatever_became_of_the_folder(harm, tmp_path):
    """A loop of the package, in processes of their own."""
    package, place = tmp_path / "package", tmp_path / "kept"
    for folder in ("kernels", "neurogen_numba"):
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    use = f"{shlex.quote(sys.executable)} -c {shlex.quote(USE)}"
    if harm == "no place":
        (package / "kernels/__pycache__").write_text("")  # the superuser may write everywhere else
        environment |= dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/proc/nobody")
    elif harm == "full disk":
        use = f"ulimit -f 1; {use}"
    else:
        subprocess.run(use, shell=True, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
        for file in (path for path in place.rglob("*") if path.is_file()):
            os.truncate(file, file.stat().st_size - 20 if harm == "truncated" else 0)
    done = subprocess.run(use, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "3.0\n" and done.stderr.count("\n") == (harm in ("full disk", "no place")), done.stderr


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
