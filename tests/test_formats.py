"""A checkpoint of every format that was ever released can still be read, and gone on from.

tests/fixtures/checkpoint-N is of format N: a brain of 48 neurons after 300 updates on sheep.txt, saved by the program of its time. A new
format adds a folder; none is ever made again. `LOGITS` is what the brain in all of them said then.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from neurogen_numba import checkpoint
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.learning.report import StepReport
from neurogen_numba.learning.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FORMATS = range(1, checkpoint.VERSION + 1)
# after "1 sheep", float32
LOGITS = [-0.789865, 1.975654, -2.575140, -1.518831, -3.458161, -3.398836, -3.031320, -3.509323]
LOGITS += [-3.142851, -2.790575, -3.756512, -3.541460, -0.765716, 0.013160, 2.027948, -0.501854]


def fixture(version):
    return FIXTURES / f"checkpoint-{version}"


def test_every_format_has_a_fixture():
    assert sorted(path.name for path in FIXTURES.glob("checkpoint-*")) == [fixture(version).name for version in FORMATS]
    assert [json.loads((fixture(version) / "manifest.json").read_text())["version"] for version in FORMATS] == list(FORMATS)


@pytest.mark.parametrize("version", FORMATS)
def test_a_checkpoint_of_every_format_speaks_as_it_did(version):
    model, state, trainer = NeuroGenModel.restore(fixture(version), backend="cpu")
    np.testing.assert_allclose(model.logits(model.tokenizer.encode("1 sheep"))[-1], LOGITS, rtol=1e-4, atol=1e-5)
    assert (model.optimizer.steps, trainer["step"]) == (300, 300)
    act = model.activity(4, 2)
    act.load_state(state)
    assert act.state()["broca.v"].any() and act.state()["thalamus.history"].any()


@pytest.mark.parametrize("version", FORMATS)
def test_a_run_of_every_format_goes_on(version, tmp_path, monkeypatch):
    monkeypatch.chdir(FIXTURES)  # where its text is
    shutil.copytree(fixture(version), checkpoint.step_folder(tmp_path, 300))
    trainer = Trainer.resume(tmp_path, 302, "cpu")
    *_, step = (report for report in trainer.reports() if isinstance(report, StepReport))
    assert step.tokens == 302 * trainer.config.training.batch * trainer.config.training.segment  # of which 300 did not say how many
    assert [checkpoint.step_of(folder) for folder in checkpoint.saved(tmp_path)] == [300, 302]
