"""Neurons without synapses between them, driven by a current: the scan over time, without normalisation."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numba import cuda

from ..errors import ConfigError
from ..kernels.jit import ZERO, cpu
from ..kernels.launch import gpu
from ..neurons import get
from .checks import fit
from .operations import chosen

lif_a = get("lif_a").physics()
step, event = lif_a.step, lif_a.surrogate.event


class Trace(NamedTuple):
    """The traces of neurons, arrays [T, N] or [T], NumPy float32: membrane potential v, adaptation a, events z."""

    v: np.ndarray
    a: np.ndarray
    z: np.ndarray


@gpu
def lif_scan(v, a, z, drive, alpha, rho, beta):
    """Overwrites v, a, z [T, N] from drive [T, N]. One thread per neuron, which loops over the tokens."""
    n = cuda.grid(1)
    if n < drive.shape[1]:
        v_t, a_t = ZERO, ZERO
        for t in range(drive.shape[0]):
            v_t, a_t = step(v_t, a_t, drive[t, n], alpha[n], rho[n], beta[n])
            v[t, n], a[t, n], z[t, n] = v_t, a_t, event(v_t)


@cpu()
def lif_scan_cpu(v, a, z, drive, alpha, rho, beta):
    """As `lif_scan`."""
    for n in numba.prange(drive.shape[1]):
        v_t, a_t = ZERO, ZERO
        for t in range(drive.shape[0]):
            v_t, a_t = step(v_t, a_t, drive[t, n], alpha[n], rho[n], beta[n])
            v[t, n], a[t, n], z[t, n] = v_t, a_t, event(v_t)


def lif(x, tau_v=5.0, tau_a=10.0, beta=0.0, backend="auto") -> Trace:
    """LIF-A neurons from rest, driven by x [T, N], or one neuron by x [T] (equations: docs/model.md, section 1; the threshold is 1).

    tau_v, tau_a: time constants of membrane and adaptation in tokens, above 0; beta: how much adaptation is taken off the drive. Each is a
    number, or an array [N]. Returns `Trace(v, a, z)`, shaped as x. Raises ConfigError where shapes or time constants do not fit.
    """
    x = np.asarray(x)
    given = {"x": (x[:, None] if x.ndim == 1 else x, "float", "T N")}
    for name, value in {"tau_v": tau_v, "tau_a": tau_a, "beta": beta}.items():
        given[name] = (np.full(given["x"][0].shape[1:], value) if np.ndim(value) == 0 else value, "float", "N")
    (drive, tau_v, tau_a, beta), size = fit("lif", **given)
    for name, tau in (("tau_v", tau_v), ("tau_a", tau_a)):
        if not (tau > 0).all():
            raise ConfigError(f"lif: {name} is a time constant in tokens and must be above 0, not {tau.min()}")
    made = chosen(backend)
    alpha, rho = (made.asarray(np.exp(-1 / tau), "float32") for tau in (tau_v, tau_a))
    v, a, z = (made.zeros(drive.shape) for _ in range(3))
    given = v, a, z, made.asarray(drive), alpha, rho, made.asarray(beta)
    if made.name == "cpu":
        made.launch(lif_scan_cpu, *given)
    else:
        made.launch(lif_scan, *made._across(size["N"]), *given)
    return Trace(*(made.to_numpy(array).reshape(x.shape) for array in (v, a, z)))
