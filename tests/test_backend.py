"""The backend: every operation that the brain asks for, and the few that are no kernel."""

import inspect

import numba
import numpy as np
import pytest

from neurogen_numba import backends
from neurogen_numba.backends import cpu
from neurogen_numba.backends.base import Backend

backend = backends.get()
OPERATIONS = [name for name, kind in Backend.__annotations__.items() if kind == "Callable"]


def test_the_cpu_is_what_there_is():
    assert isinstance(backend, cpu.CpuBackend) and backend.name == "cpu"


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_the_kernel_of_its_name(name):
    assert getattr(backend, name).__name__ == f"{name}_cpu"


def test_it_offers_what_a_backend_declares_and_nothing_else():
    offered = {name for name in vars(cpu.CpuBackend) if not name.startswith("_")}
    assert offered == {"name", *OPERATIONS, *Backend.__abstractmethods__}


@pytest.mark.parametrize("name", sorted(Backend.__abstractmethods__ - {"tasks"}))
def test_methods_are_called_as_declared(name):
    declared, offered = (inspect.signature(getattr(kind, name)).parameters for kind in (Backend, cpu.CpuBackend))
    assert [(p.name, p.default) for p in declared.values()] == [(p.name, p.default) for p in offered.values()]


def test_zeros():
    assert (backend.zeros((2, 3)).dtype, backend.zeros((2, 3)).shape) == ("float32", (2, 3))
    assert backend.zeros(4, "uint16").dtype == "uint16" and not backend.zeros(4, "uint16").any()


@pytest.mark.parametrize("move", [lambda a: backend.asarray(a), lambda a: backend.to_numpy(a)], ids=["asarray", "to_numpy"])
def test_arrays_cross_over_as_copies(move):
    there = np.arange(6, dtype=np.float32)
    there.flags.writeable = False  # as NumPy has what it reads from a file
    here = move(there)
    np.testing.assert_array_equal(here, there, strict=True)
    assert not np.shares_memory(here, there) and here.flags.writeable


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
@pytest.mark.parametrize("worth_sharing", [0, 10**9], ids=["shared", "whole"])
def test_product(m, transposed, add, worth_sharing, monkeypatch):
    monkeypatch.setattr(cpu, "WORTH_SHARING", worth_sharing)
    a, b = matrices(m, 37, 53, transposed)
    before = np.full((m, 53), 2.5, np.float32)
    out = before.copy()
    backend.product(out, a, b, add=add)
    np.testing.assert_allclose(out, a.astype(np.float64) @ b + (before if add else 0), rtol=0, atol=1e-4)


def test_a_large_product_is_shared(monkeypatch):
    """As large as the decoder of a small model: rows are shared out, and each is multiplied once."""
    seen = []
    plain = cpu.CpuBackend._rows

    def watched(out, a, b, add):
        seen.append(len(out))
        plain(out, a, b, add)

    a, b = matrices(600, 200, 300, "b")
    assert a.shape[0] * a.shape[1] * b.shape[1] > cpu.WORTH_SHARING
    monkeypatch.setattr(cpu.CpuBackend, "_rows", staticmethod(watched))
    out = backend.zeros((600, 300))
    backend.product(out, a, b)
    assert sum(seen) == 600 and len(seen) > 1
    np.testing.assert_allclose(out, a.astype(np.float64) @ b, rtol=0, atol=1e-3)


def test_a_failure_in_a_shared_product_is_heard():
    with pytest.raises(ValueError):
        backend.product(backend.zeros((600, 300)), *(np.ones(shape, np.float32) for shape in ((600, 200), (199, 300))))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_003])
def test_norm(size):
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    norm = backend.norm(x)
    assert isinstance(norm, float)
    assert norm == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_shows_what_is_no_number(value):
    x = np.zeros(10_000, np.float32)
    x[7777] = value
    assert not np.isfinite(backend.norm(x))


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
        assert backend.tasks == count
        out = backend.zeros((1000, 65))
        backend.product(out, a, b)
        found.append((out, backend.norm(x)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
