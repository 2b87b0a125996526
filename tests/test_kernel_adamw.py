import numpy as np
import pytest

import reference as ref
from gradients import single
from neurogen_numba.kernels.adamw import BLOCK, adamw_cpu

RATE, BETA1, BETA2, DECAY = 0.01, 0.9, 0.99, 0.1
UNBOUND = (-np.inf, np.inf)


def update(p, g, m, v, step, decay=DECAY, bounds=UNBOUND, g_scale=1.0):
    unbias = 1 / (1 - BETA1**step), 1 / (1 - BETA2**step)
    adamw_cpu(p, g, m, v, *map(np.float32, (g_scale, RATE, BETA1, BETA2, *unbias, decay, *bounds)))


@pytest.mark.parametrize("size", [1, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_three_updates(size, decay):
    rng = np.random.default_rng(size)
    p, m, v = single(rng.normal(0, 1, size)), np.zeros(size, np.float32), np.zeros(size, np.float32)
    expected = p.astype(np.float64), m.astype(np.float64), v.astype(np.float64)
    for step in (1, 2, 3):
        g = single(rng.normal(0, 3, size))
        update(p, g, m, v, step, decay, g_scale=0.25)
        scaled = 0.25 * g.astype(np.float64)
        expected = ref.adamw(expected[0], scaled, *expected[1:], step, RATE, BETA1, BETA2, 1e-8, decay)
    for ours, theirs in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_parameter_never_leaves_its_bounds():
    p, m, v = (np.zeros(6, np.float32) for _ in range(3))
    g = single([1, -1, 1, -1, 0, 0])
    p[4:] = -1, 1
    update(p, g, m, v, step=1, decay=0.0, bounds=(-0.004, 0.006))
    np.testing.assert_array_equal(p, single([-0.004, 0.006, -0.004, 0.006, -0.004, 0.006]))
    update(p, -g, m, v, step=2, decay=0.0, bounds=(-np.inf, 0.0))
    assert p.max() == 0


def test_the_gradient_is_left_alone():
    g = single([1, 2, 3])
    update(*(np.zeros(3, np.float32) if letter != "g" else g for letter in "pgmv"), step=1, g_scale=0.5)
    np.testing.assert_array_equal(g, [1, 2, 3])
