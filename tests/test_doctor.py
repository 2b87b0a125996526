"""`neurogen doctor`: every check where all is well, where there is no GPU, and where something is missing."""

import contextlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fakegpu
from fakegpu import GB, H100, OLD, FakeDriver, FakeManagement
from neurogen_numba import doctor
from neurogen_numba.backends import probe
from neurogen_numba.doctor import CHECKS, Check, examine, verdict
from neurogen_numba.doctor import main as run

MULTIPLIES = doctor._multiplies  # before a test puts another in its place


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return fakegpu.stand_in(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def prepared(machine, monkeypatch, tmp_path):
    """A folder to run in, libraries that are all there, and tries that succeed."""
    monkeypatch.chdir(tmp_path)
    versions = {"numba-cuda": "0.30.4", "cupy-cuda12x": "14.2.0", "neurogen-numba": "0.1.0", "mpi4py": "4.1.2"}
    monkeypatch.setattr(probe, "version_of", lambda name: "" if name in machine.missing else versions[name])
    monkeypatch.setattr(probe, "cupy_distributions", lambda: [] if "CuPy" in machine.missing else ["cupy-cuda12x"])
    headers = SimpleNamespace(locate_nvidia_header_directory=lambda name: SimpleNamespace(abs_path="/cuda/include"))
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(pathfinder=headers))
    monkeypatch.setattr(doctor, "_doubles", lambda device: True)
    monkeypatch.setattr(doctor, "_multiplies", lambda device: True)
    monkeypatch.setattr(doctor.launch, "trial", lambda: "")
    monkeypatch.setattr("neurogen_numba.distributed.nccl.check", lambda: SimpleNamespace(get_version=lambda: 22304))
    machine.management = FakeManagement()


def checks(device=0, out="runs"):
    return {check.name: check for check in examine(doctor.Machine(probe.look(), device, Path(out)))}


def fails(found, name, *words):
    """This check fails, with these words in what it says or in how to mend it."""
    check = found[name]
    assert check.ok is False and check.mend, check
    for word in words:
        assert word in f"{check.value} {check.mend}", check
    return True


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def test_all_is_well(machine):
    machine.driver = FakeDriver(H100, H100)
    found = checks()
    assert {name: check.ok for name, check in found.items()} == dict.fromkeys(CHECKS, True)
    assert not any(check.mend for check in found.values())
    assert found["driver"].value == "550.54.15, runs CUDA up to 12.8"
    assert found["GPU"].value == "; ".join(f"{n}: NVIDIA H100 80GB HBM3, compute capability 9.0" for n in (0, 1))
    assert found["GPU memory"].value == "70.00 GB free of 85.00 GB"
    assert found["NVRTC"].value == "12.9, /cuda/libNVRTC.so"
    assert found["CuPy"].value == "14.2.0 (cupy-cuda12x)"
    assert found["backend"].value == "auto chooses cuda, on GPU 0"
    assert verdict(list(found.values()))


def test_a_machine_without_gpu_is_fine(machine):
    machine.missing = {"numba-cuda", "CuPy", *probe.PIECES}
    found = checks()
    assert not [check for check in found.values() if check.ok is False]
    assert found["driver"].value.startswith("there is no NVIDIA driver")
    assert found["cuBLAS"].value == "not installed, and not needed without a GPU"
    assert found["backend"].value == "auto chooses cpu: there is no GPU to use, and none is needed"
    assert run([]) == 0


