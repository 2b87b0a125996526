"""Which backend is taken, and what is said where none can be. There is no GPU in these tests: fakegpu.py stands in."""

import sys
from types import SimpleNamespace

import pytest

import fakegpu
from fakegpu import H100, OLD, FakeDriver, FakeManagement, FakeToolkit
from neurogen_numba import backends
from neurogen_numba.backends import probe
from neurogen_numba.cli import Parser, add_backend_flag, backend_of
from neurogen_numba.errors import BackendError, ConfigError

INSTALL = 'install "neurogen-numba[cuda]"'


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return fakegpu.stand_in(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def as_installed(monkeypatch):
    """Commands name the package, not the checkout."""
    version_of = probe.version_of
    monkeypatch.setattr(probe, "version_of", lambda name: "0.1" if name == "neurogen-numba" else version_of(name))


def refused(name, *words, device=0):
    """One sentence that has these words and says how to go on without a GPU."""
    with pytest.raises(BackendError) as raised:
        backends.get(name, device)
    output = str(raised.value)
    assert "\n" not in output and output.endswith("; to do without, use the backend cpu (--backend cpu).")
    for word in words:
        assert word in output, output
    return True


# The choice


def test_the_cpu_where_there_is_no_gpu(machine):
    assert backends.get().name == backends.get("auto").name == "cpu"


def test_the_gpu_where_there_is_one(machine):
    machine.driver = FakeDriver(H100)
    assert backends.get().name == "cuda"
    assert backends.get("cpu").name == "cpu"


def test_the_same_object_each_time(machine):
    machine.driver = FakeDriver(H100, H100)
    assert backends.get() is backends.get("auto") is backends.get("cuda") is backends.get("cuda", 0)
    assert backends.get("cpu") is backends.get("cpu", 0, "fp32")
    assert backends.get("cuda", 1) is not backends.get("cuda", 0)
    assert (backends.get("cuda", 0).device, backends.get("cuda", 1).device) == (0, 1)


def test_a_backend_for_every_precision(machine):
    machine.driver = FakeDriver(H100)
    made = [backends.get("auto", 0, precision) for precision in backends.PRECISIONS]
    assert [(backend.name, backend.precision) for backend in made] == [("cuda", precision) for precision in backends.PRECISIONS]
    assert len({id(backend) for backend in made}) == len(made)
    assert [backends.get("cuda", 0, precision) for precision in backends.PRECISIONS] == made
    assert backends.get().precision == "auto"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_the_cpu_has_one_precision(machine, name, precision):
    with pytest.raises(ConfigError, match=f"^precision {precision}: the CPU backend computes in fp32; drop it, or use --backend cuda$"):
        backends.get(name, precision=precision)


def test_a_missing_gpu_is_told_before_its_precision(machine):
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        backends.get("cuda", precision="bf16")


@pytest.mark.parametrize("value, meant", [("bf-16", "bf16"), ("fp-32", "fp32")])
def test_an_unknown_precision_is_told_the_nearest(machine, monkeypatch, value, meant):
    monkeypatch.setattr(probe, "look", lambda: pytest.fail("looked"))
    with pytest.raises(ConfigError, match=f"^unknown precision '{value}'; did you mean '{meant}'"):
        backends.get("auto", precision=value)


def test_the_machine_is_looked_at_once(machine, monkeypatch):
    machine.driver = FakeDriver(H100)
    made = backends.get()
    monkeypatch.setattr(probe, "look", lambda: pytest.fail("looked"))
    assert backends.get() is backends.get("cuda") is made


def test_a_refusal_is_not_for_ever(machine):
    assert refused("cuda", "no NVIDIA driver")
    machine.driver = FakeDriver(H100)
    assert backends.get("cuda").name == "cuda"


@pytest.mark.parametrize("name, meant", [("gpu", "cuda"), ("nvidia", "cuda"), ("CPU", "cpu"), ("cudda", "cuda"), ("aut", "auto")])
def test_an_unknown_name_is_told_the_nearest(name, meant):
    with pytest.raises(ConfigError, match=f"unknown backend '{name}'; did you mean '{meant}'"):
        backends.get(name)


def test_the_cpu_needs_no_look(machine, monkeypatch):
    monkeypatch.setattr(probe, "look", lambda: pytest.fail("looked"))
    assert backends.get("cpu").name == "cpu"


def test_the_simulator_is_taken_when_asked_for(machine, monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    monkeypatch.setattr(probe, "look", lambda: pytest.fail("looked"))
    assert backends.get("cuda").name == "cuda"
    assert backends.get("auto").name == "cpu"
    assert backends.get("cuda") is backends.get("cuda")


@pytest.mark.parametrize("value, simulated", [("1", True), ("0", False), ("", False)])
def test_simulated(monkeypatch, value, simulated):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", value)
    assert probe.simulated() == simulated


# No GPU


def test_cuda_without_a_driver(machine):
    assert refused("cuda", f"there is no NVIDIA driver ({probe.DRIVER})", "install its driver")


@pytest.mark.parametrize("driver", [FakeDriver(), FakeDriver(H100, cuInit=100)], ids=["none counted", "no device"])
def test_a_driver_without_a_gpu(machine, driver):
    machine.driver = driver
    assert backends.get("auto").name == "cpu"
    assert refused("cuda", "the NVIDIA driver finds no GPU")


@pytest.mark.parametrize("value", ["", "-1", "-1,0", "NoDevFiles"])
def test_gpus_hidden_on_purpose(machine, monkeypatch, value):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    machine.driver = FakeDriver(cuInit=100)
    machine.trace.touch()
    assert backends.get("auto").name == "cpu"
    assert refused("cuda", f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU", "unset CUDA_VISIBLE_DEVICES")


def test_who_names_a_gpu_does_not_get_the_cpu(machine):
    assert backends.get("auto", 0).name == "cpu"
    assert refused("auto", "there is no NVIDIA driver", "--backend cpu", device=1)
    with pytest.raises(ConfigError, match="^--gpu-device 1 cannot be combined with the CPU backend"):
        backends.get("cpu", 1)


# A GPU that is there and cannot be used: auto says so too


@pytest.fixture(params=["auto", "cuda"])
def name(request):
    return request.param


def test_a_gpu_without_its_driver_library(machine, name):
    machine.trace.touch()
    assert refused(name, f"{machine.trace} shows an NVIDIA GPU", "cannot open shared object file", "--gpus all")


def test_a_gpu_that_the_driver_does_not_count(machine, name):
    machine.trace.touch()
    machine.driver = FakeDriver(cuInit=100)
    assert refused(name, f"{machine.trace} shows an NVIDIA GPU, but the driver finds none", "nvidia-smi")


def test_visible_devices_that_match_nothing(machine, name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    machine.trace.touch()
    machine.driver = FakeDriver(cuInit=100)
    assert refused(name, "CUDA_VISIBLE_DEVICES='7' names no GPU", "nvidia-smi -L")


@pytest.mark.parametrize(
    "code, words", [(999, ["CUDA_ERROR_UNKNOWN (999)", "nvidia-smi"]), (803, ["restart the machine"]), (802, ["fabric"])]
)
def test_a_driver_that_does_not_start(machine, name, code, words):
    machine.driver = FakeDriver(H100, cuInit=code)
    assert refused(name, "the NVIDIA driver does not start", *words)


def test_the_stub_of_the_driver_is_no_gpu(machine):
    machine.driver = FakeDriver(cuInit=34)
    assert backends.get("auto").name == "cpu"
    assert refused("cuda", "does not start", "stub")
    machine.trace.touch()
    assert refused("auto", "does not start", "stub")


@pytest.mark.parametrize("gpus, device", [((H100,), 1), ((H100, H100), 2), ((H100, H100), -1)])
def test_a_device_out_of_range(machine, name, gpus, device):
    machine.driver = FakeDriver(*gpus)
    there = "the only one is GPU 0" if len(gpus) == 1 else "the GPUs are 0 to 1"
    assert refused(name, f"there is no GPU {device}: {there}", "--gpu-device", device=device)


def test_an_old_gpu(machine, name):
    machine.driver = FakeDriver(H100, OLD)
    assert refused(name, "GPU 1 (NVIDIA GeForce GTX 1080)", "unsupported compute capability 6.1", "7.5 or newer", device=1)
    assert backends.get(name, 0).name == "cuda"


def test_the_oldest_gpu_that_will_do(machine):
    machine.driver = FakeDriver(("NVIDIA T4", (7, 5)))
    assert backends.get("cuda").name == "cuda"


def test_a_gpu_without_bfloat16(machine, name):
    machine.driver = FakeDriver(H100, ("NVIDIA T4", (7, 5)))
    with pytest.raises(ConfigError, match=r"^precision bf16: GPU 1 \(NVIDIA T4\) has no bfloat16; leave it out, or use fp16$"):
        backends.get(name, 1, "bf16")
    assert backends.get(name, 1, "fp16").name == backends.get(name, 0, "bf16").name == "cuda"


@pytest.mark.parametrize("library", ["numba-cuda", "CuPy", "NVVM", "NVRTC", "cuBLAS"])
def test_a_library_that_is_missing(machine, name, library):
    machine.driver = FakeDriver(H100)
    machine.missing = {library}
    assert refused(name, "GPU 0 (NVIDIA H100 80GB HBM3) cannot be used", f"{library} cannot be found.", INSTALL)


def test_libraries_that_are_missing(machine, name):
    machine.driver = FakeDriver(H100)
    machine.missing = {"cuBLAS", "CuPy", "numba-cuda"}
    assert refused(name, "numba-cuda, CuPy and cuBLAS cannot be found.")


@pytest.mark.parametrize("library", ["nvJitLink", "CUDA runtime"])
def test_a_library_that_it_can_do_without(machine, library):
    machine.driver = FakeDriver(H100, cuda=12090)
    machine.missing = {library}
    assert backends.get("cuda").name == "cuda"


def test_an_old_driver_for_cupy(machine, name):
    machine.driver = FakeDriver(H100, cuda=11040)
    assert refused(name, "the NVIDIA driver is too old: it supports CUDA up to 11.4, and CuPy needs CUDA 12.9", "for CUDA 12")


def test_an_old_driver_for_numba(machine, name):
    machine.driver = FakeDriver(H100, cuda=12090)
    machine.versions["NVRTC"] = "13.0"
    assert refused(name, "too old: it supports CUDA up to 12.9, and NVRTC needs CUDA 13.0", "for CUDA 13")


def test_a_driver_of_an_earlier_minor_version_needs_nvjitlink(machine, name):
    machine.driver = FakeDriver(H100, cuda=12040)
    assert backends.get(name).name == "cuda"
    backends._made.clear()
    machine.missing = {"nvJitLink"}
    assert refused(name, "CUDA up to 12.4", "of CUDA 12.9", "nvJitLink is missing", INSTALL)


def test_numba_cuda_that_does_not_work(machine, name, monkeypatch):
    machine.driver = FakeDriver(H100)
    monkeypatch.setattr(probe, "numba_problem", lambda: probe.Problem("numba-cuda does not work", "pip install it"))
    assert refused(name, "numba-cuda does not work. To use a GPU, pip install it;")


def test_cupy_that_cannot_be_imported(machine, name, monkeypatch):
    machine.driver = FakeDriver(H100)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert refused(name, "CuPy cannot be imported (ModuleNotFoundError", "--force-reinstall", '"neurogen-numba[cuda]"')


def test_two_cupys(machine, name, monkeypatch):
    machine.driver = FakeDriver(H100)
    monkeypatch.setattr(probe, "cupy_distributions", lambda: ["cupy-cuda12x", "cupy-cuda13x"])
    assert refused(name, "cupy-cuda12x and cupy-cuda13x overwrite each other", "uninstall cupy-cuda12x cupy-cuda13x", INSTALL)


class CUDARuntimeError(RuntimeError):
    __module__ = "cupy_backends.cuda.api.runtime"


@pytest.mark.parametrize(
    "message, mend",
    [
        ("cudaErrorMemoryAllocation: out of memory", "free memory on it"),
        ("cudaErrorDevicesUnavailable: busy or unavailable", "wait for the process"),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "update the driver, or"),
        ("cudaErrorLaunchFailure: unspecified\nlaunch failure", "check nvidia-smi for errors"),
    ],
)
def test_a_gpu_that_fails_at_once(machine, name, message, mend):
    def fails(*_):
        raise CUDARuntimeError(message)

    machine.driver = FakeDriver(H100)
    machine.backend.CudaBackend = fails
    assert refused(name, f"a test on GPU 0 fails (CUDARuntimeError: {message.splitlines()[0]})", mend)


def test_a_bug_keeps_its_traceback(machine):
    def fails(*_):
        raise ValueError("a bug")

    machine.driver = FakeDriver(H100)
    machine.backend.CudaBackend = fails
    with pytest.raises(ValueError, match="a bug"):
        backends.get("cuda")


# Queries of the machine


def test_look_tells_names_and_capabilities(machine):
    machine.driver = FakeDriver(H100, OLD, cuda=12040)
    found = probe.look()
    assert (found.cuda, found.present, found.problem) == ((12, 4), True, None)
    assert [(gpu.name, gpu.capability) for gpu in found.gpus] == [H100, OLD]


def test_look_imports_nothing_heavy(machine, monkeypatch):
    for module in ("cupy", "numba", "numpy", "rich"):
        monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    machine.driver = FakeDriver(H100)
    assert probe.look().gpus


def test_the_release_of_the_driver(machine):
    assert probe.driver_release() == ""
    probe.VERSION_FILE.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12.2.0\n"
    )
    assert probe.driver_release() == "580.65.06"
    machine.management = FakeManagement()
    assert probe.driver_release() == "550.54.15"
    machine.management = SimpleNamespace(nvmlInit_v2=lambda: 9)
    assert probe.driver_release() == "580.65.06"


@pytest.mark.parametrize(
    "name, version", {"NVVM": "2.0", "NVRTC": "12.9", "nvJitLink": "12.8", "cuBLAS": "12.9.3", "CUDA runtime": "12.6"}.items()
)
def test_versions_of_the_toolkit(monkeypatch, name, version):
    monkeypatch.setattr(probe, "_path_of", lambda library: f"/cuda/{library}")
    monkeypatch.setattr(probe, "load", lambda path: FakeToolkit())
    assert probe.find_piece(name) == probe.Piece(f"/cuda/{probe.PIECES[name][0]}", version)
    monkeypatch.setattr(probe, "load", lambda path: SimpleNamespace())  # too old to tell
    assert probe.find_piece(name).version == ""


@pytest.mark.parametrize("error", [OSError("no such file"), RuntimeError("not found\nanywhere"), ImportError("no cuda.pathfinder")])
def test_a_piece_that_is_not_there(monkeypatch, error):
    def fails(library):
        raise error

    monkeypatch.setattr(probe, "_path_of", fails)
    with pytest.raises(LookupError, match="NVRTC: n"):
        probe.find_piece("NVRTC")


def broken_numba(monkeypatch, error):
    def fails(name):
        raise error

    pytest.importorskip("numba_cuda")
    pytest.importorskip("numba.cuda")  # before imports fail
    monkeypatch.setattr(probe.importlib, "import_module", fails)
    monkeypatch.setattr(probe, "version_of", {"numba-cuda": "0.30.4", "numba": "0.68.1", "numpy": "2.5.5"}.get)
    return probe.numba_problem()


def test_numba_cuda_and_a_numpy_that_it_does_not_know(monkeypatch):
    problem = broken_numba(monkeypatch, AttributeError("module 'numpy' has no attribute 'row_stack'"))
    assert problem.what.startswith("numba-cuda 0.30.4 does not work with Numba 0.68.1 and NumPy 2.5.5 (AttributeError: module 'numpy'")
    assert problem.mend.endswith('install "numpy<2.5"')


def test_numba_cuda_broken_otherwise(monkeypatch):
    problem = broken_numba(monkeypatch, ImportError("no bindings"))
    assert "(ImportError: no bindings)" in problem.what and problem.mend.endswith('install --upgrade numba "numba-cuda[cu12]"')


def test_numba_cuda_of_another_layout(monkeypatch):
    assert broken_numba(monkeypatch, ModuleNotFoundError("none", name="numba.cuda.np")) is None


def test_pip_installs_into_this_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(probe.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(probe.shutil, "which", lambda name: str(tmp_path / "pip"))
    assert probe.pip("--upgrade", "a[b]") == 'pip install --upgrade "a[b]"'
    monkeypatch.setattr(probe.shutil, "which", lambda name: "/elsewhere/pip")
    assert probe.pip("a") == f"{tmp_path}/python -m pip install a"


def test_a_checkout_that_is_not_installed_installs_itself(monkeypatch):
    monkeypatch.setattr(probe, "version_of", lambda name: "")
    assert probe.install_libraries().endswith('install -e ".[cuda]"')


# The flags


def test_the_flags_and_what_they_say():
    parser = Parser("train")
    add_backend_flag(parser)
    args = parser.parse_args([])
    assert (args.backend, args.gpu_device, args.precision) == ("auto", 0, "auto")
    args = parser.parse_args(["--backend", "cuda", "--gpu-device", "1", "--precision", "bf16"])
    assert (args.backend, args.gpu_device, args.precision) == ("cuda", 1, "bf16")
    for flag, value in (("backend", "gpu"), ("precision", "fp8")):
        with pytest.raises(ConfigError, match=f"--{flag}: invalid choice: '{value}'"):
            parser.parse_args([f"--{flag}", value])
    for choices in ("{auto,cuda,cpu}", "{auto,fp32,fp16,bf16}"):
        assert choices in parser.format_help()


def test_the_flags_reach_the_backend(machine):
    machine.driver = FakeDriver(H100, H100)
    parser = Parser("train")
    add_backend_flag(parser)
    made = backend_of(parser.parse_args(["--gpu-device", "1", "--precision", "fp16"]))
    assert made is backends.get("cuda", 1, "fp16")
    assert (made.name, made.device, made.precision) == ("cuda", 1, "fp16")
