"""`python tests/compile_kernels.py 9.0` compiles every kernel in compiled.py for cards of that compute capability; none has to be there.

Prints a JSON object: for each kernel and signature its registers, the bytes of its stack frame and those spilled, its instructions in
double precision, and its calls. A process compiles for one capability only, because device functions are compiled once.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

from compiled import KERNELS, made

ARITHMETIC = re.compile(r"^\s+(?:@%p\d+ )?((?!ld|st|mov)\S*\.f64\S*) ", re.MULTILINE)  # all but moving numbers about


def assembler() -> Path | None:
    """NVIDIA's ptxas, as its wheel for CUDA 12 brings it."""
    try:
        files = metadata.files("nvidia-cuda-nvcc-cu12") or ()
    except metadata.PackageNotFoundError:
        return None
    return next((path for file in files if file.name in ("ptxas", "ptxas.exe") and (path := Path(file.locate())).exists()), None)


def kernels(capability: tuple[int, int]):
    """(label, name in the table, kernel, signature) of every kernel, those that factories make for such a card included."""

    def named(name):
        module, function = name.split(".")
        return getattr(importlib.import_module(f"neurogen_numba.kernels.{module}"), function)

    for name, signatures in KERNELS.items():
        for signature in signatures:
            yield name, name, named(name), signature
    for name, arguments, signature in made(10 * capability[0] + capability[1]):
        yield f"{name}{arguments}", name, named(name)(*arguments), signature


def compile_all(capability: tuple[int, int]) -> dict[str, dict]:
    from numba import cuda
    from numba.cuda import dispatcher

    # Nothing else of a device is asked for.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    ptxas, found = assembler(), {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        for label, name, kernel, signature in kernels(capability):
            options = kernel.targetoptions
            bounds = options.get("launch_bounds")
            ptx, _ = cuda.compile(kernel.py_func, signature, device=False, abi="numba", cc=capability, launch_bounds=bounds)
            text.write_text(ptx)
            command = [ptxas, "-v", f"-arch=sm_{capability[0]}{capability[1]}", text, "-o", Path(folder) / "kernel.cubin"]
            if options.get("max_registers"):
                command.append(f"-maxrregcount={options['max_registers']}")
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{label}: {done.stdout}{done.stderr}")
            found[f"{label}({', '.join(map(str, signature))})"] = {"kernel": name, **_read(done.stderr), **_look(ptx)}
    return found


def _read(said: str) -> dict:
    """What ptxas says of a kernel."""
    registers, stack, *spilled = (
        int(number)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
        for number in [max(re.findall(pattern, said), key=int)]
    )
    return {"registers": registers, "stack": stack, "spilled": sum(spilled)}


def _look(ptx: str) -> dict:
    return {"doubles": ARITHMETIC.findall(ptx), "calls": re.findall(r"^\s+(?:@%p\d+ )?call\S*", ptx, re.MULTILINE)}


if __name__ == "__main__":
    json.dump(compile_all(tuple(int(part) for part in sys.argv[1].split("."))), sys.stdout)
