"""A block of a CUDA kernel, thread by thread and warp by warp in Python: for kernels on tensor cores, which Numba's simulator lacks.

`run` calls the kernel's Python function in as many greenlets as a block has threads. One of them runs at a time. They wait for one another
at `cuda.syncthreads()`, and the 32 lanes of a warp at every tile product, which is computed from what all of them bring. A copy to shared
memory arrives when its thread waits for it. Shared memory that has not been written holds NaN, or an index far outside of every array.
"""

import sys
from types import CellType, FunctionType, SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet

from neurogen_numba.backends.cuda import CudaBackend
from neurogen_numba.kernels import half, mma

WARP = 32


class Lane(greenlet):
    """A thread of a block. `switch` runs it until it has brought its numbers to a product, waits at a barrier or ends."""

    def __init__(self, number, block_index, block_dim, function, arguments):
        super().__init__(self.call)
        self.threadIdx, self.blockIdx, self.blockDim = SimpleNamespace(x=number), block_index, SimpleNamespace(x=block_dim)
        self.function, self.arguments, self.brought, self.product = function, arguments, None, None
        self.open_group, self.groups = [], []  # copies, and those of the groups that are under way

    def call(self):
        with np.errstate(over="ignore"):  # unsigned numbers wrap around
            self.function(*self.arguments)

    def multiply(self, kind, c, a, b0, b1):
        """c += A B: waits for what the other lanes of the warp bring. `multiply_tiles` gives the product."""
        self.brought = kind, (*map(int, a), int(b0), int(b1))
        self.parent.switch()
        g, q = divmod(self.threadIdx.x % WARP, 4)
        c[:2] += self.product[g, 2 * q : 2 * q + 2]
        c[2:] += self.product[g + 8, 2 * q : 2 * q + 2]


def multiply_tiles(lanes):
    """Give the lanes of a warp the product of what they have brought, in registers as the docstring of mma.py lays them out: lane
    4 g + q."""
    kinds, words = zip(*(lane.brought for lane in lanes), strict=True)
    words = np.array(words, np.uint32).reshape(8, 4, 6)  # g, q, register
    halves = np.stack([words & 0xFFFF, words >> 16], -1).astype(np.uint16)
    numbers = halves.view(np.float16) if kinds[0] else (halves.astype(np.uint32) << 16).view(np.float32)
    upper, lower, b = (numbers[:, :, registers].astype(np.float32).reshape(8, 16) for registers in ([0, 2], [1, 3], [4, 5]))
    product = np.concatenate([upper, lower]) @ b.T  # the 16 numbers of a sum in the order of lanes, for A as for B
    for lane in lanes:
        lane.brought, lane.product = None, product


def run_to_barrier(warp):
    """Let the lanes of a warp run until each of them waits at a barrier of the block or has ended."""
    while warp:
        for lane in warp:
            lane.switch()
        warp = [lane for lane in warp if lane.brought]
        assert len(warp) in (0, WARP), "some lanes of a warp multiply, and others do not"
        if warp:
            multiply_tiles(warp)


def run_block(warps):
    """Run the threads of a block to their ends; warps: lists of lanes."""
    while warps := [warp for warp in warps if not all(lane.dead for lane in warp)]:
        for warp in warps:
            run_to_barrier([lane for lane in warp if not lane.dead])


class Cuda:
    """What the kernels ask of `numba.cuda`, of the thread that asks."""

    def __init__(self):
        self.arrays = {}
        self.shared = SimpleNamespace(array=lambda size, dtype, alignment=None: self.array(sys._getframe(1).f_lineno, size, dtype))
        self.local = SimpleNamespace(array=lambda shape, dtype: np.full(shape, 7, dtype))

    threadIdx = property(lambda self: getcurrent().threadIdx)
    blockDim = property(lambda self: getcurrent().blockDim)
    blockIdx = property(lambda self: getcurrent().blockIdx)

    def array(self, line, size, dtype):
        if line not in self.arrays:
            nothing = np.nan if dtype is np.float32 else np.iinfo(dtype).max // 3
            self.arrays[line] = np.full(size, nothing, dtype)
        return self.arrays[line]

    def grid(self, dimensions):
        return self.blockIdx.x * self.blockDim.x + self.threadIdx.x

    def syncthreads(self):
        getcurrent().parent.switch()

    def multiply(self, *arguments):
        getcurrent().multiply(*arguments)


