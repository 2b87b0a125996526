"""`python tests/compile_kernels.py KERNELS 7.5 8.0 9.0` compiles the kernels in compiled.py that every card runs for the first of these
compute capabilities, and assembles them for all: newer cards take the PTX of older ones. With `made` in place of KERNELS it does so with
what factories make for cards of the first one. None of the cards has to be there.

Prints a JSON object: for each capability, kernel and signature its registers, the bytes of its stack frame and those spilled, its
instructions in double precision, and its calls. A process compiles for one capability only, because device functions are compiled once.
"""

import gc
import importlib
import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from compiled import made, shared

ARITHMETIC = re.compile(r"^\s+(?:@%p\d+ )?((?!ld|st|mov)\S*\.f64\S*) ", re.MULTILINE)  # all but moving numbers about


def assembler() -> Path | None:
    """NVIDIA's ptxas, as its wheel for CUDA 12 brings it."""
    try:
        files = metadata.files("nvidia-cuda-nvcc-cu12") or ()
    except metadata.PackageNotFoundError:
        return None
    return next((path for file in files if file.name in ("ptxas", "ptxas.exe") and (path := Path(file.locate())).exists()), None)


def named(name):
    module, function = name.split(".")
    return getattr(importlib.import_module(f"neurogen_numba.kernels.{module}"), function)


def compile_all(which: str, capabilities: list[str]) -> dict[str, dict[str, dict]]:
    from numba import cuda
    from numba.cuda import dispatcher

    gc.disable()  # a process of a minute whose garbage is an eighth of its time
    of_card = tuple(int(part) for part in capabilities[0].split("."))
    # Nothing else of a device is asked for.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=of_card)
    found = {each: {} for each in capabilities}
    for name, arguments, signature in shared() if which == "KERNELS" else made(10 * of_card[0] + of_card[1]):
        kernel, label = named(name)(*arguments) if arguments else named(name), f"{name}{arguments or ''}"
        bounds = kernel.targetoptions.get("launch_bounds")
        ptx, _ = cuda.compile(kernel.py_func, signature, device=False, abi="numba", cc=of_card, launch_bounds=bounds)
        for each in capabilities:
            output = assemble(label, ptx, each, kernel.targetoptions.get("max_registers"))
            found[each][f"{label}({', '.join(map(str, signature))})"] = {"kernel": name, **_read(output), **_look(ptx)}
    return found


def assemble(label: str, ptx: str, capability: str, registers: int | None) -> str:
    """The report of ptxas on a kernel for a card."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(ptx)
        command = [assembler(), "-v", f"-arch=sm_{capability.replace('.', '')}", text, "-o", Path(folder) / "kernel.cubin"]
        done = subprocess.run(command + [f"-maxrregcount={registers}"] * bool(registers), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{label}: {done.stdout}{done.stderr}")
    return done.stderr


def _read(output: str) -> dict:
    """The report of ptxas on a kernel, parsed."""
    registers, stack, *spilled = (
        int(number)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
        for number in [max(re.findall(pattern, output), key=int)]
    )
    return {"registers": registers, "stack": stack, "spilled": sum(spilled)}


def _look(ptx: str) -> dict:
    return {"doubles": ARITHMETIC.findall(ptx), "calls": re.findall(r"^\s+(?:@%p\d+ )?call\S*", ptx, re.MULTILINE)}


if __name__ == "__main__":
    json.dump(compile_all(sys.argv[1], sys.argv[2:]), sys.stdout)
