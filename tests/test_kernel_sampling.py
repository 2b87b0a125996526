import numpy as np
import pytest

import reference as ref
from gradients import single
from neurogen_numba import backends
from neurogen_numba.errors import BackendError
from neurogen_numba.kernels.rng import key, mix
from neurogen_numba.kernels.sampling import fraction_of, least_weight, weight_of
from test_kernel_softmax import whole_rows

KEY = key(6, 7)
LOGITS = single([0.5, 2, -1, 2, 1.2, -3, 0])  # the two 2s are a tie


def sampled(op, logits, temperature=1.0, top_k=0, top_p=1.0, key=KEY, step=0, bias=None):
    tokens, steps, size = np.full(len(logits), -1, np.int32), np.full(len(logits), step, np.uint64), np.shape(logits)[1]
    rows = whole_rows(logits, 1e9), whole_rows(np.zeros(size) if bias is None else bias)
    op("sample", tokens, *rows, np.float32(temperature), top_k, np.float32(top_p), key, steps, size)
    assert (steps == step + 1).all()
    return tokens


def pointers(rows, step=0):
    """Where the random number of each row points, from 0 to 1."""
    with np.errstate(over="ignore"):
        return np.array([int(mix(KEY, np.uint64(step * rows + row)) >> np.uint64(33)) / 2**31 for row in range(rows)])


def check(op, logits, temperature=1.0, top_k=0, top_p=1.0, step=0):
    """Draws are the tokens that the pointer falls on when what is left of the distribution is lined up."""
    tokens = sampled(op, logits, temperature, top_k, top_p, step=step)
    for token, row, pointer in zip(tokens, logits, pointers(len(logits), step), strict=True):
        ends = np.cumsum(ref.sample_distribution(row, temperature, top_k, top_p))
        if abs(ends - pointer).min() > 1e-5:  # else rounding decides
            assert token == np.searchsorted(ends, pointer)


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
@pytest.mark.parametrize("top_k, top_p", [(0, 1), (1, 1), (3, 1), (100, 1), (0, 1e-6), (0, 0.5), (0, 0.85), (3, 0.8)])
def test_tokens_are_drawn_as_often_as_they_are_probable(op, full_size, temperature, top_k, top_p):
    rows, steps = 400, 50
    expected = rows * steps * ref.sample_distribution(LOGITS, temperature, top_k, top_p)
    drawn = [sampled(op, np.tile(LOGITS, (rows, 1)), temperature, top_k, top_p, step=step) for step in range(steps)]
    counts = np.bincount(np.concatenate(drawn), minlength=len(LOGITS))
    possible = expected > 0
    assert not counts[~possible].any()
    freedom = possible.sum() - 1
    chi_square = np.sum((counts - expected)[possible] ** 2 / expected[possible])
    assert chi_square <= freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("V", [1, 2, 40, 300])
