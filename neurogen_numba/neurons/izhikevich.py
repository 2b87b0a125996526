"""Izhikevich's neuron (Izhikevich 2003, "Simple model of spiking neurons", IEEE Transactions on Neural Networks 14:1569), with a token as
the millisecond.

    V' = 0.04 V^2 + 5 V + 140 - U + I,   U' = a (b V - U);   where V >= 30: V = c, U = U + d

v = (V + 65) / 95 is 0 at rest and 1 where the paper's neuron is reset; u = (U + 13) / 95. Then

    r[t] = v[t-1], or c after an event
    u[t] = rho u[t-1] + (1 - rho) b r[t] + d z[t-1]                      recovery, from the old v
    v[t] = r[t] + 3.8 r[t]^2 - 0.2 r[t] - 3/95 - u[t-1] - d z[t-1] + i[t]

rho = 1 - a; the paper's regular spiking has a = 0.02 (50 tokens), b = 0.2, c = -65 (0 here) and d = 8 (0.084 here); chattering c = -50
(0.16).
"""

from .definition import Learned, TimeConstant, event, neuron


@neuron(
    state=("v", "u"),
    learned={
        "rho": TimeConstant("recovery's", (10.0, 50.0), name="tau_u"),
        "b": Learned("recovery by the membrane potential", (0.2, 0.25), low=0.0, high=1.0),
        "c": Learned("membrane potential after an event", (0.0, 0.16), low=-0.5, high=0.5),
        "d": Learned("recovery by an event", (0.02, 0.084), low=0.0, high=1.0, serotonin=True),
    },
    input_scale=0.1,
)
def izhikevich(v, u, i, rho, b, c, d):
    z = event(v)
    r = v + z * (c - v)
    u = u + d * z
    return r + (3.8 * r - 0.2) * r - 3 / 95 - u + i, rho * u + (1 - rho) * b * r
