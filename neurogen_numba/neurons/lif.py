"""LIF: leaky integrate-and-fire with soft reset (Lapicque 1907; Neftci et al. 2019, IEEE Signal Processing Magazine 36:51).

    v[t] = alpha v[t-1] - z[t-1] + i[t]                                  membrane potential; the threshold is 1

The reset passes gradient.
"""

from .definition import TimeConstant, event, neuron


@neuron(
    state=("v",),
    learned={"alpha": TimeConstant("membrane's", (0.5, 8.0), name="tau_v", in_pfc=(0.5, 30.0))},
    input_scale="alpha",
)
def lif(v, i, alpha):
    return alpha * v - event(v) + i
