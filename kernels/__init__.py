"""Scalar physics and the loops built from it, imported as neurogen_numba.kernels."""

if __name__ != "neurogen_numba.kernels":
    raise ImportError(f"import neurogen_numba.kernels, not {__name__}: under a second name every kernel would be compiled twice")

from neurogen_numba.system import environment

environment.check()  # before any module here imports Numba