def test_draws_of_any_kind(op, V, seed):
    rng = np.random.default_rng(seed)
    temperature, top_k, top_p = rng.uniform(0.1, 3), rng.choice([0, 1, 2, 7, V, V + 1]), rng.choice([1, rng.uniform(0.01, 1)])
    logits = single(rng.normal(0, 3, (2, V)))
    if seed % 3 == 1:
        logits = np.round(logits * 2) / 2  # ties
    if seed % 4 == 2:
        logits[:, rng.random(V) < 0.5] = -np.inf
        logits[:, V // 2] = 0
    check(op, logits, single(temperature), int(top_k), single(top_p), step=seed)


@pytest.mark.parametrize("temperature", [1e-3, 0.7, 100])
@pytest.mark.parametrize("top_k, top_p", [(0, 1), (40, 1), (1, 1), (0, 0.9), (0, 1e-6), (40, 0.9), (50256, 0.999), (2000, 0.5)])
def test_a_vocabulary_as_large_as_they_come(op, full_size, temperature, top_k, top_p):
    rng = np.random.default_rng(top_k)
    logits = single(rng.normal(0, 2.5, (4, 50257)))
    logits[2:] = np.round(logits[2:], 1)  # ties
    check(op, logits, temperature, top_k, single(top_p))


EDGES = {
    "all equal": np.zeros(70),
    "four equal": [3, -1, 3, 3, 0, 3, -np.inf],  # 0.5 of four is two
    "neighbours": np.nextafter(single(5), single(np.where(np.arange(40) % 3, 9, 0))),  # two floats, side by side
    "one": [-np.inf, 2, -np.inf],
    "none": [-np.inf, -np.inf],
    "infinite": [1, np.inf, 2, np.inf],
    "not a number": [1, np.nan, 2, 1],
    "nothing but": [np.nan, np.nan],
    "far apart": np.arange(60) * 7.0,
    "minus zero": [0.0, -0.0, 0.0, -0.0],
    "zero and less": [-0.0, -1e-30, 0.0, 1e-30],
}


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow encountered")  # the simulator's NumPy wonders
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("top_k, top_p", [(0, 1), (1, 1), (3, 1), (0, 0.5), (0, 0.75), (0, 1e-9), (3, 0.5), (30, 0.999)])
def test_every_backend_draws_alike(op, edge, top_k, top_p):
    logits, cpu = single(np.tile(EDGES[edge], (2, 1))), backends.get("cpu")
    for temperature in (0.0, 1.0):
        steps, expected, bias = np.zeros(2, np.uint64), np.full(2, -1, np.int32), np.zeros(logits.shape[1], np.float32)
        cpu.sample(expected, logits, bias, np.float32(temperature), top_k, np.float32(top_p), KEY, steps, bias.size)
        assert sampled(op, logits, temperature, top_k, top_p).tolist() == expected.tolist()
        assert (expected >= 0).all() and (expected < logits.shape[1]).all()


def test_a_share_that_is_met_exactly_is_enough(op):
    drawn = sampled(op, np.tile([1, 1, 0, 1, 1], (6, 1)), top_p=0.4, temperature=1e-3)
    assert set(drawn) == {0, 1}


@pytest.mark.parametrize("top_k, top_p", [(0, 0.65), (0, 0.75), (30, 0.65), (2, 0.65), (2, 0.75)])
def test_top_p_is_a_share_of_all_that_top_k_leaves(op, top_k, top_p):
    """Two heavy tokens and many light ones: the heavy ones alone are another whole."""
    check(op, np.tile(np.log([0.01] * 15 + [0.5] + [0.01] * 7 + [0.2] + [0.01] * 8), (16, 1)), top_k=top_k, top_p=single(top_p))


@pytest.mark.parametrize("top_k, top_p", [(1, 1), (2, 1), (37, 1), (250, 1), (0, 0.9), (0, 0.9935), (0, 0.995), (0, 0.999), (200, 0.995)])
def test_what_is_left_ends_where_it_should(op, top_k, top_p):
    """Logits fall, most of the weight is in the first, and the number drawn points at the end of what is left: at the last token there."""
    with np.errstate(over="ignore"):
        numbers = mix(KEY, np.arange(2**21, dtype=np.uint64))
    step = np.argmax(numbers)
    assert numbers[step] / 2**64 > 1 - 2e-6
    logits = np.append(5, -5.6 - 1e-3 * np.arange(300))
    last = np.flatnonzero(ref.sample_distribution(logits, 1, top_k, top_p))[-1]
    assert sampled(op, [logits], 1, top_k, top_p, step=step) == last


def test_what_is_not_a_number_is_never_drawn(op):
    assert set(sampled(op, np.tile([np.nan, 0, np.nan, 0, 0], (6, 1)))) <= {1, 3, 4}


def test_temperature_zero_takes_the_first_of_the_most_probable(op):
    logits = np.stack([LOGITS, LOGITS[::-1], -LOGITS, np.zeros(7)])
    assert sampled(op, logits, temperature=0).tolist() == [np.argmax(ref.sample_distribution(row, 0)) for row in logits] == [1, 3, 5, 0]
    rows = np.zeros((2, 150))
    rows[0, 140], rows[1, [77, 78, 141]] = 1, 1
    assert sampled(op, rows, temperature=0).tolist() == [140, 77]


def test_large_logits_and_a_small_temperature_do_not_overflow(op):
    assert sampled(op, [[1e4, 0, -1e4], [-1e30, 0, 1e30]], temperature=0.01).tolist() == [0, 2]


def test_a_draw_depends_on_its_key_step_and_sequence_alone(op):
    logits = np.tile(LOGITS, (9, 1))
    tokens = sampled(op, logits)
    np.testing.assert_array_equal(sampled(op, logits), tokens)
    changed = logits.copy()
    changed[3] = -LOGITS
    np.testing.assert_array_equal(np.delete(sampled(op, changed), 3), np.delete(tokens, 3))
    for other in (sampled(op, logits, step=1), sampled(op, logits, key=key(6, 8)), np.roll(tokens, 1)):
        assert (other != tokens).any()


def test_logits_are_left_alone_and_rows_may_be_longer(backend, op):
    logits, bias = backend.zeros((5, 64))[:3], backend.zeros(64)
    logits[:, :7] = backend.asarray(np.tile(LOGITS, (3, 1)))
    tokens, steps = backend.zeros(3, "int32"), backend.zeros(3, "uint64")
    backend.sample(tokens, logits, bias, np.float32(0.5), 3, np.float32(0.9), KEY, steps, 7)
    np.testing.assert_array_equal(backend.to_numpy(logits)[:, :7], np.tile(LOGITS, (3, 1)))
    np.testing.assert_array_equal(backend.to_numpy(tokens), sampled(op, np.tile(LOGITS, (3, 1)), 0.5, 3, 0.9))


@pytest.mark.parametrize("top_k, top_p", [(0, 1), (2, 1), (0, 0.8), (9, 0.8)])
def test_the_bias_is_added_to_what_is_read(op, top_k, top_p):
    rng = np.random.default_rng(4)
    logits, bias = single(rng.normal(0, 1, (8, 70))), single(rng.normal(0, 3, 70))
    how = 0.9, top_k, top_p
    assert sampled(op, logits, *how, bias=bias).tolist() == sampled(op, logits + bias, *how).tolist()
    assert sampled(op, logits, 0, bias=bias).tolist() == (logits + bias).argmax(1).tolist()


def test_more_tokens_than_a_gpu_can_count(backend):
    tokens, logits, steps = backend.zeros(1, "int32"), backend.zeros((1, 2**17)), backend.zeros(1, "uint64")
    if backend.name == "cuda":
        with pytest.raises(BackendError, match="131,071 tokens, not 131,072"):
            backend.sample(tokens, logits, logits[0], np.float32(1), 0, np.float32(1), KEY, steps, 2**17)


def test_integers():
    assert [weight_of(np.float32(nats)) for nats in (0, 21.9, 22, 1e9, np.inf, np.nan)] == [2**30, 0, 0, 0, 0, 0]
    for nats in (0.3, 1, 9, 20):
        assert weight_of(np.float32(nats)) == pytest.approx(2**30 * np.exp(-nats), rel=1e-6, abs=1)
    for total in (0, 1, 12345, 2**30, 2**47 + 54321, 2**61 - 1):
        for part in (0, 1, 98765432, 2**31 - 1, 2**31):
            assert fraction_of(np.int64(total), np.int64(part)) == total * part >> 31
    assert [least_weight(np.int64(total), np.float32(p)) for total, p in ((1000, 0.5), (1000, 1e-9), (0, 0.5), (2**40, 1))] == [
        500,
        1,
        1,
        2**40,
    ]
