"""`neurogen migrate` as a person uses it."""

import dataclasses
import json
import re

import numpy as np
import pytest

import tiny
from neurogen_numba import presets
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.errors import BackendError
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.generate import main as generate
from neurogen_numba.migrate import main as migrate
from neurogen_numba.storage import checkpoint
from neurogen_numba.train import main as train
from same import assert_equal_runs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a text, a run of the preset `tiny` in runs/tiny-1, and a preset that is larger."""
    small = tiny.config(steps=100, checkpoint_interval=50, learning_rate=0.02)
    pfc = dataclasses.replace(small.brain.pfc, neurons=64, outputs=16)
    monkeypatch.setitem(presets.PRESETS, "tiny", small)
    large = small.replace(brain={"pfc": pfc}, training={"steps": 3, "learning_rate": 0.001})
    monkeypatch.setitem(presets.PRESETS, "large", dataclasses.replace(large, preset="large"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheep.txt").write_text("".join(f"{number} sheep went home.\n" for number in range(300)))
    assert train(["--preset", "tiny", "--data", "sheep.txt"]) == 0
    return tmp_path


def refused(code, capsys, *words):
    output = capsys.readouterr().err
    assert code == 2 and output.count("\n") == 1 and output.startswith("neurogen migrate: "), output
    for word in words:
        assert word in output, output


def test_a_run_is_taken_over_talked_to_and_trained_on(folder, capsys):
    capsys.readouterr()
    assert migrate(["tiny-1", "runs/more", "--preset", "large", "--set", "brain.embedding=20"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"(?m)^repeated:\n(  .*\n)*  pfc\.beta +32 -> +64$", output)
    assert re.search(r"(?m)^carried over:\n(  .*\n)*  decoder\.bias +(\d+) -> +\2$", output)
    assert max(map(len, output.split("\n\n", 1)[1].rsplit("\n\n", 1)[0].splitlines())) <= 80
    assert "neurogen train --resume runs/more" in output and "neurogen chat runs/more" in output
    old, new = NeuroGenModel.load(checkpoint.latest(folder / "runs/tiny-1")), NeuroGenModel.load(checkpoint.latest(folder / "runs/more"))
    assert (new.config.preset, new.config.brain.pfc.neurons, new.config.brain.embedding) == ("large", 64, 20)
    assert new.config.text == old.config.text and new.tokenizer.encode("sheep").tolist() == old.tokenizer.encode("sheep").tolist()
    assert generate(["more", "--length", "3"]) == 0
    losses = []
    for run in ("tiny-1", "more"):
        capsys.readouterr()
        assert evaluate([run, "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[1] < losses[0] + 0.2 < 1 < np.log(old.config.brain.vocabulary)  # nats: it knows what the old one knew, or nearly
    assert train(["--resume", "more"]) == 0
    output = capsys.readouterr().out
    assert "resuming from step 0" in output and "step 1/3" in output and "step 3/3" in output


def test_a_migration_is_a_matter_of_its_seed(folder):
    for name in ("a", "b"):
        assert migrate(["tiny-1@best", f"runs/{name}", "--preset", "large"]) == train(["--resume", name]) == 0
    assert_equal_runs(folder / "runs/a", folder / "runs/b")


def test_what_is_not_asked_for_stays_as_it_was(folder):
    """Not as the preset nano has it."""
    old = json.loads((folder / "runs/tiny-1/config.json").read_text())
    assert migrate(["tiny-1", "runs/set", "--set", f"brain.pfc.neurons={old['brain']['pfc']['neurons'] + 3}"]) == 0
    new = json.loads((folder / "runs/set/config.json").read_text())
    old["brain"]["pfc"]["neurons"] += 3
    assert new == old


def test_bad_requests_cost_a_sentence(folder, capsys):
    capsys.readouterr()
    refused(migrate(["tiny-1", "runs/x"]), capsys, "the new size is missing; give --preset")
    refused(migrate(["tiny-1", "runs/x", "--set", "training.steps=7"]), capsys, "the new size is missing")
    refused(migrate(["tiny-1", "runs/tiny-1", "--preset", "large"]), capsys, "runs/tiny-1 is not empty")
    refused(migrate(["tiny-1", "runs/x", "--preset", "tiny"]), capsys, "--preset tiny: the old model has that size already; give another")
    same = f"brain.pfc.neurons={presets.PRESETS['tiny'].brain.pfc.neurons}"
    refused(migrate(["tiny-1", "runs/x", "--set", same]), capsys, f"--set {same}: the old model has that size already")
    refused(migrate(["nowhere", "runs/x", "--preset", "large"]), capsys, "nowhere")
    refused(migrate(["tiny-1", "runs/x", "--preset", "lagre"]), capsys, "'large'")
    refused(migrate(["tiny-1", "sheep.txt/x", "--preset", "large"]), capsys, "sheep.txt/x cannot be made")
    refused(migrate(["tiny-1", "sheep.txt", "--preset", "large"]), capsys, "sheep.txt cannot be made: sheep.txt is a file")
    refused(migrate(["tiny-1", "runs/x", "--set", "text.tokenizer=byte", "--preset", "large"]), capsys, "text.tokenizer", "drop it")
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["tiny-1"]


def test_what_cannot_be_saved_leaves_nothing_in_the_way(folder, capsys, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr("neurogen_numba.storage.run_folder.write_json", lambda *_: (_ for _ in ()).throw(BackendError("no space left")))
        refused(migrate(["tiny-1", "runs/x", "--preset", "large"]), capsys, "no space left")
    assert [path.name for path in (folder / "runs/x").iterdir()] == ["lock"]
    assert migrate(["tiny-1", "runs/x", "--preset", "large"]) == 0


def test_a_folder_that_another_process_fills_is_left_to_it(folder, capsys, monkeypatch):
    from neurogen_numba.brain import resize

    carry_over, words = resize.carry_over, ["tiny-1", "runs/x", "--preset", "large"]

    def slow(*how):
        monkeypatch.setattr(resize, "carry_over", carry_over)
        assert migrate(words) == 0
        return carry_over(*how)

    monkeypatch.setattr(resize, "carry_over", slow)
    refused(migrate(words), capsys, "runs/x is not empty")
    assert checkpoint.newest(folder / "runs/x")[0].name == "step-00000000"


def test_the_text_may_be_another_one(folder):
    assert migrate(["tiny-1", "runs/x", "--preset", "large", "--set", "text.data=other.txt"]) == 0
    config = json.loads((folder / "runs/x/config.json").read_text())
    assert config["text"]["data"] == str(folder / "other.txt") and config["text"]["tokenizer"] == "char"
    for number, (data, kept) in enumerate({"hf:some/set": "hf:some/set", "-": "-", "": ""}.items()):
        assert migrate(["tiny-1", f"runs/y{number}", "--preset", "large", "--set", f"text.data='{data}'"]) == 0
        assert json.loads((folder / f"runs/y{number}/config.json").read_text())["text"]["data"] == kept
    (folder / "other.txt").write_text("sheep went home.\n" * 99)
    assert train(["--resume", "x"]) == 0
