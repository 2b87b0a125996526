"""Dopamine, norepinephrine and serotonin: one level each per sequence, carried in the state, neutral at 0.

Norepinephrine scales the input gain of every module, serotonin the adaptation coupling, dopamine the write strength of the associative
memory, each by 1 + level. Nothing moves the levels by itself; who sets them in a state sees what they do.
"""

NAMES = ("dopamine", "norepinephrine", "serotonin")


def scales(levels):
    """(gain_scale, beta_scale, write_scale), [B] float32 each, from {name: level [B] float32}."""
    return tuple(1 + levels[name] for name in ("norepinephrine", "serotonin", "dopamine"))
