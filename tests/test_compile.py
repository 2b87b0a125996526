"""Every CUDA kernel becomes machine code for three generations of cards, on a machine that has none of them."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from compile_kernels import assembler
from compiled import KERNELS, made, shared
from conftest import SIMULATED
from neurogen_numba import kernels
from neurogen_numba.kernels import bundles, codes, eligibility, muon, population, population_eligibility

CAPABILITIES = ("7.5", "8.0", "9.0")  # the oldest that is supported (T4), A100, H100 and H200
IN_DOUBLE = {"reduce.sum_of_squares", "reduce.norm"}  # the norm of a gradient is summed in float64, once per block of numbers
MOST_REGISTERS = 64  # of each of 1,024 threads; a kernel for smaller blocks that wants more says so by its launch bounds
NAMES = {name for name, _, _ in (*shared(), *made(90))}  # of kernels, and of factories of others
FACTORIES = {
    name for name in NAMES if ".make_" in name and not name.startswith("population.")
}  # blocks of at most 256 threads: room for all that one can use

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator has no compiler")


@pytest.fixture(scope="module")
def compiled():
    """Capability -> what was found out about every kernel."""
    if assembler() is None:
        pytest.skip("no ptxas: pip install 'neurogen-numba[dev]' on Linux x86-64 brings it")
    root = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (root.parent, root)))}
    work = ("KERNELS", *CAPABILITIES), ("made", *CAPABILITIES[:1]), ("made", *CAPABILITIES[1:])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, root / "compile_kernels.py", *words], env=environment, **pipes) for words in work]
    found = {capability: {} for capability in CAPABILITIES}
    for words, run, (out, output) in zip(work, runs, [run.communicate() for run in runs], strict=True):
        assert run.returncode == 0, f"{words}: {output}"
        for capability, of_kernels in json.loads(out).items():
            found[capability] |= of_kernels
    return found


def kernels_there_are():
    from numba.cuda.dispatcher import CUDADispatcher

    for module in pkgutil.iter_modules(kernels.__path__):
        for name, thing in vars(importlib.import_module(f"{kernels.__name__}.{module.name}")).items():
            of_here = isinstance(thing, CUDADispatcher) and thing.py_func.__module__ == f"{kernels.__name__}.{module.name}"
            if of_here and not thing.targetoptions.get("device"):
                yield f"{module.name}.{name}"


def test_every_kernel_is_in_the_table():
    known = bundles, codes, eligibility, muon, population, population_eligibility
    modules = {module.__name__.split(".")[-1]: vars(module) for module in known}
    made = {f"{module}.{name}" for module, names in modules.items() for name in names if name.startswith("make_")}
    factories = {name for name in made if not name.endswith("_cpu")}
    assert set(kernels_there_are()) | factories == NAMES
    assert all(KERNELS.values())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_and_fit_into_registers(compiled, capability):
    found = compiled[capability]
    assert {of["kernel"] for of in found.values()} == NAMES
    assert len(found) == len(shared()) + len(made(int(capability.replace(".", ""))))
    assert not {
        name: of for name, of in found.items() if of["stack"] or of["spilled"]
    }  # what does not fit goes to memory, hundreds of times slower


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_block_of_any_size_can_be_launched(compiled, capability):
    def bounded(name):
        module, function = name.split(".")
        return getattr(importlib.import_module(f"{kernels.__name__}.{module}"), function).targetoptions.get("launch_bounds")

    large = {of["kernel"] for of in compiled[capability].values() if of["registers"] > MOST_REGISTERS} - FACTORIES
    assert not {name for name in large if not bounded(name)}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compute_in_single_precision(compiled, capability):
    in_double = {of["kernel"]: of["doubles"] for of in compiled[capability].values() if of["doubles"]}
    assert set(in_double) <= IN_DOUBLE, in_double
    assert set(in_double) == IN_DOUBLE  # or the search does not find them


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_everything_a_kernel_calls_is_part_of_it(compiled, capability):
    assert not {name: of["calls"] for name, of in compiled[capability].items() if of["calls"]}
