"""Reading long arrays: a thread has AHEAD numbers on their way at a time, since the first takes hundreds of cycles to come.

Indices of such loops are unsigned, and the loops are `while` loops: where an index could be negative, Numba asks at every access whether it
counts from the end, and its ranges count on beside the index.
"""

import numpy as np

from .launch import SIMULATED, device

if not SIMULATED:
    from numba.cuda.cache_hints import ldcs

ONCE, TWICE, THRICE, AHEAD = (np.uint64(n) for n in (1, 2, 3, 4))


@device
def read(x, i, end, otherwise):
    """x[i], or `otherwise` where i is not below the end."""
    return x[i] if i < end else otherwise


if SIMULATED:

    def read_once(x, i):
        return x[i]

else:

    @device
    def read_once(x, i):
        """x[i], i uint32, which nobody will want again soon: it is the first to leave the cache, and what is there stays."""
        return ldcs(x, np.uint64(i))  # which asks every index whether it is negative, and of so short a one knows that it is not
