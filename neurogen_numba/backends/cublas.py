"""Matrix products by cuBLAS, through CuPy's handle.

CuPy's wrappers cannot be captured into a CUDA graph, so this module calls `cublasGemmEx` directly. Each stream has its own workspace,
because products on different streams may overlap; cuBLAS then gives the same bits in every run.
"""

from __future__ import annotations

import ctypes

TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
COMPUTE_32F, FAST_TF32, DEFAULT = 68, 77, -1  # two of cublasComputeType_t, one of cublasGemmAlgo_t
WORKSPACE = 32 * 2**20  # bytes, NVIDIA's recommendation for Hopper


class Cublas:
    """room(bytes) allocates a workspace on the current stream. tf32: tensor cores may round float32 factors to TF32, with 11 significant
    bits (Ampere or newer)."""

    def __init__(self, room, tf32: bool = False):
        from cuda.pathfinder import load_nvidia_dynamic_lib
        from cupy.cuda import device

        self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        self._handle = ctypes.c_void_p(device.get_cublas_handle())
        self._room, self._workspaces, self._tf32 = room, {}, tf32

    def product(self, stream, out, a, b, add, scale):
        """out [m, n] float32 = scale a [m, k] @ b [k, n] on a CuPy stream; with `add`, +=. Rows may have any stride; a and b may be
        transposed views. Raises ValueError for any other layout."""
        if stream.ptr not in self._workspaces:
            self._workspaces[stream.ptr] = self._room(WORKSPACE)
        workspace = ctypes.c_void_p(self._workspaces[stream.ptr].data.ptr)
        self._call("cublasSetStream_v2", ctypes.c_void_p(stream.ptr))
        self._call("cublasSetWorkspace_v2", workspace, ctypes.c_size_t(WORKSPACE))
        (m, k), n = a.shape, b.shape[1]
        alpha, beta = ctypes.c_float(scale), ctypes.c_float(1.0 if add else 0.0)
        # cuBLAS is column-major, so it computes out.T = b.T @ a.T.
        (a_turned, *a_matrix), (b_turned, *b_matrix), (out_turned, *out_matrix) = _matrix(a), _matrix(b), _matrix(out)
        if out_turned:
            raise ValueError("cuBLAS cannot write a transposed view")
        sizes, compute = (n, m, k), FAST_TF32 if self._tf32 and a.dtype == "float32" else COMPUTE_32F
        self._call(
            "cublasGemmEx", b_turned, a_turned, *sizes, ctypes.byref(alpha), *b_matrix, *a_matrix, ctypes.byref(beta), *out_matrix,
            compute, DEFAULT,
        )  # fmt: skip

    def _call(self, name, *arguments):
        status = getattr(self._library, name)(self._handle, *arguments)
        if status:
            raise RuntimeError(f"{name} failed with cuBLAS status {status}")


def _matrix(x):
    """(whether x is a transposed view, address, type, leading dimension in numbers), the arguments of cuBLAS for a matrix."""
    (m, n), (rows, columns) = x.shape, (stride // x.itemsize for stride in x.strides)
    turned = n > 1 and columns != 1
    if turned:
        sound, lead = columns >= m and (rows == 1 or m == 1), columns
    else:
        sound, lead = m == 1 or rows >= n, max(rows, n)  # with one row, its stride does not matter
    if not sound:
        raise ValueError(f"cuBLAS needs a matrix whose rows or columns are contiguous in memory, not one with strides {x.strides}")
    return int(turned), ctypes.c_void_p(x.data.ptr), TYPES[str(x.dtype)], lead
