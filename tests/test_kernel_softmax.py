import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single


def whole_rows(x, filled=7):
    """Rows filled up to a multiple of 4 numbers, as kernels read them."""
    x = single(x)
    return np.concatenate([x, np.full((*x.shape[:-1], -x.shape[-1] % 4), filled, np.float32)], -1)


def scored(op, logits, targets, weight=1.0, bias=None):
    """(loss, hit, gradient) of rows of logits."""
    size, rows = np.shape(logits)[1], whole_rows(logits)
    loss, hit, d_logits = np.full(len(rows), np.nan, np.float32), np.full(len(rows), 7, np.uint8), np.full_like(rows, np.nan)
    bias = whole_rows(np.zeros(size) if bias is None else bias)
    op("cross_entropy", loss, hit, d_logits, rows, bias, np.array(targets, np.int32), single([weight]), size)
    assert not d_logits[np.isfinite(loss), size:].any()
    return loss, hit, d_logits[:, :size]


def check(op, logits, targets):
    counted = max(1, (targets >= 0).sum())
    loss, hit, d_logits = scored(op, logits, targets, 1 / counted)
    nats, accuracy = ref.cross_entropy(logits, targets)
    assert loss.sum(dtype=np.float64) / counted == pytest.approx(nats, rel=1e-4, abs=1e-5)
    assert hit.sum() / counted == pytest.approx(accuracy)
    expected = ref.softmax(logits)
    expected[np.arange(len(logits)), targets] -= 1
    expected[targets < 0] = 0
    np.testing.assert_allclose(d_logits, expected / counted, rtol=1e-4, atol=1e-6)
    assert not loss[targets < 0].any() and not hit[targets < 0].any()


@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 2, 7, 8, 9, 31, 33, 65]), st.integers(0, 99))
def test_loss_hits_and_gradient(op, rows, V, seed):
    rng = np.random.default_rng(seed)
    check(op, single(rng.normal(0, 4, (rows, V))), rng.integers(-1, V, rows))


