"""How the CUDA kernels are compiled and launched, and the lanes of a warp with their twin in the simulator.

A kernel is launched as `kernel[grid, threads, stream, shared bytes](...)`; every kernel says in its docstring what a block and a thread
stand for. In Numba's CUDA simulator (NUMBA_ENABLE_CUDASIM=1) the kernels run as plain Python, one Python thread each, and there a warp is
one thread wide: the helpers below then have nobody to talk to, and everything built from them stays right.

Sums are made in a fixed order, or of integers, whose sum is the same in any order: no float is ever added atomically.
"""

from functools import partial

import numpy as np
from numba import config, cuda

from .cache import keep

SIMULATED = bool(config.ENABLE_CUDASIM)
WARP = 1 if SIMULATED else 32
THREADS = 32 if SIMULATED else 256  # of a block, where a kernel does not ask for another number; the simulator starts all of them
SHARED = 48 * 2**10  # bytes of shared memory that a block may have unasked
EVERYONE = 0xFFFFFFFF
_WARP = np.uint64(WARP)
_allowed = {}  # kernel, for the types of its arguments and on a device -> bytes of shared memory that it may have


def gpu(kernel=None, **options):
    """Decorator: a kernel, compiled at its first launch and then kept. options, such as max_registers, are `cuda.jit`'s."""
    if kernel is None:
        return partial(gpu, **options)
    return cuda.jit(kernel) if SIMULATED else keep(cuda.jit(**options)(kernel))


device = cuda.jit(device=True)  # a function that kernels call and that asks for its place in the grid; physics does not (jit.py)


def blocks(size: int, threads: int = THREADS) -> int:
    """How many blocks hold `size` threads."""
    return max(1, -(-size // threads))


def allow_shared(kernel, arguments, size: int):
    """Let launches of a kernel with such arguments have `size` bytes of dynamic shared memory, more than SHARED. Raises RuntimeError where
    the card does not have them."""
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
        """x of the lane whose number differs in the bit `distance`."""
        return cuda.shfl_xor_sync(EVERYONE, x, distance)

    @device
    def shuffle_up(x, distance):
        """x of the lane whose number is less by `distance`; in the first lanes their own."""
        return cuda.shfl_up_sync(EVERYONE, x, distance)

    @device
    def from_lane(x, lane):
        """x of a lane of the warp, told by its number. Every lane takes part."""
        return cuda.shfl_sync(EVERYONE, x, lane)

    @device
    def ballot(flag):
        """A bit for each lane of the warp: whether its flag is set. Every lane takes part."""
        return cuda.ballot_sync(EVERYONE, flag)

    @device
    def bits(mask):
        """How many bits are set."""
        return cuda.popc(mask)


@device
def lanes_sum(x, width):
    """Sum of x over `width` neighbouring lanes (a power of two, at most WARP), the same in each of them. The whole warp takes part."""
    distance = width >> 1
    while distance > 0:
        x += shuffle_xor(x, distance)
        distance >>= 1
    return x


@device
def block_sum(x, partial):
    """Sum of x over the threads of a block, the same in each of them. partial: shared, an entry for each warp. Every thread takes part."""
    return warps_sum(lanes_sum(x, WARP), partial, np.uint64(cuda.blockDim.x) // _WARP)


@device
def warps_sum(x, partial, warps):
    """Sum of what the first `warps` warps of a block have in x, the same in each of their lanes. partial: as in `block_sum`."""
    warp, lane, total = np.uint64(cuda.threadIdx.x) // _WARP, np.uint64(cuda.threadIdx.x) % _WARP, x - x
    cuda.syncthreads()  # whoever still reads the last sum
    if lane == 0:
        partial[warp] = x
    cuda.syncthreads()
    while lane < warps:
        total += partial[lane]
        lane += _WARP
    return lanes_sum(total, WARP)
