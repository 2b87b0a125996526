"""Detection of GPUs: the driver, queried through ctypes, and the libraries that the CUDA backend needs.

`look` is cheap. Only the functions that check CuPy and numba-cuda import them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

OLDEST = (7, 5)  # compute capability: Turing, 2018
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MANAGEMENT = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
TRACES = ("/dev/nvidia0", "/proc/driver/nvidia/version")  # these exist if a GPU's driver is loaded
VERSION_FILE = Path("/proc/driver/nvidia/version")
NO_DEVICE, STUB = 100, 34  # CUresult
CAPABILITY = (75, 76)  # CUdevice_attribute: compute capability, major and minor

load = ctypes.CDLL


@dataclass(frozen=True)
class Problem:
    """A problem, and the command or hint that fixes it."""

    what: str
    mend: str


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]

    def __str__(self):
        return f"{self.name}, compute capability {dotted(self.capability)}"


@dataclass(frozen=True)
class Found:
    """The result of `look`. If a GPU is present but does not work, there is a problem and `gpus` is empty."""

    gpus: tuple[Gpu, ...] = ()
    cuda: tuple[int, int] | None = None  # newest CUDA version that the driver supports
    present: bool = False
    problem: Problem | None = None  # why `gpus` is empty


def simulated() -> bool:
    """Whether kernels run in Numba's CUDA simulator."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0").strip() not in ("", "0")


# The driver


class DriverError(Exception):
    """An error code from the driver."""

    def __init__(self, code: int, name: str):
        super().__init__(name)
        self.code = code


class Driver:
    """NVIDIA's driver library. Raises OSError if it cannot be loaded, and DriverError if a call fails."""

    def __init__(self):
        self._library = load(DRIVER)
        self._call("cuInit", 0)

    @property
    def version(self) -> tuple[int, int]:
        """The newest CUDA version that the driver supports."""
        return _release(self._integer("cuDriverGetVersion"))

    @property
    def count(self) -> int:
        return self._integer("cuDeviceGetCount")

    def gpu(self, device: int) -> Gpu:
        handle = self._integer("cuDeviceGet", device)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), handle)
        major, minor = (self._integer("cuDeviceGetAttribute", attribute, handle) for attribute in CAPABILITY)
        return Gpu(name.value.decode(errors="replace"), (major, minor))

    def _integer(self, function, *arguments):
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value), *arguments)
        return value.value

    def _call(self, function, *arguments):
        code = getattr(self._library, function)(*arguments)
        if code:
            name = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(name))
            raise DriverError(code, (name.value or b"CUDA error").decode() + f" ({code})")


REFUSALS = {  # CUresult of cuInit -> fix
    STUB: f"take the toolkit's stub of {DRIVER} out of LD_LIBRARY_PATH; the driver brings its own",
    802: "start NVIDIA's fabric manager: systemctl start nvidia-fabricmanager",
    803: "restart the machine: the driver was updated, and the kernel still runs the old one",
    804: "take cuda-compat out of LD_LIBRARY_PATH: this GPU cannot use it",
}


def look() -> Found:
    """The GPUs that CUDA can use on this machine, or why there are none."""
    hiding = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hiding is not None and hiding.split(",")[0].strip().lower() in ("", "-1", "none", "nodevfiles"):
        return Found(problem=Problem(f"CUDA_VISIBLE_DEVICES={hiding!r} hides every GPU", "unset CUDA_VISIBLE_DEVICES"))
    trace = next((path for path in TRACES if os.path.exists(path)), None)
    try:
        driver = Driver()
        gpus = tuple(driver.gpu(device) for device in range(driver.count))
        cuda = driver.version
    except OSError as error:
        if trace:
            what = f"{trace} shows an NVIDIA GPU, but its driver library cannot be loaded ({first_line(error)})"
            return Found(present=True, problem=Problem(what, "install the whole driver, or start the container with the GPU (--gpus all)"))
        return Found(problem=Problem(f"there is no NVIDIA driver ({DRIVER})", "install its driver"))
    except DriverError as error:
        if error.code != NO_DEVICE:
            mend = REFUSALS.get(error.code, "find out with nvidia-smi; after an update of the driver, restart the machine")
            there = bool(trace) or error.code != STUB
            return Found(present=there, problem=Problem(f"the NVIDIA driver does not start: {error}", mend))
        gpus, cuda = (), None
    if gpus:
        return Found(gpus, cuda, present=True)
    if hiding is not None:
        what = f"CUDA_VISIBLE_DEVICES={hiding!r} names no GPU of this machine"
        return Found(present=bool(trace), problem=Problem(what, "name one that nvidia-smi -L lists, or unset CUDA_VISIBLE_DEVICES"))
    if trace:
        what = f"{trace} shows an NVIDIA GPU, but the driver finds none"
        return Found(present=True, problem=Problem(what, "check that nvidia-smi lists it and that you may open /dev/nvidia*"))
    return Found(problem=Problem("the NVIDIA driver finds no GPU", "check that nvidia-smi lists it"))


