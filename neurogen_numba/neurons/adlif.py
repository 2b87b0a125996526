"""Adaptive LIF, symplectic: SE-adLIF (Baronig et al. 2025, "Advancing spatio-temporal processing through adaptation in spiking neural
networks", Nature Communications 16:5776).

    v[t] = alpha u[t-1] + i[t] - (1 - alpha) w[t-1]                      membrane potential; the threshold is 1
    u[t] = v[t] (1 - z[t])                                               after a hard reset
    w[t] = beta w[t-1] + (1 - beta) (a u[t] + b z[t])                    adaptation, from the new u: the symplectic Euler method

Adaptation that follows the membrane (a) lets it oscillate below the threshold. i stands for (1 - alpha) I in the paper. There a and b are
in [0, 120]; here what is learned starts small, with the drive normalised.
"""

from .definition import Learned, TimeConstant, event, neuron


@neuron(
    state=("v", "w"),
    learned={
        "alpha": TimeConstant("membrane's", (0.5, 8.0), name="tau_v", in_pfc=(0.5, 30.0)),
        "beta": TimeConstant("adaptation's", (2.0, 16.0), name="tau_a"),
        "a": Learned("adaptation by the membrane potential", (0.0, 1.0), low=0.0, high=10.0, serotonin=True),
        "b": Learned("adaptation by events", (0.0, 2.0), low=0.0, high=10.0, serotonin=True),
    },
    input_scale="alpha",
)
def adlif(v, w, i, alpha, beta, a, b):
    v = alpha * v * (1 - event(v)) + i - (1 - alpha) * w
    z = event(v)
    return v, beta * w + (1 - beta) * (a * v * (1 - z) + b * z)
