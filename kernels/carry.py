"""The state goes on from segment to segment: the row of the last token becomes the row before the first.

What neurons keep per token lies in one flat array, x; table [A, 2] int64 says of each of A arrays [T + 1, B, N] in it where it begins, and
how many numbers a row of it has, B N.
"""

from numba import cuda

from .jit import cpu_serial
from .launch import SIMULATED, gpu

BLOCKS = 2 if SIMULATED else 64


@gpu
def carry(x, table, length):
    """Row 0 of every array = its row `length`. BLOCKS blocks for each array."""
    i, begin, size = cuda.grid(1), table[cuda.blockIdx.y, 0], table[cuda.blockIdx.y, 1]
    while i < size:
        x[begin + i] = x[begin + length * size + i]
        i += cuda.gridsize(1)


@cpu_serial()
def carry_cpu(x, table, length):
    for a in range(table.shape[0]):
        begin, size = table[a]
        x[begin : begin + size] = x[begin + length * size : begin + (length + 1) * size]
