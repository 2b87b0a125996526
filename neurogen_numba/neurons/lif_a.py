"""LIF-A, the stock neuron: leaky integrate-and-fire with soft reset and adaptation (Bellec et al. 2018, "Long short-term memory and
learning-to-learn in networks of spiking neurons", for the adaptation).

    v[t] = alpha v[t-1] - z[t-1] + i[t] - beta a[t-1]                    membrane potential; the threshold is 1
    z[t] = event(v[t])                                                   event
    a[t] = rho a[t-1] + (1 - rho) z[t]                                   adaptation

The reset passes gradient.
"""

from .definition import Learned, TimeConstant, event, neuron, slope


@neuron(
    state=("v", "a"),
    learned={
        "alpha": TimeConstant("membrane's", (0.5, 8.0), name="tau_v", in_pfc=(0.5, 30.0)),
        "rho": TimeConstant("adaptation's", (2.0, 16.0), name="tau_a"),
        "beta": Learned("adaptation coupling; a negative one would be positive feedback", (0.0, 0.5), low=0.0, high=3.0, serotonin=True),
    },
    input_scale="alpha",
)
def lif_a(v, a, i, alpha, rho, beta):
    v = alpha * v - event(v) + i - beta * a
    return v, rho * a + (1 - rho) * event(v)


@lif_a.adjoint
def lif_a_adjoint(ds, dv, da, v_prev, a_prev, v, a, i, alpha, rho, beta, graded):
    """Hands on dL/dv[t] itself, in place of its share in v[t-1]: so event and slope are computed once per token, with all that reads them.

    dv: dL/dv[t+1]; da: dL/da[t].
    """
    z = event(v)
    dz = (1 - rho) * da - dv + (ds * v if graded else ds)
    dv = alpha * dv + slope(v) * dz + (z * ds if graded else 0)
    return dv, rho * da - beta * dv, dv, dv * v_prev, da * (a_prev - z), -dv * a_prev


@lif_a.state_gradient
def lif_a_state_gradient(dv, da, v, a, alpha, rho, beta):
    return (alpha - slope(v)) * dv, da
