"""What the tests of the kernels share: float32 arrays as kernels want them, and the gradient that a hand-written one is held to."""

import numpy as np

import reference as ref


def single(values):
    """Values as a contiguous float32 array of its own."""
    return np.array(values, np.float32, order="C")


def gradient(loss, inputs, name):
    """d loss(inputs) / d inputs[name], one central difference in float64 for every entry."""
    places = list(np.ndindex(np.shape(inputs[name])))
    return np.reshape([ref.finite_difference(loss, inputs, name, index) for index in places], np.shape(inputs[name]))
