"""Compilation and launch of the CUDA kernels; warp shuffles and reductions, with replacements for the simulator.

A kernel is launched as `kernel[grid, threads, stream, shared bytes](...)`. Its docstring says what a block and a thread compute. In Numba's
CUDA simulator (NUMBA_ENABLE_CUDASIM=1) every CUDA thread is a Python thread, and a warp has one lane. A shuffle then returns its argument,
and a reduction over a warp is the identity, so the kernels stay correct.

Floats are added in a fixed order and never atomically; integers may be added atomically, because their sum does not depend on the order.
"""

import warnings
from functools import partial

import numpy as np
from numba import config, cuda

from .cache import cached

SIMULATED = bool(config.ENABLE_CUDASIM)
WARP = 1 if SIMULATED else 32
THREADS = 32 if SIMULATED else 256  # default block size; the simulator starts a Python thread for each
SHARED = 48 * 2**10  # bytes of shared memory per block that need no opt-in
FULL_MASK = 0xFFFFFFFF  # all 32 lanes take part in a shuffle or vote
_WARP = np.uint64(WARP)
_allowed = {}  # (kernel, types of its arguments, device) -> bytes of dynamic shared memory allowed so far

if SIMULATED:  # NumPy warns of integers that wrap around, as random numbers and rings are meant to
    warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning, r"neurogen_numba\.kernels\.")


def gpu(kernel=None, **options):
    """Decorator: compile a kernel at its first launch and save it on disk. options: of `cuda.jit`, for example max_registers."""
    if kernel is None:
        return partial(gpu, **options)
    return cuda.jit(kernel) if SIMULATED else cached(cuda.jit(**options)(kernel))


device = cuda.jit(device=True)  # a device function: it may read threadIdx and blockIdx; physics must not (jit.py)


def blocks(size: int, threads: int = THREADS) -> int:
    """The number of blocks for `size` threads, at least 1."""
    return max(1, -(-size // threads))


def allow_shared(kernel, arguments, size: int):
    """Opt in to `size` bytes of dynamic shared memory, more than SHARED, for launches of a kernel with arguments of these types. Raises
    RuntimeError if the card has less."""
    from cuda.bindings import driver

    signature = tuple(map(kernel.typeof_pyval, arguments))
    key = kernel, signature, cuda.get_current_device().id
    if _allowed.get(key, 0) < size:
        function = kernel.compile(signature)._codelibrary.get_cufunc()
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (error,) = driver.cuKernelSetAttribute(attribute, size, function.handle, function.device.id)
        if error:
            raise RuntimeError(f"{size} bytes of shared memory for {kernel.py_func.__name__}: {error.name}")
        _allowed[key] = size


if SIMULATED:

    def shuffle_xor(x, distance):
        return x

    shuffle_up = from_lane = shuffle_xor

    def ballot(flag):
        return 1 if flag else 0

    def bits(mask):
        return mask

else:

    @device
    def shuffle_xor(x, distance):
        """x of lane (lane ^ distance)."""
        return cuda.shfl_xor_sync(FULL_MASK, x, distance)

    @device
    def shuffle_up(x, distance):
        """x of lane (lane - distance); the first `distance` lanes get their own x."""
        return cuda.shfl_up_sync(FULL_MASK, x, distance)

    @device
    def from_lane(x, lane):
        """x of lane `lane`, broadcast to the whole warp. Every lane takes part."""
        return cuda.shfl_sync(FULL_MASK, x, lane)

    @device
    def ballot(flag):
        """A mask with one bit per lane: whether its flag is set. Every lane takes part."""
        return cuda.ballot_sync(FULL_MASK, flag)

    @device
    def bits(mask):
        """The number of set bits."""
        return cuda.popc(mask)


@device
def warp_sum(x, width):
    """Warp reduction: the sum of x over `width` neighbouring lanes (a power of two, at most WARP), returned to each. Butterfly order; the
    whole warp takes part."""
    distance = width >> 1
    while distance > 0:
        x += shuffle_xor(x, distance)
        distance >>= 1
    return x


@device
def block_sum(x, partial):
    """Block reduction: the sum of x over the threads of a block, returned to each. partial: shared, one entry per warp. Every thread takes
    part."""
    return cross_warp_sum(warp_sum(x, WARP), partial, np.uint64(cuda.blockDim.x) // _WARP)


@device
def cross_warp_sum(x, partial, warps):
    """The sum over the first `warps` warps of a block, where all lanes of a warp hold the same x; returned to each thread. partial: as in
    `block_sum`."""
    warp, lane, total = np.uint64(cuda.threadIdx.x) // _WARP, np.uint64(cuda.threadIdx.x) % _WARP, x - x
    cuda.syncthreads()  # waits until all threads have read the previous sum from `partial`
    if lane == 0:
        partial[warp] = x
    cuda.syncthreads()  # waits for the sums of all warps
    while lane < warps:
        total += partial[lane]
        lane += _WARP
    return warp_sum(total, WARP)
