"""A checkpoint of every format that was ever released can still be read, as far as its brain is of today's kind.

tests/fixtures/checkpoint-N is of format N: a brain of 48 neurons after 300 updates on sheep.txt, saved by the program of its time. A new
format adds a folder; none is ever made again. The first two have scattered synapses, which came before bundles: they are refused with the
command that takes over the rest, and migrated by it. The third is quantised, in 4 bits.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import CheckpointError
from neurogen_numba.learning.report import StepReport
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.migrate import main as migrate
from neurogen_numba.storage import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FORMATS, SCATTERED = range(1, checkpoint.QUANTIZED + 1), (1, 2)


def fixture(version):
    return FIXTURES / f"checkpoint-{version}"


def test_every_format_has_a_fixture():
    assert sorted(path.name for path in FIXTURES.glob("checkpoint-*")) == [fixture(version).name for version in FORMATS]
    assert [json.loads((fixture(version) / "manifest.json").read_text())["version"] for version in FORMATS] == list(FORMATS)


def test_codes_are_read():
    model = NeuroGenModel.load(fixture(3), backend="cpu")
    text = model.tokenizer.encode((FIXTURES / "sheep.txt").read_text())
    losses, _ = model.score(model.activity(len(text) - 1, 1), text[:-1, None], text[1:, None])
    assert model.quantization["bits"] == 4 and losses.mean() < 0.8 * np.log(model.config.brain.vocabulary)


@pytest.mark.parametrize("version", SCATTERED)
def test_scattered_synapses_are_refused_with_the_command_that_helps(version):
    with pytest.raises(CheckpointError, match="not in bundles as this version has them; `neurogen migrate .* runs/NEW` takes over"):
        NeuroGenModel.restore(fixture(version), backend="cpu")


@pytest.mark.parametrize("version", SCATTERED)
def test_migrate_takes_over_all_but_the_synapses(version, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(FIXTURES)  # where its text is
    assert migrate([str(fixture(version)), str(tmp_path / "new")]) == 0
    output = capsys.readouterr().out
    assert "drawn anew: its synapses were not in bundles as they are now:\n" in output
    new, tensors = NeuroGenModel.load(checkpoint.latest(tmp_path / "new"), backend="cpu"), checkpoint.load(fixture(version)).tensors
    value = new.brain.parameters.value
    for group in ("brain", "embeddings", "decoder"):
        for name, array in tensors[group].items():
            if name in value and value[name].shape == array.shape:
                np.testing.assert_array_equal(value[name], array, err_msg=name)
    assert {f"{arc.name}.weight" for arc in new.brain.arcs} == {
        name for name in value if name in tensors["brain"] and value[name].ndim == 3
    }
    np.testing.assert_array_equal(new.brain.structure()["pfc.input_scale"], tensors["brain"]["pfc.input_scale"])
    trainer = Trainer.resume(tmp_path / "new", 2, "cpu")
    assert [report.step for report in trainer.reports() if isinstance(report, StepReport)][-1] == 2


@pytest.mark.parametrize("older", ["dense", "fewer bundles"])
def test_projections_of_an_older_form_are_drawn_anew_and_no_others(older, tmp_path):
    """All sources to every target was a dense matrix once, and then as many bundles as are nearest to the fan-in."""
    config = tiny.config(brain={"vocabulary": 40, "memory_heads": 1, "memory_width": 20, "fan_in": 20})
    model = NeuroGenModel.from_config(config, backend="cpu")
    arc = next(arc for arc in model.brain.arcs if arc.name == "memory_hippocampus")
    assert arc.covers and arc.bundles_per_tile == 2 > round(arc.fan_in / arc.bundle)
    tensors, documents = model.snapshot()
    brain = tensors["brain"]
    if older == "dense":
        brain["memory_hippocampus.weight"] = np.ones((arc.sources, arc.targets), np.float32)
        del brain["memory_hippocampus.block"], brain["memory_hippocampus.delay"]
    else:
        brain["memory_hippocampus.weight"] = brain["memory_hippocampus.weight"][::2].copy()
        for what in ("block", "delay"):
            brain[f"memory_hippocampus.{what}"] = brain[f"memory_hippocampus.{what}"][:, :1].copy()
    checkpoint.save(tmp_path / "old", tensors, documents, None)
    with pytest.raises(CheckpointError, match="not in bundles as this version has them"):
        NeuroGenModel.load(tmp_path / "old", backend="cpu")
    again = NeuroGenModel.load_to_migrate(tmp_path / "old")
    assert again.brain.drawn_anew == {"memory_hippocampus"}
    for name, value in model.brain.parameters.value.items():
        if name != "memory_hippocampus.weight":
            np.testing.assert_array_equal(again.brain.parameters.value[name], value, err_msg=name)
    assert again.brain.parameters.value["memory_hippocampus.weight"].shape == arc.weight_shape
