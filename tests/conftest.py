"""What every test shares: the `gpu` marker and the settings of Hypothesis."""

import os

import pytest
from hypothesis import settings

# Speed is the machine's, not the code's; and what was green once must not turn red by the luck of a draw.
settings.register_profile("neurogen", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("neurogen")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        from numba import cuda  # slow to import, and most runs need none of it

        if not cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no GPU"))
