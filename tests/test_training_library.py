"""`train`, `load` and `Run`: training from Python, in scripts and notebooks."""

import json
import shutil
import sys
import types

import numpy as np
import pytest

import neurogen_numba as ng
from neurogen_numba.errors import CheckpointError, ConfigError, DataError
from neurogen_numba.learning.report import EvalReport, Notice, StepReport
from neurogen_numba.system import streams
from neurogen_numba.ui import progress

SMALL = {
    "brain": {"embedding": 32, "fan_in": 16},
    "training": {
        "steps": 12,
        "batch": 2,
        "segment": 8,
        "eval_tokens": 200,
        "final_eval_tokens": 200,
        "sample_interval": 6,
        "log_interval": 3,
    },
    "text": {"tokenizer": "byte", "validation": 0.2},
}
SMALL["training"]["viz_interval"] = 0
TEXTS = ["Anna keeps crows. " * 20, "Ben has coats. " * 20, 'She said "no".\n' * 20]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(run, the losses that on_step saw)."""
    seen = []
    run = ng.train(
        "nano", TEXTS, **SMALL, out=tmp_path_factory.mktemp("runs"), name="ended", on_step=lambda r: seen.append(r.loss), progress=False
    )
    return run, seen


def test_the_public_names_are_there_and_no_others():
    assert dir(ng) == sorted(ng.__all__)
    assert all(getattr(ng, name) is not None for name in ng.__all__)
    assert callable(ng.train)


def test_train_can_be_called_after_its_command_was_imported():
    import neurogen_numba.train as command

    assert callable(command) and callable(command.main)
    with pytest.raises(ConfigError, match="unknown preset"):
        command("nanno")


def test_texts_train_a_run(ended):
    run, seen = ended
    assert run.summary["steps"] == 12 and run.summary["val_loss"] < 6
    assert run.history.training["loss"].tolist() == pytest.approx(seen) and len(seen) == 4
    kept = [json.loads(line)["text"] for line in (run.folder / "corpus.jsonl").read_text().splitlines()]
    assert kept == TEXTS
    assert repr(run) == f"Run('{run.folder}', 12 steps, validation {run.summary['val_loss']:.4f} nats)"
    assert [axes.get_label() for axes in run.plot().axes][0] == "loss"
    assert run.brain().axes


def test_a_run_is_loaded_by_name_best_and_folder(ended):
    run, _ = ended
    names = (("ended", run.folder.parent), ("ended@best", run.folder.parent), (run.folder, "runs"), ("latest", run.folder.parent))
    models = [ng.load(name, out=out) for name, out in names]
    ids = np.arange(9)
    for model in (*models, run.best(), ng.Run(run.folder).model):
        np.testing.assert_array_equal(model.logits(ids), run.model.logits(ids))
    with pytest.raises(ConfigError, match="there is no ended2"):
        ng.load("ended2", out=run.folder.parent)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        ng.Run(run.folder.parent)


def test_a_model_writes(ended):
    model = ended[0].model
    text = model.write("Anna ", 12, seed=3)
    assert len(text) > 0 and text == "".join(model.write("Anna ", 12, seed=3, stream=True))
    likely = model.write("Anna ", 12, temperature=0)
    assert model.write("Anna ", 12, temperature=0, stop=likely[3:5]) == likely[: likely.index(likely[3:5])]
    assert "NeuroGenModel(nano: " in repr(model) and "12 updates, on cpu" in repr(model)
    for wrong in ({"length": 0}, {"length": 2.5}, {"temperature": -1}):
        with pytest.raises(ConfigError):
            model.write("Anna", **wrong)
    untold = ng.NeuroGenModel.from_config(model.config, backend="cpu")
    with pytest.raises(ConfigError, match="no tokenizer"):
        untold.write("Anna")


def test_a_callback_can_stop_a_run_that_is_resumed(tmp_path, ended):
    run = ng.train("nano", TEXTS, **SMALL, out=tmp_path, on_step=lambda report: report.step < 6, progress=False)
    assert run.folder.name == "nano-1" and run.model.optimizer.steps == 6 and not run.summary
    assert "not ended" in repr(run)
    again = run.resume(progress=False)
    assert again.summary["val_loss"] == ended[0].summary["val_loss"], "bit for bit"


def test_what_a_callback_raises_comes_after_a_checkpoint(tmp_path):
    def fail(report):
        raise KeyError(report.step)

    with pytest.raises(KeyError, match="3"):
        ng.train("nano", TEXTS, **SMALL, out=tmp_path, on_step=fail, progress=False)
    assert ng.load("nano-1", out=tmp_path).optimizer.steps in (3, 4)


@pytest.mark.parametrize(
    "arguments, output",
    [
        ({"config": "nanno"}, "unknown preset"),
        ({"config": 3}, "the name of a preset, or a Config, is needed, not 3"),
        ({"data": 3}, "a path, or an iterable of texts, is needed, not 3"),
        ({"data": ["a text", 3]}, "text 1 is int; a str is needed"),
        ({"data": ["too short"]}, "too little to hold some out"),
        ({"training": {"stepps": 3}}, "training: unknown setting 'stepps'; did you mean 'steps'"),
        ({"brain": {"vocabulary": 0}}, "brain.vocabulary: at least 1, not 0"),
    ],
)
def test_wrong_arguments_leave_no_run_behind(arguments, output, tmp_path):
    with pytest.raises((ConfigError, DataError), match=output):
        ng.train(**({"config": "nano", "text": {"tokenizer": "byte"}} | arguments), out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


# Tokenizers of one's own


class Vowels(ng.Tokenizer):
    """Vowels and everything else, in three tokens and more."""

    kind = "vowels"

    def __init__(self, letters, documents):
        self.letters = letters
        super().__init__([letter.encode() for letter in letters] + [b"?"] + [b""] * documents, len(letters) + 1 if documents else None)

    def encode(self, text):
        return np.array([self.letters.find(letter) if letter in self.letters else len(self.letters) for letter in text], np.int32)

    def settings(self):
        return {"letters": self.letters}

    @classmethod
    def from_settings(cls, saved):
        return cls(saved["letters"], saved["documents"])


def test_a_tokenizer_of_one_s_own_survives(tmp_path, monkeypatch):
    run = ng.train("nano", TEXTS, **SMALL, tokenizer=Vowels("aeiou", True), out=tmp_path, progress=False)
    model = ng.load(run.folder)
    assert isinstance(model.tokenizer, Vowels) and model.tokenizer.letters == "aeiou" and model.config.brain.vocabulary == 7
    assert model.tokenizer.decode(model.tokenizer.encode("Anna")) == "???a"
    monkeypatch.setattr(Vowels, "kind", "forgotten")
    with pytest.raises(CheckpointError, match="kind 'vowels', a class that is not defined; import the module"):
        ng.load(run.folder)


def test_a_given_tokenizer_is_there_before_the_first_checkpoint(tmp_path):
    """A run that was killed early begins again, with the same tokens."""
    small = SMALL | {"training": SMALL["training"] | {"steps": 6}}
    run = ng.train("nano", TEXTS, **small, tokenizer=Vowels("xyz", True), out=tmp_path, progress=False)
    shutil.rmtree(run.folder / "checkpoints")
    (run.folder / "summary.json").unlink()
    assert ng.Run(run.folder).resume(progress=False).model.tokenizer.letters == "xyz"


# Display


def reports():
    step = {"tokens": 5, "accuracy": 0.1, "bits_per_byte": 1.0, "learning_rate": 1e-3, "gradient_norm": 1.0, "activity": {}}
    yield Notice("preparing <kernels>")
    for number in range(1, 6):
        yield StepReport(step=number, steps=5, loss=5.0 / number, tokens_per_second=1234.0, seconds=1.0, **step)
    yield EvalReport(5, 1.25, 0.5, 1.0, None, 100)


def test_a_script_has_a_bar_on_standard_error(capsys):
    with progress.ProgressView("run") as view:
        for report in reports():
            view.show(report)
    out, err = capsys.readouterr()
    assert out == "" and "5/5" in err and "loss 1.0000" in err and "held out 1.2500" in err


def test_a_notebook_has_one_output_that_changes(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda content: shown.append(content))
    display = types.SimpleNamespace(HTML=str, display=lambda content, display_id: shown.append(content) or handle)
    shell = types.SimpleNamespace(kernel=1)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "EVERY", 0)
    with progress.ProgressView("a <run>") as view:
        for report in reports():
            view.show(report)
    assert "a &lt;run&gt;" in shown[0] and "preparing &lt;kernels&gt;" in shown[1]
    assert "step 5 of 5" in shown[-1] and shown[-1].count("<circle") == 1 and "<polyline" in shown[-1] and "1.0000" in shown[-1]


def test_a_view_that_fails_stops_nothing(monkeypatch, tmp_path):
    output = []
    monkeypatch.setattr(streams, "complain", output.append)
    monkeypatch.setattr(progress.ProgressView, "show", lambda *_: 1 / 0)
    run = ng.train("nano", TEXTS, **(SMALL | {"training": SMALL["training"] | {"steps": 3}}), out=tmp_path)
    assert run.summary["steps"] == 3 and "ZeroDivisionError" in output[0]
