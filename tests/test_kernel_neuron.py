import numpy as np

import reference as ref
from gradients import gradient, single


def test_decay(op):
    log_tau = single(np.linspace(-2, 5, 300))
    decay = np.full_like(log_tau, np.nan)
    op("decay_forward", decay, log_tau)
    np.testing.assert_allclose(decay, ref.per_token(log_tau), rtol=1e-5)

    d_decay = single(np.random.default_rng(6).normal(0, 1, log_tau.size))
    expected = gradient(lambda inputs: np.sum(d_decay * ref.per_token(inputs["log_tau"])), {"log_tau": log_tau}, "log_tau")
    handed_over, d_log_tau = d_decay.copy(), np.full_like(log_tau, 0.5)
    op("decay_backward", d_log_tau, handed_over, log_tau)
    np.testing.assert_allclose(d_log_tau - 0.5, expected, rtol=1e-4, atol=1e-6)
    assert not handed_over.any()


def test_gain(op):
    gain, scale, d_scaled, d_gain = single(np.random.default_rng(7).normal(0, 1, (4, 300)))
    scaled, handed_over, before = np.full_like(gain, np.nan), d_scaled.copy(), d_gain.copy()
    op("gain_forward", scaled, gain, scale)
    np.testing.assert_allclose(scaled, gain.astype(np.float64) * scale, rtol=1e-6)
    op("gain_backward", d_gain, handed_over, scale)
    np.testing.assert_allclose(d_gain, before + d_scaled.astype(np.float64) * scale, rtol=1e-5, atol=1e-6)
    assert not handed_over.any()
