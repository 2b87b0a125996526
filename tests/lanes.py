"""A block of a CUDA kernel, thread by thread and warp by warp in Python: for kernels on tensor cores, which Numba's simulator lacks.

`run` calls the kernel's Python function in as many Python threads as a block has. They wait for one another at `cuda.syncthreads()`, and
the 32 lanes of a warp at every tile product, which is computed from what all of them bring. A copy to shared memory arrives when its thread
waits for it. Shared memory that has not been written holds NaN, or an index far outside of every array.
"""

import sys
import threading
from types import CellType, FunctionType, SimpleNamespace

import numpy as np

from neurogen_numba.backends.cuda import CudaBackend
from neurogen_numba.kernels import half, mma

WARP = 32


class Warp:
    """Lanes that multiply together, with registers as the docstring of mma.py lays them out: lane 4 g + q."""

    def __init__(self):
        self.brought, self.product, self.everyone = [None] * WARP, None, threading.Barrier(WARP, self._multiply)

    def _multiply(self):
        kinds, words = zip(*self.brought, strict=True)
        words = np.array(words, np.uint32).reshape(8, 4, 6)  # g, q, register
        halves = np.stack([words & 0xFFFF, words >> 16], -1).astype(np.uint16)
        numbers = halves.view(np.float16) if kinds[0] else (halves.astype(np.uint32) << 16).view(np.float32)
        upper, lower, b = (numbers[:, :, registers].astype(np.float32).reshape(8, 16) for registers in ([0, 2], [1, 3], [4, 5]))
        self.product = np.concatenate([upper, lower]) @ b.T  # the 16 numbers of a sum in the order of lanes, for A as for B

    def multiply(self, lane, kind, c, a, b0, b1):
        self.brought[lane] = kind, (*map(int, a), int(b0), int(b1))
        self.everyone.wait()
        g, q = divmod(lane, 4)
        c[:2] += self.product[g, 2 * q : 2 * q + 2]
        c[2:] += self.product[g + 8, 2 * q : 2 * q + 2]


class Block:
    """The threads of a block: their shared memory, and where they wait for one another."""

    def __init__(self, threads):
        self.shared, self.lock, self.state = {}, threading.Lock(), threading.Condition()
        self.threads, self.there, self.waiting, self.turn = threads, threads, 0, 0
        self.warps = [Warp() for _ in range(threads // WARP)]

    def sync(self):
        with self.state:
            turn, self.waiting = self.turn, self.waiting + 1
            self._go_on()
            while turn == self.turn:
                self.state.wait()

    def leave(self):
        with self.state:
            self.there -= 1
            self._go_on()

    def _go_on(self):
        if self.there and self.waiting == self.there:
            self.waiting, self.turn = 0, self.turn + 1
            self.state.notify_all()

    def array(self, line, size, dtype):
        with self.lock:
            if line not in self.shared:
                nothing = np.nan if dtype is np.float32 else np.iinfo(dtype).max // 3
                self.shared[line] = np.full(size, nothing, dtype)
            return self.shared[line]


class Cuda:
    """What the kernels ask of `numba.cuda`, of the thread that asks."""

    def __init__(self, block):
        self.me, self.block = threading.local(), block
        self.shared = SimpleNamespace(array=lambda size, dtype, alignment=None: block.array(sys._getframe(1).f_lineno, size, dtype))
        self.local = SimpleNamespace(array=lambda shape, dtype: np.full(shape, 7, dtype))
        self.syncthreads = block.sync

    threadIdx = property(lambda self: SimpleNamespace(x=self.me.thread))
    blockDim = property(lambda self: SimpleNamespace(x=self.block.threads))
    blockIdx = property(lambda self: self.me.block_index)

    def grid(self, dimensions):
        return self.me.block_index.x * self.block.threads + self.me.thread

    def multiply(self, *arguments):
        warp, lane = divmod(self.me.thread, WARP)
        self.block.warps[warp].multiply(lane, *arguments)


COPIES = threading.local()  # of a thread: those of the group that is open, and the groups that are under way


def copy(kind, to, i, source, j, size):
    i, j = int(i), int(j)
    assert i % 2 == j % 2 == 0, "16 bytes begin at a multiple of 16"
    assert 0 <= i <= to.size - 2 and 0 <= j <= source.size - 2, "outside of an array"
    COPIES.__dict__.setdefault("open", []).append((to, i, source[j : j + 2].copy() if size else 0))


def end_of_copies(kind):
    COPIES.__dict__.setdefault("groups", []).append(COPIES.__dict__.pop("open", []))


def wait_for_copies(kind, latest):
    assert latest in (0, 1, 2)
    while len(COPIES.__dict__.get("groups", [])) > latest:
        for to, i, words in COPIES.groups.pop(0):
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
    code, failed = python(kernel), []
    halves = {name: python(getattr(mma, name)) for name in ("low", "high", "first_halves", "second_halves")}
    width, height = (grid, 1) if isinstance(grid, int) else grid

    def thread(function, cuda, number, block_index):
        cuda.me.thread, cuda.me.block_index = number, block_index
        try:
            with np.errstate(over="ignore"):  # unsigned numbers wrap around
                function(*arguments)
        except Exception as error:
            failed.append(error)
            for warp in cuda.block.warps:
                warp.everyone.abort()
        cuda.block.leave()

    for block_index in (SimpleNamespace(x=x, y=y) for x in range(width) for y in range(height)):
        cuda = Cuda(Block(threads))
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
        all_threads = [threading.Thread(target=thread, args=(function, cuda, number, block_index)) for number in range(threads)]
        for each in all_threads:
            each.start()
        for each in all_threads:
            each.join()
        if failed:
            raise failed[0]


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