def driver_release() -> str:
    """The version of the driver, for example 550.54.15; empty if unknown."""
    try:
        management = load(MANAGEMENT)
        text = ctypes.create_string_buffer(96)
        if management.nvmlInit_v2() == 0:
            failed = management.nvmlSystemGetDriverVersion(text, len(text))
            management.nvmlShutdown()
            if not failed:
                return text.value.decode()
    except (OSError, AttributeError):
        pass
    try:
        known = re.search(r"\d{3,}\.\d[\d.]*", VERSION_FILE.read_text())
    except OSError:
        return ""
    return known.group() if known else ""


# The libraries


@dataclass(frozen=True)
class Piece:
    """A library of the CUDA toolkit that was found."""

    path: str
    version: str


def _cublas_version(library):
    return ".".join(str(_integers(library.cublasGetProperty, 1, kind)[0]) for kind in range(3))


def _runtime_version(library):
    return dotted(_release(*_integers(library.cudaRuntimeGetVersion, 1)))


PIECES = {  # name -> (its name in cuda.pathfinder, function that reads its version, whether the backend needs it)
    "NVVM": ("nvvm", lambda library: dotted(_integers(library.nvvmVersion, 2)), True),
    "NVRTC": ("nvrtc", lambda library: dotted(_integers(library.nvrtcVersion, 2)), True),
    "nvJitLink": ("nvJitLink", lambda library: dotted(_integers(library.nvJitLinkVersion, 2)), False),
    "cuBLAS": ("cublas", _cublas_version, True),
    "CUDA runtime": ("cudart", _runtime_version, False),
}


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def version_of(distribution: str) -> str:
    """The version of an installed distribution; empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cupy_distributions() -> list[str]:
    """The installed distributions of CuPy, for example cupy-cuda12x. Two of them overwrite each other."""
    return sorted(set(importlib.metadata.packages_distributions().get("cupy", ())))


def find_piece(name: str) -> Piece:
    """Load a library of the toolkit. Raises LookupError if it is missing."""
    try:
        path = _path_of(PIECES[name][0])
        library = load(path)
    except Exception as error:  # the finder has its own exceptions, and may itself fail to import
        raise LookupError(f"{name}: {first_line(error)}") from error
    try:
        version = PIECES[name][1](library)
    except AttributeError:  # too old to report a version
        version = ""
    return Piece(path, version)


def _path_of(library):
    from cuda import pathfinder

    try:
        return pathfinder.load_nvidia_dynamic_lib(library).abs_path
    except pathfinder.DynamicLibNotFoundError:
        if library != "nvvm":
            raise
        from numba.cuda.cuda_paths import get_cuda_paths  # also searches beside NVRTC

        return get_cuda_paths()["nvvm"].info


def _integers(function, count, *arguments):
    values = [ctypes.c_int() for _ in range(count)]
    function(*arguments, *(ctypes.byref(value) for value in values))
    return [value.value for value in values]


def missing_pieces() -> list[str]:
    """The libraries without which the CUDA backend cannot run."""
    missing = [name for name, module in (("numba-cuda", "numba_cuda"), ("CuPy", "cupy")) if not installed(module)]
    for name, (_, _, needed) in PIECES.items():
        if needed:
            try:
                find_piece(name)
            except LookupError:
                missing.append(name)
    return missing


def numba_problem() -> Problem | None:
    """Why numba-cuda cannot be imported."""
    try:
        from numba import cuda  # noqa: F401

        importlib.import_module("numba.cuda.np.arrayobj")  # the import at which the first compilation would fail
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("numba.cuda.np"):
            return None  # in another version the module has another name
        numba_cuda, numba, numpy = (version_of(name) for name in ("numba-cuda", "numba", "numpy"))
        what = f"numba-cuda {numba_cuda} does not work with Numba {numba} and NumPy {numpy} ({type(error).__name__}: {first_line(error)})"
        if "'numpy' has no attribute" in str(error) or "needs NumPy" in str(error):  # NumPy removed something
            return Problem(what, pip(f"numpy<{dotted(numpy.split('.')[:2])}"))
        return Problem(what, pip("--upgrade", "numba", "numba-cuda[cu12]"))
    return None


def cupy_problem() -> Problem | None:
    """Why CuPy cannot be imported, or that two distributions of it are installed."""
    brought_by = cupy_distributions()
    if len(brought_by) > 1:
        cure = f"{_pip()} uninstall {' '.join(brought_by)}, then {install_libraries()}"
        return Problem(f"{' and '.join(brought_by)} overwrite each other", cure)
    try:
        import cupy  # noqa: F401
    except Exception as error:
        text = re.sub(r"={3,}", "", str(error))
        return Problem(f"CuPy cannot be imported ({type(error).__name__}: {first_line(text)})", install_libraries("--force-reinstall"))
    return None


def driver_problem(cuda: tuple[int, int]) -> Problem | None:
    """Whether the driver is too old for the installed libraries. cuda: newest version that the driver supports."""
    runtimes = {}
    with contextlib.suppress(Exception):  # `missing_pieces` and `cupy_problem` report what is missing or broken
        import cupy

        runtimes["CuPy"] = _release(cupy.cuda.runtime.runtimeGetVersion())
    with contextlib.suppress(LookupError, ValueError):
        runtimes["NVRTC"] = tuple(int(part) for part in find_piece("NVRTC").version.split("."))
    for name, runtime in runtimes.items():
        if cuda[0] < runtime[0]:
            what = f"the NVIDIA driver is too old: it supports CUDA up to {dotted(cuda)}, and {name} needs CUDA {dotted(runtime)}"
            return Problem(what, f"update the driver to one for CUDA {runtime[0]}")
    compiler = runtimes.get("NVRTC", (0, 0))
    if cuda < compiler:  # within a major version, nvJitLink produces machine code, so that the driver needs no newer PTX
        try:
            find_piece("nvJitLink")
        except LookupError:
            what = f"the NVIDIA driver supports CUDA up to {dotted(cuda)}, NVRTC is of CUDA {dotted(compiler)}, and nvJitLink is missing"
            return Problem(what, install_libraries())
    return None


# All checks


def problem(found: Found, device: int) -> Problem | None:
    """The first reason why the CUDA backend cannot run on GPU `device`, or None."""
    if not found.gpus:
        return found.problem
    if trouble := device_problem(found, device):
        return trouble
    if missing := missing_pieces():
        names = " and ".join([", ".join(missing[:-1]), missing[-1]] if len(missing) > 1 else missing)
        what = f"GPU {device} ({found.gpus[device].name}) cannot be used: {names} cannot be found"
        return Problem(what, install_libraries())
    return numba_problem() or cupy_problem() or driver_problem(found.cuda)


def device_problem(found: Found, device: int) -> Problem | None:
    """Why GPU `device` cannot be used, apart from missing libraries."""
    if not 0 <= device < len(found.gpus):
        last = len(found.gpus) - 1
        what = f"there is no GPU {device}: {'the only one is GPU 0' if not last else f'the GPUs are 0 to {last}'}"
        return Problem(what, "choose another --gpu-device")
    gpu = found.gpus[device]
    if gpu.capability < OLDEST:
        what = f"GPU {device} ({gpu.name}) has the unsupported compute capability {dotted(gpu.capability)}"
        return Problem(what, f"use a GPU of compute capability {dotted(OLDEST)} or newer")
    return None


def explain(error: BaseException, device: int) -> Problem:
    """The problem behind an exception of the GPU, the driver or its libraries."""
    update = install_libraries("--upgrade")
    hints = {
        "out.?of.?memory|MemoryAllocation": "free memory on it: nvidia-smi lists the processes that use it",
        "unavailable": "wait for the process that has exclusive access: nvidia-smi lists it",
        "PTX_VERSION|UnsupportedPtx|toolchain|insufficient": f"update the driver, or {update}",
        "": f"check nvidia-smi for errors; {update}",
    }
    mend = next(hint for pattern, hint in hints.items() if re.search(pattern, str(error), re.IGNORECASE))
    return Problem(f"a test on GPU {device} fails ({type(error).__name__}: {first_line(error)})", mend)


def is_of_the_gpu(error: BaseException) -> bool:
    """Whether an exception comes from the driver or its libraries, and not from this package."""
    return type(error).__module__.startswith(("cupy.", "cupy_backends.", "cuda.", "numba.cuda.cudadrv."))


def is_short_of_memory(error: BaseException) -> bool:
    """Whether the driver or its libraries ran out of GPU memory for something other than an array: kernel code, a graph, a workspace."""
    return is_of_the_gpu(error) and any(word in str(error).lower() for word in ("out of memory", "out_of_memory", "alloc_failed"))


def install_libraries(*flags: str) -> str:
    """The command that installs everything for a GPU except its driver."""
    return pip(*flags, "neurogen-numba[cuda]") if version_of("neurogen-numba") else pip(*flags, "-e", ".[cuda]")


def pip(*words: str) -> str:
    """A pip command that installs into the environment of this process."""
    return " ".join([_pip(), "install", *(word if re.fullmatch(r"[\w.-]+", word) else f'"{word}"' for word in words)])


def _pip():
    found = shutil.which("pip")
    return "pip" if found and Path(found).parent == Path(sys.executable).parent else f"{shlex.quote(sys.executable)} -m pip"


def dotted(version) -> str:
    return ".".join(str(part) for part in version)


def first_line(text) -> str:
    """The first line that is not blank."""
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "no reason given")


def _release(number):
    """CUDA writes 12.4 as 12040."""
    return number // 1000, number % 1000 // 10
