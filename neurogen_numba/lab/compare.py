"""Comparison of a user's kernel with ours: errors, times, and the fraction of the memory bandwidth of each."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..benchmarks.speed import make_copy, times_in_turn
from ..config import did_you_mean
from ..errors import ConfigError
from ..planning.costs import Call, cost
from .bundles import Made, Wiring, write_source
from .cases import CASES, NO_AXON, Case
from .checks import indices_checked, with_checks
from .given import checked_inputs
from .operations import chosen
from .swap import active
from .vocabulary import BUNDLES, OPERATIONS, call, check_kernel, drawn, function_of, target

if TYPE_CHECKING:
    from matplotlib.figure import Figure


RUNS = 3  # of each kernel on equal inputs


@dataclass(frozen=True, repr=False)
class Comparison:
    """A kernel beside ours. Each pair is (yours, ours).

    errors: largest error of any output, as a share of the largest number that the float64 reference has in it; worst: where your kernel has
    it, in words; same_bits: whether every run on equal inputs had the same result; microseconds: the fastest call; bytes: of all arrays
    that are read or written, each once; registers: of a thread on a GPU, else None.
    """

    name: str
    kernel: str
    device: str
    sizes: dict
    tolerance: float
    errors: tuple[float, float]
    worst: str
    same_bits: tuple[bool, bool]
    microseconds: tuple[float, float]
    bytes: int
    copy_bandwidth: float  # bytes that a copy of as many reads and writes in a second
    registers: tuple[int, int] | None

    @property
    def right(self) -> bool:
        """Whether your kernel is right to the tolerance."""
        return self.errors[0] <= self.tolerance

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of the bandwidth of a copy of as many bytes, which NumPy makes on one core."""
        return tuple(self.bytes / (us * 1e-6) / self.copy_bandwidth for us in self.microseconds)

    def __repr__(self):
        from rich.table import Column, Table

        sizes = ", ".join(f"{name} {value:,}" for name, value in self.sizes.items())
        columns = (Column(head, justify="right") for head in (self.kernel, "ours"))
        table = Table("", *columns, title=f"{self.name} on {self.device}", caption=sizes)
        table.add_row("right", *("yes" if error <= self.tolerance else "no" for error in self.errors))
        table.add_row("largest error", *(f"{error:.1e}" for error in self.errors))
        table.add_row("same bits in every run", *("yes" if same else "no" for same in self.same_bits))
        table.add_row("microseconds", *(f"{us:,.1f}" for us in self.microseconds))
        table.add_row("bytes moved", *[f"{self.bytes:,}"] * 2)
        table.add_row("share of copy bandwidth", *(f"{100 * share:.1f} %" for share in self.shares))
        if self.registers:
            table.add_row("registers of a thread", *map(str, self.registers))
        race = "" if self.same_bits[0] else f"\nruns of {self.kernel} on equal inputs differ: do two threads write to the same entry?"
        return drawn(table) + ("" if self.right else f"\nworst in {self.worst}") + race

    def plot(self, axes=None) -> Figure:
        """A figure: the times, and how long a copy of as many bytes takes. axes: of Matplotlib, to draw on; else it makes its own."""
        if axes is None:
            from ..ui.figures import styled

            return styled(_page)(self)
        _draw(axes, self)
        return axes.get_figure()


def _page(found):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2), layout="constrained")
    _draw(figure.subplots(), found)
    return figure