def test_the_simulator(machine, monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    machine.driver = FakeDriver(H100)
    found = checks()
    assert found["kernel"].ok is found["cuBLAS product"].ok is None
    assert found["backend"] == Check(True, "auto chooses cpu: NUMBA_ENABLE_CUDASIM is set", name="backend")


@pytest.mark.parametrize("missing", [*probe.PIECES, "numba-cuda", "CuPy"])
def test_a_library_that_is_missing(machine, missing):
    machine.driver = FakeDriver(H100, cuda=12090)
    machine.missing = {missing}
    found = checks()
    assert fails(found, missing, "missing", '"neurogen-numba[cuda]"')
    needed = missing not in ("nvJitLink", "CUDA runtime")
    assert [name for name, check in found.items() if check.ok is False] == [missing] + ["backend"] * needed
    assert verdict(list(found.values())) is not needed


def test_headers_that_are_missing(machine, monkeypatch):
    machine.driver = FakeDriver(H100)
    monkeypatch.setattr(sys.modules["cuda"].pathfinder, "locate_nvidia_header_directory", lambda name: None)
    assert fails(checks(), "CUDA headers", "missing")
    monkeypatch.setitem(sys.modules, "cuda", None)
    assert fails(checks(), "CUDA headers", "missing")


@pytest.mark.parametrize(
    "missing, untried, tried",
    [(["numba-cuda", "NVVM"], "kernel", "cuBLAS product"), (["CuPy", "cuBLAS"], "cuBLAS product", "kernel")],
)
def test_what_cannot_work_is_not_tried(machine, missing, untried, tried):
    machine.driver = FakeDriver(H100)
    machine.missing = set(missing)
    found = checks()
    assert found[untried] == Check(None, f"not tried: without {' and '.join(missing)}", name=untried)
    assert found[tried].ok


def test_a_gpu_out_of_reach(machine):
    machine.missing = {"cuBLAS"}
    machine.trace.touch()
    found = checks()
    assert fails(found, "driver", "shows an NVIDIA GPU") and fails(found, "cuBLAS", "missing")
    assert fails(found, "backend", "shows an NVIDIA GPU", "--backend cpu")
    assert found["GPU"].value == "none within reach" and found["kernel"].ok is None
    assert run([]) == 2


def test_an_old_driver(machine):
    machine.driver = FakeDriver(H100, cuda=11040)
    assert fails(checks(), "driver", "too old", "CUDA 12")


def test_an_old_gpu(machine):
    machine.driver = FakeDriver(OLD)
    assert fails(checks(), "GPU", "unsupported compute capability 6.1")


def test_no_such_gpu(machine):
    machine.driver = FakeDriver(H100)
    found = checks(device=1)
    assert fails(found, "GPU", "there is no GPU 1") and fails(found, "backend")
    assert found["GPU memory"].ok is found["kernel"].ok is None
    assert run(["--gpu-device", "1"]) == 2 and run(["--gpu-device", "0"]) == 0


def test_memory_that_cannot_be_asked(machine, monkeypatch):
    machine.driver = FakeDriver(H100)
    monkeypatch.setattr(machine.cupy.cuda, "Device", raising(RuntimeError("cudaErrorMemoryAllocation: out of memory")))
    assert fails(checks(), "GPU memory", "out of memory", "free memory")


def test_numba_cuda_and_cupy_that_do_not_work(machine, monkeypatch):
    problem = probe.Problem("is broken", "repair it")
    monkeypatch.setattr(probe, "numba_problem", lambda: problem)
    monkeypatch.setattr(probe, "cupy_problem", lambda: problem)
    found = checks()
    assert found["numba-cuda"].ok is found["CuPy"].ok is None  # not needed
    machine.driver = FakeDriver(H100)
    found = checks()
    assert fails(found, "numba-cuda", "is broken", "repair it") and fails(found, "CuPy", "is broken") and fails(found, "backend")


@pytest.mark.parametrize("name, works", [("kernel", "_doubles"), ("cuBLAS product", "_multiplies")])
def test_a_try_that_goes_wrong(machine, monkeypatch, name, works):
    machine.driver = FakeDriver(H100)
    monkeypatch.setattr(doctor, works, lambda device: False)
    found = checks()
    assert fails(found, name, "gives a wrong answer", "nvidia-smi") and found["backend"].ok
    assert not verdict(list(found.values()))
    monkeypatch.setattr(doctor, works, raising(RuntimeError("[222] CUDA_ERROR_UNSUPPORTED_PTX_VERSION\nin ptxas")))
    assert fails(checks(), name, "UNSUPPORTED_PTX_VERSION", "update the driver")
    assert run([]) == 2


def test_a_numba_that_refuses_its_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    found = checks()
    assert fails(found, "Numba", "install --upgrade numba")


def test_host_memory(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self: "MemTotal:   2000000 kB\nMemAvailable:  1000000 kB\n")
    assert checks()["memory"].value == "1.02 GB free of 2.05 GB"
    monkeypatch.setattr(Path, "read_text", raising(FileNotFoundError()))
    assert checks()["memory"].ok is None


def test_disk(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=5 * GB))
    assert checks(out="not/there/yet")["disk"].value == f"5.00 GB free for {Path('not/there/yet')}"
    assert asked == [tmp_path]
    monkeypatch.setattr(doctor.os, "access", lambda folder, mode: False)
    assert fails(checks(), "disk", "may not be written to", "--out")
    monkeypatch.undo()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=GB // 2))
    assert fails(checks(), "disk", "500.00 MB", "make room")
    (tmp_path / "itself").symlink_to("itself")
    assert fails(checks(out=str(tmp_path / "itself")), "disk", "itself is a link to itself", "--out")


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_breaks_stops_no_other(monkeypatch, name):
    monkeypatch.setitem(CHECKS, name, raising(ZeroDivisionError("in a library\nof others")))
    found = checks()
    assert list(found) == list(CHECKS)
    assert fails(found, name, "ZeroDivisionError: in a library") and "others" not in found[name].value


