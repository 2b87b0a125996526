"""Resonate and fire, balanced: BHRF (Higuchi et al. 2024, "Balanced resonate-and-fire neurons", ICML), with a token as the time step.

    q[t] = gamma q[t-1] + z[t-1]                                         refractoriness
    b[t] = sqrt(1 - omega^2) - 1 - damping - q[t]                        keeps the oscillation from growing
    u[t] = u[t-1] + b[t] u[t-1] - omega w[t-1] + i[t]
    w[t] = w[t-1] + omega u[t-1] + b[t] w[t-1]
    v[t] = u[t] - q[t]                                                   membrane potential above the raised threshold

There is no reset: an event raises the threshold and the damping for a while. gamma is 0.9 and omega in (0, 1).
"""

import math

from .definition import Learned, event, neuron


@neuron(
    state=("v", "w", "q"),
    learned={
        "omega": Learned("angular frequency, per token", (0.05, 0.6), low=0.0, high=0.9),
        "damping": Learned("of the oscillation, per token", (0.1, 0.5), low=0.02, high=1.0),
    },
    input_scale=0.5,
)
def resonate_and_fire(v, w, q, i, omega, damping):
    u = v + q
    q = 0.9 * q + event(v)
    b = math.sqrt(1 - omega * omega) - 1 - damping - q
    return u + b * u - omega * w + i - q, w + omega * u + b * w, q
