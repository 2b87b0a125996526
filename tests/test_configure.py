"""Preset, file, --set and flags: which of them has the last word, and how each mistake is told."""

import dataclasses

import pytest

from neurogen_numba import configure
from neurogen_numba.cli import main
from neurogen_numba.config import MODULES, Brain, Config, Module, Text, Training, comments
from neurogen_numba.presets import PRESETS, get_preset
from neurogen_numba.train import configure as train_config
from neurogen_numba.train import parser as train_parser


def config_of(*words) -> Config:
    return configure.config_of(configure.parser().parse_args(list(map(str, words))))


def printed(capsys, *words) -> str:
    assert main(["config", *map(str, words)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_printed_makes_the_same_configuration(name, tmp_path, capsys):
    file = tmp_path / "settings.toml"
    file.write_text(printed(capsys, name))
    assert config_of("--config", file) == get_preset(name)


def test_every_setting_has_a_comment(capsys):
    lines = [line for line in printed(capsys, "nano").splitlines()[1:] if line and not line.startswith("[")]
    assert len(lines) > 80 and all(" = " in line and len(line.partition("  # ")[2]) > 5 for line in lines)
    assert "batch = 16  # sequences trained side by side" in lines
    for section in (Config, Brain, Module, Training, Text):
        names = {field.name for field in dataclasses.fields(section)} - {"brain", "training", "text", *MODULES}
        assert names == comments(section).keys(), section


def test_without_a_word_it_is_nano(capsys):
    assert config_of() == get_preset("nano")
    assert printed(capsys) == printed(capsys, "nano") == printed(capsys, "--preset", "nano")


def test_the_last_word_has_what_is_nearest_to_the_command(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text('preset = "baseline"\n[training]\nsteps = 5\nbatch = 6\n[brain.pfc]\noutputs = 7\n')
    config = config_of("--config", file, "--set", "training.batch=8", "--set", "training.batch=9")
    expected = get_preset("baseline")
    pfc = {"neurons": expected.brain.pfc.neurons, "outputs": 7, "lateral": expected.brain.pfc.lateral}
    assert config == expected.replace(training={"steps": 5, "batch": 9, "max_minutes": 0.0}, brain={"pfc": type(expected.brain.pfc)(**pfc)})
    flags = ["--config", str(file), "--set", "training.steps=7", "--steps", "8"]
    assert train_config(train_parser().parse_args(flags)).training.steps == 8


def test_a_file_without_preset_changes_any_of_them(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("[training]\nbatch = 5\n")
    assert config_of("--config", file, "--preset", "baseline") == get_preset("baseline").replace(training={"batch": 5})


def test_a_file_of_one_preset_under_the_name_of_another_is_refused(tmp_path, capsys):
    file = tmp_path / "settings.toml"
    file.write_text(printed(capsys, "nano"))
    assert main(["train", "--config", str(file), "--preset", "llm"]) == 2
    assert f"--preset llm: {file} has the settings of preset 'nano'; drop one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, minutes",
    [
        ([], 4.0),
        (["--set", "training.steps=9"], 0.0),
        (["--steps", "9"], 0.0),
        (["--set", "training.max_minutes=7", "--steps", "9"], 7.0),
        (["--set", "training.steps=9", "--max-minutes", "3"], 3.0),
        (["--set", "training.batch=9"], 4.0),
    ],
)
def test_who_asks_for_steps_is_held_to_no_time_limit_but_their_own(words, minutes):
    assert get_preset("nano").training.max_minutes == 4.0
    assert train_config(train_parser().parse_args(words)).training.max_minutes == minutes


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_windows_wrote(encoding, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_bytes("[training]\r\nbatch = 5\r\n".encode(encoding))
    assert config_of("--config", file).training.batch == 5


@pytest.mark.parametrize(
    "text, value",
    [("text.tokenizer=char", "char"), ('text.tokenizer="char"', "char"), ("text.tokenizer = a/b.model", "a/b.model"), ("text.data=", "")],
)
def test_words_need_no_quotes(text, value):
    config = config_of("--set", text)
    assert value in (config.text.tokenizer, config.text.data)


def test_numbers_are_numbers():
    config = config_of("--set", "training.learning_rate=1", "--set", "training.batch=3", "--set", "training.dropout=1e-1")
    assert (config.training.learning_rate, config.training.batch, config.training.dropout) == (1.0, 3, 0.1)


@pytest.mark.parametrize(
    "words, output",
    [
        (["--set", "training.stps=4"], "--set training.stps=4: training: unknown setting 'stps'; did you mean 'steps'?"),
        (["--set", "training.steps=many"], "--set training.steps=many: training.steps: int expected, not 'many'"),
        (["--set", "training.steps=0"], "--set training.steps=0: training.steps: at least 1, not 0"),
        (["--set", "brain.pfc.neuron=5"], "--set brain.pfc.neuron=5: brain.pfc.neuron: str expected, not 5; did you mean 'neurons'?"),
        (["--set", "brain.pfc=3"], "--set brain.pfc=3: brain.pfc: a table of settings was expected, not int"),
        (["--set", "training.steps.more=3"], "--set training.steps.more=3: training.steps: int expected, not {'more': 3}"),
        (["--set", "training.steps"], "--set training.steps: write SECTION.KEY=VALUE, for example training.steps=500"),
        (["--set", "preset=llm"], "--set preset=llm: write SECTION.KEY=VALUE, for example training.steps=500"),
        (["--set", "brain.vocabulary=9"], "brain.vocabulary is the tokenizer's; leave it out, and set text.vocabulary"),
        (["--set", "training.batch=99999999999999999999"], "training.batch: a number of at most 64 bits, not 99999999999999999999"),
        (["--preset", "nanno"], "unknown preset 'nanno'; did you mean 'nano'?"),
        (["llm", "--preset", "nano"], "llm and --preset nano name two presets; leave one out"),
        (["--config", "nowhere.toml"], "--config nowhere.toml: there is no such file; `neurogen config nano > FILE` makes one"),
    ],
)
def test_mistakes_in_flags(words, output, capsys):
    assert main(["config", *words]) == 2
    assert output in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, output",
    [
        (b"steps = ", "not TOML: Invalid value"),
        (b"\xff\xfe\x00", "not text; it must be a TOML file"),
        (b"preset = 3", "preset: a name is needed, not 3"),
        (b'preset = "nanno"', "unknown preset 'nanno'"),
        (b"[trainning]\nsteps = 3", "unknown setting 'trainning'; did you mean 'training'?"),
        (b"[brain]\nvocabulary = 3", "brain.vocabulary is the tokenizer's"),
        (b"x = " + 3000 * b"[", "not settings: tables within tables without end"),
        (b"brain = 3", "brain: a table of settings was expected, not int"),
    ],
)
def test_mistakes_in_a_file(content, output, tmp_path, capsys):
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    assert main(["config", "--config", str(file)]) == 2
    reports = capsys.readouterr().err
    assert output in reports and str(file) in reports and reports.count("\n") == 1


@pytest.mark.parametrize(
    "words, output",
    [
        (["--steps", "-5"], "neurogen train: --steps: at least 1, not -5\n"),
        (["--steps=ten"], "neurogen train: --steps: an integer is needed, not 'ten'\n"),
        (["--optimizer", "adam"], "neurogen train: --optimizer: unknown 'adam'; did you mean 'adamw'?\n"),
        (["--workers", "99"], "neurogen train: --workers: at most 61, not 99\n"),
        (["--steps", "5", "--set", "training.batch=0"], "neurogen train: --set training.batch=0: training.batch: at least 1, not 0\n"),
    ],
)
def test_a_mistake_names_the_flag_that_was_typed(words, output, capsys):
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err == output


def test_a_folder_is_no_file(tmp_path, capsys):
    assert main(["config", "--config", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"neurogen config: --config {tmp_path}: ")


@pytest.mark.parametrize("command", ["bench", "sim", "train"])
def test_every_command_that_builds_a_model_takes_them(command, capsys):
    words = {"bench": ["train"], "sim": [], "train": []}[command]
    assert main([command, *words, "--set", "brain.chunk=0"]) == 2
    assert "--set brain.chunk=0: brain.chunk: at least 1, not 0" in capsys.readouterr().err


@pytest.mark.parametrize("words, flag", [(["--config", "a.toml"], "--config"), (["--set", "training.steps=1"], "--set")])
def test_a_resumed_run_keeps_its_own_settings(words, flag, tmp_path, capsys):
    assert main(["train", "--resume", "--out", str(tmp_path), *words]) == 2
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, minutes",
    [
        ([], 4),
        (["--steps", "9"], 0),
        (["--set", "training.steps=9"], 0),
        (["--steps", "9", "--max-minutes", "3"], 3),
        (["--steps", "9", "--set", "training.max_minutes=2"], 2),
    ],
)
def test_steps_on_the_command_line_lift_the_time_limit_of_a_file(tmp_path, words, minutes):
    file = tmp_path / "mine.toml"
    file.write_text("[training]\nmax_minutes = 4.0\nsteps = 7\n")
    assert train_config(train_parser().parse_args(["--config", str(file), *words])).training.max_minutes == minutes


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_need_each_other_may_come_in_any_order(order):
    words = [word for setting in ["brain.embedding=512", "brain.tied=true"][::order] for word in ("--set", setting)]
    config = train_config(
        train_parser().parse_args([*words, "--preset", "gtx1650", "--optimizer", "adamw", "--set", "brain.embedding=8192"])
    )
    assert (config.brain.tied, config.brain.embedding, config.training.optimizer) == (True, 8192, "adamw")