# The command


def test_lines_without_a_terminal(machine, capsys):
    machine.driver = FakeDriver(H100)
    machine.missing = {"cuBLAS"}
    assert run([]) == 2
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[: len(CHECKS)] == [line for line in lines if line.startswith(("ok ", "fails ", "- "))]
    assert "fails  cuBLAS           missing" in lines
    assert [line.split(":")[0] for line in lines[len(CHECKS) + 1 :]] == ["To fix cuBLAS", "To fix backend"]
    assert lines[-2].endswith('pip install "neurogen-numba[cuda]"')
    assert "\x1b" not in shown.out and not shown.err


def test_nothing_to_mend_is_not_mentioned(capsys):
    assert run([]) == 0
    assert "mend" not in capsys.readouterr().out


def test_a_table_in_a_terminal(machine, monkeypatch, capsys):
    monkeypatch.setattr("neurogen_numba.ui.can_draw", lambda: True)
    machine.driver = FakeDriver(("A [bold]GPU[/bold]\x1b[2J", (9, 0)))
    machine.missing = {"NVVM"}
    assert run([]) == 2
    shown = capsys.readouterr().out
    assert "A [bold]GPU[/bold]\ufffd[2J" in " ".join(shown.split()) and "To fix NVVM: " in shown


def test_json(machine, capsys):
    machine.driver = FakeDriver(H100)
    machine.missing = {"NVVM"}
    assert run(["--json"]) == 2
    output = json.loads(capsys.readouterr().out)
    assert output["ok"] is False and [check["name"] for check in output["checks"]] == list(CHECKS)
    (nvvm,) = (check for check in output["checks"] if check["name"] == "NVVM")
    assert set(nvvm) == {"name", "ok", "value", "mend"}
    assert (nvvm["ok"], nvvm["value"]) == (False, "missing") and nvvm["mend"].endswith('install "neurogen-numba[cuda]"')


def test_json_beside_the_lines(tmp_path, capsys):
    assert run(["--json", str(tmp_path / "doctor.json")]) == 0
    assert json.loads((tmp_path / "doctor.json").read_text())["ok"] is True
    assert "Python" in capsys.readouterr().out.splitlines()[0]


def test_the_documentation_explains_every_line():
    text = (Path(__file__).resolve().parent.parent / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert [name for row in rows for name in re.findall("`(.*?)`", row)] == list(CHECKS)


@pytest.mark.parametrize("wrong", [0, 1])
def test_the_product_that_is_tried_is_that_of_training(monkeypatch, wrong):
    class Product:
        def __init__(self, room):
            room(1)

        def product(self, stream, out, a, b, add, scale):
            assert stream == "current" and not add
            out[...] = scale * (a @ b) + wrong

    monkeypatch.setattr("neurogen_numba.backends.cublas.Cublas", Product)
    cuda = SimpleNamespace(Device=lambda device: contextlib.nullcontext(), get_current_stream=lambda: "current")
    arrays = SimpleNamespace(asarray=np.asarray, asnumpy=np.asarray, empty=np.empty, cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", arrays)
    assert MULTIPLIES(0) is not bool(wrong)


# For real, where there is a GPU


@pytest.fixture
def real(monkeypatch):
    monkeypatch.undo()
    if probe.simulated():
        pytest.skip("needs a GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("works", [doctor._doubles, doctor._multiplies])
def test_what_is_tried(real, works):
    assert works(0)


@pytest.mark.gpu
def test_the_driver_is_understood(real):
    import cupy

    found, runtime = probe.look(), cupy.cuda.runtime
    facts = runtime.getDeviceProperties(0)
    assert len(found.gpus) == runtime.getDeviceCount()
    assert found.gpus[0] == probe.Gpu(facts["name"].decode(), (facts["major"], facts["minor"]))
    assert found.cuda == probe._release(runtime.driverGetVersion())
    assert probe.problem(found, 0) is None