def copy(kind, to, i, source, j, size):
    i, j = int(i), int(j)
    assert i % 2 == j % 2 == 0, "16 bytes begin at a multiple of 16"
    assert 0 <= i <= to.size - 2 and 0 <= j <= source.size - 2, "outside of an array"
    getcurrent().open_group.append((to, i, source[j : j + 2].copy() if size else 0))


def end_of_copies(kind):
    lane = getcurrent()
    lane.groups.append(lane.open_group)
    lane.open_group = []


def wait_for_copies(kind, latest):
    assert latest in (0, 1, 2)
    while len(getcurrent().groups) > latest:
        for to, i, words in getcurrent().groups.pop(0):
            to[i : i + 2] = words


def store_pair(array, index, a, b):
    assert int(index) % 2 == 0, "8 bytes begin at a multiple of 8"
    array[int(index)], array[int(index) + 1] = a, b


def pack_pair(kind, a, b):
    if kind != mma.BFLOAT16:
        return np.array([a, b], np.float16).view(np.uint32)[0]
    return np.array([half.to_bfloat16(x) for x in (a, b)], np.uint16).view(np.uint32)[0]


def python(thing):
    """The Python function of a compiled one; anything else as it is."""
    return getattr(thing, "py_func", thing)


def rebuilt(thing, scope):
    """A device function, and those in its closure, with the globals `scope`; anything else as it is."""
    code = python(thing)
    if code is thing or not isinstance(code, FunctionType):
        return code
    cells = tuple(CellType(rebuilt(cell.cell_contents, scope)) for cell in code.__closure__ or ())
    return FunctionType(code.__code__, scope, code.__name__, None, cells)


def run(kernel, grid, threads, *arguments):
    """Launch a kernel on a grid of blocks (a number, or a tuple of x and y) of `threads` threads, one block after the other. Raises what a
    thread raises."""
    code = python(kernel)
    halves = {name: python(getattr(mma, name)) for name in ("low", "high", "first_halves", "second_halves")}
    width, height = (grid, 1) if isinstance(grid, int) else grid

    for block_index in (SimpleNamespace(x=x, y=y) for x in range(width) for y in range(height)):
        cuda = Cuda()
        scope = (
            code.__globals__
            | halves
            | {"cuda": cuda, "multiply": cuda.multiply, "copy": copy, "pack_pair": pack_pair, "store_pair": store_pair}
        )
        scope |= {"end_of_copies": end_of_copies, "wait_for_copies": wait_for_copies}
        for name, called in code.__globals__.items():  # device functions of the kernel's file
            if name in code.__code__.co_names and python(called) is not called and called.__module__ == code.__module__:
                scope[name] = FunctionType(python(called).__code__, scope, name)
        closure = tuple(CellType(rebuilt(cell.cell_contents, scope)) for cell in code.__closure__ or ())
        function = FunctionType(code.__code__, scope, code.__name__, None, closure)
        lanes = [Lane(number, block_index, threads, function, arguments) for number in range(threads)]
        warps = [lanes[first : first + WARP] for first in range(0, threads, WARP)]
        run_block(warps[:: -1 if block_index.x % 2 else 1])  # so that a missing barrier shows, whichever warp is too early


class LaneBackend(CudaBackend):
    """A card with tensor cores, as far as synapses know it: arrays are NumPy's, kernels run lane by lane, factors are float16."""

    product_dtype, tile_product, multiprocessors = "float16", mma.FLOAT16, 2

    def __init__(self):
        pass

    def zeros(self, shape, dtype="float32"):
        return np.zeros(shape, dtype)

    def asarray(self, values, dtype=None):
        return np.array(values, dtype)

    def to_numpy(self, array):
        return np.array(array)

    fetch = to_numpy

    def launch(self, kernel, grid, threads, *arguments):
        run(kernel, grid, threads, *arguments)
