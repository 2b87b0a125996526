"""`python tests/compile_kernels.py 7.5 8.0 9.0` compiles the kernels in compiled.py for cards of the first of these compute capabilities;
none has to be there. The kernels that every card runs are assembled for the others, too: newer cards take the PTX of older ones.

Prints a JSON object: for each capability, kernel and signature its registers, the bytes of its stack frame and those spilled, its
instructions in double precision, and its calls. A process compiles for one capability only, because device functions are compiled once.
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


def named(name):
    module, function = name.split(".")
    return getattr(importlib.import_module(f"neurogen_numba.kernels.{module}"), function)


def compile_all(capability: str, others: list[str]) -> dict[str, dict[str, dict]]:
    from numba import cuda
    from numba.cuda import dispatcher

    of_card = tuple(int(part) for part in capability.split("."))
    # Nothing else of a device is asked for.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=of_card)
    found = {each: {} for each in (capability, *others)}

    def note(label, name, kernel, signature, capabilities):
        bounds = kernel.targetoptions.get("launch_bounds")
        ptx, _ = cuda.compile(kernel.py_func, signature, device=False, abi="numba", cc=of_card, launch_bounds=bounds)
        for each in capabilities:
            said = assemble(label, ptx, each, kernel.targetoptions.get("max_registers"))
            found[each][f"{label}({', '.join(map(str, signature))})"] = {"kernel": name, **_read(said), **_look(ptx)}

    for kernel, signatures in KERNELS.items() if others else ():
        name, *arguments = [kernel] if isinstance(kernel, str) else kernel
        for signature in signatures:
            made_kernel = named(name)(*arguments) if arguments else named(name)
            note(f"{name}{tuple(arguments)}" if arguments else name, name, made_kernel, signature, found)
    for name, arguments, signature in made(10 * of_card[0] + of_card[1]):
        note(f"{name}{arguments}", name, named(name)(*arguments), signature, [capability])
    return found


def assemble(label: str, ptx: str, capability: str, registers: int | None) -> str:
    """What ptxas says of a kernel for a card."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(ptx)
        command = [assembler(), "-v", f"-arch=sm_{capability.replace('.', '')}", text, "-o", Path(folder) / "kernel.cubin"]
        done = subprocess.run(command + [f"-maxrregcount={registers}"] * bool(registers), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{label}: {done.stdout}{done.stderr}")
    return done.stderr


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
    json.dump(compile_all(sys.argv[1], sys.argv[2:]), sys.stdout)
