from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference as ref
from conftest import NO_AXON, SIMULATED
from gradients import gradient, single
from neurogen_numba import backends
from neurogen_numba.errors import ConfigError
from neurogen_numba.kernels.memory import BLOCK_DIM, MAX_TOKENS


def draw(C, B, heads, width, seed=1):
    rng = np.random.default_rng(seed)
    size = (C, B, heads * width)
    shapes = {"q_in": size, "v_in": size, "w_in": (C, B, heads), "write_bias": (heads,), "decay": (heads,)}
    shapes |= {"S0": (B, heads, width, width), "key0": (B, heads * width), "write_scale": (B,)}
    inputs = {name: single(rng.normal(0, 1, shape)) for name, shape in shapes.items()}
    inputs["write_scale"] = single(rng.uniform(0.5, 1.5, B))
    inputs["decay"] += 2  # some of it lasts from chunk to chunk
    return inputs


def arguments(inputs, tokens=slice(None)):
    """q_in, v, w_in, write_bias, decay, write_scale of the kernels."""
    per_token = (single(inputs[name][tokens]) for name in ("q_in", "v_in", "w_in"))
    return *per_token, inputs["write_bias"], inputs["decay"], inputs["write_scale"]


def forward(op, inputs, S, key, tokens=slice(None)):
    """out; S and key go on in place."""
    out = np.full_like(inputs["q_in"][tokens], np.nan)
    op("memory_forward", out, S, key, *arguments(inputs, tokens), NO_AXON, 0)
    return out


def backward(op, inputs, S_before, key_before, d_out, d_decay, dS, d_key, tokens=slice(None)):
    """dq_in, dv, dw_in; adds to d_decay, carries dS and d_key."""
    grads = [np.full_like(values, np.nan) for values in arguments(inputs, tokens)[:3]]
    op("memory_backward", *grads, d_decay, dS, d_key, single(d_out[tokens]), S_before, key_before, *arguments(inputs, tokens))
    return grads


