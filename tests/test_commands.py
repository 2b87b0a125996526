"""The commands as a person uses them, and what bad input costs: one sentence, exit code 2, nothing lost."""

import errno
import json
import os
import shutil
import signal

import pytest

import tiny
from neurogen_numba import checkpoint, presets, rundir
from neurogen_numba.chat import main as chat
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.generate import main as generate
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.train import main as train

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "".join(f"{number} sheep went home.\n" for number in range(300))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with a text and a preset that trains in a moment."""
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config(steps=4, checkpoint_interval=2, eval_interval=2, sample_interval=3))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheep.txt").write_text(TEXT)
    return tmp_path


def trained(*flags):
    return train(["--preset", "tiny", "--data", "sheep.txt", *flags])


def refused(code, capsys, *words):
    """A command ended with exit code 2 and one line that has these words."""
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "Traceback" not in said, said
    for word in words:
        assert word in said, said
    return True


# Use


def test_train_then_generate_evaluate_and_chat(place, capsys, monkeypatch):
    assert trained() == 0
    lines = capsys.readouterr().out
    assert "step 4/4" in lines and "\x1b" not in lines and "neurogen chat runs/tiny-1" in lines
    assert json.loads((place / "runs/tiny-1/summary.json").read_text())["steps"] == 4
    kinds = [json.loads(line)["kind"] for line in (place / "runs/tiny-1/metrics.jsonl").read_text().splitlines()]
    assert {"step", "evaluation", "sample", "checkpoint", "final"} <= set(kinds)

    assert generate(["--prompt", "1 sheep", "--length", "20", "--seed", "3"]) == 0
    whole = capsys.readouterr().out
    assert generate(["runs/tiny-1", "--prompt", "1 sheep", "--length", "20", "--seed", "3", "--stream"]) == 0
    assert capsys.readouterr().out == whole and whole.startswith("1 sheep") and len(whole) == len("1 sheep") + 20 + 1

    assert evaluate(["--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1 and score["bits_per_byte"] > 0
    assert evaluate(["--data", "sheep.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == len(TEXT) - 1

    lines = iter(["2 sheep", "/temperature 0", "/nonsense", "é", "/reset", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    assert chat(["--auto-load-latest", "--max-tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert said.count("Neo: ") == 1 and "temperature 0" in said and "nonsense" in said and "'é'" in said and "forgotten" in said
    assert next(lines) == "never read"


def test_a_talk_about_stories_keeps_to_their_form(place, capsys, monkeypatch):
    assert train(["--preset", "tiny", "--tokenizer", "byte", "--steps", "2", "--eval-interval", "9"]) == 0
    heard = []
    monkeypatch.setattr(
        "neurogen_numba.generation.stream", lambda session, tokenizer, prompt, length, stop: heard.append((prompt, stop)) or ["ok"]
    )
    lines = iter(["Hello.", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    assert chat([]) == 0
    assert heard == [("You: Hello.\nNeo:", "\n")]


def test_resume_goes_on_with_the_latest_run_or_a_named_one_and_further(place, capsys):
    assert trained() == 0
    refused(train(["--resume"]), capsys, "4 steps already")
    assert train(["--resume", "--steps", "6"]) == 0
    assert train(["--resume", "runs/tiny-1", "--steps", "7"]) == 0
    assert checkpoint.latest(place / "runs/tiny-1").name == "step-00000007"


def test_ctrl_c_saves_and_says_how_to_go_on(place, capsys, monkeypatch):
    learn, calls = Trainer.save, []

    def save(trainer):
        calls.append(trainer.step)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return learn(trainer)

    monkeypatch.setattr(Trainer, "save", save)
    assert trained() == 130
    assert "neurogen train --resume runs/tiny-1" in capsys.readouterr().out
    assert checkpoint.latest(place / "runs/tiny-1").name == "step-00000003"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(["--resume"]) == 0


# Bad input


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data", "nowhere.txt"], ["nowhere.txt"]),
        (["--data", "empty.txt"], ["empty.txt", "empty"]),
        (["--data", "binary.bin"], ["binary.bin"]),
        (["--data", "short.txt"], ["short.txt", "--seq-length"]),
        (["--data", "folder"], ["folder"]),
        (["--preset", "nanoo"], ["'nano'"]),
        (["--tokenizer", "sentencepiece", "--vocab-size", "100000"], ["--vocab-size"]),
        (["--tokenizer", "missing.model"], ["missing.model"]),
        (["--steps", "-1"], ["steps"]),
        (["--steps", "many"], ["--steps"]),
        (["--dropout", "1"], ["dropout"]),
        (["--stepps", "3"], ["--steps"]),
        (["--name", "a/b"], ["--name"]),
    ],
)
def test_bad_flags_and_data(place, capsys, flags, words):
    (place / "empty.txt").write_text("")
    (place / "binary.bin").write_bytes(b"\x00\xff\xfe\x01" * 300)
    (place / "short.txt").write_text("too short")
    (place / "folder").mkdir()
    refused(trained(*flags), capsys, *words)
    assert not (place / "runs").exists() or not list((place / "runs").iterdir()), "an empty run was left behind"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(place, capsys):
    (place / "sheep.txt").chmod(0)
    refused(trained(), capsys, "sheep.txt")


def test_a_name_in_use_and_a_run_in_use(place, capsys):
    assert trained("--name", "mine") == 0
    capsys.readouterr()
    refused(trained("--name", "mine"), capsys, "--resume", "--name")
    with rundir.lock(place / "runs/mine"):
        refused(train(["--resume", "runs/mine", "--steps", "9"]), capsys, "in use")


def test_resume_takes_its_settings_from_the_run(place, capsys):
    refused(train(["--resume", "--preset", "tiny"]), capsys, "--preset")
    refused(train(["--resume"]), capsys, "runs")


def test_damaged_and_foreign_checkpoints(place, capsys):
    assert trained() == 0
    capsys.readouterr()
    folder = checkpoint.latest(place / "runs/tiny-1")
    brain = folder / "brain.safetensors"
    brain.write_bytes(brain.read_bytes()[:-9])
    refused(generate([str(folder)]), capsys, "brain.safetensors")
    refused(generate([str(place)]), capsys, str(place))
    other = tiny.config(brain={"fan_in": 5})
    shutil.copytree(checkpoint.latest(place / "runs/tiny-1"), place / "copy")
    saved = checkpoint.load(place / "copy")
    checkpoint.save(place / "other", saved.tensors, saved.documents | {"config": other.to_dict()})
    refused(generate([str(place / "other")]), capsys, "other")


def test_a_full_disk_while_saving_costs_no_checkpoint(place, capsys, monkeypatch):
    assert trained("--steps", "2") == 0
    capsys.readouterr()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write", full)
    refused(train(["--resume", "--steps", "4"]), capsys, "step-00000004")
    monkeypatch.undo()
    assert checkpoint.latest(place / "runs/tiny-1").name == "step-00000002"


@pytest.mark.parametrize(
    "command, flags, word",
    [
        (generate, ["--temperature", "-1"], "temperature"),
        (generate, ["--top-p", "0"], "top-p"),
        (generate, ["--top-k", "-2"], "top-k"),
        (generate, ["--length", "0"], "--length"),
        (generate, ["--prompt", "é"], "'é'"),
        (chat, ["--auto-load-latest", "runs/tiny-1"], "--auto-load-latest"),
        (chat, ["--max-tokens", "0"], "--max-tokens"),
        (evaluate, ["--data", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_flags_of_the_other_commands(place, capsys, command, flags, word):
    assert trained("--steps", "1") == 0
    capsys.readouterr()
    refused(command(flags), capsys, word)
