import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference as ref
from gradients import gradient, single
from neurogen_numba.kernels.memory import memory_backward_cpu, memory_forward_cpu


def draw(C, B, heads, width, seed=1):
    rng = np.random.default_rng(seed)
    size = (C, B, heads * width)
    shapes = {"q_in": size, "v_in": size, "w_in": (C, B, heads), "write_bias": (heads,), "decay": (heads,)}
    shapes |= {"S0": (B, heads, width, width), "key0": (B, heads * width), "dopamine": (B,)}
    inputs = {name: single(rng.normal(0, 1, shape)) for name, shape in shapes.items()}
    inputs["dopamine"] = single(rng.uniform(-0.5, 0.5, B))
    return inputs


def arguments(inputs, tokens=slice(None)):
    """q_in, v, w_in, write_bias, decay, write_scale of the kernels."""
    per_token = (single(inputs[name][tokens]) for name in ("q_in", "v_in", "w_in"))
    return *per_token, inputs["write_bias"], inputs["decay"], 1 + inputs["dopamine"]


def forward(inputs, S, key, tokens=slice(None)):
    """out; S and key go on in place."""
    out = np.full_like(inputs["q_in"][tokens], np.nan)
    memory_forward_cpu(out, S, key, *arguments(inputs, tokens))
    return out


def backward(inputs, S_before, key_before, d_out, d_decay, dS, d_key, tokens=slice(None)):
    """dq_in, dv, dw_in; adds to d_decay, carries dS and d_key."""
    grads = [np.full_like(values, np.nan) for values in arguments(inputs, tokens)[:3]]
    memory_backward_cpu(*grads, d_decay, dS, d_key, single(d_out[tokens]), S_before, key_before, *arguments(inputs, tokens))
    return grads


@given(st.integers(1, 4), st.sampled_from([1, 3, 17]), st.integers(1, 3), st.sampled_from([1, 3, 8]), st.integers(0, 99))
def test_forward(C, B, heads, width, seed):
    inputs = draw(C, B, heads, width, seed)
    expected, S_after, key_after = ref.delta_memory(**inputs, heads=heads)
    S, key = inputs["S0"].copy(), inputs["key0"].copy()
    np.testing.assert_allclose(forward(inputs, S, key), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(S, S_after, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(key, key_after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("C, B, heads, width", [(1, 1, 1, 1), (1, 1, 2, 3), (4, 2, 2, 3)])
def test_gradient(C, B, heads, width):
    inputs, rng = draw(C, B, heads, width), np.random.default_rng(2)
    to_out, to_S, to_key = (rng.normal(0, 1, shape) for shape in ((C, B, heads * width), (B, heads, width, width), (B, heads * width)))

    def loss(changed):
        out, S, key = ref.delta_memory(**changed, heads=heads)
        return np.sum(to_out * out) + np.sum(to_S * S) + np.sum(to_key * key)

    before = single(rng.normal(0, 1, (B, heads)))
    d_decay, dS, d_key = before.copy(), single(to_S), single(to_key)
    dq, dv, dw = backward(inputs, inputs["S0"], inputs["key0"], to_out, d_decay, dS, d_key)
    ours = {"q_in": dq, "v_in": dv, "w_in": dw, "write_bias": dw.sum((0, 1)), "decay": (d_decay - before).sum(0), "S0": dS, "key0": d_key}
    for name, values in ours.items():
        np.testing.assert_allclose(values, gradient(loss, inputs, name), rtol=1e-3, atol=1e-3, err_msg=name)


def test_two_chunks_are_one():
    inputs = draw(7, 3, 2, 5)
    early, late = slice(0, 3), slice(3, 7)
    start = inputs["S0"], inputs["key0"]
    whole, pieces = [rows.copy() for rows in start], [rows.copy() for rows in start]
    out, first = forward(inputs, *whole), forward(inputs, *pieces, early)
    middle = [rows.copy() for rows in pieces]
    second = forward(inputs, *pieces, late)
    np.testing.assert_allclose(np.concatenate([first, second]), out, rtol=1e-4, atol=1e-5)
    for one, two in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)

    d_out = single(np.random.default_rng(3).normal(0, 1, out.shape))
    carries = [[np.zeros((3, 2), np.float32), *(np.ones_like(rows) for rows in start)] for _ in range(2)]
    once = backward(inputs, *start, d_out, *carries[0])
    after = backward(inputs, *middle, d_out, *carries[1], late)
    before = backward(inputs, *start, d_out, *carries[1], early)
    for one, *two in zip(once, before, after, strict=True):
        np.testing.assert_allclose(np.concatenate(two), one, rtol=1e-3, atol=1e-4)
    for one, two in zip(*carries, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)


def test_what_follows_the_same_words_is_recalled_and_replaced_when_told_again():
    cue, first, second = np.random.default_rng(4).normal(0, 1, (3, 8))
    inputs = draw(4, 1, 1, 8)
    inputs["w_in"][:], inputs["decay"][:], inputs["dopamine"][:] = 20, 20, 0  # write all of it, forget nothing
    # Tokens 0 and 2 say the cue; what comes at 1 and 3 is stored under it. Nothing is stored under what comes before the cue.
    inputs["q_in"][[0, 2], 0], inputs["q_in"][[1, 3], 0] = cue, 0
    inputs["v_in"][[0, 2], 0], inputs["v_in"][1, 0], inputs["v_in"][3, 0] = 0, first, second
    S, key = np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 8), np.float32)
    recalled = [forward(inputs, S, key, slice(t, t + 1))[0, 0] for t in (0, 1, 2, 3, 2)]

    def told(value):
        return value / np.sqrt(np.mean(value**2))

    assert not recalled[0].any()
    np.testing.assert_allclose(recalled[2], told(first), atol=1e-2)
    np.testing.assert_allclose(recalled[4], told(second), atol=1e-2)
