"""Reading long arrays: a thread has AHEAD numbers on their way at a time, since the first takes hundreds of cycles to come.

Indices of such loops are unsigned, and the loops are `while` loops: where an index could be negative, Numba asks at every access whether it
counts from the end, and its ranges count on beside the index.
"""

import numpy as np

from .launch import device

ONCE, TWICE, THRICE, AHEAD = (np.uint64(n) for n in (1, 2, 3, 4))


@device
def read(x, i, end, otherwise):
    """x[i], or `otherwise` where i is not below the end."""
    return x[i] if i < end else otherwise
