"""A machine with GPUs, or with a broken one, out of nothing: stand-ins for NVIDIA's libraries and for what Python packages bring.

The stand-ins are called with `ctypes.byref(x)` where the libraries want a pointer, and write to `pointer._obj`, which is x.
"""

import sys
from types import SimpleNamespace

from neurogen_numba import backends
from neurogen_numba.backends import probe

H100 = ("NVIDIA H100 80GB HBM3", (9, 0))
OLD = ("NVIDIA GeForce GTX 1080", (6, 1))
GB = 10**9


class FakeDriver:
    """libcuda, as ctypes would load it. fails: {function: CUresult}."""

    NAMES = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 100: b"CUDA_ERROR_NO_DEVICE", 999: b"CUDA_ERROR_UNKNOWN"}

    def __init__(self, *gpus, cuda=12080, **fails):
        self.gpus, self.cuda, self.fails = gpus, cuda, fails

    def __getattr__(self, function):
        def call(*arguments):
            if function in self.fails:
                return self.fails[function]
            if method := getattr(type(self), f"_{function}", None):
                method(self, *arguments)
            return 0

        return call

    def cuGetErrorName(self, code, name):
        name._obj.value = self.NAMES.get(code)

    def _cuDriverGetVersion(self, version):
        version._obj.value = self.cuda

    def _cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)

    def _cuDeviceGet(self, handle, device):
        handle._obj.value = device + 7  # a handle is no index

    def _cuDeviceGetName(self, name, size, handle):
        name.value = self.gpus[handle - 7][0].encode()

    def _cuDeviceGetAttribute(self, value, attribute, handle):
        value._obj.value = self.gpus[handle - 7][1][{75: 0, 76: 1}[attribute]]  # as in cuda.h


class Machine:
    """The hardware of one machine, which a test may change at any time. At first all is well but there is no GPU; `trace` is a file that
    tells of one."""

    def __init__(self):
        self.driver = None
        self.management = None
        self.missing = set()  # of the libraries: "CuPy", "numba-cuda", names in probe.PIECES
        self.runtime = 12090  # that CuPy is built with
        self.versions = dict.fromkeys(probe.PIECES, "12.9")

    def load(self, name):
        found = {probe.DRIVER: self.driver, probe.MANAGEMENT: self.management}.get(name)
        if found is None:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return found

    def find_piece(self, name):
        if name in self.missing:
            raise LookupError(name)
        return probe.Piece(f"/cuda/lib{name}.so", self.versions[name])

    def installed(self, module):
        return {"numba_cuda": "numba-cuda", "cupy": "CuPy"}[module] not in self.missing


class FakeBackend:
    name = "cuda"

    def __init__(self, device, precision):
        self.device, self.precision = device, precision


def stand_in(monkeypatch, tmp_path) -> Machine:
    """Puts `probe` and `backends` on a machine without GPU, until the test gives it one: `machine.driver = FakeDriver(H100)`."""
    there = Machine()
    there.trace = tmp_path / "nvidia0"
    runtime = SimpleNamespace(runtimeGetVersion=lambda: there.runtime)
    device = SimpleNamespace(mem_info=(70 * GB, 85 * GB))
    there.cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=lambda number: device))
    there.backend = SimpleNamespace(CudaBackend=FakeBackend)
    for name in ("CUDA_VISIBLE_DEVICES", "NUMBA_ENABLE_CUDASIM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(probe, "TRACES", (str(there.trace),))
    monkeypatch.setattr(probe, "VERSION_FILE", tmp_path / "version")
    for name in ("load", "find_piece", "installed"):
        monkeypatch.setattr(probe, name, getattr(there, name))
    monkeypatch.setattr(probe, "numba_problem", lambda: None)
    monkeypatch.setattr(probe, "cupy_distributions", lambda: ["cupy-cuda12x"])
    monkeypatch.setitem(sys.modules, "cupy", there.cupy)
    monkeypatch.setitem(sys.modules, "neurogen_numba.backends.cuda", there.backend)
    monkeypatch.setitem(sys.modules, "neurogen_numba.backends.cpu", SimpleNamespace(CpuBackend=lambda: SimpleNamespace(name="cpu")))
    monkeypatch.setattr(backends, "_made", {})
    return there


class FakeManagement:
    """NVML."""

    def nvmlInit_v2(self):
        return 0

    def nvmlSystemGetDriverVersion(self, text, size):
        text.value = b"550.54.15"
        return 0

    def nvmlShutdown(self):
        return 0


class FakeToolkit:
    """The libraries of the CUDA toolkit in one, each telling a version of its own."""

    def nvvmVersion(self, major, minor):
        major._obj.value, minor._obj.value = 2, 0

    def nvrtcVersion(self, major, minor):
        major._obj.value, minor._obj.value = 12, 9

    def nvJitLinkVersion(self, major, minor):
        major._obj.value, minor._obj.value = 12, 8

    def cublasGetProperty(self, kind, value):
        value._obj.value = (12, 9, 3)[kind]

    def cudaRuntimeGetVersion(self, value):
        value._obj.value = 12060