@pytest.mark.parametrize("V", [3, 9, 70])
def test_the_bias_is_added_to_what_is_read(op, V):
    rng = np.random.default_rng(V)
    logits, bias, targets = single(rng.normal(0, 2, (6, V))), single(rng.normal(0, 2, V)), rng.integers(-1, V, 6)
    for ours, expected in zip(scored(op, logits, targets, bias=bias), scored(op, logits + bias, targets), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_more_logits_than_are_read_at_once(op):
    rng = np.random.default_rng(5)
    check(op, single(rng.normal(0, 4, (3, 2003))), np.array([2002, 5, -1]))


def test_rows_as_long_and_as_many_as_in_training(op, full_size):
    rng = np.random.default_rng(6)
    logits, targets = single(rng.normal(0, 3, (40, 50257))), rng.integers(-1, 50257, 40)
    targets[:20] = logits[:20].argmax(1)
    check(op, logits, targets)
    for ours, again in zip(scored(op, logits, targets), scored(op, logits, targets), strict=True):
        np.testing.assert_array_equal(ours, again)


def test_gradient(op):
    logits, targets = single(np.random.default_rng(1).normal(0, 2, (4, 5))), [3, -1, 0, 4]
    expected = gradient(lambda inputs: ref.cross_entropy(inputs["logits"], targets)[0], {"logits": logits}, "logits")
    np.testing.assert_allclose(scored(op, logits, targets, 1 / 3)[2], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("V", [4, 40, 400])
def test_of_equals_the_first_counts(op, V):
    logits = np.zeros((4, V))
    logits[:, 1:-1] = 2
    assert scored(op, logits, [1, 2, 0, V - 2])[1].tolist() == [1, 0, 0, 0]


def test_the_largest_counts_wherever_it_is(op):
    logits, targets = np.eye(70)[::7], np.arange(70)[::7]
    assert scored(op, logits, targets)[1].all()
    assert not scored(op, logits, targets[::-1])[1].any()


def test_large_logits_do_not_overflow(op):
    loss, _, d_logits = scored(op, [[1e4, 0, -1e4], [1e4, 0, -1e4], [-1e30, 1e30, 0], [-np.inf, 0, 0]], [0, 2, 1, 1])
    np.testing.assert_allclose(loss, [0, 2e4, 0, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(d_logits, [[0, 0, 0], [1, 0, -1], [0, 0, 0], [0, -0.5, 0.5]], atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")  # the simulator's NumPy wonders
@pytest.mark.parametrize("position", [0, 1, 8, 16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_logit_breaks_the_loss_of_its_row(op, position, value):
    logits = np.zeros((2, 17))
    logits[0, position] = value
    loss, _, d_logits = scored(op, logits, [1, 1])
    assert np.isnan(loss[0])  # an update is refused by this
    np.testing.assert_allclose(loss[1], np.log(17), rtol=1e-6)
    assert np.isnan(d_logits[0]).all() and np.isfinite(d_logits[1]).all()


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")  # the simulator's NumPy wonders
@pytest.mark.parametrize("position", [0, 8, 16])
@pytest.mark.parametrize("value", [-np.inf, -3e38], ids=["-inf", "too large a difference"])
def test_an_infinite_loss_has_no_gradient(op, position, value):
    """Without the others' being NaN, the row's gradient would be finite: an update would be made of it."""
    logits = np.zeros((3, 17))
    logits[:2, position] = value
    logits[0, (position + 1) % 17] = 3e38
    loss, hit, d_logits = scored(op, logits, [position, (position + 2) % 17, position])
    assert np.isinf(loss[0]) and loss[0] > 0 and not hit[0]
    assert np.isnan(d_logits[0]).all()
    assert np.isfinite(loss[1:]).all() and np.isfinite(d_logits[1:]).all()


@pytest.mark.filterwarnings("ignore:invalid value")  # the simulator's NumPy wonders
def test_an_infinite_loss_has_no_gradient_in_place_either(backend):
    logits, bias = backend.asarray(whole_rows([[-np.inf, 0, 0], [0, -np.inf, 0]])), backend.zeros(4)
    loss, hit = backend.zeros(2), backend.zeros(2, "uint8")
    targets, weight = backend.asarray(np.array([0, -1], np.int32)), backend.asarray(single([1]))
    backend.cross_entropy(loss, hit, logits, logits, bias, targets, weight, 3)
    np.testing.assert_array_equal(backend.to_numpy(logits)[:, :3], [[np.nan] * 3, [0] * 3])
    np.testing.assert_array_equal(backend.to_numpy(loss), [np.inf, 0])


@pytest.mark.parametrize("V", [17, 64])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_gradient_in_place_and_rows_of_whole_tiles(backend, op, V, in_place):
    rng = np.random.default_rng(V)
    values, targets = single(rng.normal(0, 3, (4, V))), np.array([3, -1, 0, 16], np.int32)
    loss, hit, logits = backend.zeros(4), backend.zeros(4, "uint8"), backend.zeros((5, 128))[:4]
    d_logits = logits if in_place else backend.zeros((6, 128))[1:5]
    logits[:, :V] = backend.asarray(values)
    there = backend.zeros(128), backend.asarray(targets), backend.asarray(single([0.5]))
    backend.cross_entropy(loss, hit, d_logits, logits, *there, V)
    ours = (backend.to_numpy(x) for x in (loss, hit, d_logits[:, :V]))
    for local, expected in zip(ours, scored(op, values, targets, 0.5), strict=True):
        np.testing.assert_array_equal(local, expected)
    assert not backend.to_numpy(d_logits)[:, V:].any()


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_the_gradient_may_be_of_half_precision(backend, op, kind):
    if backend.name == "cpu":
        pytest.skip("products on the CPU are float32")
    dtype = np.dtype("float16") if kind == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    rng = np.random.default_rng(8)
    logits, targets = single(rng.normal(0, 3, (6, 77))), rng.integers(-1, 77, 6).astype(np.int32)
    loss, hit, d_logits = backend.zeros(6), backend.zeros(6, "uint8"), backend.zeros((6, 80), kind)
    there = [backend.asarray(x) for x in (whole_rows(logits), np.zeros(80, np.float32), targets, single([64]))]
    backend.cross_entropy(loss, hit, d_logits, *there, 77)
    expected = scored(op, logits, targets, 64)[2]
    np.testing.assert_array_equal(backend.to_numpy(d_logits)[:, :77], expected.astype(dtype))
