"""What the tests ask of Numba's simulator, beyond what it promises."""

import numpy as np
import pytest
from numba import cuda

from conftest import SIMULATED
from neurogen_numba.kernels import launch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not SIMULATED, reason="of the simulator")]


def test_each_line_has_an_array():
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    shared = FakeCUDAShared(0)
    one = shared.array(2, np.int32)
    other = shared.array(2, np.int32)
    assert one is not other
    again = [shared.array(2, np.int32) for _ in range(2)]
    assert again[0] is again[1]


@launch.gpu
def read_neighbour(read, steps, barrier):
    """Every thread writes its number, plus 1, to its place in shared memory, and then reads the place that is `steps` further."""
    shared, i = cuda.shared.array(4, np.int32), cuda.threadIdx.x
    shared[i] = 0
    cuda.syncthreads()
    shared[i] = i + 1
    if barrier:
        cuda.syncthreads()
    read[cuda.blockIdx.x, i] = shared[min(max(i + steps, 0), 3)]


@pytest.mark.parametrize("steps", [-1, 1])
def test_a_missing_barrier_shows_in_one_of_two_blocks(steps):
    for barrier in (True, False):
        read = np.zeros((2, 4), np.int32)
        read_neighbour[2, 4](read, steps, barrier)
        assert (read == np.clip(np.arange(4) + steps, 0, 3) + 1).all(axis=1).sum() == (2 if barrier else 1)


@launch.gpu
def fail(number):
    if cuda.threadIdx.x == number[0]:
        raise ValueError("thread of two")
    cuda.syncthreads()


@pytest.mark.parametrize("number", [0, 1])
def test_what_a_thread_raises_ends_the_launch(number):
    with pytest.raises(ValueError, match="thread of two"):
        fail[1, 2](np.array([number]))
    assert cuda.__name__ == "numba.cuda"
    fail[1, 2](np.array([2]))
