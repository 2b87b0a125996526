import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single
from neurogen_numba.kernels.softmax import cross_entropy_cpu, softmax_row


def scored(logits, targets, weight=1.0):
    """(loss, hit, gradient) of rows of logits."""
    loss, hit, d_logits = np.full(len(logits), np.nan, np.float32), np.full(len(logits), 7, np.uint8), single(logits)
    cross_entropy_cpu(loss, hit, d_logits, np.array(targets, np.int32), np.float32(weight))
    return loss, hit, d_logits


@given(st.sampled_from([1, 2, 17, 40]), st.sampled_from([1, 2, 15, 33]), st.integers(0, 99))
def test_loss_hits_and_gradient(rows, V, seed):
    rng = np.random.default_rng(seed)
    logits, targets = single(rng.normal(0, 4, (rows, V))), rng.integers(-1, V, rows)
    counted = max(1, (targets >= 0).sum())
    loss, hit, d_logits = scored(logits, targets, 1 / counted)
    nats, accuracy = ref.cross_entropy(logits, targets)
    assert loss.sum() / counted == pytest.approx(nats, rel=1e-4, abs=1e-5)
    assert hit.sum() / counted == pytest.approx(accuracy)
    expected = (ref.softmax(logits) - np.eye(V)[targets]) / counted
    expected[targets < 0] = 0
    np.testing.assert_allclose(d_logits, expected, rtol=1e-4, atol=1e-6)
    assert not loss[targets < 0].any() and not hit[targets < 0].any()


def test_gradient():
    logits, targets = single(np.random.default_rng(1).normal(0, 2, (4, 5))), [3, -1, 0, 4]
    expected = gradient(lambda inputs: ref.cross_entropy(inputs["logits"], targets)[0], {"logits": logits}, "logits")
    np.testing.assert_allclose(scored(logits, targets, 1 / 3)[2], expected, rtol=1e-4, atol=1e-6)


def test_of_equals_the_first_counts():
    assert scored([[1, 2, 2, 0]] * 3, [1, 2, 0])[1].tolist() == [1, 0, 0]


def test_large_logits_do_not_overflow():
    loss, _, d_logits = scored([[1e4, 0, -1e4], [1e4, 0, -1e4], [-1e30, 1e30, 0]], [0, 2, 1])
    np.testing.assert_allclose(loss, [0, 2e4, 0], rtol=1e-6)
    np.testing.assert_allclose(d_logits, [[0, 0, 0], [1, 0, -1], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("place", [0, 1, 8, 16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_logit_breaks_the_loss_of_its_row(place, value):
    logits = np.zeros((2, 17))
    logits[0, place] = value
    loss, _, d_logits = scored(logits, [1, 1])
    assert np.isnan(loss[0])  # an update is refused by this
    np.testing.assert_allclose(loss[1], np.log(17), rtol=1e-6)
    assert np.isfinite(d_logits[1]).all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_row_and_its_log_sum(scale):
    logits = single(np.random.default_rng(2).normal(0, 3, 9))
    p = np.empty_like(logits)
    log_sum = softmax_row(p, logits, np.float32(scale))
    np.testing.assert_allclose(p, ref.softmax(scale * logits), rtol=1e-5)
    assert log_sum == pytest.approx(np.log(np.exp(scale * logits.astype(np.float64)).sum()), rel=1e-5)
