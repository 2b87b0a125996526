"""Ablation studies: the runs that they train, their results, and that nothing is trained twice."""

import contextlib
import json

import numpy as np
import pytest

import tiny
from neurogen_numba import ablate
from neurogen_numba.benchmarks import ablation
from neurogen_numba.benchmarks.ablation import BASE, COMPONENTS, Change, Study
from neurogen_numba.brain.connectome import arcs
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.config import Config
from neurogen_numba.configure import overlay
from neurogen_numba.errors import ConfigError
from neurogen_numba.storage.run_folder import METRICS, SUMMARY
from test_model import TINY, text

PNG = b"\x89PNG"
LOSSES = {"base": (2.0, 2.5, 2.25), "no-gate": (2.1, 2.7, 2.25), "rate": (1.9, 2.4, 2.1)}


def changes():
    return [Change(BASE, TINY)] + [Change(name, TINY, {"training": {"warmup": 3}}) for name in ("No gate", "rate")]


class Trained:
    """Stands for a process of `neurogen train`: it ends after three questions. Runs in `broken` end without a result."""

    started, broken, ended = [], (), 0

    def __init__(self, command, stdin, stdout, stderr):
        where = "--resume" if "--resume" in command else "--name"
        self.name = command[command.index(where) + 1].split("/")[-1]
        self.folder = type(self).out / "runs" / self.name
        self.folder.mkdir(exist_ok=True)
        self.asked, self.returncode, self.stdout = 0, 0, stdout
        self.started.append((where, self.name))

    def poll(self):
        self.asked += 1
        (self.folder / METRICS).write_text(json.dumps({"step": 100 * self.asked}) + "\n")
        if self.asked < 3:
            return None
        change, _, seed = self.name.rpartition("-")
        if self.name in self.broken:
            (self.folder.parent / f"{self.name}.txt").write_text("step 1\nneurogen train: no room\n\n")
            return 2
        result = {"val_loss": LOSSES[change][int(seed) - 1], "parameters": 7, "question_accuracy": 0.5}
        (self.folder / SUMMARY).write_text(json.dumps(result))
        return 0

    def terminate(self):
        type(self).ended += 1

    def wait(self):
        return 0


@pytest.fixture
def trained(monkeypatch, tmp_path):
    class Own(Trained):
        started, out = [], tmp_path

    monkeypatch.setattr(ablation.subprocess, "Popen", Own)
    monkeypatch.setattr(ablation, "POLL", 0)
    return Own


def test_every_change_is_trained_with_every_seed(trained, tmp_path):
    study = Study(changes(), 3, tmp_path, jobs=2)
    most = max(len(under_way) for under_way in study.train())
    assert most == 2 and not study.failed
    names = [name for _, name in trained.started]
    assert sorted(names) == sorted(f"{change}-{seed}" for change in LOSSES for seed in (1, 2, 3))
    logged = [json.loads(line) for line in (tmp_path / ablation.LOG).read_text().splitlines()]
    assert {(row["change"], row["seed"]): row["val_loss"] for row in logged} == {
        (name, seed + 1): loss
        for name, key in ((BASE, "base"), ("No gate", "no-gate"), ("rate", "rate"))
        for seed, loss in enumerate(LOSSES[key])
    }
    rows = {row.name: row for row in study.rows()}
    assert (rows[BASE].difference, rows[BASE].verdict) == (None, "")
    for name, key in (("No gate", "no-gate"), ("rate", "rate")):
        paired, row = np.subtract(LOSSES[key], LOSSES["base"]), rows[name]
        figures = [row.loss, row.spread, row.difference, row.error]
        expected = [np.mean(LOSSES[key]), np.std(LOSSES[key], ddof=1), paired.mean(), paired.std(ddof=1) / np.sqrt(3)]
        np.testing.assert_allclose(figures, expected, rtol=1e-12)
    assert rows["No gate"].verdict == "no difference" and rows["rate"].verdict == "better"


