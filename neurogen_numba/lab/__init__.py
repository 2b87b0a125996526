"""For experiments: our kernels on NumPy arrays that are checked, and kernels of your own in their place. See docs/lab.md.

import neurogen_numba as ng

ng.lab.lif(x, tau_v=5, beta=0.5)                # Trace(v, a, z)
ng.lab.kernels()                                # their names and arguments
ng.lab.compare(my_kernel, "bundles_forward")    # right? how fast?
with ng.lab.swap("bundles_forward", my_kernel): # a model with it
    model.train_step(...)
"""

from .bundles import Wiring, wiring
from .compare import Comparison, compare
from .neuron import Trace, lif
from .operations import (
    bundles_backward,
    bundles_forward,
    bundles_weight_grad,
    cross_entropy,
    decay,
    dropout,
    memory,
    poisson,
    sample,
    softmax,
    working_memory,
)
from .patch import patch, rebuild
from .swap import swap
from .vocabulary import kernels, launch

__all__ = [
    "Comparison",
    "Trace",
    "Wiring",
    "bundles_backward",
    "bundles_forward",
    "bundles_weight_grad",
    "compare",
    "cross_entropy",
    "decay",
    "dropout",
    "kernels",
    "launch",
    "lif",
    "memory",
    "patch",
    "poisson",
    "rebuild",
    "sample",
    "softmax",
    "swap",
    "wiring",
    "working_memory",
]
