"""The commands as a person uses them, and what bad input costs: one sentence, exit code 2, nothing lost."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

import tiny
from neurogen_numba import backends, presets
from neurogen_numba.chat import main as chat
from neurogen_numba.evaluate import main as evaluate
from neurogen_numba.figures import main as figures
from neurogen_numba.generate import main as generate
from neurogen_numba.learning import windows
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.show import load, summary_of
from neurogen_numba.storage import checkpoint, run_folder
from neurogen_numba.tokenize import main as tokenize
from neurogen_numba.train import configure, parser
from neurogen_numba.train import main as train

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
TEXT = "".join(f"{number} sheep went home.\n" for number in range(300))


@pytest.fixture
def location(tmp_path, monkeypatch):
    """An empty folder to work in, with a text and a preset that trains in a moment."""
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config(steps=4, checkpoint_interval=2, eval_interval=2, sample_interval=3))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheep.txt").write_text(TEXT)
    return tmp_path


def trained(*flags):
    return train(["--preset", "tiny", "--data", "sheep.txt", *flags])


def refused(code, capsys, *words):
    """A command ended with exit code 2 and one line that has these words."""
    output = capsys.readouterr().err
    assert code == 2 and output.count("\n") == 1 and "Traceback" not in output, output
    for word in words:
        assert word in output, output
    return True


# Use


def test_train_then_generate_evaluate_and_chat(location, capsys, monkeypatch):
    assert trained() == 0
    lines = capsys.readouterr().out
    assert "step 4/4" in lines and "\x1b" not in lines and "neurogen chat runs/tiny-1" in lines
    assert json.loads((location / "runs/tiny-1/summary.json").read_text())["steps"] == 4
    kinds = [json.loads(line)["kind"] for line in (location / "runs/tiny-1/metrics.jsonl").read_text().splitlines()]
    assert {"step", "evaluation", "sample", "checkpoint", "final"} <= set(kinds)

    assert generate(["--prompt", "1 sheep", "--length", "60", "--seed", "3"]) == 0
    whole = capsys.readouterr().out
    assert generate(["runs/tiny-1", "--prompt", "1 sheep", "--length", "60", "--seed", "3", "--stream"]) == 0
    assert capsys.readouterr().out == whole and whole.startswith("1 sheep") and len(whole) == len("1 sheep") + 60 + 1

    assert evaluate(["--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["tokens"] == len(TEXT) - int(0.9 * len(TEXT)) - 1 and score["bits_per_byte"] > 0
    assert "all of the held-out text" in score["method"]
    assert evaluate(["--data", "sheep.txt", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["tokens"] == len(TEXT) - 1 and score["words"] == len(TEXT[1:].split())  # the first character has nothing before it
    assert score["perplexity_per_word"] == pytest.approx(math.exp(score["loss"] * score["tokens"] / score["words"]))
    assert score["streams"] == 16 and "16 streams side by side" in score["method"] and "all of the text" in score["method"]
    assert 0 < score["accuracy"] < 1 and "unknown_words" not in score
    assert evaluate(["--data", "sheep.txt", "--json", "score.json"]) == 0
    assert json.loads((location / "score.json").read_text()) == score
    output = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert output["accuracy"].strip() == f"{100 * score['accuracy']:.1f} %" and output["loss"].endswith(" nats/token")
    assert output["method"].strip() == score["method"]
    assert evaluate(["--data", "sheep.txt", "--json", "--streams", "3"]) == 0
    three = json.loads(capsys.readouterr().out)
    assert three["streams"] == 3 and three["loss"] != score["loss"]
    (location / "sheep.jsonl").write_text(json.dumps({"body": TEXT}))
    for flags in (["--data", "sheep.jsonl", "--text-field", "body"], []):
        assert evaluate(["--max-tokens", "70", "--json", *flags]) == 0
        assert json.loads(capsys.readouterr().out)["tokens"] == 70

    lines = iter(["2 sheep", "/temperature 0", "/nonsense", "é", "/reset", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    assert chat(["--auto-load-latest", "--max-tokens", "5"]) == 2  # something was refused
    output = capsys.readouterr()
    assert output.out.count("\n") == 1 and all(words in output.err for words in ("temperature 0", "nonsense", "'é'", "forgotten"))
    assert next(lines) == "never read"


def test_each_measurement_says_what_it_is(location, capsys, monkeypatch):
    monkeypatch.setattr(windows, "SPREAD", 0.05)
    assert trained("--steps", "60") == 0
    checkpoint_before = {path: path.read_bytes() for path in (location / "runs/tiny-1/checkpoints").rglob("*") if path.is_file()}
    results = {}
    flags_of = {"plain": [], "neural cache": ["--cache"], "dynamic evaluation": ["--adapt"], "windows": ["--windows", "20"]}
    for name, flags in flags_of.items():
        capsys.readouterr()
        assert evaluate(["--json", "--max-tokens", "300", *flags]) == 0
        results[name] = json.loads(capsys.readouterr().out)
        assert results[name]["measurement"] == name
    plain, cache, adapt, random = results.values()
    assert plain["method"].startswith("nats per token over") and "accuracy" in plain
    assert cache["method"].startswith("with a neural cache of the last 2,000 tokens of a stream, theta") and "accuracy" not in cache
    assert adapt["method"].startswith(
        "dynamic evaluation, an update at rate 0.0003 on every 16 tokens after they were scored; nats per token"
    )
    assert len({plain["loss"], cache["loss"], adapt["loss"]}) == 3 and adapt["streams"] == 1
    for result in (cache, adapt):
        assert result["method"].endswith(plain["method"]) and result["tokens"] == 300
        assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2))
    assert random["windows"] % 64 == 0 and random["standard_error"] < 0.05 and "bits_per_byte" not in random
    assert f"mean over {random['windows']:,} random windows of 20 tokens (seed 0) of the beginning of the held-out text" in random["method"]
    assert f"standard error of the mean {random['standard_error']:.4f}" in random["method"]
    kept = json.loads((location / "runs/tiny-1/summary.json").read_text())["temperature"]
    assert plain["temperature"] == pytest.approx(kept) != 1 and plain["method"].endswith(f"; logits divided by {kept:.4f}")
    assert evaluate(["--json", "--temperature", "1"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw["temperature"] == 1 and "divided" not in raw["method"]
    assert evaluate(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != raw["loss"]
    (location / "other.txt").write_text((location / "sheep.txt").read_text())
    (location / "sheep.txt").unlink()
    assert evaluate(["--json", "--data", "other.txt"]) == 0
    assert refused(evaluate([]), capsys, "sheep.txt", "name another one with --data")
    assert {path: path.read_bytes() for path in checkpoint_before} == checkpoint_before


def test_words_are_scored_by_the_word_and_by_the_bytes_of_the_text(location, capsys):
    (location / "sheep.txt").write_text("".join(f" {number} sheep went home . \n" for number in range(300)))
    assert trained("--tokenizer", "word", "--vocab-size", "50") == 0
    assert "% are <unk>" in capsys.readouterr().out
    assert evaluate(["--data", "sheep.txt", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["words"] == score["tokens"] == 300 * 6 - 1 and score["perplexity_per_word"] == math.exp(score["loss"])
    assert score["unknown_words"] == pytest.approx((300 - 44) / (300 * 6), abs=1e-3)
    size = (location / "sheep.txt").stat().st_size - len(" 0")
    assert score["bits_per_byte"] == pytest.approx(score["loss"] / math.log(2) * score["tokens"] / size)
    assert evaluate(["--data", "sheep.txt"]) == 0
    assert "unknown words                14.2 %" in capsys.readouterr().out


def test_train_draws_figures_and_figures_draws_them_once_more(location, capsys):
    flags = "--viz-interval", "4", "--sample-interval", "3"
    assert trained(*flags) == 0
    folder = location / "runs/tiny-1/training_viz"
    pages = {f"{page}_{which}.png" for page in ("brain", "training") for which in ("step_000004", "latest")}
    assert pages | {"metrics_history.json", "text_samples.json"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "metrics_history.json").read_text())["step"] == [1, 2, 3, 4]
    samples = json.loads((folder / "text_samples.json").read_text(encoding="utf-8"))
    assert [sample["step"] for sample in samples] == [3, 4], "the last figure has what came after the last step"
    assert train(["--resume", "--steps", "6"]) == 0
    assert {"brain_step_000006.png", "training_step_000006.png"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "metrics_history.json").read_text())["step"] == [1, 2, 3, 4, 5, 6]
    assert "warning" not in capsys.readouterr().out
    shutil.rmtree(folder)
    assert figures([]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert sorted(Path(line).name for line in listed) == sorted(path.name for path in folder.iterdir())
    assert "brain_step_000006.png" in {path.name for path in folder.iterdir()} and len(listed) == 6


def test_figures_pass_over_a_damaged_checkpoint(location, capsys):
    assert trained() == 0
    newest = checkpoint.saved(location / "runs/tiny-1")[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    assert figures(["tiny-1"]) == 0
    output = capsys.readouterr()
    assert "is skipped" in output.err and "No figure of the brain" not in output.out


def test_figures_of_a_run_that_has_written_no_text(location, capsys):
    assert trained() == 0
    log = location / "runs/tiny-1/metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if json.loads(line)["kind"] != "sample"))
    capsys.readouterr()
    assert figures(["tiny-1"]) == 0
    assert "No figure of the brain" in capsys.readouterr().out
    assert not list((location / "runs/tiny-1/training_viz").glob("brain*"))
    shutil.rmtree(location / "runs/tiny-1/training_viz")
    (location / "runs/tiny-1/training_viz").write_text("in the way")
    refused(figures(["tiny-1"]), capsys, "no figures can be written in runs/tiny-1: File exists")
    log.unlink()
    refused(figures(["tiny-1"]), capsys, "metrics.jsonl cannot be read", "give the folder of a run")
    refused(figures(["nothing"]), capsys, "nothing")


def test_tensorboard_events_come_with_the_flag_and_a_resumed_run_goes_on_with_them(location, capsys):
    pytest.importorskip("tensorboardX")
    assert trained("--name", "without") == 0 and not (location / "runs/without/tensorboard").exists()
    assert trained("--tensorboard", "--name", "with") == 0
    assert train(["--resume", "with", "--steps", "6"]) == 0
    files = sorted((location / "runs/with/tensorboard").iterdir())
    assert len(files) == 2 and all(file.stat().st_size > 1000 for file in files)
    assert "warning" not in capsys.readouterr().out


def test_tensorboard_without_its_package_is_refused_before_anything_is_made(location, capsys, monkeypatch):
    monkeypatch.setattr("neurogen_numba.ui.tensorboard.importlib.util.find_spec", lambda name: None)
    refused(trained("--tensorboard"), capsys, "--tensorboard", "pip install 'neurogen-numba[tensorboard]'")
    assert not (location / "runs").exists()


def test_a_quick_run_to_see_that_everything_works(location, capsys):
    (location / "sheep.txt").write_text(TEXT * 8)  # a tenth, twice as much as is looked at, is held out
    assert trained("--test") == 0
    output = capsys.readouterr().out
    assert "step 20/20" in output and output.count("validation at step 10 ") == output.count("sample at step 10 ") == 1
    assert re.findall(r"validation at step (\d+) .* ([\d,]+) tokens\n", output) == [("10", "2,000"), ("20", "2,000")]
    settings = json.loads((location / "runs/tiny-1/config.json").read_text())
    batch, segment, text = settings["training"]["batch"], settings["training"]["segment"], settings["text"]
    assert text["max_chunks"] * text["chunk_tokens"] == 20 * batch * segment and settings["training"]["checkpoint_interval"] == 10
    assert trained("--test", "--steps", "3", "--max-chunks", "1") == 0  # what is said besides has precedence
    assert json.loads((location / "runs/tiny-2/summary.json").read_text())["steps"] == 3
    assert trained("--test", "--steps", "23") == 0
    assert json.loads((location / "runs/tiny-3/summary.json").read_text())["steps"] == 23


def test_a_run_on_many_files_and_on_its_token_file(location, capsys, monkeypatch):
    (location / "parts").mkdir()
    for name in "ab":
        (location / f"parts/{name}.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in TEXT.splitlines()))
    flags = ["--text-field", "body", "--tokens-per-chunk", "500", "--workers", "1", "--reset-at-documents"]
    assert train(["--preset", "tiny", "--data", "parts/*.jsonl", *flags]) == 0
    assert tokenize(["parts", "--text-field", "body", "--tokenizer", "char", "--out", "sheep.bin"]) == 0
    refused(train(["--preset", "tiny", "--data", "sheep.bin", "--vocab-size", "300"]), capsys, "--vocab-size", "sheep.bin", "drop it")
    assert train(["--preset", "tiny", "--data", "sheep.bin"]) == 0
    (location / "elsewhere").mkdir()
    monkeypatch.chdir(location / "elsewhere")
    for run in ("tiny-1", "tiny-2"):
        assert train(["--resume", f"../runs/{run}", "--steps", "6"]) == 0
    assert evaluate(["../runs/tiny-2", "--data", "../sheep.bin", "--json", "--max-tokens", "90"]) == 0
    assert '"tokens": 90' in capsys.readouterr().out


def test_resume_goes_on_with_the_latest_run_or_a_named_one_and_further(location, capsys, monkeypatch):
    assert trained() == 0
    refused(train(["--resume"]), capsys, "4 steps already")
    assert train(["--resume", "--steps", "6"]) == 0
    assert train(["--resume", "runs/tiny-1", "--steps", "7"]) == 0
    assert train(["--resume", "tiny-1", "--steps", "8"]) == 0  # its name will do
    assert checkpoint.latest(location / "runs/tiny-1").name == "step-00000008"
    assert generate(["tiny-1", "--length", "1"]) == 0
    (location / "elsewhere").mkdir()
    monkeypatch.chdir(location / "elsewhere")  # the text is found from there too
    assert train(["--resume", "../runs/tiny-1", "--steps", "9"]) == 0


def test_ctrl_c_saves_and_says_how_to_go_on(location, capsys, monkeypatch):
    snapshot, calls, before = Trainer._snapshot, [], signal.getsignal(signal.SIGINT)

    def taken(trainer, loss):
        calls.append(trainer.step)
        if len(calls) == 2:  # the first one, at step 0, makes room
            signal.raise_signal(signal.SIGINT)
        return snapshot(trainer, loss)

    monkeypatch.setattr(Trainer, "_snapshot", taken)
    assert trained() == 130
    assert "neurogen train --resume runs/tiny-1" in capsys.readouterr().out
    assert checkpoint.latest(location / "runs/tiny-1").name == "step-00000003"
    assert signal.getsignal(signal.SIGINT) is before
    assert train(["--resume"]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_getting_ready_leaves_no_run(location, monkeypatch, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(Trainer, "__init__", lambda *_, **how: signal.raise_signal(number))
    assert trained() == 130
    assert not (location / "runs").exists()
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_in_processes_of_its_own_and_pipes(location):
    settings = tiny.config().to_dict() | {"preset": "nano"}
    del settings["brain"]["vocabulary"]
    (location / "tiny.toml").write_text(tomli_w.dumps(settings))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "NUMBA_NUM_THREADS": "1"}

    def neurogen(*words, **more):
        settings = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        return subprocess.Popen([sys.executable, "-m", "neurogen_numba", *words], **settings, **more)

    with neurogen("train", "--config", "tiny.toml", "--data", "sheep.txt", "--steps", "100000") as child:
        output = ""
        while "step 10/100000" not in output:
            output = child.stdout.readline()
            assert output, child.stderr.read()
        child.send_signal(signal.SIGINT)
        rest, errors = child.communicate()
    assert (child.returncode, errors) == (130, "")
    stopped = re.search(
        r"Stopped after (\d+) of [\d,]+ steps; everything is saved in runs/nano-1.\nTo continue: neurogen train --resume runs/nano-1\n",
        rest,
    )
    step = int(stopped[1])
    with neurogen("train", "--resume", "--steps", str(step + 1)) as child:
        output, errors = child.communicate()
    assert (child.returncode, errors) == (0, "") and f"step {step + 1}/{step + 1}" in output and "\x1b" not in output
    with neurogen("chat", "--max-tokens", "5", stdin=subprocess.PIPE) as child:
        output, errors = child.communicate("3 sheep\né\n/quit\nnever read\n")
    assert child.returncode == 2 and "'é'" in errors and errors.count("\n") == 1
    assert output.count("\n") == 1


def test_figures_are_shown_of_the_end_only(location):
    assert trained() == 0
    last = checkpoint.latest(location / "runs/tiny-1")
    before = checkpoint.step_folder(location / "runs/tiny-1", 2)
    assert {"preset", "parameters", "steps", "val_bits_per_byte"} <= summary_of(load(last), last).keys()
    assert summary_of(load(before), before).keys() == {"preset", "parameters", "steps"}


def test_steps_that_are_asked_for_are_not_cut_by_the_time_of_the_preset(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny.config(steps=4, max_minutes=3.0))
    flags = [], ["--steps", "9"], ["--max-minutes", "2"], ["--steps", "9", "--max-minutes", "2"]
    chosen = [configure(parser().parse_args(["--preset", "tiny", *words])).training for words in flags]
    assert [(training.steps, training.max_minutes) for training in chosen] == [(4, 3), (9, 0), (4, 2), (9, 2)]


# Bad input


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data", "nowhere.txt"], ["nowhere.txt"]),
        (["--data", "empty.txt"], ["empty.txt", "empty"]),
        (["--data", "binary.bin"], ["binary.bin", "--tokenizer"]),
        (["--data", "binary.txt"], ["binary.txt", "NUL"]),
        (["--data", "*.parquet"], ["*.parquet", "no file matches"]),
        (["--data", "lines.jsonl"], ["lines.jsonl", "'text'", "body", "--text-field"]),
        (["--data", "lines.jsonl", "--text-field", "body"], ["lines.jsonl", "3 bytes of text; too little"]),
        (["--data", "hf:"], ["hf:NAME"]),
        (["--data", "sheep.txt", "--reset-at-documents"], ["--reset-at-documents"]),
        (["--max-chunks", "-1"], ["--max-chunks: at least 0"]),
        (["--tokens-per-chunk", "0"], ["--tokens-per-chunk: at least 1"]),
        (["--workers", "1000"], ["--workers: at most"]),
        (["--data", "short.txt"], ["short.txt", "--seq-length"]),
        (["--data", "folder"], ["folder"]),
        (["--preset", "nanoo"], ["'nano'"]),
        (["--tokenizer", "sentencepiece", "--vocab-size", "10"], ["--vocab-size 10: too few"]),
        (["--tokenizer", "missing.model"], ["missing.model"]),
        (["--steps", "-1"], ["steps"]),
        (["--steps", "many"], ["--steps"]),
        (["--dropout", "1"], ["dropout"]),
        (["--stepps", "3"], ["--steps"]),
        (["--name", "a/b"], ["--name"]),
        (["--backend", "gpu"], ["--backend", "'gpu'", "'cuda'"]),
        (["--backend", "cpu", "--precision", "bf16"], ["precision bf16", "--backend cuda"]),
        (["--backend", "cpu", "--precision", "int8"], ["--precision", "'int8'"]),
        (["--gpu-device", "one"], ["--gpu-device", "'one'", "counted from 0"]),
        (["--gpu-device", "-1"], ["--gpu-device"]),
        (["--backend", "cpu", "--gpu-device", "2"], ["--gpu-device 2 cannot be combined with the CPU backend"]),
    ],
)
def test_bad_flags_and_data(location, capsys, flags, words):
    (location / "empty.txt").write_text("")
    (location / "binary.bin").write_bytes(b"\x00\xff\xfe\x01" * 300)
    (location / "binary.txt").write_bytes(b"\x00\xff\xfe\x01" * 300)
    (location / "lines.jsonl").write_text('{"body": "one"}')
    (location / "short.txt").write_text("too short")
    (location / "folder").mkdir()
    refused(trained(*flags), capsys, *words)
    assert not (location / "runs").exists(), "an empty folder was left behind"


def test_a_text_with_few_pieces_is_trained_on_with_as_many(location, capsys):
    assert trained("--tokenizer", "sentencepiece", "--vocab-size", "100000", "--steps", "1") == 0
    found = re.search(r"the text has ([\d,]+) pieces, fewer than the 100,000 asked for", capsys.readouterr().out)
    (config,) = (location / "runs").glob("*/config.json")
    assert json.loads(config.read_text())["brain"]["vocabulary"] == int(found[1].replace(",", ""))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(backends, "_made", {})
    monkeypatch.setattr(backends.probe, "TRACES", ())
    monkeypatch.setattr(backends.probe, "load", lambda name: (_ for _ in ()).throw(OSError(f"{name}: cannot open shared object file")))


def test_a_gpu_that_is_not_there(location, capsys, no_gpu):
    """Refused before anything is written, and never replaced by the CPU."""
    assert trained("--backend", "cpu", "--steps", "1") == 0
    runs, output = sorted((location / "runs").rglob("*")), ["no NVIDIA driver", "--backend cpu"]
    capsys.readouterr()
    for more in ([], ["--precision", "bf16"], ["--gpu-device", "3"]):
        refused(trained("--backend", "cuda", *more), capsys, *output)
    for command in (generate, evaluate, chat):
        refused(command(["--backend", "cuda"]), capsys, *output)
    refused(train(["--resume", "--steps", "2", "--backend", "cuda"]), capsys, *output)
    refused(trained("--precision", "fp16"), capsys, "precision fp16: the CPU")  # auto is the CPU here
    assert sorted((location / "runs").rglob("*")) == runs


def test_every_command_hands_the_flags_to_the_backend(location, capsys, monkeypatch):
    asked, get = [], backends.get
    monkeypatch.setattr(backends, "get", lambda *settings: asked.append(settings) or get("cpu"))
    flags = ["--backend", "cuda", "--gpu-device", "2", "--precision", "fp16"]
    monkeypatch.setattr("builtins.input", lambda prompt="": "/quit")
    assert trained("--steps", "1", *flags) == train(["--resume", "--steps", "2", *flags]) == 0
    assert generate(["--length", "1", *flags]) == evaluate(["--json", *flags]) == chat(flags) == 0
    assert asked == [("cuda", 2, "fp16")] * 5


def test_a_run_goes_on_with_another_backend(location, monkeypatch):
    """Nothing of the backend is kept with a run."""

    class Other(type(backends.get("cpu"))):
        name = "other"

    other, heard = Other(), []
    reports = Trainer.reports
    assert trained("--steps", "2", "--backend", "cpu") == 0
    monkeypatch.setattr(backends, "get", lambda *_: other)
    monkeypatch.setattr(Trainer, "reports", lambda trainer: heard.append(trainer.model.backend) or reports(trainer))
    assert train(["--resume", "--steps", "4"]) == 0
    assert heard == [other] and checkpoint.latest(location / "runs/tiny-1").name == "step-00000004"
    text = "".join(path.read_text() for path in (location / "runs/tiny-1").rglob("*.json"))
    assert '"backend"' not in text and "precision" not in text


@pytest.mark.gpu
def test_a_run_of_the_cpu_goes_on_with_a_gpu_and_back(location, full_size):
    flags = ["--batch-size", "2", "--seq-length", "4", "--steps", "1", "--eval-interval", "99", "--sample-interval", "99"]
    assert trained("--backend", "cpu", *flags) == 0
    codes = [train(["--resume", "--steps", str(steps), "--backend", name]) for steps, name in ((2, "cuda"), (3, "cpu"))]
    assert codes == [0, 0] and checkpoint.latest(location / "runs/tiny-1").name == "step-00000003"


def test_an_unreadable_file(location, capsys, monkeypatch):
    usual = open

    def denied(path, *how, **more):  # not by chmod: root reads everything
        if str(path).endswith("sheep.txt"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return usual(path, *how, **more)

    monkeypatch.setattr("builtins.open", denied)
    refused(trained(), capsys, "sheep.txt", "Permission denied")


@pytest.mark.filterwarnings("error")  # they would be more lines on standard error
def test_a_rate_that_is_far_too_high_ends_in_one_sentence(location, capsys):
    refused(trained("--learning-rate", "1e15", "--steps", "50"), capsys, "--learning-rate")


def test_a_name_in_use_and_a_run_in_use(location, capsys):
    assert trained("--name", "mine") == 0
    capsys.readouterr()
    refused(trained("--name", "mine"), capsys, "--resume", "--name")
    with run_folder.lock(location / "runs/mine"):
        refused(train(["--resume", "runs/mine", "--steps", "9"]), capsys, "in use")


def test_a_resumed_run_is_told_where_its_text_is_now(location, capsys, monkeypatch):
    assert trained("--steps", "2") == 0
    (location / "sheep.txt").rename(location / "moved.txt")
    capsys.readouterr()
    refused(train(["--resume", "--steps", "3"]), capsys, "no such file or folder; check the path; if the text has moved")
    shown = "--viz-interval", "1", "--sample-interval", "1", "--workers", "1"
    assert train(["--resume", "--steps", "3", "--data", "moved.txt", *shown]) == 0
    assert "training_step_000003.png" in {path.name for path in (location / "runs/tiny-1/training_viz").iterdir()}
    assert "sample at step 3" in capsys.readouterr().out
    (location / "elsewhere").mkdir()
    with monkeypatch.context() as away:
        away.chdir(location / "elsewhere")
        assert train(["--resume", "../runs/tiny-1", "--steps", "4", "--viz-interval", "0"]) == 0, "it stays there, wherever one is"
    (location / "other.txt").write_text(TEXT[24:])
    refused(train(["--resume", "--steps", "5", "--data", "other.txt"]), capsys, "resume with the same text")


def test_resume_takes_its_settings_from_the_run(location, capsys):
    refused(train(["--resume", "--preset", "tiny"]), capsys, "--preset")
    refused(train(["--resume"]), capsys, "runs")
    refused(train(["--resume", "runs/x", "--name", "x"]), capsys, "--name")
    (location / "mine").mkdir()
    refused(train(["--resume", "mine"]), capsys, "mine has no whole checkpoint")
    assert list((location / "mine").iterdir()) == []  # no lock in a folder that is no run


def test_damaged_and_foreign_checkpoints(location, capsys):
    assert trained() == 0
    capsys.readouterr()
    folder = checkpoint.latest(location / "runs/tiny-1")
    brain = folder / "brain.safetensors"
    brain.write_bytes(brain.read_bytes()[:-9])
    refused(generate([str(folder)]), capsys, "brain.safetensors")
    refused(generate([str(location)]), capsys, str(location))
    other = tiny.config(brain={"fan_in": 40})
    shutil.copytree(checkpoint.latest(location / "runs/tiny-1"), location / "copy")
    saved = checkpoint.load(location / "copy")
    checkpoint.save(location / "other", saved.tensors, saved.documents | {"config": other.to_dict()})
    refused(generate([str(location / "other")]), capsys, "other")


def test_commands_pass_over_a_damaged_checkpoint_and_say_so(location, capsys, monkeypatch):
    assert trained() == 0
    brain = checkpoint.latest(location / "runs/tiny-1") / "brain.safetensors"
    data = brain.read_bytes()
    brain.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr("builtins.input", lambda prompt="": "/quit")
    capsys.readouterr()
    for command, flags in ((generate, ["--length", "1"]), (evaluate, ["--json"]), (chat, [])):
        assert command(flags) == 0
        assert capsys.readouterr().err.startswith("neurogen: step-00000004 is skipped: ")
    assert train(["--resume", "tiny-1@best", "--keep-checkpoints", "1", "--checkpoint-interval", "1"]) == 0
    output = capsys.readouterr().out
    assert "resuming from step 2\n" in output and "moved to runs/tiny-1/aside-1" in output
    assert len(checkpoint.saved(location / "runs/tiny-1")) <= 2  # the newest and the best


def test_a_full_disk_while_saving_costs_no_checkpoint(location, capsys, monkeypatch):
    assert trained("--steps", "2") == 0
    capsys.readouterr()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write", full)
    refused(train(["--resume", "--steps", "4"]), capsys, "step-00000004")
    monkeypatch.undo()
    assert checkpoint.latest(location / "runs/tiny-1").name == "step-00000002"


@pytest.mark.parametrize(
    "command, flags, word",
    [
        (generate, ["--temperature", "-1"], "temperature"),
        (generate, ["--top-p", "0"], "top-p"),
        (generate, ["--top-k", "-2"], "top-k"),
        (generate, ["--length", "0"], "--length"),
        (generate, ["--prompt", "é"], "'é'"),
        (generate, ["--prompt", "\udcc3\udca9"], "'é'"),  # its bytes, where the locale is ASCII
        (generate, ["--prompt", "a\udcff"], "--prompt: byte 1 is 0xff, which is not UTF-8"),
        (generate, ["--prompt", "a\ud800"], "half of a surrogate pair"),
        (chat, ["--auto-load-latest", "runs/tiny-1"], "--auto-load-latest"),
        (chat, ["--max-tokens", "0"], "--max-tokens"),
        (evaluate, ["--data", "nowhere.txt"], "nowhere.txt"),
        (evaluate, ["--data", "hf:a/b"], "--max-tokens"),
        (evaluate, ["--max-tokens", "-1"], "--max-tokens"),
        (evaluate, ["--streams", "0"], "--streams"),
        (evaluate, ["--windows", "0"], "--windows: at least 1, not 0"),
        (evaluate, ["--windows", "9999"], "take shorter windows"),
        (evaluate, ["--cache", "--adapt"], "--cache and --adapt: each is a measurement of its own"),
        (evaluate, ["--adapt", "--windows", "9"], "--adapt and --windows"),
        (evaluate, ["--adapt", "--cache"], "--cache and --adapt"),
        (evaluate, ["--temperature", "0"], "--temperature"),
        (evaluate, ["--temperature", "nan"], "--temperature"),
        (evaluate, ["--adapt", "--streams", "2"], "--streams: --adapt does not split the text"),
        (evaluate, ["--windows", "9", "--streams", "2"], "--streams: --windows does not"),
        (train, ["--resume", "--tokenizer", "char"], "--tokenizer"),
        (train, ["--resume", "--test"], "--test"),
        (train, ["--resume", "--reset-at-documents"], "--reset-at-documents"),
    ],
)
def test_bad_flags_of_the_other_commands(location, capsys, command, flags, word):
    assert trained("--steps", "1") == 0
    capsys.readouterr()
    refused(command(flags), capsys, word)