def test_an_interrupted_study_goes_on_where_it_was(trained, tmp_path):
    study = Study(changes(), 2, tmp_path)
    with contextlib.closing(study.train()) as under_way:
        for running in under_way:
            if running[0].folder.name == "rate-1" and running[0].step() == 200:
                break
    assert trained.ended == 1 and len(trained.started) == 3
    again = Study(changes(), 2, tmp_path)
    assert sum(run.result() is not None for run in again.runs) == 2
    list(again.train())
    assert trained.started[3:] == [("--resume", "rate-1"), ("--name", "base-2"), ("--name", "no-gate-2"), ("--name", "rate-2")]
    assert len((tmp_path / ablation.LOG).read_text().splitlines()) == 6
    list(Study(changes(), 2, tmp_path).train())
    assert len(trained.started) == 7


def test_a_run_that_fails_stops_no_other(trained, tmp_path):
    trained.broken = ("no-gate-1",)
    study = Study(changes(), 1, tmp_path)
    list(study.train())
    assert {run.folder.name: output for run, output in study.failed.items()} == {"no-gate-1": "neurogen train: no room"}
    assert [row.name for row in study.rows()] == [BASE, "rate"]


def test_runs_with_other_settings_are_left_alone(trained, tmp_path):
    list(Study(changes(), 1, tmp_path).train())
    other = [Change(BASE, TINY.replace(training={"steps": 7}))]
    with pytest.raises(ConfigError, match="base-1 was trained with other settings; name another folder by --out"):
        list(Study(other, 1, tmp_path).train())


def test_changes_need_names_of_their_own(tmp_path):
    for names in (("no gate", "No-Gate"), ("?!",), ("base",)):
        with pytest.raises(ConfigError, match="a unique name is needed"):
            Study([Change(BASE, TINY), *(Change(name, TINY) for name in names)], 1, tmp_path)


# Parts of the brain

OTHERS = [name for name, of in COMPONENTS.items() if "brain" in of and overlay(TINY, of, name) != TINY]
OTHERS.remove("feedback")  # a bundle of it is all that TINY has


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", OTHERS)
def test_a_brain_learns_without_a_part(name, where, request):
    from neurogen_numba import backends

    if where == "cuda":
        request.getfixturevalue("full_size")
    config, ids = overlay(TINY, COMPONENTS[name], name), text(2, 13)
    backend = backends.get(where, 0, "fp32")
    whole, less = (NeuroGenModel.from_config(each, backend=backend) for each in (TINY, config))
    losses, others = ([model.train_step(ids[:, :-1], ids[:, 1:])[0] for _ in range(20)] for model in (less, whole))
    assert losses[-1] < losses[0] - 0.3
    assert abs(losses[-1] - others[-1]) > 1e-4
    assert less.generate(ids[0], 20).shape == (20,)


@pytest.mark.parametrize(
    "without, gated", [("go_broca", False), ("thalamus_broca wernicke_broca hippocampus_broca pfc_broca memory_broca lateral_broca", True)]
)
def test_gradients_of_a_current_and_its_gate_are_written_inside_their_arrays(without, gated, backend):
    """A kernel writes both in one layout, also where only one of them has synapses."""
    config = tiny.config(brain={"without": without, "vocabulary": 11, "chunk": 2})
    model, ids = NeuroGenModel.from_config(config, backend=backend), text(2 * config.brain.chunk + 1, 2) % 11
    act = model.activity(len(ids) - 1, 2, learning=True)
    assert model.brain.populations[-1].gated == gated
    norm = model.update(act, ids[:-1], ids[1:], 1e-3)[2]
    assert np.isfinite(norm) and norm > 0


