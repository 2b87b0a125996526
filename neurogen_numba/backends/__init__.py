"""Where it runs. `get` is the one place that chooses."""

from __future__ import annotations

from .base import Backend


def get() -> Backend:
    """The backend of this machine: the CPU."""
    from .cpu import CpuBackend

    return CpuBackend()