def _draw(axes, found):
    copy = found.bytes / found.copy_bandwidth * 1e6
    labels = (found.kernel + ("" if found.right else " (wrong)"), "ours", "copy of as many bytes")
    bars = axes.barh(labels, (*found.microseconds, copy), color=("tab:orange", "tab:blue", "lightgrey"))
    axes.bar_label(bars, fmt="{:,.1f}", padding=3)
    axes.set(xlabel="microseconds (less is better)", title=f"{found.name}, {found.device}", xmargin=0.15)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def compare(kernel, name: str, *, given=None, reference=None, backend="auto", tolerance=1e-4, repeats=10, seed=0, **sizes) -> Comparison:
    """Check a user's kernel against the float64 reference of our kernel `name`, and measure both.

    kernel: as `swap` takes it. On the CPU a compiled loop first runs with checks of its indices: an error there is said, and not a
    segmentation fault. A negative index counts from the end, as in NumPy. sizes: of the made-up inputs, for example `tokens=64`.

    given: inputs of your own, name -> array or number of every argument of the kernel, outputs included (`lab.kernels()`); they hold what
    they should before the call. Lists and other dtypes are converted. `axon` and `first` may be left out. reference: a function (**given)
    that returns name -> what an output must hold afterwards, for at least one output. Each may be left out where ours is there.

    backend: "auto" is the one that the kernel was compiled for; else a name or a backend. By name, a GPU multiplies float32.

    Raises ConfigError for an unknown name, a kernel that is swapped, one that does not take our arguments, an unknown size, inputs that do
    not fit, a reference that returns something else, and indices beyond an array. Warns of a `kernel[grid, threads]` with fewer threads
    than its first argument has entries.
    """
    if not isinstance(name, str):
        raise ConfigError("compare: the kernel comes first, then the name of ours, for example compare(mine, 'bundles_forward')")
    if name in active:
        raise ConfigError(f"compare: {name} is swapped here, so ours does not run; compare outside of the context")
    check_kernel(name, kernel)
    backend = _backend(backend, kernel)
    case = _case(name, given, reference)
    sizes, label = case.sizes | _checked_sizes(name, case, sizes), getattr(function_of(kernel), "__name__", "yours")
    errors, worst, same = [0.0, 0.0], (0.0, "no output"), [True, True]
    for which, some in {"small": case.small, "large": sizes}.items():
        inputs = case.make(np.random.default_rng(seed), **some)
        expected = _expected(name, case.reference, inputs)
        if target(kernel) == "cpu":
            with indices_checked(name, label, inputs):
                _run_checked(kernel, lambda inputs=inputs: _on_device(backend, inputs).values(), some is case.small and given is None)
        changed = set()
        for i, prepare in enumerate((partial(_yours, kernel), _ours)):
            runs = []
            for _ in range(RUNS):
                work, read = prepare(backend, name, inputs)
                with indices_checked(name, label, inputs):
                    work()
                runs.append({output: read(output) for output in expected})
                for output, wanted in expected.items():
                    error, entry = _error(runs[-1][output], wanted)
                    errors[i] = max(errors[i], error)
                    if i == 0 and error > worst[0]:
                        shape = f"[{', '.join(map(str, wanted.shape))}]"
                        where = f"in the {which} check {shape}" if given is None else f"of {shape}"
                        worst = error, f"`{output}` {entry}, {where}"
            same[i] = same[i] and all(_bits_of(run) == _bits_of(runs[0]) for run in runs)
            if i == 0:
                changed = _changed(read, inputs, expected)
            elif name in OPERATIONS:
                changed -= _changed(read, inputs, expected)  # state that ours updates, too
        if changed:
            errors[0], worst = float("inf"), (float("inf"), f"`{sorted(changed)[0]}`, an input, which it changes")
    _warn_of_few_threads(kernel, label, *next(iter(inputs.items())))
    yours, ours = _yours(kernel, backend, name, inputs)[0], _ours(backend, name, inputs)[0]
    registers = _registers(backend, yours), _registers(backend, ours)
    moved = _bytes(name, inputs)
    copied = max(1, moved // 8)  # numbers of 4 bytes, read and written
    works = *(_repeated(backend, work) for work in (yours, ours)), make_copy(backend, copied)
    *measured, copying = times_in_turn(backend, works, repeats)
    return Comparison(
        name,
        label,
        backend.device_name(),
        sizes,
        tolerance,
        tuple(errors),
        worst[1],
        tuple(same),
        tuple(1e6 * min(each) for each in measured),
        moved,
        8 * copied / min(copying),
        registers if all(registers) else None,
    )


def _checked_sizes(name, case, sizes):
    """The sizes that a user gives. Raises ConfigError for one that is unknown or out of range."""
    for what, value in sizes.items():
        if what not in case.sizes:
            raise ConfigError(f"{name} has no size {what!r}; known: {', '.join(case.sizes) or 'none, its inputs are given'}")
        if what == "firing" and not 0 <= value <= 1:
            raise ConfigError(f"{name}: firing is the share of sources with an event, from 0 to 1, not {value}")
        if what != "firing" and not (isinstance(value, (int, np.integer)) and value >= 1):
            raise ConfigError(f"{name}: {what} must be an integer of at least 1, not {value!r}")
    return sizes


def _run_checked(kernel, arrays, is_small):
    """Run a loop with checks of its indices, on new `arrays()`. Raises IndexError; of a small check that of Python, which has the line and
    the index."""
    try:
        with_checks(kernel)(*arrays())
    except IndexError as error:
        if not is_small:
            raise
        try:
            kernel.py_func(*arrays())
        except IndexError:
            raise
        except Exception:  # Numba compiles what Python does not run
            pass
        raise error


def _backend(backend, kernel):
    wanted = target(kernel)
    if isinstance(backend, str):
        backend = chosen(wanted if backend == "auto" and wanted else backend)
    if wanted and backend.name != wanted:
        raise ConfigError(f"a kernel that is compiled for {wanted} cannot run on {backend.name}; leave `backend` out")
    return backend


def _case(name, given, reference):
    """The inputs and the reference to compare by: those given, else ours."""
    case = CASES.get(name)
    if case is None and (given is None or reference is None):
        missing = " and ".join(what for what, value in {"given=": given, "reference=": reference}.items() if value is None)
        raise ConfigError(f"{name}: {missing} must be given; compare has inputs and a reference for: {', '.join(CASES)}")
    if reference is not None and not callable(reference):
        raise ConfigError(f"{name}: reference must be a function, not {type(reference).__name__}")
    if given is None:
        return Case(case.make, reference or case.reference, case.sizes, case.small)
    inputs = checked_inputs(name, given)
    return Case(lambda rng: _copies(inputs), reference or case.reference, {}, {})


def _copies(inputs):
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in inputs.items()}


