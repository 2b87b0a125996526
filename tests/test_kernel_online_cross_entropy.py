"""Cross-entropy of logits that come in blocks: that of all of them at once, in float64."""

import numpy as np
import pytest

from gradients import single
from neurogen_numba.kernels.softmax import LOWEST
from test_kernel_softmax import whole_rows

ROWS, SIZE, WEIGHT = 6, 23, 0.25


def run(op, logits, targets, block, bias=None):
    """(loss, hit, d_logits) of blocks of `size` tokens, each in an array of whole rows."""
    bias = np.zeros(SIZE, np.float32) if bias is None else bias
    top, best, total, picked = np.full(ROWS, LOWEST, np.float32), np.zeros(ROWS, np.int32), *(np.zeros(ROWS, np.float32) for _ in range(2))
    loss, hit, factor, weight = np.full(ROWS, 9, np.float32), np.full(ROWS, 9, np.uint8), np.zeros(ROWS, np.float32), single([WEIGHT])

    def blocks():
        for first in range(0, logits.shape[1], block):
            tokens = min(block, logits.shape[1] - first)
            yield first, tokens, whole_rows(logits[:, first : first + tokens]), whole_rows(bias[first : first + tokens])

    for first, tokens, *part in blocks():
        op("softmax_part", top, best, total, picked, *part, targets, first, tokens)
    op("softmax_end", loss, hit, factor, top, best, total, picked, targets, weight)
    parts = []
    for first, tokens, *part in blocks():
        d_part = np.full_like(part[0], 5)
        op("softmax_gradient", d_part, *part, top, factor, targets, weight, first, tokens)
        assert not d_part[np.isfinite(loss), tokens:].any()
        parts.append(d_part[:, :tokens])
    return loss, hit, np.concatenate(parts, 1)


@pytest.mark.parametrize("block", [SIZE, 8, 1])
def test_blocks_make_the_whole(op, block):
    draw = np.random.default_rng(block)
    logits, targets = single(draw.normal(0, 4, (ROWS, SIZE))), draw.integers(0, SIZE, ROWS).astype(np.int32)
    targets[:3] = 0, SIZE - 1, -1
    logits[3, targets[3]] = 30  # a hit
    logits[4] = 2
    targets[4] = 0  # the first of equals is a hit
    targets[5] = logits[5].argmin()
    loss, hit, d_logits = run(op, logits, targets, block)
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    counts, rows = targets >= 0, np.arange(ROWS)
    np.testing.assert_allclose(loss, np.where(counts, -np.log(p[rows, targets]), 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hit, counts & (logits.argmax(1) == targets))
    assert hit[3] and hit[4] and not hit[5]
    expected = p.copy()
    expected[rows, targets] -= 1
    np.testing.assert_allclose(d_logits, WEIGHT * np.where(counts[:, None], expected, 0), rtol=1e-4, atol=1e-6)


def test_the_bias_is_added_to_what_is_read(op):
    draw = np.random.default_rng(2)
    logits, bias = single(draw.normal(0, 2, (ROWS, SIZE))), single(draw.normal(0, 2, SIZE))
    targets = draw.integers(-1, SIZE, ROWS).astype(np.int32)
    for ours, expected in zip(run(op, logits, targets, 9, bias), run(op, logits + bias, targets, 9), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_of_equals_only_the_first_is_a_hit(op):
    logits, targets = np.ones((ROWS, SIZE), np.float32), np.arange(ROWS, dtype=np.int32) * 4
    np.testing.assert_array_equal(run(op, logits, targets, 4)[1], targets == 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_where_the_loss_is_not_finite_the_gradient_is_none(op, value):
    logits, targets = single(np.random.default_rng(1).normal(0, 1, (ROWS, SIZE))), np.full(ROWS, 12, np.int32)
    logits[2, 12] = value
    loss, _, d_logits = run(op, logits, targets, 5)
    assert not np.isfinite(loss[2]) and np.isnan(d_logits[2]).all()
    assert np.isfinite(np.delete(loss, 2)).all() and np.isfinite(np.delete(d_logits, 2, 0)).all()
