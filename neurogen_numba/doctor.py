"""`neurogen doctor`: checks of this machine, and fixes for everything that does not work. A failed check does not stop the others."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import backends
from .backends import probe
from .cli import STDOUT, Parser, add_gpu_flag, add_json_flag, command, tell_json
from .config import size_in_words
from .distributed import launch
from .errors import BackendError, ConfigError
from .storage.run_folder import in_the_way
from .system import environment

ROOM = 1_000_000_000  # bytes of disk: five checkpoints of up to 100 MB, the best one, and one being written
KERNEL = 2**18  # bytes, more than any compiled kernel
MARKS = {True: "ok", False: "fails", None: "-"}


@dataclass(frozen=True)
class Check:
    """The result of a check. ok: None if the check does not apply. mend: a command or a hint if it fails."""

    ok: bool | None
    value: str
    mend: str = ""
    name: str = ""  # given by the table of checks


@dataclass(frozen=True)
class Machine:
    """The subject of the checks."""

    found: probe.Found
    device: int
    out: Path

    @property
    def reachable(self) -> bool:
        """Whether the driver finds the requested GPU."""
        return 0 <= self.device < len(self.found.gpus)


def parser() -> Parser:
    flags = Parser("doctor")
    add_gpu_flag(flags)
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    add_json_flag(flags, "ok", "checks")
    return flags


@command("doctor")
def main(argv=None):
    args = parser().parse_args(argv)
    checks = list(examine(Machine(probe.look(), args.gpu_device, args.out)))
    fine = verdict(checks)
    if args.json != STDOUT:
        show(checks)
    tell_json(args.json, {"ok": fine, "checks": [{"name": check.name, **dataclasses.asdict(check)} for check in checks]})
    return 0 if fine else 2


def examine(machine: Machine) -> Iterator[Check]:
    """Every check, in order."""
    for name, check in CHECKS.items():
        try:
            done = check(machine)
        except ConfigError as error:  # its message contains the fix
            what, _, mend = str(error).rpartition("; ")
            done = Check(False, what, mend)
        except Exception as error:  # of any library, in any state
            mend = f"install again: {probe.install_libraries('--upgrade')}"
            done = Check(False, f"{type(error).__name__}: {probe.first_line(error)}", mend)
        yield dataclasses.replace(done, name=name, mend=done.mend if done.ok is False else "")


def verdict(checks: list[Check]) -> bool:
    """Whether `--backend auto` runs as it should."""
    ok = {check.name: check.ok for check in checks}
    return ok["backend"] is True and ok["kernel"] is not False and ok["cuBLAS product"] is not False


def show(checks: list[Check]) -> None:
    """Print a table on a terminal, else lines; then a fix for each failure."""
    from .ui import can_draw
    from .ui.plain import forgiving, printable

    rows = [(check, printable(check.value).replace("\n", " ")) for check in checks]
    if can_draw():
        _table(rows)
    else:
        forgiving(sys.stdout)
        for check, value in rows:
            print(f"{MARKS[check.ok]:7}{check.name:17}{value}")
    if failures := [check for check in checks if check.ok is False]:
        print()
        for check in failures:
            print(f"To fix {check.name}: {printable(check.mend)}")


def _table(rows):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for check, value in rows:
        mark, text = {True: ("green", ""), False: ("bold red", ""), None: ("dim", "dim")}[check.ok]
        table.add_row(Text(MARKS[check.ok], mark), Text(check.name, "bold"), Text(value, text, overflow="fold"))
    Console().print(table)


# The checks


def python(machine):
    return Check(True, f"{platform.python_version()}, {sys.executable}")


def numpy(machine):
    import numpy

    return Check(True, numpy.__version__)


def numba(machine):
    try:
        environment.check()
        import numba
    except ImportError as error:  # it names the NumPy that it needs
        return Check(False, probe.first_line(error), probe.pip("--upgrade", "numba"))
    return Check(True, f"{numba.__version__}, {numba.config.NUMBA_NUM_THREADS} threads")


def kernel_cache(machine):
    """The folder of compiled kernels."""
    from .kernels import cache

    mend = "name a writable folder on a disk with room: export NUMBA_CACHE_DIR=/path/to/folder"
    try:
        folder = cache.folder()
    except RuntimeError:
        return Check(False, "no folder is writable, so each start compiles the kernels", mend)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(KERNEL))
    except OSError as error:
        return Check(False, f"{folder}: {error.strerror}, so each start compiles the kernels", mend)
    return Check(True, str(folder))


def numba_cuda(machine):
    version = probe.version_of("numba-cuda")
    if not version or not machine.found.present:
        return _library(machine, version)
    return _failure(probe.numba_problem()) or Check(True, version)


def cupy(machine):
    names = probe.cupy_distributions()
    version = " and ".join(f"{probe.version_of(name)} ({name})" for name in names)
    if not version or not machine.found.present:
        return _library(machine, version)
    return _failure(probe.cupy_problem()) or Check(True, version)


def driver(machine):
    found = machine.found
    if not found.gpus:
        return _failure(found.problem) if found.present else Check(None, f"{found.problem.what}; {found.problem.mend}")
    able = f"runs CUDA up to {probe.dotted(found.cuda)}"
    return _failure(probe.driver_problem(found.cuda)) or Check(True, ", ".join(filter(None, [probe.driver_release(), able])))


def gpu(machine):
    if not machine.found.gpus:
        return Check(None, "none within reach" if machine.found.present else "none")
    all_of_them = "; ".join(f"{number}: {one}" for number, one in enumerate(machine.found.gpus))
    return _failure(probe.device_problem(machine.found, machine.device)) or Check(True, all_of_them)


def gpu_memory(machine):
    sizes = []
    failed = _try(machine, lambda device: sizes.extend(_memory(device)) or True, ("CuPy",))
    return failed or Check(True, f"{size_in_words(sizes[0])} free of {size_in_words(sizes[1])}")


def piece(machine, name):
    """A library of the CUDA toolkit."""
    try:
        location = probe.find_piece(name)
    except LookupError:
        return _library(machine, "")
    return _library(machine, f"{location.version or 'version not told'}, {location.path}")


def cuda_headers(machine):
    """CuPy needs the headers to compile its own kernels."""
    try:
        from cuda import pathfinder
    except ImportError:  # it comes with CuPy and numba-cuda
        return _library(machine, "")
    location = pathfinder.locate_nvidia_header_directory("cudart")
    return _library(machine, location.abs_path if location else "")


def kernel(machine):
    start = time.perf_counter()
    failed = _try(machine, _doubles, ("numba-cuda", "NVVM", "NVRTC"))
    return failed or Check(True, f"compiled and right on GPU {machine.device}, {time.perf_counter() - start:.1f} s")


def product(machine):
    return _try(machine, _multiplies, ("CuPy", "cuBLAS")) or Check(True, f"right on GPU {machine.device}")


def mpi(machine):
    """MPI, which only several ranks need: two of them add up."""
    version = probe.version_of("mpi4py")
    if not version:
        return Check(None, f"mpi4py is not installed, and needed for --gpus and mpirun only: {launch.INSTALL}")
    problem = launch.trial()
    return Check(not problem, problem or f"mpi4py {version}, two processes add up through {launch.mpiexec()}", launch.INSTALL)


def nccl(machine):
    """NCCL, which only several GPUs need."""
    from .distributed.nccl import INSTALL, check

    try:
        version = check().get_version()
    except BackendError as error:
        return Check(False if len(machine.found.gpus) > 1 else None, str(error).rpartition("; ")[0], INSTALL)
    return Check(True, f"{version // 10000}.{version // 100 % 100}.{version % 100}")


def host_memory(machine):
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (1024 * int(rows[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):  # not Linux
        return Check(None, "unknown on this system")
    return Check(True, f"{size_in_words(free)} free of {size_in_words(total)}")


def disk(machine):
    if location := in_the_way(machine.out):
        return Check(False, f"no run can be written to {machine.out}: {location}", "name another folder with --out")
    folder = machine.out.absolute()
    folder = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    value = f"{size_in_words(free)} free for {machine.out}"
    if not os.access(folder, os.W_OK):
        return Check(False, f"{value}, but {folder} may not be written to", "change its permissions, or name another folder with --out")
    return Check(free >= ROOM, value, "make room, or name a folder on another disk with --out")


def backend(machine):
    """The backend that `--backend auto` chooses."""
    try:
        made = backends.get("auto", machine.device)
    except BackendError as error:
        return Check(False, f"auto fails: {error}", "fix the failures above, or pass --backend cpu")
    if made.name != "cpu":
        return Check(True, f"auto chooses {made.name}, on GPU {machine.device}")
    reason = "NUMBA_ENABLE_CUDASIM is set" if probe.simulated() else "there is no GPU to use, and none is needed"
    return Check(True, f"auto chooses cpu: {reason}")


CHECKS: dict[str, Callable[[Machine], Check]] = {
    "Python": python,
    "NumPy": numpy,
    "Numba": numba,
    "kernel cache": kernel_cache,
    "numba-cuda": numba_cuda,
    "CuPy": cupy,
    "driver": driver,
    "GPU": gpu,
    "GPU memory": gpu_memory,
    **{name: partial(piece, name=name) for name in probe.PIECES},
    "CUDA headers": cuda_headers,
    "kernel": kernel,
    "cuBLAS product": product,
    "MPI": mpi,
    "NCCL": nccl,
    "memory": host_memory,
    "disk": disk,
    "backend": backend,
}


# Shared


def _failure(problem):
    return Check(False, problem.what, problem.mend) if problem else None


def _library(machine, value):
    """A library that is needed only with a GPU."""
    if not machine.found.present:
        return Check(None, value or "not installed, and not needed without a GPU")
    return Check(bool(value), value or "missing", probe.install_libraries())


def _try(machine, works, needed):
    """None if `works(device)`; else the failed check. needed: the libraries that it uses."""
    if probe.simulated():
        return Check(None, "not tried: NUMBA_ENABLE_CUDASIM is set")
    if not machine.reachable:
        return Check(None, "not tried: no GPU within reach")
    if missing := [name for name in probe.missing_pieces() if name in needed]:
        return Check(None, f"not tried: without {' and '.join(missing)}")
    try:
        if works(machine.device):
            return None
    except Exception as error:
        return _failure(probe.explain(error, machine.device))
    return Check(False, "gives a wrong answer", f"check nvidia-smi for errors; {probe.install_libraries('--force-reinstall')}")


def _memory(device):
    """(free, total) bytes. It opens the GPU, which takes a few hundred MB of GPU memory."""
    import cupy

    return cupy.cuda.Device(device).mem_info


def _doubles(device):
    """Whether a kernel that doubles numbers does so."""
    import warnings

    import numpy
    from numba import cuda

    @cuda.jit
    def double(x):
        i = cuda.grid(1)
        if i < x.size:
            x[i] += x[i]

    x = numpy.arange(50, dtype=numpy.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the small grid
        cuda.select_device(device)
        location = cuda.to_device(x)
        double[2, 32](location)
        return bool((location.copy_to_host() == x + x).all())


def _multiplies(device):
    """Whether a product of matrices of small integers is exact; it uses the same functions as training."""
    import cupy
    import numpy

    from .backends.cublas import Cublas

    rng = numpy.random.default_rng(0)
    a, b = (rng.integers(-8, 9, shape).astype(numpy.float32) for shape in ((96, 64), (64, 80)))
    with cupy.cuda.Device(device):
        out, cublas = cupy.empty((96, 80), numpy.float32), Cublas(lambda size: cupy.empty(size, numpy.uint8))
        cublas.product(cupy.cuda.get_current_stream(), out, cupy.asarray(a), cupy.asarray(b), False, 1.0)
        return bool((cupy.asnumpy(out) == a @ b).all())


if __name__ == "__main__":
    raise SystemExit(main())