def _expected(name, reference, inputs):
    """Output -> what it must hold, float64. Raises ConfigError for a reference that returns anything else."""
    found = reference(**_copies(inputs))
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{name}: reference must return a dict, output -> array, as {{'{next(iter(inputs))}': ...}}, not {_kind(found)}")
    for output, wanted in found.items():
        if not isinstance(inputs.get(output), np.ndarray):
            known = [what for what, value in inputs.items() if isinstance(value, np.ndarray)]
            raise ConfigError(f"{name}: reference returns {output!r}, which is no array of it; {did_you_mean(str(output), known)}")
        if np.shape(wanted) != inputs[output].shape:
            shapes = f"{list(np.shape(wanted))}, but it is {list(inputs[output].shape)}"
            raise ConfigError(f"{name}: reference returns {output} {shapes}")
    return {output: np.asarray(wanted, np.float64) for output, wanted in found.items()}


def _kind(value):
    return "an empty one" if isinstance(value, dict) else type(value).__name__


def _on_device(backend, inputs):
    """Inputs as the backend takes them."""
    values = {}
    for name, value in inputs.items():
        is_array = isinstance(value, np.ndarray)
        values[name] = backend.no_axon if value is NO_AXON else backend.asarray(value) if is_array else value
    return values


def _yours(kernel, backend, name, inputs):
    """(a function that calls the kernel, a function that reads an output)."""
    values = _on_device(backend, inputs)
    return partial(call, backend, kernel, tuple(values.values())), lambda output: backend.to_numpy(values[output])


