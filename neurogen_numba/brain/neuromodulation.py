"""Dopamine, norepinephrine and serotonin: one level each per sequence, carried in the state, neutral at 0.

Norepinephrine scales the input gain of every module, serotonin the adaptation coupling, dopamine the write strength of the associative
memory, each by 1 + level. Levels change only when a state with other levels is loaded.
"""

import numpy as np

NAMES = ("dopamine", "norepinephrine", "serotonin")


def modulate(gain_scale, beta_scale, write_scale, levels):
    """Overwrite the factors, [B] float32 each, from {name: level [B] float32}."""
    for scale, name in ((gain_scale, "norepinephrine"), (beta_scale, "serotonin"), (write_scale, "dopamine")):
        np.add(levels[name], np.float32(1), out=scale)
