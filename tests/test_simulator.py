"""What the tests ask of Numba's simulator, beyond what it promises."""

import threading
import time

import numpy as np
import pytest

from conftest import SIMULATED

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not SIMULATED, reason="of the simulator")]


def test_threads_that_ask_at_once_share_an_array(monkeypatch):
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    shared, made, empty = FakeCUDAShared(0), [], np.empty

    def empty_slowly(*arguments):
        time.sleep(0.01)  # as long as the others need to come
        return empty(*arguments)

    monkeypatch.setattr(np, "empty", empty_slowly)
    threads = [threading.Thread(target=lambda: made.append(shared.array(4, np.int32))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 and all(array is made[0] for array in made)


def test_two_lines_have_an_array_each():
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    shared = FakeCUDAShared(0)
    one = shared.array(2, np.int32)
    other = shared.array(2, np.int32)
    assert one is not other