def _ours(backend, name, inputs):
    if name in OPERATIONS:
        values = _on_device(backend, inputs)
        return partial(getattr(backend, name), *values.values()), lambda output: backend.to_numpy(values[output])
    block, delay = inputs["block"], inputs["delay"]
    weight = inputs["weight"] if "weight" in inputs else np.zeros_like(inputs["weight_grad"])
    like_x = inputs["x"] if "x" in inputs else inputs["source_grad"]
    like_d = inputs["current"] if "current" in inputs else inputs["d"]
    tokens = len(inputs["current"] if "current" in inputs else inputs["source_grad"] if "source_grad" in inputs else inputs["d"])
    made = Made(backend, Wiring(block, delay, weight), like_x.shape[2], like_d.shape[2], tokens, like_x.shape[1])
    if "x" in inputs:
        past, x = np.split(inputs["x"], [len(inputs["x"]) - tokens])
        past = past[max(0, len(past) - made.history) :]
        if len(past):
            made.state.set_past("x", past)
        write_source(made.state, "x", 0, backend.asarray(x))
    if "d" in inputs:
        made.state.set_current_grad("current", 0, tokens, backend.asarray(inputs["d"][:tokens]))
    if name == "bundles_weight_grad":
        made.projection.d_weight[...] = backend.asarray(inputs["weight_grad"])
        return partial(made.state.accumulate_weight_grad, tokens), lambda _: backend.to_numpy(made.projection.d_weight)
    before = inputs["current" if name == "bundles_forward" else "source_grad"]
    output = backend.zeros(before.shape)  # a model's own step overwrites it: the sum with the values before is what an accumulation gives
    if name == "bundles_forward":
        return partial(made.state.forward, {"current": output}, 0, tokens), lambda _: before + backend.to_numpy(output)
    return partial(made.state.source_grad, {"x": output}, 0, tokens, tokens), lambda _: before + backend.to_numpy(output)


def _bits_of(outputs):
    return [array.tobytes() for array in outputs.values()]


def _changed(read, inputs, expected):
    """Names of arrays that a kernel has changed, though they are no outputs."""
    arrays = {name for name, value in inputs.items() if isinstance(value, np.ndarray) and name not in expected}
    return {name for name in arrays if read(name).tobytes() != inputs[name].tobytes()}


def _error(found, wanted):
    """(the largest error as a share of the largest number wanted, where it is in words); infinite where a number is NaN."""
    if found.size == 0:
        return 0.0, ""
    with np.errstate(invalid="ignore"):
        errors = np.abs(found - wanted)
    index = np.unravel_index(errors.argmax(), errors.shape)  # a NaN comes first
    error = float(errors[index] / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))
    entry = f"[{', '.join(map(str, index))}]: {found[index]:.6g} instead of {wanted[index]:.6g}"
    return error if np.isfinite(error) else float("inf"), entry


def _warn_of_few_threads(kernel, label, name, output):
    """Warn of a kernel[grid, threads] with fewer threads than its output has entries."""
    grid, threads = (
        getattr(kernel, new, None) or getattr(kernel, old, None) for new, old in (("griddim", "grid_dim"), ("blockdim", "block_dim"))
    )
    if grid and math.prod(grid) * math.prod(threads) < output.size:
        count = math.prod(grid) * math.prod(threads)
        text = f"{label} has {count:,} threads, and {name} {output.size:,} entries: it is right only if its threads loop over entries"
        warnings.warn(text, stacklevel=3)


def _repeated(backend, work):
    """Work as a model repeats it: on a GPU by a CUDA graph, if it can be captured."""
    if backend.name == "cpu":
        return work
    again = backend.record(work)
    try:
        again()
        again()
    except Exception:
        return work
    return again


def _registers(backend, work):
    """The most registers that a thread of a launched kernel has; None on the CPU and in the simulator."""
    if backend.name == "cpu":
        return None
    launched, launch = [], backend.launch

    def noted(kernel, *arguments, **how):
        launched.append(kernel)
        launch(kernel, *arguments, **how)

    backend.launch = noted
    try:
        work()
    finally:
        del backend.launch
    counts = [kernel.get_regs_per_thread() for kernel in launched if hasattr(kernel, "get_regs_per_thread")]
    return max((n for each in counts for n in (each.values() if isinstance(each, dict) else [each])), default=None)


def _bytes(name, inputs):
    """Bytes of a call, as planning/costs.py counts them."""
    if name in BUNDLES:
        return sum(array.nbytes for array in inputs.values()) + next(iter(inputs.values())).nbytes
    arguments = [value for value in inputs.values() if value is not NO_AXON]
    return int(cost(Call(name, partial(print, *arguments)))[0])
