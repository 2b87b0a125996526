"""Where a loss that is not finite comes from: a neuron of the user's own is named with its file, else the earliest module."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

import neurogen_numba as ng
import tiny
from neurogen_numba import backends
from neurogen_numba.brain.activity import Activity
from neurogen_numba.brain.brain import Brain
from neurogen_numba.errors import ConfigError
from neurogen_numba.learning.diagnosis import BOUND, LOWER, MEND, origin

pytestmark = pytest.mark.usefixtures("one_thread")


@ng.neuron(state=("v",))
def rooted(v, i):
    return 0.9 * v + math.sqrt(i)


@ng.neuron(state=("v",))
def steep(v, i):
    return 0.9 * v + max(i, 0) ** 0.5


@ng.neuron(state=("v",))
def growing(v, i):
    return 3 * v * v + i


def after(neuron=None, module=None, membranes=(), gradient=""):
    """The end of the sentence on an update after which these membranes, or the gradient of this part, are not finite."""
    config = tiny.config()
    config = config.with_neuron(neuron, *([module] if module else [])) if neuron else config
    brain = SimpleNamespace(non_finite_gradient=lambda: gradient)
    return origin(SimpleNamespace(config=config, brain=brain), SimpleNamespace(non_finite=lambda: list(membranes)))


@pytest.mark.parametrize("one, words", [(rooted, "the step cannot be computed at v = "), (steep, "the adjoint cannot be computed at v = ")])
@pytest.mark.parametrize("module", [None, "wernicke"])
def test_a_neuron_that_cannot_be_computed_is_named_with_its_file(one, words, module):
    told_of = after(one, module, ["thalamus"])
    found = re.match(rf": the neuron {re.escape(one.reference)} of (.*), line (\d+): {words}.*i = -0", told_of)
    assert found[1] == __file__ and told_of.endswith(f"; {MEND}")
    with open(__file__, encoding="utf-8") as file:
        assert file.readlines()[int(found[2])].startswith(f"def {one.name}(")


def test_a_neuron_that_can_be_computed_is_named_where_it_is_the_first():
    described = f"the neuron {growing.reference} of {__file__}, line "
    assert after(growing, "wernicke", ["wernicke", "thalamus"]).startswith(f" (first in the membranes of wernicke, made of {described}")
    assert after(growing, "wernicke", ["wernicke"]).endswith(f"; {BOUND}")
    assert after(growing, "wernicke", ["pfc", "wernicke"]) == f" (first in the membranes of pfc); {LOWER}"
    assert after(growing, None, gradient="broca").startswith(f" (in the backward pass first in the gradient of broca, made of {described}")


def test_neurons_that_ship_are_not_tried(monkeypatch):
    monkeypatch.setattr("neurogen_numba.learning.diagnosis.failure", lambda *neuron: pytest.fail("tried"))
    assert after() == f"; {LOWER}" and after(membranes=["pfc"]) == f" (first in the membranes of pfc); {LOWER}"


def test_the_earliest_module_comes_first():
    act = Activity(Brain(tiny.config(brain={"vocabulary": 20}).brain, backends.get("cpu")), 16, 2)
    assert act.non_finite() == []
    act.neurons["thalamus"]["v"][9, 1, 3] = np.nan  # by feedback from Wernicke, a chunk later
    act.neurons["wernicke"]["a"][2, 0, 5] = np.inf
    act.neurons["pfc"]["v"][2, 1, 0] = np.nan
    assert act.non_finite() == ["wernicke", "pfc", "thalamus"]


def test_a_step_that_numba_refuses_is_named_with_its_file():
    @ng.neuron(state=("v",))
    def divided(v, i):
        return v + i / (v * 0 + 1e-300 * 0)

    with pytest.raises(ConfigError, match=rf"divided: .*; see the neuron {__name__}:.*divided of {re.escape(__file__)}, line \d+$"):
        divided.physics()
