"""Checks of environment variables NUMBA_... that prevent Numba from working, before it is used."""

from __future__ import annotations

import os
import re
import warnings

from ..errors import ConfigError

LAYERS = ("default", "safe", "forksafe", "threadsafe", "tbb", "omp", "workqueue")
UNREADABLE = r"Environment variable '(\w+)' is defined but its associated value '(.*)' could not be parsed"  # Numba's warning
MAX_THREADS = 1024, 4  # in all, and per core; the larger limit applies


def check() -> None:
    """Import Numba. Raises ConfigError for a variable that it cannot use, and Numba's own ImportError."""
    threads = os.environ.get("NUMBA_NUM_THREADS")
    most = max(MAX_THREADS[0], MAX_THREADS[1] * (os.cpu_count() or 1))
    if threads is not None and not (re.fullmatch(r"\s*[0-9]{1,9}\s*", threads) and 1 <= int(threads) <= most):
        raise ConfigError(f"NUMBA_NUM_THREADS={threads}: a number of threads from 1 to {most} is needed; correct NUMBA_NUM_THREADS")
    layer = os.environ.get("NUMBA_THREADING_LAYER", "default")
    if layer.lower() not in LAYERS:
        raise ConfigError(f"NUMBA_THREADING_LAYER={layer}: there is no such layer; use one of {', '.join(LAYERS)}")
    if os.environ.get("NUMBA_DISABLE_JIT", "0").strip() not in ("0", ""):
        raise ConfigError("NUMBA_DISABLE_JIT is set: without compilation an update would take hours; unset NUMBA_DISABLE_JIT")
    features = os.environ.get("NUMBA_CPU_FEATURES", "")
    if not all(re.fullmatch(r"[+-][\w.-]+", feature.strip()) for feature in features.split(",") if feature.strip()):
        raise ConfigError(f"NUMBA_CPU_FEATURES={features}: words that begin with + or - are needed; correct or unset NUMBA_CPU_FEATURES")
    # Each small kernel would put a warning into the log. Numba reads the variable once: a program that imported it before needs the filter.
    os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
    if os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"].strip() == "0":
        warnings.filterwarnings("ignore", message=r".*Grid size \d+ will likely result in GPU under-utilization")
    names = ", ".join(name for name in sorted(os.environ) if name.startswith("NUMBA_"))
    # Numba and numba-cuda both warn about the same variable, with a traceback; one message below replaces these warnings.
    warnings.filterwarnings("ignore", message="Environment variable 'NUMBA_", category=RuntimeWarning)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            import numba  # noqa: F401
        except ImportError:
            raise
        except Exception as error:
            if not names:
                raise
            raise ConfigError(f"Numba does not start ({error}); correct or unset {names}") from None
    for warning in caught:
        if unreadable := re.match(
            r"Environment variable '(\w+)' is defined but its associated value '(.*)' could not be", str(warning.message)
        ):
            raise ConfigError(f"{unreadable[1]}={unreadable[2]}: Numba cannot read this value; correct or unset {unreadable[1]}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
