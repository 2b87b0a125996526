"""The examples run, as far as they do not take their time."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("one_thread")
def test_what_an_event_costs_is_measured_with_events():
    works = example("01_cost_of_an_event").prepare(np.random.default_rng(0), 256, 5)
    for work in works:
        work()
    forward, back, _ = works
    forward()
    assert np.count_nonzero(forward.args[0]["b.current"])
    back()
    assert np.count_nonzero(back.args[0]["a.axon"])
