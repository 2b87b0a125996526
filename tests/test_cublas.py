"""Matrix products by cuBLAS: that what it is told is what was meant. There is no cuBLAS here: a stand-in keeps to its documentation."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from neurogen_numba.backends.cublas import COMPUTE_32F, FAST_TF32, TYPES, Cublas, _matrix

STREAM = SimpleNamespace(ptr=5)


class Array:
    """The attributes of a CuPy array that are read."""

    def __init__(self, values, dtype=None):
        self.values, self.dtype = values, dtype or values.dtype
        self.shape, self.strides, self.itemsize = values.shape, values.strides, values.itemsize
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    @property
    def T(self):
        return Array(self.values.T, self.dtype)


def numbers(rows, columns):
    return np.random.default_rng(rows * 100 + columns).normal(0, 1, (rows, columns)).astype(np.float32)


def padded(rows, columns):
    """Rows with space between them, as backends make them; what is in the space must be neither read nor written."""
    whole = np.full((rows, columns + 5), np.nan, np.float32)
    whole[:, :columns] = numbers(rows, columns)
    return whole[:, :columns]


def middle(rows, columns):
    return padded(rows + 4, columns)[2:-2]


def one_column_of_many(rows, columns):
    """[rows, 1], with the rows far apart."""
    return padded(rows, 4)[:, 2:3] if columns == 1 else padded(rows, columns)


def new_axis(rows, columns):
    """A vector with an axis of length 1, the stride of which is 0."""
    vector = numbers(1, max(rows, columns))[0]
    return as_strided(vector, (rows, 1), (4, 0)) if columns == 1 else as_strided(vector, (1, columns), (0, 4))


def vector_with_axis(rows, columns):
    vector = numbers(1, max(rows, columns))[0]
    return vector[:, None] if columns == 1 else vector[None]


MAKERS = (numbers, padded, middle, one_column_of_many)
VECTORS = (new_axis, vector_with_axis)
SHAPES = ((3, 4), (4, 3), (1, 5), (5, 1), (1, 1), (2, 2))


def layouts():
    """(name, matrix) of every way in which a matrix may lie in memory, and the transposed view of each."""
    for rows, columns in SHAPES:
        for make in (*MAKERS, *(VECTORS if 1 in (rows, columns) else ())):
            yield f"{make.__name__} {rows}x{columns}", make(rows, columns)
            yield f"{make.__name__} {columns}x{rows}, turned", make(columns, rows).T


def as_cublas_sees(turned, pointer, lead, rows, columns):
    """The matrix [rows, columns] at an address: cuBLAS, which counts columns first, finds it turned, or where `turned` is set as it is."""
    assert lead >= max(1, rows if turned else columns), "cuBLAS refuses this"
    if turned:
        return np.array([[ctypes.c_float.from_address(pointer + 4 * (j * lead + i)).value for j in range(columns)] for i in range(rows)])
    return np.array([[ctypes.c_float.from_address(pointer + 4 * (i * lead + j)).value for j in range(columns)] for i in range(rows)])


@pytest.mark.parametrize("x", [pytest.param(x, id=name) for name, x in layouts()])
def test_a_matrix_is_found_where_it_lies(x):
    turned, pointer, kind, lead = _matrix(Array(x))
    np.testing.assert_array_equal(as_cublas_sees(turned, pointer.value, lead, *x.shape), x)
    assert (type(turned), type(lead), kind) == (int, int, 0)


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (4, 1)])
def test_distances_are_counted_in_numbers_of_any_size(shape):
    x = np.zeros((shape[0], shape[1] + 3), np.float16)[:, : shape[1]]
    for kind in ("float16", "bfloat16"):
        turned, pointer, code, lead = _matrix(Array(x, kind))
        assert (turned, pointer.value, code, lead) == (0, x.ctypes.data, TYPES[kind], shape[1] + 3)


ODD = {
    "every other column": numbers(4, 6)[:, ::2],
    "every other column, turned": numbers(4, 6)[:, ::2].T,
    "rows backwards": numbers(4, 6)[::-1],
    "columns backwards": numbers(4, 6)[:, ::-1],
    "one column backwards": numbers(4, 1)[::-1],
    "the same row again": np.broadcast_to(numbers(1, 4), (3, 4)),
    "the same column again": np.broadcast_to(numbers(3, 1), (3, 4)),
    "the same number again": np.broadcast_to(numbers(1, 1), (3, 1)),
    "rows that overlap": as_strided(numbers(1, 9)[0], (4, 4), (4, 4)),
}


@pytest.mark.parametrize("x", ODD.values(), ids=ODD)
def test_what_cublas_cannot_take_is_refused(x):
    with pytest.raises(ValueError, match="rows or columns"):
        _matrix(Array(x))


class Library:
    """cublasSetStream, cublasSetWorkspace and cublasGemmEx as NVIDIA documents them, on the host, for float32."""

    def __init__(self):
        self.settings, self.status = {}, 0

    def cublasSetStream_v2(self, handle, stream):
        self.settings["stream"] = stream.value
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, size):
        self.settings["workspace"] = pointer.value, size.value
        return 0

    def cublasGemmEx(
        self, handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algorithm
    ):  # fmt: skip
        """C [m, n] = alpha op(A) [m, k] @ op(B) [k, n] + beta C, each with its columns one after the other."""
        if self.status:
            return self.status
        assert (a_type, b_type, c_type) == (0, 0, 0)
        self.settings["compute"] = compute
        assert lda >= max(1, k if transa else m) and ldb >= max(1, n if transb else k) and ldc >= max(1, m)

        def column_major(pointer, rows, columns, lead):
            size = lead * (columns - 1) + rows
            flat = np.ctypeslib.as_array((ctypes.c_float * size).from_address(pointer.value))
            return as_strided(flat, (rows, columns), (4, 4 * lead))

        a = column_major(a, *((k, m) if transa else (m, k)), lda)
        b = column_major(b, *((n, k) if transb else (k, n)), ldb)
        out = column_major(c, m, n, ldc)
        product = (a.T if transa else a) @ (b.T if transb else b)
        alpha, beta = alpha._obj.value, beta._obj.value
        out[...] = alpha * product + (beta * out if beta else 0)  # where beta is 0, C need not be numbers
        return 0


@pytest.fixture
def cublas():
    made = Cublas.__new__(Cublas)
    made._library, made._handle = Library(), ctypes.c_void_p(1)
    made._tf32, made._workspaces, made._room = False, {}, lambda size: SimpleNamespace(data=SimpleNamespace(ptr=77), size=size)
    return made


def ways(rows, columns):
    makers = (*MAKERS, *(VECTORS if 1 in (rows, columns) else ()))
    return [make(rows, columns) for make in makers] + [make(columns, rows).T for make in makers]


@pytest.mark.parametrize("m, k, n", [(3, 4, 2), (1, 4, 3), (3, 4, 1), (3, 1, 2), (1, 1, 3), (3, 1, 1), (1, 5, 1), (1, 1, 1)])
def test_products_of_every_layout(cublas, m, k, n):
    for a in ways(m, k):
        for b in ways(k, n):
            for make in (*MAKERS, *(VECTORS if 1 in (m, n) else ())):
                out = make(m, n)
                cublas.product(STREAM, Array(out), Array(a), Array(b), False, 1.0)
                np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tf32, compute", [(False, COMPUTE_32F), (True, FAST_TF32)])
def test_float32_is_rounded_for_tensor_cores_only_where_it_may_be(cublas, tf32, compute):
    cublas._tf32 = tf32
    cublas.product(STREAM, *(Array(numbers(2, 2)) for _ in range(3)), False, 1.0)
    assert cublas._library.settings["compute"] == compute


def test_what_lies_between_the_rows_stays(cublas):
    out = padded(3, 2)
    cublas.product(STREAM, Array(out), Array(padded(3, 4)), Array(padded(4, 2)), False, 1.0)
    assert np.isfinite(out).all() and np.isnan(out.base[:, 2:]).all()


def test_adding_and_scaling(cublas):
    a, b, out = numbers(3, 4), numbers(4, 2), numbers(3, 2)
    expected = out + 0.5 * (a @ b)
    cublas.product(STREAM, Array(out), Array(a), Array(b), True, 0.5)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    out[...] = np.nan  # not read where nothing is added
    cublas.product(STREAM, Array(out), Array(a), Array(b), False, 2.0)
    np.testing.assert_allclose(out, 2 * (a @ b), rtol=1e-5)


def test_the_stream_and_its_workspace(cublas):
    cublas.product(STREAM, Array(numbers(2, 2)), Array(numbers(2, 2)), Array(numbers(2, 2)), False, 1.0)
    assert cublas._library.settings == {"compute": COMPUTE_32F, "stream": 5, "workspace": (77, 32 * 2**20)}


def test_a_result_that_is_turned_is_refused(cublas):
    with pytest.raises(ValueError, match="transposed"):
        cublas.product(STREAM, Array(numbers(3, 2).T), Array(numbers(2, 4)), Array(numbers(4, 3)), False, 1.0)


def test_a_failure_names_the_function_and_its_status(cublas):
    cublas._library.status = 13
    with pytest.raises(RuntimeError, match="^cublasGemmEx failed with cuBLAS status 13$"):
        cublas.product(STREAM, Array(numbers(2, 2)), Array(numbers(2, 2)), Array(numbers(2, 2)), False, 1.0)