def test_projections_are_left_out_by_their_names():
    brain = TINY.replace(brain={"without": "lateral_* go_broca"}).brain
    left_out = {arc.name for arc in arcs(TINY.brain)} - {arc.name for arc in arcs(brain)}
    assert "go_broca" in left_out and len(left_out) == 7
    with pytest.raises(ConfigError, match="no part of the brain is called 'go_brocca'; did you mean 'go_broca'"):
        arcs(TINY.replace(brain={"without": "go_brocca"}).brain)
    with pytest.raises(ConfigError, match="no part of the brain is called 'dopamine'; brain.neuromodulation is off"):
        arcs(TINY.replace(brain={"without": "dopamine"}).brain)


# The command

SMALL = """
preset = "nano"
[brain]
thalamus.neurons = 32
wernicke.neurons = 64
hippocampus.neurons = 32
pfc = {neurons = 64, outputs = 16}
basal_ganglia.neurons = 32
broca.neurons = 64
embedding = 32
fan_in = 16
[training]
steps = 4
batch = 2
segment = 8
eval_tokens = 500
final_eval_tokens = 500
[text]
tokenizer = "byte"
"""


def test_the_command_trains_compares_and_draws(tmp_path, capsys, monkeypatch):
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "changes.toml").write_text('["rate 1e-2"]\ntraining.learning_rate = 1e-2\n')
    command = ["--config", tmp_path / "small.toml", "--changes", tmp_path / "changes.toml", "--out", tmp_path / "study"]
    command = [*map(str, command), "--seeds", "1", "--jobs", "2", "--backend", "cpu"]
    assert ablate.main([*command, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {"base", "rate 1e-2"} and all(row["seeds"] == 1 for row in rows.values())
    assert rows["rate 1e-2"]["difference"] == pytest.approx(rows["rate 1e-2"]["loss"] - rows["base"]["loss"])
    assert (tmp_path / "study" / "ablation.png").read_bytes().startswith(PNG)
    monkeypatch.setattr(ablate, "check_text", lambda config: pytest.fail("no run needs the text"))
    assert ablate.main(command) == 0
    assert "rate 1e-2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file, output",
    [
        (None, "there is no such file"),
        ("x = [", "not TOML"),
        ("steps = 3", "a table of settings is needed for each change"),
        ('["a"]\ntraining.stepps = 3', "a: training: unknown setting 'stepps'; did you mean 'steps'?"),
        ('["a"]\ntraining.dropout = 0', "no change in it differs from the recipe"),
        ('["a"]\nbrain.vocabulary = 3', "brain.vocabulary is the tokenizer's"),
    ],
)
def test_wrong_changes_are_named(file, output, tmp_path, capsys):
    path = tmp_path / "changes.toml"
    if file is not None:
        path.write_text(file)
    assert ablate.main(["--preset", "nano", "--changes", str(path), "--out", str(tmp_path / "study")]) == 2
    error = capsys.readouterr().err
    assert output in error and error.count("\n") == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("data, output", [("gone.txt", "no such file"), ("gone.bin", "cannot be read"), ("-", "from a pipe; name a file")])
def test_a_text_that_no_run_could_read_is_named_before_any_begins(data, output, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ablate.main(["--preset", "nano", "--data", data, "--out", "study"]) == 2
    error = capsys.readouterr().err
    assert output in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--seeds", "--jobs"])
def test_counts_are_checked(flag, tmp_path, capsys):
    assert ablate.main([flag, "0", "--out", str(tmp_path / "study")]) == 2
    assert f"{flag}: at least 1, not 0" in capsys.readouterr().err


def test_a_part_s_change_is_a_change_of_every_preset():
    from neurogen_numba.presets import PRESETS, get_preset

    had = "no delays", "delays", "no feedback", "feedback", "LIF-A", "SE-adLIF", "rewiring", "no rewiring"  # by some presets
    for preset in PRESETS:
        for name, settings in COMPONENTS.items():
            changed = overlay(get_preset(preset), settings, name)
            assert changed != get_preset(preset) or name in had, (preset, name)
            arcs(changed.brain)
    assert isinstance(get_preset("nano"), Config)
