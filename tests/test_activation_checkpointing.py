"""Activation checkpointing: gradients with recomputed chunks are the same bits, and with 16-bit values nearly the same."""

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.activation_checkpointing import CHECKPOINTING
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import ACTIVATION_MEMORY, Module
from neurogen_numba.errors import ConfigError
from neurogen_numba.planning import budget
from neurogen_numba.presets import get_preset

pytestmark = pytest.mark.usefixtures("one_thread")

BRAINS = {
    "plain": {"memory_width": 12},  # more cells than the fan-in
    "readouts": {
        "wernicke": Module(48, outputs=24, lateral=4),
        "broca": Module(32, outputs=16, lateral=4),
        "fan_in": 16,  # as many as the memory has cells
    },
}


def learned(memory, brain, tokens=21, batch=3):
    """(losses, gradients, state) of three segments; the second one resets a sequence."""
    config = tiny.config(brain={"vocabulary": 40, **BRAINS[brain]}, activation_memory=memory, dropout=0.1, axon_dropout=0.1)
    made = NeuroGenModel.from_config(config, backend="cpu")
    act, draw, losses, gradients = made.activity(tokens, batch, learning=True), np.random.default_rng(0), [], []
    for segment in range(3):
        ids = draw.integers(0, 40, (tokens + 1, batch)).astype(np.int32)
        losses.append(made.update(act, ids[:-1], ids[1:], 0.01, reset=np.array([segment == 1, 0, 0], bool))[0])
        gradients.append({name: gradient.copy() for name, gradient in made.brain.parameters.gradient.items()})
    return losses, gradients, act.state()


def test_every_setting_has_an_implementation():
    assert tuple(CHECKPOINTING) == ACTIVATION_MEMORY
    with pytest.raises(ConfigError, match="training.activation_memory: unknown 'ful'; did you mean 'full'"):
        tiny.config(activation_memory="ful")


@pytest.mark.parametrize("brain", BRAINS)
@pytest.mark.parametrize("tokens", [21, 16, 5], ids=["two chunks and a half", "two chunks", "less than a chunk"])
def test_recomputed_gradients_are_the_same_bits(brain, tokens):
    full, recomputed = (learned(memory, brain, tokens) for memory in ("full", "recompute"))
    assert recomputed[0] == full[0]
    for found, expected in zip((*recomputed[1], recomputed[2]), (*full[1], full[2]), strict=True):
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("brain", BRAINS)
def test_gradients_of_16_bit_values_are_close(brain):
    full, half = (learned(memory, brain) for memory in ("full", "half"))
    assert half[0][0] == full[0][0]  # only the backward pass reads rounded values
    for name, expected in full[1][0].items():
        assert np.linalg.norm(half[1][0][name] - expected) <= 5e-3 * np.linalg.norm(expected) + 1e-9, name


def test_events_are_the_same_in_16_bits():
    one = np.float32(1)
    near = np.array([np.nextafter(one, np.float32(0)), one, np.nextafter(one, np.float32(2)), -5, 0.5, 1.0001, 2, 7, 900], np.float32)
    kept = np.empty(near.size, np.float16)
    np.subtract(near, one, out=kept)
    np.testing.assert_array_equal(kept.astype(np.float32) + one > 1, near > 1)


def test_each_mode_takes_less_memory():
    def activity(memory):
        config = get_preset("gtx1650").replace(brain={"vocabulary": 32000}, training={"activation_memory": memory})
        return budget.plan(config, budget.Card(2**32, "float32"))["activity"]

    assert activity("recompute") < 0.7 * activity("full") and activity("recompute") < activity("half") < 0.85 * activity("full")


@pytest.mark.parametrize("preset, limit", [("gtx1650", 2.9e9), ("gtx1650-conservative", 1.6e9), ("gtx1650-aggressive", 2.9e9)])
def test_the_presets_for_a_small_card_fit(preset, limit):
    config = get_preset(preset).replace(brain={"vocabulary": 32000})
    assert sum(budget.plan(config, budget.Card(2**32, "float32", 2**16, 14)).values()) < limit
