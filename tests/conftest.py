"""What every test shares: the `gpu` marker and the settings of Hypothesis."""

import os

import pytest
from hypothesis import settings

# Speed is the machine's, not the code's; and what was green once must not turn red by the luck of a draw.
settings.register_profile("neurogen", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("neurogen")


@pytest.fixture(scope="module")
def one_thread():
    """Kernels on one thread: for a brain of a few dozen neurons, waking a second one takes longer than the work, above all on a busy
    machine."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        from numba import cuda  # slow to import, and most runs need none of it

        if not cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU"))
