"""The backend: every operation that the brain asks for, and the few that are no kernel."""

import inspect

import numba
import numpy as np
import pytest

from neurogen_numba import backends
from neurogen_numba.backends import cpu
from neurogen_numba.backends.base import Backend, Streams, Synapses, SynapticState
from neurogen_numba.backends.cpu_synapses import CpuSynapses, CpuSynapticState
from neurogen_numba.kernels.dropout import mask_offset
from neurogen_numba.kernels.reduce import BLOCK

backend = backends.get("cpu")
CALLS = (  # of other functions, or in another order
    *("product", "quantized_product", "population_forward", "population_backward", "population_eligibility", "eligibility"),
    *("memory_forward", "memory_backward", "working_memory_forward"),
)
OPERATIONS = [name for name, method in vars(Backend).items() if hasattr(method, "is_kernel") and name not in CALLS]


def test_the_cpu_is_what_there_is():
    assert isinstance(backend, cpu.CpuBackend) and (backend.name, backend.product_dtype) == ("cpu", "float32")


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_the_kernel_of_its_name(name):
    assert getattr(backend, name).__name__ == f"{name}_cpu"


def test_it_offers_what_a_backend_declares_and_nothing_else():
    offered = {name for name in vars(cpu.CpuBackend) if not name.startswith("_")}
    assert offered == {*Backend.__annotations__, *Backend.__abstractmethods__, "working", "launch", "apply", "record_calls"}


PAIRS = ((Backend, cpu.CpuBackend), (Synapses, CpuSynapses), (SynapticState, CpuSynapticState))


