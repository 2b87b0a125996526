"""Segments from the background: the same ones in the same order, and a position that knows nothing of what is ahead."""

import threading
import time

import numpy as np
import pytest

from neurogen_numba.errors import DataError
from neurogen_numba.text import prefetch
from neurogen_numba.text.prefetch import Prefetch


class Counting:
    """Segments that hold their number; some fail, and all may be held up."""

    def __init__(self, fails=()):
        self.made, self.fails, self.gate = 0, set(fails), threading.Event()
        self.gate.set()

    def next(self):
        self.gate.wait()
        if self.made in self.fails:
            self.fails.remove(self.made)
            raise DataError(f"segment {self.made} is gone")
        self.made += 1
        return np.full((2, 1), self.made), np.full((2, 1), -self.made)

    def position(self):
        return {"made": self.made}


@pytest.fixture
def counting(request):
    batches = Counting(getattr(request, "param", ()))
    with_prefetch = Prefetch(batches)
    yield batches, with_prefetch
    batches.gate.set()
    with_prefetch.close()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_segments_come_in_order_with_their_own_position(counting):
    batches, ready = counting
    assert ready.position() == {"made": 0} and batches.made == 0  # nothing begins before it is asked for
    for number in range(1, 200):
        inputs, targets = ready.next()
        assert inputs[0, 0] == number == -targets[0, 0] and ready.position() == {"made": number}


def test_a_limited_number_is_ready(counting):
    batches, ready = counting
    ready.next()
    until(lambda: batches.made >= prefetch.PREFETCH)
    time.sleep(0.05)
    assert prefetch.PREFETCH <= batches.made <= prefetch.PREFETCH + 2 and ready.position() == {"made": 1}


@pytest.mark.parametrize("counting", [(3,)], indirect=True)
def test_what_goes_wrong_arrives_in_its_place_and_can_be_tried_again(counting):
    _, ready = counting
    for number in range(1, 4):
        assert ready.next()[0][0, 0] == number
    with pytest.raises(DataError, match="segment 3 is gone"):
        ready.next()
    assert ready.position() == {"made": 3}
    assert ready.next()[0][0, 0] == 4


def test_waiting_is_measured_and_can_be_stopped(counting):
    batches, ready = counting
    ready.next()
    until(lambda: batches.made >= prefetch.PREFETCH)
    before = ready.waited
    ready.next()
    assert ready.waited - before < 0.05
    batches.gate.clear()
    while ready._ready:
        ready.next()
    before = ready.waited
    threading.Timer(0.3, batches.gate.set).start()
    ready.next()
    assert 0.2 < ready.waited - before < 5
    batches.gate.clear()
    while ready._ready:
        ready.next()
    asked = []
    while ready.next(lambda: asked.append(0) or len(asked) > 2) is not None:
        pass
    assert len(asked) >= 3


def test_one_can_wait_for_a_while_and_then_look_elsewhere(counting):
    batches, ready = counting
    assert ready.wait(20) and ready.next()[0][0, 0] == 1
    batches.gate.clear()
    while ready._ready:
        ready.next()
    before = ready.waited
    assert not ready.wait(0.3) and ready.waited - before >= 0.3
    assert not ready.wait(20, lambda: True)
    batches.gate.set()
    assert ready.wait(20)


def test_closed_it_makes_no_more_and_loses_none(counting):
    batches, ready = counting
    assert ready.next()[0][0, 0] == 1
    ready.close()
    made = batches.made
    time.sleep(0.05)
    assert batches.made == made and not ready._thread.is_alive()
    assert [ready.next()[0][0, 0] for _ in range(150)] == list(range(2, 152))
