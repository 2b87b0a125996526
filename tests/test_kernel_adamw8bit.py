"""AdamW with moments of a byte each: an update is AdamW's from what the bytes stand for, and they stand for the new moments, on average."""

import numpy as np
import pytest

import reference as ref
from gradients import single
from neurogen_numba.kernels import rng
from neurogen_numba.kernels.adamw import BETA1, BETA2, BLOCK
from neurogen_numba.kernels.adamw8bit import GROUP_SIZE

RATE, DECAY = 0.01, 0.1


class Moments:
    """Codes and the largest of each share, all 0 at first."""

    def __init__(self, blocks=1):
        size = blocks * BLOCK
        self.m, self.v = np.zeros(size, np.int8), np.zeros(size, np.uint8)
        self.m_top, self.r_top = np.zeros(size // GROUP_SIZE, np.float32), np.zeros(size // GROUP_SIZE, np.float32)

    def arrays(self):
        return self.m, self.v, self.m_top, self.r_top

    def decoded(self):
        """(m, v) in float64, as the docstring of the kernel's file has it."""
        m, v = self.m.astype(np.float64), self.v.astype(np.float64)
        m_top, r_top = (np.repeat(top.astype(np.float64), GROUP_SIZE) for top in (self.m_top, self.r_top))
        return m_top * np.sign(m) * (m / 127) ** 2, (r_top * (v / 255) ** 2) ** 2

    def update(self, op, p, g, step, seed=0, decay=DECAY, low=-np.inf, high=np.inf, norm=1.0, clip=np.inf, first=0):
        of_blocks = [single(np.broadcast_to(x, len(p) // BLOCK)) for x in (decay, low, high)]
        numbers = single([RATE, 1 / (1 - BETA1**step), 1 / (1 - BETA2**step), clip])
        key = np.array([rng.key(seed, step)], np.uint64)
        op("adamw8bit", p, g, *self.arrays(), *of_blocks, single([norm]), numbers, key, np.uint64(first))


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_update_is_that_of_the_moments_that_the_bytes_stand_for(op, blocks):
    draw, moments = np.random.default_rng(blocks), Moments(blocks)
    size = np.exp(draw.normal(0, 3, blocks * BLOCK))  # gradients of many sizes side by side
    p = single(draw.normal(0, 1, blocks * BLOCK))
    for step in (1, 2, 3):
        g, before = single(draw.normal(0, size)), moments.decoded()
        expected, m, v = ref.adamw(p.astype(np.float64), g.astype(np.float64), *before, step, RATE, BETA1, BETA2, 1e-8, DECAY)
        moments.update(op, p, g, step)
        np.testing.assert_allclose(p, expected, rtol=1e-4, atol=1e-6)
        for x, codes, found in ((np.abs(m), 127, np.abs(moments.decoded()[0])), (np.sqrt(v), 255, np.sqrt(moments.decoded()[1]))):
            top = np.repeat(x.reshape(-1, GROUP_SIZE).max(1), GROUP_SIZE)
            position = codes * np.sqrt(x / top)
            below, above = (np.clip(edge, 0, codes) for edge in (np.floor(position - 0.01), np.ceil(position + 0.01)))
            least = 0 if codes == 127 else 1  # v does not become 0
            assert (found >= top * (below / codes) ** 2 * (1 - 1e-4)).all()
            assert (found <= top * (np.maximum(above, least) / codes) ** 2 * (1 + 1e-4)).all()
        assert (np.sign(moments.m) * np.sign(m) >= 0).all() and (moments.v > 0).all()


def test_the_bytes_are_right_on_average(op, full_size):
    g = single(np.random.default_rng(3).normal(0, 1, BLOCK))
    sums, times = np.zeros((2, BLOCK)), 300
    for seed in range(times):
        moments, p = Moments(), np.zeros(BLOCK, np.float32)
        moments.update(op, p, g, 1, seed)
        m, v = moments.decoded()
        sums += m, np.sqrt(v)
    for mean, exact, codes in ((sums[0] / times, 0.1 * g, 127), (sums[1] / times, 0.1 * np.abs(g), 255)):
        top = np.repeat(np.abs(exact).reshape(-1, GROUP_SIZE).max(1), GROUP_SIZE)
        spread = top * (2 * codes * np.sqrt(np.abs(exact) / top) + 1) / codes**2 / 2  # half a step: at most this from draw to draw
        floor = top / codes**2 if codes == 255 else 0
        assert (np.abs(mean - exact) < 5 * spread / np.sqrt(times) + floor).all()


def test_moments_without_gradients_decay(op, full_size):
    """The root of v shrinks by half a per cent an update, less than a step of its code."""
    moments, p = Moments(), np.zeros(BLOCK, np.float32)
    g = single(np.random.default_rng(4).uniform(0.5, 1, BLOCK))
    moments.update(op, p, g, 1)
    before = np.sqrt(moments.decoded()[1]).mean()
    for step in range(2, 202):
        moments.update(op, p, np.zeros(BLOCK, np.float32), step)
    assert np.sqrt(moments.decoded()[1]).mean() / before == pytest.approx(BETA2**100, rel=0.02)


def test_where_and_when_decide_how_a_byte_is_rounded(op):
    g = single(np.random.default_rng(5).normal(0, 1, BLOCK))

    def codes(**how):
        moments = Moments()
        moments.update(op, np.zeros(BLOCK, np.float32), g, 1, **how)
        return np.concatenate([moments.m.astype(int), moments.v.astype(int)])

    np.testing.assert_array_equal(codes(), codes())
    assert (codes() != codes(seed=1)).any() and (codes() != codes(first=BLOCK)).any()


def test_every_parameter_has_a_random_number_of_its_own(op):
    """Of each share one parameter is at the top and the others are alike: what tells their codes apart is their place, and nothing else."""
    g = np.full(BLOCK, 0.3, np.float32)
    g[::GROUP_SIZE] = 1

    def codes(first):
        moments = Moments()
        moments.update(op, np.zeros(BLOCK, np.float32), g, 1, first=first)
        return [x.reshape(-1, GROUP_SIZE)[:, 1:] for x in (moments.m, moments.v)]

    for current, later in zip(codes(0), codes(GROUP_SIZE), strict=True):
        assert all(len(set(share)) == 2 for share in current)  # the two codes next to the same number
        assert len({share.tobytes() for share in current}) == BLOCK // GROUP_SIZE
        np.testing.assert_array_equal(current[1:], later[:-1])


def test_a_gradient_is_clipped_to_a_norm(op):
    g, (clipped, plain) = single(np.random.default_rng(1).normal(0, 3, BLOCK)), (Moments(), Moments())
    for moments, gradient, norm in ((clipped, g, 8.0), (plain, g / 4, 2.0)):
        moments.update(op, np.zeros(BLOCK, np.float32), gradient, 1, norm=norm, clip=2.0)
    for ours, theirs in zip(clipped.arrays(), plain.arrays(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("norm", [np.nan, np.inf])
def test_a_gradient_whose_norm_is_not_finite_changes_nothing(op, norm):
    moments, p = Moments(), np.ones(BLOCK, np.float32)
    moments.update(op, p, single(np.random.default_rng(1).normal(0, 3, BLOCK)), 1)
    before = [x.copy() for x in (p, *moments.arrays())]
    moments.update(op, p, np.full(BLOCK, norm, np.float32), 2, norm=norm)
    for after, x in zip((p, *moments.arrays()), before, strict=True):
        np.testing.assert_array_equal(after, x)


def test_every_block_has_its_own_decay_and_bounds(op):
    p, moments = np.ones(3 * BLOCK, np.float32), Moments(3)
    moments.update(op, p, np.zeros(3 * BLOCK, np.float32), 1, decay=[0, 0.5, 0], low=[0, 0, 2], high=[0.5, 1, 3])
    for block, expected in zip(np.split(p, 3), (0.5, 0.995, 2), strict=True):
        np.testing.assert_allclose(block, expected, rtol=1e-6)
    assert not moments.m.any() and not moments.v.any()
