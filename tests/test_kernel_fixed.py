"""Whole numbers for sums of floats: how fine they are, and what becomes of what they cannot hold."""

import numpy as np
import pytest

from neurogen_numba.kernels.fixed import CURRENT, FAR, current_of, fair, gradient_of

ONE = int(CURRENT)


@pytest.mark.parametrize("current", [0, 2**-20, -(2**-20), 1, -1.5, 1023.5, -1023.5])
def test_a_current_is_the_sum_of_its_units(current):
    found = current_of(np.int32(current * ONE))
    assert found == current and found.dtype == np.float32


@pytest.mark.parametrize("current", [1024, -1024, 1500, -1500, 2047.5, -2048])
def test_a_current_that_is_too_large_is_nan(current):
    assert np.isnan(current_of(np.int32(current * ONE)))


@pytest.mark.parametrize("current", [0, 127, -127])
def test_what_a_synapse_may_bring(current):
    assert fair(np.float32(current) * CURRENT)


@pytest.mark.parametrize("current", [128, -128, 1e30, np.inf, -np.inf, np.nan])
def test_what_a_synapse_may_not_bring(current):
    assert not fair(np.float32(current) * CURRENT)


def test_a_gradient_is_the_sum_of_its_units():
    assert gradient_of(np.int64(-3 * 2**40), np.float32(2.0**-41)) == np.float32(-1.5)


@pytest.mark.parametrize("total", [FAR, -FAR, np.int64(2**63 - 1), np.int64(-(2**63))])
def test_a_gradient_that_is_too_large_is_nan(total):
    assert np.isnan(gradient_of(total, np.float32(1)))
