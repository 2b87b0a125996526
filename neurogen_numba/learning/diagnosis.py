"""Where a loss or a gradient became NaN or infinite: in a neuron of the user's own, in a module, or in the backward pass."""

from __future__ import annotations

from ..neurons import get
from ..neurons.check import failure

LOWER = "start again with a lower --learning-rate"
BOUND = "bound its step with min and max, or " + LOWER
MEND = "mend it, try it alone with neurogen_numba.check_gradient, and start again"


def origin(model, act) -> str:
    """Where, and what to do, as the end of a sentence on an update whose loss or gradient is not finite. act: the activity of that update.

    A neuron of the user's own is tried alone: if its step or its adjoint fails at plausible inputs, it is the origin. Otherwise the origin
    is the module whose state was not finite at the earliest token, or the part with the first such gradient in the backward pass.
    """
    brain = model.config.brain
    theirs = {module: get(reference) for module, reference in brain.own_neurons.items()}
    for one in dict.fromkeys(theirs.values()):
        if why := failure(one, brain.surrogate, brain.surrogate_width):
            return f": {one.full_name}: {why}; {MEND}"
    if modules := act.non_finite():
        module, where = modules[0], f"first in the membranes of {modules[0]}"
    else:
        module = model.brain.non_finite_gradient()
        where = f"in the backward pass first in the gradient of {module}"
    made, remedy = (f", made of {theirs[module].full_name}", BOUND) if module in theirs else ("", LOWER)
    return f" ({where}{made}); {remedy}" if module else f"; {remedy}"
