"""Scalar physics and the loops built from it, imported as neurogen_numba.kernels."""

if __name__ != "neurogen_numba.kernels":
    raise ImportError(f"import neurogen_numba.kernels, not {__name__}: a second name is a second set of compiled kernels")

from neurogen_numba.system import environment

environment.check()  # before any module here imports Numba