def check_forward(op, C, B, heads, width, seed=1):
    inputs = draw(C, B, heads, width, seed)
    expected, S_after, key_after = ref.delta_memory(**inputs, heads=heads)
    S, key = inputs["S0"].copy(), inputs["key0"].copy()
    np.testing.assert_allclose(forward(op, inputs, S, key), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(S, S_after, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(key, key_after, rtol=1e-4, atol=1e-5)


BATCHES, HEADS = ([1, 2], 2) if SIMULATED else ([1, 3, 17], 3)  # the simulator takes a tenth of a second for each memory


@settings(max_examples=5 if SIMULATED else 100)
@given(st.integers(1, 4), st.sampled_from(BATCHES), st.integers(1, HEADS), st.sampled_from([1, 3, 8]), st.integers(0, 99))
def test_forward(op, C, B, heads, width, seed):
    check_forward(op, C, B, heads, width, seed)


@pytest.mark.parametrize("C, B, heads, width", [(2, 1, 1, 64), (2, 1, 1, 33), (MAX_TOKENS, 1, 1, 8), (MAX_TOKENS + 2, 1, 2, 4)])
def test_forward_of_wide_memories_and_long_chunks(op, C, B, heads, width):
    check_forward(op, C, B, heads, width)


def draw_loss(C, B, heads, width):
    """A loss that reads what every token recalls and what is left at the end, and its gradients there."""
    rng = np.random.default_rng(2)
    to_out, to_S, to_key = (rng.normal(0, 1, shape) for shape in ((C, B, heads * width), (B, heads, width, width), (B, heads * width)))

    def loss(changed):
        out, S, key = ref.delta_memory(**changed, heads=heads)
        return np.sum(to_out * out) + np.sum(to_S * S) + np.sum(to_key * key)

    return loss, to_out, to_S, to_key


def gradients(op, inputs, to_out, to_S, to_key):
    """The kernel's, by the names of the inputs."""
    before = single(np.random.default_rng(3).normal(0, 1, inputs["w_in"].shape[1:]))
    d_decay, dS, d_key = before.copy(), single(to_S), single(to_key)
    dq, dv, dw = backward(op, inputs, inputs["S0"], inputs["key0"], to_out, d_decay, dS, d_key)
    per_head = {"write_bias": dw.sum((0, 1)), "decay": (d_decay - before).sum(0)}
    return {"q_in": dq, "v_in": dv, "w_in": dw, **per_head, "S0": dS, "key0": d_key}


@pytest.mark.parametrize("C, B, heads, width", [(1, 1, 1, 1), (1, 1, 2, 3), (4, 2, 2, 3), (2, 1, 1, 8), (2 * MAX_TOKENS + 2, 1, 1, 2)])
def test_gradient(op, C, B, heads, width):
    inputs, (loss, *to) = draw(C, B, heads, width), draw_loss(C, B, heads, width)
    for name, ours in gradients(op, inputs, *to).items():
        np.testing.assert_allclose(ours, gradient(loss, inputs, name), rtol=1e-3, atol=1e-3, err_msg=name)


def test_the_hebbian_rule_does_not_erase(op):
    C, B, heads, width = 4, 2, 2, 3
    inputs, rng = draw(C, B, heads, width), np.random.default_rng(2)
    hebbian = partial(ref.delta_memory, heads=heads, erase=0.0)
    out, S, key = np.full_like(inputs["q_in"], np.nan), inputs["S0"].copy(), inputs["key0"].copy()
    op("memory_forward", out, S, key, *arguments(inputs), NO_AXON, 0, 0.0)
    for ours, expected in zip((out, S, key), hebbian(**inputs), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)
    to = [rng.normal(0, 1, array.shape) for array in (out, S, key)]

    def loss(changed):
        return sum(np.sum(to_x * x) for to_x, x in zip(to, hebbian(**changed), strict=True))

    dq, dv, dw = (np.full_like(values, np.nan) for values in arguments(inputs)[:3])
    d_decay, dS, d_key = np.zeros((B, heads), np.float32), single(to[1]), single(to[2])
    before = inputs["S0"], inputs["key0"]
    op("memory_backward", dq, dv, dw, d_decay, dS, d_key, single(to[0]), *before, *arguments(inputs), 0.0)
    found = {"q_in": dq, "v_in": dv, "w_in": dw, "decay": d_decay.sum(0), "S0": dS, "key0": d_key}
    for name, ours in found.items():
        np.testing.assert_allclose(ours, gradient(loss, inputs, name), rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("C, B, heads, width", [(2, 1, 1, 64), (1, 1, 1, 64), (3, 1, 2, 33), (MAX_TOKENS, 1, 1, 8)])
def test_gradient_along_a_line(op, C, B, heads, width):
    check_gradient_along_a_line(op, C, B, heads, width)


def test_gradient_of_large_memories(op, full_size):
    check_gradient_along_a_line(op, MAX_TOKENS, 17, 5, 64)


def check_gradient_along_a_line(op, C, B, heads, width):
    """Where there are too many numbers to try each: all entries of an input change at once, at random."""
    inputs, (loss, *to) = draw(C, B, heads, width), draw_loss(C, B, heads, width)
    wide = {name: values.astype(np.float64) for name, values in inputs.items()}
    for name, ours in gradients(op, inputs, *to).items():
        line = np.random.default_rng(4).normal(0, 1, ours.shape)
        ahead, behind = (loss(wide | {name: wide[name] + step * line}) for step in (1e-5, -1e-5))
        np.testing.assert_allclose(np.sum(ours * line), (ahead - behind) / 2e-5, rtol=1e-4, atol=1e-4 * np.linalg.norm(ours), err_msg=name)


def test_the_same_run_gives_the_same_bits(op):
    inputs, (_, *to) = draw(3, 1, 2, 33), draw_loss(3, 1, 2, 33)
    once, again = (gradients(op, inputs, *to) for _ in range(2))
    for name, values in once.items():
        assert values.tobytes() == again[name].tobytes(), name


def test_what_is_recalled_is_written_into_the_ring(op, written):
    C, B, heads, width = MAX_TOKENS + 3, 2, 2, 5  # a chunk in two parts
    inputs = draw(C, B, heads, width)
    out = np.full_like(inputs["q_in"], np.nan)
    run = partial(op, "memory_forward", out, inputs["S0"].copy(), inputs["key0"].copy(), *arguments(inputs))
    ring = written(C, B, heads * width, run)
    np.testing.assert_array_equal(ring[:C, :, : heads * width], out)
    assert np.isfinite(out).all() and not ring[C:].any() and not ring[:, :, heads * width :].any()


@pytest.mark.gpu
def test_a_memory_wider_than_a_block_is_refused():
    inputs, gpu = draw(1, 1, 1, BLOCK_DIM + 1), backends.get("cuda")
    with pytest.raises(ConfigError, match=f"brain.memory_width: at most {BLOCK_DIM}"):
        gpu.memory_forward(inputs["q_in"], inputs["S0"], inputs["key0"], *arguments(inputs), gpu.no_axon, 0)


@pytest.mark.parametrize("loudness", [0, 1e-4, 1e-2])
@pytest.mark.parametrize("width", [8, 64])
def test_a_silent_head_has_a_bounded_gradient(op, width, loudness):
    """silu halves the gradient of what is about 0, and `unit` multiplies it by 1 / sqrt(W KEY_FLOOR) at most: a query whose sources are
    silent may not blow up what goes back through it, or a brain's gradient would grow with every chunk."""
    inputs = draw(1, 1, 1, width)
    inputs["q_in"] *= np.float32(loudness)
    inputs["S0"][...], inputs["key0"][...], inputs["write_scale"][...] = 0, 0, 1
    rng = np.random.default_rng(7)
    d_key = single(rng.normal(0, 1, (1, width)))  # what the next token sends back to this one's query
    d_decay, dS = np.zeros((1, 1), np.float32), np.zeros((1, 1, width, width), np.float32)
    sent = np.linalg.norm(d_key)
    dq, _, _ = backward(op, inputs, inputs["S0"], inputs["key0"], np.zeros_like(inputs["q_in"]), d_decay, dS, d_key)
    slope = 0.5 + np.abs(inputs["q_in"]).max() / 2  # of silu, at most: its second derivative is at most 1/2
    assert 0.1 * sent < np.linalg.norm(dq) <= slope / np.sqrt(1e-3 * width) * sent * (1 + 1e-5)


def test_two_chunks_are_one(op):
    B, heads = (1, 1) if SIMULATED else (3, 2)
    inputs = draw(7, B, heads, 5)
    early, late = slice(0, 3), slice(3, 7)
    start = inputs["S0"], inputs["key0"]
    whole, pieces = [rows.copy() for rows in start], [rows.copy() for rows in start]
    out, first = forward(op, inputs, *whole), forward(op, inputs, *pieces, early)
    middle = [rows.copy() for rows in pieces]
    second = forward(op, inputs, *pieces, late)
    np.testing.assert_allclose(np.concatenate([first, second]), out, rtol=1e-4, atol=1e-5)
    for one, two in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)

    d_out = single(np.random.default_rng(3).normal(0, 1, out.shape))
    carries = [[np.zeros((B, heads), np.float32), *(np.ones_like(rows) for rows in start)] for _ in range(2)]
    once = backward(op, inputs, *start, d_out, *carries[0])
    after = backward(op, inputs, *middle, d_out, *carries[1], late)
    before = backward(op, inputs, *start, d_out, *carries[1], early)
    for one, *two in zip(once, before, after, strict=True):
        np.testing.assert_allclose(np.concatenate(two), one, rtol=1e-3, atol=1e-4)
    for one, two in zip(*carries, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)


def test_what_follows_the_same_words_is_recalled_and_replaced_when_told_again(op):
    cue, first, second = np.random.default_rng(4).normal(0, 1, (3, 8))
    inputs = draw(4, 1, 1, 8)
    inputs["w_in"][:], inputs["decay"][:], inputs["write_scale"][:] = 20, 20, 1  # write all of it, forget nothing
    # Tokens 0 and 2 say the cue; what comes at 1 and 3 is stored under it. Nothing is stored under what comes before the cue.
    inputs["q_in"][[0, 2], 0], inputs["q_in"][[1, 3], 0] = cue, 0
    inputs["v_in"][[0, 2], 0], inputs["v_in"][1, 0], inputs["v_in"][3, 0] = 0, first, second
    S, key = np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 8), np.float32)
    recalled = [forward(op, inputs, S, key, slice(t, t + 1))[0, 0] for t in (0, 1, 2, 3, 2)]

    def recalled_value(value):
        return value / np.sqrt(np.mean(value**2))

    assert not recalled[0].any()
    np.testing.assert_allclose(recalled[2], recalled_value(first), atol=1e-2)
    np.testing.assert_allclose(recalled[4], recalled_value(second), atol=1e-2)
