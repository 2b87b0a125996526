"""Resonate and fire (Izhikevich 2001, "Resonate-and-fire neurons", Neural Networks 14:883), with the refractoriness of BHRF (Higuchi et al.
2024, "Balanced resonate-and-fire neurons", ICML).

    q[t] = 0.9 q[t-1] + z[t-1]                                           refractoriness
    d[t] = exp(-damping - q[t])                                          decay of the oscillation
    u[t] = d[t] (sqrt(1 - omega^2) u[t-1] - omega w[t-1]) + i[t]
    w[t] = d[t] (omega u[t-1] + sqrt(1 - omega^2) w[t-1])
    v[t] = u[t] - q[t]                                                   membrane potential above the raised threshold

There is no reset: an event raises the threshold and the damping for a while. omega, in (0, 1), is the sine of the angle per token. The
oscillator is solved exactly over a token; BHRF's Euler step of a token would grow where q is above 2.
"""

import math

from .definition import Learned, event, neuron


@neuron(
    state=("v", "w", "q"),
    learned={
        "omega": Learned("sine of the angle per token", (0.05, 0.6), low=0.0, high=0.9),
        "damping": Learned("of the oscillation, per token", (0.1, 0.5), low=0.02, high=1.0),
    },
    input_scale=0.5,
)
def resonate_and_fire(v, w, q, i, omega, damping):
    u = v + q
    q = 0.9 * q + event(v)
    decay, cosine = math.exp(-damping - q), math.sqrt(1 - omega * omega)
    return decay * (cosine * u - omega * w) + i - q, decay * (omega * u + cosine * w), q
