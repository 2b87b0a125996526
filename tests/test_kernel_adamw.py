import numpy as np
import pytest

import reference as ref
from gradients import single
from neurogen_numba.kernels.adamw import BETA1, BETA2, BLOCK

RATE, DECAY = 0.01, 0.1


def update(op, p, g, m, v, step, decay=DECAY, low=-np.inf, high=np.inf, norm=1.0, clip=np.inf):
    """An update of whole blocks; decay, low, high: of all blocks, or a list."""
    of_blocks = [single(np.broadcast_to(x, len(p) // BLOCK)) for x in (decay, low, high)]
    numbers = RATE, 1 / (1 - BETA1**step), 1 / (1 - BETA2**step), clip
    op("adamw", p, g, m, v, *of_blocks, single([norm]), single(numbers))


def zeros(blocks=1):
    return np.zeros(blocks * BLOCK, np.float32)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_three_updates(op, blocks, decay):
    rng, size = np.random.default_rng(blocks), blocks * BLOCK
    p, m, v = single(rng.normal(0, 1, size)), zeros(blocks), zeros(blocks)
    expected = p.astype(np.float64), m.astype(np.float64), v.astype(np.float64)
    for step in (1, 2, 3):
        g = single(rng.normal(0, 3, size))
        update(op, p, g, m, v, step, decay)
        expected = ref.adamw(expected[0], g.astype(np.float64), *expected[1:], step, RATE, BETA1, BETA2, 1e-8, decay)
    for ours, theirs in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm, scale", [(8.0, 0.25), (2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (3e38, 2 / 3e38)])
def test_a_gradient_is_clipped_to_a_norm(op, norm, scale):
    g, (p, m, v) = single(np.random.default_rng(1).normal(0, 3, BLOCK)), (zeros() for _ in range(3))
    update(op, p, g, m, v, step=1, norm=norm, clip=2.0)
    np.testing.assert_allclose(m, 0.1 * scale * g, rtol=1e-5, atol=1e-44)
    np.testing.assert_allclose(v, 0.01 * (scale * g.astype(np.float64)) ** 2, rtol=1e-5, atol=1e-44)


@pytest.mark.parametrize("norm", [np.nan, np.inf])
def test_a_gradient_whose_norm_is_not_finite_changes_nothing(op, norm):
    rng = np.random.default_rng(2)
    arrays = [single(rng.normal(0, 1, BLOCK)) for _ in range(4)]
    arrays[1][:5] = norm
    before = [x.copy() for x in arrays]
    update(op, *arrays, step=1, norm=norm, clip=1.0)
    for after, x in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(after, x)


def test_a_parameter_never_leaves_its_bounds(op):
    p, m, v, g = (zeros() for _ in range(4))
    g[:6], p[4:6] = [1, -1, 1, -1, 0, 0], [-1, 1]
    update(op, p, g, m, v, step=1, decay=0.0, low=-0.004, high=0.006)
    np.testing.assert_array_equal(p[:6], single([-0.004, 0.006, -0.004, 0.006, -0.004, 0.006]))
    update(op, p, -g, m, v, step=2, decay=0.0, high=0.0)
    assert p.max() == 0


def test_every_block_has_its_own_decay_and_bounds(op):
    p, g, m, v = np.ones(3 * BLOCK, np.float32), zeros(3), zeros(3), zeros(3)
    update(op, p, g, m, v, step=1, decay=[0, 0.5, 0], low=[0, 0, 2], high=[0.5, 1, 3])
    for block, expected in zip(np.split(p, 3), (0.5, 0.995, 2), strict=True):
        np.testing.assert_allclose(block, expected, rtol=1e-6)


def test_the_gradient_is_left_alone(op):
    g, (p, m, v) = single(np.arange(BLOCK)), (zeros() for _ in range(3))
    update(op, p, g, m, v, step=1, norm=2.0, clip=1.0)
    np.testing.assert_array_equal(g, np.arange(BLOCK))
