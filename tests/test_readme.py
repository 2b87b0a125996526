"""What the README says of the presets is what they are."""

import re
from pathlib import Path

import pytest

from neurogen_numba import budget
from neurogen_numba.backends.paper import Paper
from neurogen_numba.brain.connectome import arcs
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES
from neurogen_numba.presets import PRESETS

CHARACTERS = 65  # of Shakespeare
README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
ROWS = {
    name: columns
    for name, *columns in (
        re.split(r" *\| *", line[2:-2]) for line in README.splitlines() if line.startswith("| `") and line.count("|") == 7
    )
}


def numbers(text):
    return [int(number) for number in text.replace(",", "").split(" / ")]


def test_every_preset_has_a_row():
    assert {name.strip("`") for name in ROWS} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_is_true(name):
    brain, (sizes, neurons, synapses, parameters, made_for) = PRESETS[name].brain, ROWS[f"`{name}`"]
    assert numbers(sizes) == [getattr(brain, module).neurons for module in MODULES]
    assert numbers(neurons) == [brain.neurons]
    assert numbers(synapses) == [sum(arc.targets * arc.synapses_per_target for arc in arcs(brain))]
    for gigabytes in re.findall(r"([0-9.]+) GB planned", made_for):
        config = PRESETS[name].replace(brain={"vocabulary": PRESETS[name].text.vocabulary})
        planned = sum(budget.plan(config, budget.Card.assumed(config)).values())
        assert gigabytes == f"{planned / 1e9:.1f}"
    assert parameters == f"{learned(PRESETS[name]) / 1e6:.1f} M"


def learned(config):
    """How many numbers a preset learns, counted without allocating them."""
    paper = Paper(2**32, "float32", shared_memory=2**16, multiprocessors=16)
    vocabulary = CHARACTERS if config.text.tokenizer == "char" else config.text.vocabulary
    return NeuroGenModel.on_paper(config.replace(brain={"vocabulary": vocabulary}), paper).parameters
