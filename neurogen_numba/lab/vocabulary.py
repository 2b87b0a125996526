"""The names of the kernels that can be swapped and compared, the arguments of each, and how a kernel of your own is called."""

from __future__ import annotations

import inspect

import numba

from .. import backends
from ..backends.base import Backend
from ..config import did_you_mean
from ..errors import ConfigError
from ..kernels.launch import SIMULATED, THREADS, blocks

# Synapses in bundles of one projection. On every backend, x and d are plain values, whatever the layout in which the backend keeps them.
BUNDLES = {
    "bundles_forward": (
        ("current", "x", "block", "delay", "weight"),
        "Accumulates into current [C, B, N]: x [H + C, B, M] @ weight [tiles J, BS, BT], delay [tiles, J] tokens late; row H + t of x is "
        "token t, block [tiles, J] says which BS sources a bundle reads.",
    ),
    "bundles_backward": (
        ("source_grad", "d", "block", "delay", "weight"),
        "Accumulates into source_grad [C, B, M] from d [C + H, B, N], the gradient of the current: what token t sent arrived at t + delay.",
    ),
    "bundles_weight_grad": (
        ("weight_grad", "x", "d", "block", "delay"),
        "Accumulates into weight_grad [tiles J, BS, BT] from x [H + T, B, M] and d [T, B, N] of all tokens of a segment.",
    ),
}
OPERATIONS = tuple(name for name, method in vars(Backend).items() if hasattr(method, "is_kernel") and name != "product")


def kernels() -> Listing:
    """Every kernel by name, with its arguments and what it computes. Outputs come first."""
    return Listing({name: (arguments(name), _what(name)) for name in (*BUNDLES, *OPERATIONS)})


class Listing(dict):
    """name -> (arguments, what it computes)."""

    def __repr__(self):
        from rich.markup import escape
        from rich.table import Table

        table = Table("kernel", "arguments", "what it computes", show_lines=True)
        for name, (names, what) in self.items():
            table.add_row(name, ", ".join(names), escape(what))
        return drawn(table)


def drawn(table, width: int = 120) -> str:
    """A Rich table as text."""
    from rich.console import Console

    console = Console(width=width, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def arguments(name: str) -> tuple[str, ...]:
    """The names of a kernel's arguments. Raises ConfigError, which names the nearest kernel, if there is none of this name."""
    if name in BUNDLES:
        return BUNDLES[name][0]
    if name not in OPERATIONS:
        raise ConfigError(f"no kernel is called {name!r}; {did_you_mean(str(name), (*BUNDLES, *OPERATIONS))}; lab.kernels() lists them")
    return tuple(inspect.signature(getattr(Backend, name)).parameters)[1:]


def _what(name):
    if name in BUNDLES:
        return BUNDLES[name][1]
    return inspect.getdoc(getattr(Backend, name)).split("\n\n")[0].replace("\n", " ")


def bound(name: str, given: tuple, how: dict) -> tuple:
    """The arguments of a call of an operation in order, defaults included."""
    call = inspect.signature(getattr(Backend, name)).bind(None, *given, **how)
    call.apply_defaults()
    return call.args[1:]


def function_of(kernel):
    """The Python function of a kernel."""
    dispatcher = getattr(kernel, "dispatcher", kernel)  # of kernel[grid, threads]
    return getattr(dispatcher, "py_func", None) or getattr(dispatcher, "fn", None) or kernel


def check_kernel(name: str, kernel):
    """Raise ConfigError unless a kernel takes the arguments of ours."""
    names, function = arguments(name), function_of(kernel)
    if not callable(function):
        raise ConfigError(f"{name}: a kernel must be a function, not {function!r}")
    try:
        signature = inspect.signature(function)
        signature.bind(*names)
    except TypeError:
        raise ConfigError(f"{_name(function)}{signature} does not take the arguments of {name}: {', '.join(names)}") from None


def _name(function):
    return getattr(function, "__name__", type(function).__name__)


def target(kernel) -> str | None:
    """The backend that a kernel is compiled for: "cpu" or "cuda"; None for a function of Python, which any backend can call."""
    if "cuda" in type(kernel).__module__:
        return "cuda"
    return "cpu" if isinstance(kernel, numba.core.dispatcher.Dispatcher) else None


_calling = []  # the backends that are calling kernels of a user, the latest last


def call(backend, kernel, given: tuple):
    """Call a user's kernel with arrays of a backend. A CUDA kernel without a grid gets a thread for each entry of its first argument."""
    if backend.name == "cuda":
        given = tuple(_bits(backend, x) for x in given)
    _calling.append(backend)
    try:
        if target(kernel) != "cuda":
            kernel(*given)
        elif hasattr(kernel, "griddim"):
            backend.launch(kernel.dispatcher, kernel.griddim, kernel.blockdim, *given, shared=kernel.sharedmem)
        elif getattr(kernel, "grid_dim", None):  # of the simulator
            backend.launch(kernel, kernel.grid_dim, kernel.block_dim, *given)
        else:
            threads = 8 if SIMULATED else THREADS
            launch(kernel, blocks(given[0].size, threads), threads, *given)
    finally:
        _calling.pop()


def _bits(backend, value):
    """An argument with bfloat16, which Numba does not know, as its bits."""
    if isinstance(value, tuple):
        values = (_bits(backend, entry) for entry in value)
        return type(value)(*values) if hasattr(value, "_fields") else tuple(values)
    return backend.bits(value) if hasattr(value, "dtype") and hasattr(value, "view") else value


def launch(kernel, grid, threads, *given, shared: int = 0):
    """Launch a CUDA kernel from a function of your own that stands for a kernel of ours.

    grid: blocks, a number or a tuple of up to three; threads: of a block; shared: bytes of dynamic shared memory. The launch is queued
    where the model queues its own.
    """
    backend = _calling[-1] if _calling else backends.get("cuda")
    backend.launch(kernel, grid, threads, *given, shared=shared)
    if SIMULATED:
        kernel.grid_dim = None  # which the simulator remembers as if the kernel came with it
