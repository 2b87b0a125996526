"""Loops from the disk cache, compiled by several processes: each runs its own code and gives the bits that it gave when compiled."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from neurogen_numba.kernels.jit import cpu, register_jitable

ROOT = Path(__file__).resolve().parent.parent

LOOPS = """
import sys

import numpy as np

from neurogen_numba.kernels import memory
from neurogen_numba.kernels.jit import cpu_serial, cpu_serial_sum, register_jitable
from neurogen_numba.kernels.tape import Tape


def make(number):
    @register_jitable
    def constant(x):
        for round in range(3):  # long enough to be called, instead of inlined
            total = np.float32(0)
            for i in range(x.size):
                total += x[i] * x[i - 1]
                if total > 100:
                    total -= np.sqrt(total)
            x[round] = total
        return number

    @cpu_serial()
    def fill(out, x):
        out[0], out[1] = constant(x), constant(x)

    return fill


@cpu_serial_sum()
def rows(x):
    memory.pass_over_with_dots(x, 0, 32, 32, np.float32(0.9), 32, 33, 34, 35, 36, 37)
    memory.pass_over_with_dots(x, 0, x.size // 38, 32, np.float32(0.9), 33, 33, 34, 35, 36, 37)  # called twice, it is not inlined


def filled(number):
    '''What the loop writes when Python calls it, and in a replay.'''
    out, tape = np.zeros(2, np.float32), Tape()
    tape.call(loops[number], (out, np.zeros(8, np.float32)))
    first = out.tolist()
    out[:] = 0
    tape.close().run()
    return [*first, *out.tolist()]


loops = {number: make(number) for number in map(int, sys.argv[1:])}
for number in loops:
    filled(number)
print([filled(number) for number in loops])
block = np.random.default_rng(0).standard_normal(38 * 32).astype(np.float32)
rows(block)
print(block.tobytes().hex())
print(sum(sum(loop.stats.cache_misses.values()) for loop in (rows, *loops.values())))
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """(loops, bits, number of kernels compiled) of a process that uses loop 1, another with loop 2, and a third with both."""
    folder = tmp_path_factory.mktemp("loops")
    (folder / "loops.py").write_text(LOOPS)
    # Numba's names contain a set of options, whose order depends on the seed of hashes.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONHASHSEED": "0"}

    def run(*numbers):
        words = [sys.executable, str(folder / "loops.py"), *numbers]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    return run("1"), run("2"), run("1", "2")


def test_a_loop_gives_the_same_bits_compiled_and_loaded(processes):
    (_, compiled, misses), (_, loaded, _), _ = processes
    assert misses == "2" and compiled == loaded


def test_loops_of_one_factory_that_two_processes_compiled_stay_apart(processes):
    one, two, both = processes
    assert one[0] == str([[1.0] * 4]) and two[0] == str([[2.0] * 4])
    assert both[2] == "0" and both[0] == str([[1.0] * 4, [2.0] * 4])


def test_only_entry_points_are_visible_to_other_machine_code(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))  # what comes from the disk has no functions to list

    @register_jitable
    def called(x):
        if x[0] > 100:
            raise ValueError  # an exception needs helper functions of Numba
        return np.sqrt(x[0])

    @cpu()
    def loop(out, x):
        for i in numba.prange(out.size):
            out[i] = called(x)

    loop.serial.compile((numba.float32[::1], numba.float32[::1]))
    loop.compile((numba.float32[::1], numba.float32[::1]))
    for kernel in (loop, loop.serial):
        (overload,) = kernel.overloads.values()
        name = overload.fndesc.mangled_name
        visible = {function.name for function in overload.library.get_defined_functions() if function.linkage.name != "internal"}
        assert visible == {name, overload.fndesc.llvm_cpython_wrapper_name, overload.fndesc.llvm_cfunc_wrapper_name}
