"""Some sequences of a batch begin anew. x: [R, B, M] float32 or int32; sequences: [B] uint8."""

from numba import cuda

from .jit import cpu_serial
from .launch import gpu


@gpu
def forget(x, sequences):
    """x [:, b] = 0 for the sequences that are not 0. A thread per number."""
    i, b, r = cuda.grid(1), cuda.blockIdx.y, cuda.blockIdx.z
    if i < x.shape[2] and sequences[b]:
        x[r, b, i] = 0


@cpu_serial()
def forget_cpu(x, sequences):
    """x [:, b] = 0 for the sequences that are not 0."""
    for r in range(x.shape[0]):
        for b in range(x.shape[1]):
            if sequences[b]:
                x[r, b] = 0
