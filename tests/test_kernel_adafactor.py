"""Adafactor's kernels against its equations in float64."""

import numpy as np
import pytest

from gradients import single
from neurogen_numba.kernels.adamw import BETA2

RATE, DECAY, ROWS, COLUMNS, HEARD = 0.01, 0.1, 7, 150, 5


def numbers(step, clip=np.inf):
    return single([RATE, np.nan, 1 / (1 - BETA2**step), clip])


def reference(p, g, row, column, where, step, decay):
    """One update in float64, in place; `column` is that of the update before. Returns the column after it."""
    mean = column.mean()
    spread = np.sqrt(np.maximum(0.01, column / mean)) if mean else np.ones(len(column))
    total = np.zeros(len(column))
    for local, i in enumerate(where):
        if i < 0:
            continue
        row[i] = BETA2 * row[i] + (1 - BETA2) * (g[local] ** 2).mean()
        u = g[local] / (np.sqrt(row[i] / (1 - BETA2**step)) * spread + 1e-8)
        p[i] = p[i] * (1 - RATE * decay) - RATE * u / max(1, np.sqrt((u**2).mean()))
        total += g[local] ** 2
    return BETA2 * column + (1 - BETA2) * total


def test_three_updates(op):
    draw = np.random.default_rng(0)
    p, row, column, spread, total = single(draw.normal(0, 1, (ROWS, COLUMNS))), *(np.zeros(n, np.float32) for n in (ROWS, *[COLUMNS] * 3))
    expected, expected_row, expected_column = (x.astype(np.float64) for x in (p, row, column))
    sizes = np.exp(draw.normal(0, 2, COLUMNS))  # some columns far below the floor
    for step in (1, 2, 3):
        g = single(draw.normal(0, 1, (HEARD, COLUMNS)) * sizes * np.exp(draw.normal(0, 2, (HEARD, 1))))
        where = draw.permutation(ROWS)[:HEARD].astype(np.int32)
        where[step] = -1
        norm = single([1])
        op("spread_columns", spread, column)
        op("adafactor", p, g, row, spread, where, np.float32(DECAY), norm, numbers(step))
        op("column_squares", total, g, where, norm, numbers(step))
        op("column_step", column, total, norm)
        expected_column = reference(expected, g.astype(np.float64), expected_row, expected_column, where, step, DECAY)
        for found, wanted in ((p, expected), (row, expected_row), (column, expected_column)):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
        assert not total.any()


def test_a_row_that_was_silent_makes_no_leap(op):
    p, row, spread = np.zeros((1, COLUMNS), np.float32), np.zeros(1, np.float32), np.ones(COLUMNS, np.float32)
    op("adafactor", p, single(np.ones((1, COLUMNS))), row, spread, np.zeros(1, np.int32), np.float32(0), single([1]), numbers(500))
    np.testing.assert_allclose(p, -RATE, rtol=1e-4)  # and not ten times as much, as 1 / sqrt(1 - beta2) would make it


def test_the_gradient_is_clipped_to_a_norm_everywhere(op):
    g, found = single(np.random.default_rng(1).normal(0, 1, (2, COLUMNS))), []
    for gradient, norm in ((g, 8.0), (g / 4, 2.0)):
        p, row, total = np.zeros((2, COLUMNS), np.float32), np.zeros(2, np.float32), np.zeros(COLUMNS, np.float32)
        where, norm = np.arange(2, dtype=np.int32), single([norm])
        op("adafactor", p, gradient, row, np.ones(COLUMNS, np.float32), where, np.float32(0), norm, numbers(1, clip=2.0))
        op("column_squares", total, gradient, where, norm, numbers(1, clip=2.0))
        found.append((p, row, total))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("norm", [np.nan, np.inf])
def test_a_gradient_whose_norm_is_not_finite_changes_nothing(op, norm):
    p, row, spread, total, column = (single(np.random.default_rng(2).uniform(1, 2, n)) for n in ((2, 8), 2, 8, 8, 8))
    before = [x.copy() for x in (p, row, total, column)]
    g, where, norm = np.full((2, 8), norm, np.float32), np.arange(2, dtype=np.int32), single([norm])
    op("adafactor", p, g, row, spread, where, np.float32(DECAY), norm, numbers(1))
    op("column_squares", total, g, where, norm, numbers(1))
    op("column_step", column, total, norm)
    for after, x in zip((p, row, total, column), before, strict=True):
        np.testing.assert_array_equal(after, x)
