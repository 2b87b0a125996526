"""No command replaces or removes a file that it did not write."""

import numpy as np
import pytest

import tiny
from neurogen_numba import presets
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.cli import main
from neurogen_numba.errors import CheckpointError
from neurogen_numba.storage import checkpoint, run_folder

pytestmark = pytest.mark.usefixtures("one_thread")
MINE = b'{"text": "mine", "total": 3}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config(steps=1))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.json").write_bytes(MINE)
    return tmp_path


TOKENIZE = ["tokenize", "corpus.json", "--tokenizer", "byte", "--workers", "0", "--out"]


@pytest.mark.parametrize(
    "name", ["corpus.json", "corpus.bin", "corpus.tokenizer", "corpus.tokenizer/tokenizer.json", "corpus.tokenizer/mine"]
)
def test_tokenize_leaves_other_files_alone(folder, name, capsys):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(MINE)
    text = folder / "text.json"
    text.write_bytes(MINE)
    (folder / "corpus.json").unlink() if name != "corpus.json" else None
    assert main(["tokenize", "text.json", *TOKENIZE[2:], "corpus.bin"]) == 2
    assert "which it would replace; choose another --out" in capsys.readouterr().err
    assert file.read_bytes() == MINE and text.read_bytes() == MINE
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(["text.json", file.name])


def test_tokenize_replaces_what_it_wrote_and_no_unfinished_file_of_others(folder):
    for name in ("tokens.bin.part", "tokens.json.part"):
        (folder / name).write_bytes(MINE)
    assert main([*TOKENIZE, "tokens.bin"]) == main([*TOKENIZE, "tokens.bin"]) == 0
    assert (folder / "tokens.bin.part").read_bytes() == (folder / "tokens.json.part").read_bytes() == MINE
    (folder / "tokens.bin").unlink()  # what is left of one's own is no obstacle
    assert main([*TOKENIZE, "tokens.bin"]) == 0


@pytest.mark.parametrize("words", [["plan", "--backend", "cpu"], ["doctor"], ["bench", "sim"], ["evaluate"]], ids=lambda words: words[0])
def test_json_is_not_written_over_another_file(folder, words, capsys):
    assert main([*words, "--json", "corpus.json"]) == 2
    assert "exists, and is not an output of this command" in capsys.readouterr().err
    assert (folder / "corpus.json").read_bytes() == MINE


def test_json_is_written_over_what_the_command_wrote(folder):
    for _ in range(2):
        assert main(["plan", "--preset", "tiny", "--backend", "cpu", "--json", "plan.json"]) == 0


@pytest.mark.parametrize("name", ["lock", "config.json", "notes.txt"])
def test_train_leaves_a_folder_with_other_files_alone(folder, name, capsys):
    (folder / "runs/mine").mkdir(parents=True)
    (folder / "runs/mine" / name).write_bytes(MINE)
    assert main(["train", "--preset", "tiny", "--name", "mine"]) == 2
    assert [path.name for path in (folder / "runs/mine").iterdir()] == [name]
    assert (folder / "runs/mine" / name).read_bytes() == MINE
    assert not run_folder.is_lock(folder / "runs/mine" / name)


def test_saving_a_model_leaves_a_copy_of_the_one_before_alone(folder):
    model = NeuroGenModel.from_config(tiny.config(brain={"vocabulary": 20}), backend="cpu")
    model.save("brain")
    (folder / "brain").rename(folder / "brain.old")  # a copy that somebody keeps
    before = checkpoint.load(folder / "brain.old").tensors["decoder"]
    ids = np.arange(17)
    model.train_step(ids[:-1], ids[1:])
    model.save("brain")
    with pytest.raises(CheckpointError, match="the previous one would be moved to .*brain.old, which exists"):
        model.save("brain")
    after = checkpoint.load(folder / "brain.old").tensors["decoder"]
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    (folder / "brain.old").rename(folder / "first")
    model.save("brain")
    assert not (folder / "brain.old").exists()
