"""README and docs describe the presets correctly, and links lead somewhere."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from neurogen_numba.brain.connectome import arcs
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import MODULES
from neurogen_numba.planning import budget
from neurogen_numba.planning.meta import MetaBackend
from neurogen_numba.presets import PRESETS

CHARACTERS = 65  # of Shakespeare
ROOT = Path(__file__).resolve().parent.parent


def rows(file, columns):
    """Rows of the table with this number of columns, by preset."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    cells = (re.split(r" *\| *", line[2:-2]) for line in lines if line.startswith("| `") and line.count("|") == columns + 1)
    return {name: rest for name, *rest in cells}


ROWS, DISK = rows("docs/presets.md", 6), rows("docs/training.md", 4)


def numbers(text):
    return [int(number) for number in text.replace(",", "").split(" / ")]


def test_every_preset_has_a_row():
    assert {name.strip("`") for name in ROWS} == {name.strip("`") for name in DISK} == set(PRESETS)


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


@pytest.mark.parametrize("name", PRESETS)
def test_checkpoints_are_as_large_as_is_said(name):
    vocabulary, one, six = DISK[f"`{name}`"]
    assert numbers(vocabulary) == [tokens(PRESETS[name])]
    size = saved(PRESETS[name])
    assert (one, six) == (f"{size / 1e6:,.0f} MB", f"{6 * size / 1e9:.1f} GB")


def test_links_lead_somewhere():
    """The documentation's own are checked where it is built (`make docs`)."""
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10 and not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def tokens(config):
    return CHARACTERS if config.text.tokenizer == "char" else config.text.vocabulary


def on_meta(config):
    """A model that is counted without allocating it."""
    meta = MetaBackend(2**36, "float32", shared_memory=2**16, multiprocessors=16)
    return NeuroGenModel.on_meta(config.replace(brain={"vocabulary": tokens(config)}), meta)


def learned(config):
    """How many numbers a preset learns."""
    return on_meta(config).parameters


def saved(config):
    """Bytes of the arrays in a checkpoint: weights, moments, wiring and the state of the neurons."""
    model = on_meta(config)
    brain, act = model.brain, model.activity(config.training.segment, config.training.batch, learning=True)
    size = 4 * model.parameters + sum(kept.nbytes for kept in model.optimizer.tensors().values())
    size += sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in brain.structure_shapes().values())
    size += sum(array.nbytes for array in act.views().values())
    return size + sum(4 * brain.history(name) * act.batch * brain.signal_sizes[name] for name in brain.signal_sizes)