@pytest.mark.parametrize(
    "kind, made, name",
    [(*pair, name) for pair in PAIRS for name in sorted(pair[0].__abstractmethods__)],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_methods_are_called_as_declared(kind, made, name):
    declared, offered = (inspect.signature(getattr(which, name)).parameters for which in (kind, made))
    assert issubclass(made, kind)
    declared, offered = ([(p.name, p.default) for p in each.values() if p.name != "self"] for each in (declared, offered))
    assert declared == offered


def test_zeros():
    assert (backend.zeros((2, 3)).dtype, backend.zeros((2, 3)).shape) == ("float32", (2, 3))
    assert backend.zeros(4, "uint16").dtype == "uint16" and not backend.zeros(4, "uint16").any()


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("rows, columns", [(1, 1), (5, 257), (64, 65)])
def test_a_matrix_is_zeros_with_the_rows_and_columns_asked_for(rows, columns, dtype):
    matrix = backend.matrix(rows, columns, dtype)
    assert (matrix.shape, matrix.dtype) == ((rows, columns), dtype) and not matrix.any()
    matrix[...] = 1
    assert matrix[-1, -1] == 1 and not backend.matrix(rows, columns, dtype).any(), "each is an array of its own"


def test_a_matrix_is_of_float32_unless_said_otherwise_and_products_take_it():
    a, out = backend.matrix(5, 257), backend.matrix(5, 3)
    assert a.dtype == "float32"
    a[...] = 2
    backend.product(out, a, np.ones((257, 3), np.float32))
    np.testing.assert_array_equal(out, np.full((5, 3), 514, np.float32))


@pytest.mark.parametrize(
    "move", [lambda a: backend.asarray(a), lambda a: backend.to_numpy(a), lambda a: backend.fetch(a)], ids=["asarray", "to_numpy", "fetch"]
)
def test_arrays_cross_over_as_copies(move):
    there = np.arange(6, dtype=np.float32)
    there.flags.writeable = False  # as NumPy has what it reads from a file
    current = move(there)
    np.testing.assert_array_equal(current, there, strict=True)
    assert not np.shares_memory(current, there) and current.flags.writeable


def test_asarray_makes_arrays_contiguous_and_of_the_type_wanted():
    transposed = np.arange(6.0).reshape(2, 3).T
    array = backend.asarray(transposed, "float32")
    assert array.flags.c_contiguous and array.dtype == "float32"
    np.testing.assert_array_equal(array, transposed)


def matrices(m, k, n, transposed):
    """a [m, k] and b [k, n], as views of transposed ones where asked for."""
    rng = np.random.default_rng(m)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    return (np.ascontiguousarray(a.T).T if "a" in transposed else a), (np.ascontiguousarray(b.T).T if "b" in transposed else b)


# One row, fewer rows than threads, rows that no number of threads divides.
@pytest.mark.parametrize("m", [1, 3, 101])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
@pytest.mark.parametrize("add", [False, True], ids=["overwrite", "add"])
@pytest.mark.parametrize("scale", [1.0, 0.1], ids=["", "scaled"])
@pytest.mark.parametrize("min_parallel", [0, 10**9], ids=["shared", "whole"])
def test_product(m, transposed, add, scale, min_parallel, monkeypatch):
    monkeypatch.setattr(cpu, "MIN_PARALLEL_PRODUCT", min_parallel)
    a, b = matrices(m, 37, 53, transposed)
    before = np.full((m, 53), 2.5, np.float32)
    out = before.copy()
    given = a.copy(), b.copy()
    backend.product(out, a, b, add=add, scale=scale)
    np.testing.assert_allclose(out, scale * (a.astype(np.float64) @ b) + (before if add else 0), rtol=0, atol=1e-4 * scale)
    np.testing.assert_array_equal(a, given[0])
    np.testing.assert_array_equal(b, given[1])


@pytest.mark.parametrize("add", [False, True], ids=["overwrite", "add"])
def test_a_product_is_neither_added_nor_scaled_unless_asked_for(add):
    a, b = matrices(7, 37, 53, "")
    plain, asked = np.full((7, 53), 2.5, np.float32), np.full((7, 53), 2.5, np.float32)
    backend.product(plain, a, b, **({"add": True} if add else {}))
    backend.product(asked, a, b, add, 1.0)
    np.testing.assert_array_equal(plain, asked)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_product_overwrites_nan_and_infinity(scale):
    a, b = matrices(7, 37, 53, "")
    out = np.full((7, 53), np.nan, np.float32)
    backend.product(out, a, b, scale=scale)
    assert np.isfinite(out).all()


def test_a_large_product_is_shared(monkeypatch):
    """As large as the decoder of a small model: rows are shared out, and each is multiplied once."""
    seen = []
    plain = cpu.CpuBackend._rows

    def watched(out, *rest):
        seen.append(len(out))
        plain(out, *rest)

    a, b = matrices(600, 200, 300, "b")
    assert a.shape[0] * a.shape[1] * b.shape[1] > cpu.MIN_PARALLEL_PRODUCT
    monkeypatch.setattr(cpu.CpuBackend, "_rows", staticmethod(watched))
    out = backend.zeros((600, 300))
    backend.product(out, a, b)
    assert sum(seen) == 600 and len(seen) > 1
    np.testing.assert_allclose(out, a.astype(np.float64) @ b, rtol=0, atol=1e-3)


def test_a_failure_in_a_shared_product_is_heard():
    with pytest.raises(ValueError):
        backend.product(backend.zeros((600, 300)), *(np.ones(shape, np.float32) for shape in ((600, 200), (199, 300))))


def norm_of(x):
    """The Euclidean norm, as the optimiser has it made."""
    partial, norm = backend.zeros(-(-x.size // BLOCK), "float64"), backend.asarray([np.nan], "float32")
    backend.sum_of_squares(partial, x)
    backend.norm(norm, partial)
    return norm


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_003])
def test_norm(size):
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    norm = norm_of(x)
    assert (norm.shape, norm.dtype) == ((1,), "float32")
    assert norm[0] == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-5)


def test_a_norm_is_added_up_in_float64():
    norm = backend.zeros(1)
    backend.norm(norm, np.array([2.0**40, *[2.0] * 2**10, -(2.0**40), 2.0**11]))
    assert norm[0] == 64


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_shows_nan_and_infinity(value):
    x = np.zeros(10_000, np.float32)
    x[7777] = value
    assert not np.isfinite(norm_of(x)[0])


