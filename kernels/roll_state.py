"""Roll the state over to the next segment: row `length` of every state array, the last token, becomes row 0, the token before the first.

x is one flat float32 array that holds A arrays [T + 1, B, N]. table [A, 2] int64: offset of each array in x, and its row size B N.
"""

from numba import cuda

from .jit import cpu_serial
from .launch import SIMULATED, gpu

BLOCKS = 2 if SIMULATED else 64


@gpu
def roll_state(x, table, length):
    """Row 0 of every array = its row `length`. Grid (BLOCKS, A): for each array, BLOCKS blocks stride over the row."""
    i, begin, size = cuda.grid(1), table[cuda.blockIdx.y, 0], table[cuda.blockIdx.y, 1]
    while i < size:
        x[begin + i] = x[begin + length * size + i]
        i += cuda.gridsize(1)


@cpu_serial()
def roll_state_cpu(x, table, length):
    """As `roll_state`."""
    for a in range(table.shape[0]):
        begin, size = table[a]
        x[begin : begin + size] = x[begin + length * size : begin + (length + 1) * size]
