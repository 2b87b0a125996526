import numpy as np
import pytest

import reference as ref
from gradients import single
from neurogen_numba.config import BUNDLE_SIZES
from neurogen_numba.kernels.adamw import BLOCK
from neurogen_numba.kernels.muon import MOMENTUM, RMS, STEPS

RATE, DECAY = 0.01, 0.1


def update(op, side, p, g, m, decay=DECAY, low=-np.inf, high=np.inf, norm=1.0, clip=np.inf):
    """An update of whole blocks; decay, low, high: of all blocks, or a list."""
    of_blocks = [single(np.broadcast_to(x, len(p) // BLOCK)) for x in (decay, low, high)]
    op("muon", p, g, m, *of_blocks, single([norm]), single([RATE, 1, 1, clip]), side)


def zeros(blocks=1):
    return np.zeros(blocks * BLOCK, np.float32)


def draw(seed, blocks=1):
    return single(np.random.default_rng(seed).normal(0, 1, blocks * BLOCK))


def orthogonal(p, side):
    """The orthogonal matrices [bundles, side, side] of an update of p = 0 without decay."""
    return p.reshape(-1, side, side) / np.float32(-RATE * RMS * np.sqrt(side))


@pytest.mark.parametrize("side", BUNDLE_SIZES)
def test_three_updates(op, side):
    p, m, blocks = draw(side, 2), zeros(2), [0.0, DECAY]
    shape = -1, side, side
    expected = list(zip(p.astype(np.float64).reshape(shape), m.astype(np.float64).reshape(shape), strict=True))
    for step in range(3):
        g = draw(step, 2) * np.repeat(single([1e-4, 1]), BLOCK)
        update(op, side, p, g, m, blocks)
        for bundle, gradient in enumerate(g.astype(np.float64).reshape(shape)):
            decay = blocks[2 * bundle // len(expected)]
            expected[bundle] = ref.muon(*[expected[bundle][0], gradient, expected[bundle][1]], RATE, MOMENTUM, decay, RMS, STEPS, 1e-7)
    for ours, theirs in zip((p, m), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(ours.reshape(shape), theirs, rtol=1e-4, atol=1e-6)


def test_the_steps_move_singular_values_to_1():
    s = np.geomspace(0.01, 1, 1000)
    for a, b, c in np.float64(STEPS):
        s = a * s + b * s**3 + c * s**5
    assert 0.987 < s.min() < 0.989 and 1.011 < s.max() < 1.013  # as far below as above: the best that there is


@pytest.mark.parametrize("side", BUNDLE_SIZES)
def test_an_update_is_equally_large_for_every_side(op, side):
    p = zeros()
    update(op, side, p, draw(4), zeros())
    assert np.sqrt(np.mean(p.astype(np.float64) ** 2)) == pytest.approx(0.4 * RATE, rel=0.03)


@pytest.mark.parametrize("side", BUNDLE_SIZES)
def test_padding_stays_0(op, side):
    """Rows and columns without synapses, and bundles without any."""
    p, g, m = draw(5), draw(6), zeros()
    for x in (p, g):
        bundles = x.reshape(-1, side, side)
        bundles[0, :, 7:] = bundles[-1, 3:] = 0
        bundles[1:-1] = 0
    edges = p == 0
    assert edges.any() and not edges.all()
    for _ in range(2):
        update(op, side, p, g, m)
    assert not p[edges].any() and not m[edges].any() and p[~edges].all()


@pytest.mark.parametrize("side", BUNDLE_SIZES)
def test_a_bundle_is_orthogonalised_alone(op, side):
    g, bundle = draw(7), 0 if side == 64 else 2
    alone, together = zeros(), zeros()
    update(op, side, together, g, zeros())
    others = np.ones(BLOCK // side**2, bool)
    others[bundle] = False
    g.reshape(-1, side, side)[others] *= 3
    update(op, side, alone, g, zeros())
    np.testing.assert_array_equal(*(orthogonal(p, side)[bundle] for p in (alone, together)))


@pytest.mark.parametrize("norm, scale", [(8.0, 0.25), (2.0, 1.0), (0.0, 1.0)])
def test_a_gradient_is_clipped_to_a_norm(op, norm, scale):
    g, m = draw(8), zeros()
    update(op, 16, zeros(), g, m, norm=norm, clip=2.0)
    np.testing.assert_allclose(m, (1 - MOMENTUM) * scale * g, rtol=1e-5)


@pytest.mark.parametrize("norm", [np.nan, np.inf])
def test_a_gradient_whose_norm_is_not_finite_changes_nothing(op, norm):
    arrays = [draw(seed) for seed in (9, 10, 11)]
    arrays[1][:5] = norm
    before = [x.copy() for x in arrays]
    update(op, 16, *arrays, norm=norm, clip=1.0)
    for after, x in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(after, x)


def test_every_block_has_its_own_bounds(op):
    p, g = zeros(3), draw(12, 3)
    update(op, 16, p, g, zeros(3), low=[-np.inf, -0.001, 1], high=[0, np.inf, 2])
    inhibitory, bounded, above = np.split(p, 3)
    assert inhibitory.max() == 0 > inhibitory.min() and (inhibitory == 0).mean() == pytest.approx(0.5, abs=0.1)
    assert bounded.min() == np.float32(-0.001) and bounded.max() > 0.001
    assert (above == 1).all()


def test_a_tiny_gradient_makes_a_small_update(op):
    """A bundle that nothing reaches any more comes to rest."""
    p = zeros()
    update(op, 16, p, single(1e-12) * draw(13), zeros())
    assert 0 < abs(p).max() < 0.02 * RATE * RMS


def test_the_same_bits_every_time(op):
    found = []
    for _ in range(2):
        p, m = draw(14), zeros()
        for seed in (15, 16):
            update(op, 32, p, draw(seed), m)
        found.append((p, m))
    np.testing.assert_array_equal(*(p for p, _ in found))
    np.testing.assert_array_equal(*(m for _, m in found))