# Recorded steps


def test_what_is_recorded_does_what_the_step_does():
    """Again and again, with what lies in the arrays by then."""
    written, heard = backend.zeros(3), backend.zeros(3)

    def step():
        backend.apply(np.add, heard, written, out=heard)

    again = backend.record(step)
    heard[...] = 0  # whether recording does the step once is the backend's affair
    for times in (1, 2, 3):
        written[...] = np.arange(3) * times
        again()
    np.testing.assert_array_equal(heard, [0, 6, 12])


@pytest.mark.parametrize("work", [1, 10**9], ids=["one thread", "all threads"])
def test_calls_on_a_tape_do_what_they_did(work):
    """Loops, and functions between them, with what lies in the arrays by then."""
    x, total, doubled = np.zeros((2, 3), np.float32), backend.zeros(3), backend.zeros((2, 3))
    tripled, key, offset = backend.zeros((2, 3)), np.zeros(1, np.uint64), mask_offset(0)

    def step():
        backend.scaled_dropout(doubled, x, 2.0, np.float32(0), key, offset)
        backend.scaled_dropout(tripled, doubled, 1.5, np.float32(0), key, offset)
        backend.add_rows(total, x)
        backend.apply(np.add, total, np.float32(1), out=total)
        backend.scaled_dropout(x, tripled, 2.0, np.float32(0), key, offset)

    with backend.working(work):
        again = backend.record_calls(step)
        for times in (1, 2, 3):
            x[...] = np.arange(6).reshape(2, 3) * times
            again()
    np.testing.assert_array_equal(total, [21, 33, 45])
    np.testing.assert_array_equal(doubled, 2 * np.arange(6).reshape(2, 3) * 3)
    np.testing.assert_array_equal(x, 3 * doubled)


@pytest.mark.parametrize("record", [backend.record, backend.record_calls])
def test_an_error_in_a_recorded_step_is_heard(record):
    with pytest.raises(ZeroDivisionError):
        record(lambda: 1 / 0)()


# Synapses


# The device


def test_streams_keep_the_order_in_which_work_is_queued():
    streams, done = backend.streams(), []
    assert isinstance(streams, Streams)
    marks = [None]
    for stream in ("a", "b", "a"):
        with streams.on(stream, marks):
            done.append(stream)
        marks.append(streams.mark(stream))
    streams.join()
    backend.synchronize()
    assert done == ["a", "b", "a"]


def test_the_device_has_a_name_and_a_size():
    assert f"{numba.get_num_threads()} threads" in backend.device_name()
    used = backend.memory_used()
    assert isinstance(used, int) and used > 10**6, "what a process needs that has NumPy loaded"


# Threads


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = numba.get_num_threads()
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("a single thread")
    yield numba.set_num_threads
    numba.set_num_threads(before)


def test_no_result_depends_on_the_number_of_threads(threads):
    a, b = matrices(1000, 512, 65, "b")
    x = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    found = []
    for count in (1, 2):
        threads(count)
        out = backend.zeros((1000, 65))
        backend.product(out, a, b, scale=0.3)
        found.append((out, norm_of(x)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_a_small_step_has_one_thread_and_the_next_one_all_again(threads):
    threads(2)
    with pytest.raises(KeyError), backend.working(1):
        assert numba.get_num_threads() == 1
        raise KeyError
    with backend.working(10**9):
        assert numba.get_num_threads() == 2
    assert numba.get_num_threads() == 2


@pytest.mark.gpu
def test_what_is_fetched_from_a_gpu_is_a_copy():
    gpu = backends.get("cuda", precision="fp32")
    there = gpu.asarray(np.arange(6), "float32")
    current, other = gpu.fetch(there), gpu.fetch(there)
    there[...] = 0
    np.testing.assert_array_equal(current, np.arange(6, dtype=np.float32), strict=True)
    current[...] = 7
    np.testing.assert_array_equal(other, np.arange(6))
    np.testing.assert_array_equal(gpu.fetch(there), np.zeros(6))
