"""Set the state of some sequences of a batch to zero. x: [R, B, M] float32 or 16 bits; sequences: [B] uint8."""

from numba import cuda

from .jit import cpu_serial
from .launch import gpu


@gpu
def reset(x, sequences):
    """x[:, b] = 0 where sequences[b] is not 0. Grid (R, B, blocks over M): one thread per number."""
    r, b, i = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z * cuda.blockDim.x + cuda.threadIdx.x
    if i < x.shape[2] and sequences[b]:
        x[r, b, i] = 0


@cpu_serial()
def reset_cpu(x, sequences):
    """x[:, b] = 0 where sequences[b] is not 0."""
    for r in range(x.shape[0]):
        for b in range(x.shape[1]):
            if sequences[b]:
                x[r, b] = 0
