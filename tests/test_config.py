"""Settings and presets: what is refused, with which words, and what comes back as it was."""

import dataclasses
import json

import pytest

from neurogen_numba.config import Brain, Config, Module, Text, Training, did_you_mean
from neurogen_numba.errors import ConfigError
from neurogen_numba.presets import PRESETS, get_preset

SIZES = {"thalamus": 13, "wernicke": 30, "hippocampus": 17, "pfc": 19, "basal_ganglia": 9, "broca": 21}


def brain(**changes):
    return Brain(**{name: Module(neurons) for name, neurons in SIZES.items()} | changes)


CONFIG = Config("test", brain(pfc=Module(19, outputs=7, lateral=3)), Training(dropout=0.25), Text(data="a.txt"))


@pytest.mark.parametrize("config", [CONFIG, *PRESETS.values()], ids=lambda config: config.preset)
def test_a_config_comes_back_from_json_as_it_was(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_is_left_out_is_the_default():
    values = {"preset": "test", "brain": {name: {"neurons": neurons} for name, neurons in SIZES.items()}}
    assert Config.from_dict(values) == Config("test", brain(), Training(), Text())


def changed(path, value):
    """CONFIG as a dict, with the setting at `path` ("brain.pfc.outputs") changed."""
    values = CONFIG.to_dict()
    *sections, name = path.split(".")
    section = values
    for key in sections:
        section = section[key]
    section[name] = value
    return values


def test_a_whole_number_is_welcome_in_place_of_a_fraction():
    rate = Config.from_dict(changed("training.learning_rate", 1)).training.learning_rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
    "path, value, output",
    [
        ("training.stps", 1, "config.training: unknown setting 'stps'; did you mean 'steps'?"),
        ("brain.pfc.neurns", 1, "config.brain.pfc: unknown setting 'neurns'; did you mean 'neurons'?"),
        ("zzz", 1, "config: unknown setting 'zzz'; known: preset, brain, training, text"),
        ("training.steps", "many", "config.training.steps: int expected, not 'many'"),
        ("training.steps", 1.5, "config.training.steps: int expected, not 1.5"),
        ("training.steps", True, "config.training.steps: int expected, not True"),
        ("training.learning_rate", True, "config.training.learning_rate: float expected, not True"),
        ("training.learning_rate", None, "config.training.learning_rate: float expected, not None"),
        ("text.data", 3, "config.text.data: str expected, not 3"),
        ("brain.pfc", 19, "config.brain.pfc: a table of settings was expected, not int"),
        ("training", [], "config.training: a table of settings was expected, not list"),
    ],
)
def test_a_wrong_setting_is_named(path, value, output):
    with pytest.raises(ConfigError) as error:
        Config.from_dict(changed(path, value))
    assert str(error.value) == output


def test_missing_settings_are_named():
    values = CONFIG.to_dict()
    del values["brain"]["pfc"], values["brain"]["broca"]
    with pytest.raises(ConfigError, match=r"^config\.brain: missing pfc, broca$"):
        Config.from_dict(values)
    with pytest.raises(ConfigError, match=r"^config: a table of settings was expected, not NoneType$"):
        Config.from_dict(None)


# The highest value that is refused, and the lowest that is not.
LOWEST = [
    *(
        (Brain, name, 0, 1)
        for name in "embedding vocabulary fan_in delays late_delays feedback_chunks hypercolumn chunk".split()
        + "memory_heads memory_width memory_fan_in memory_context".split()
    ),
    (Brain, "feedback", -1, 0),
    *(
        (Training, name, 0, 1)
        for name in "steps batch segment eval_interval eval_tokens checkpoint_interval keep_checkpoints".split()
        + "sample_interval log_interval".split()
    ),
    *((Training, name, -1, 0) for name in "warmup seed average rewire_interval replay viz_interval final_eval_tokens".split()),
    *((Training, name, -1e-9, 0.0) for name in "learning_rate final_rate weight_decay max_minutes".split()),
    *((Text, name, 0, 1) for name in "vocabulary chunk_tokens".split()),
    *((Text, name, -1, 0) for name in "max_chunks workers".split()),
]


@pytest.mark.parametrize("section, name, refused, allowed", LOWEST, ids=lambda value: value if isinstance(value, str) else "")
def test_numbers_have_a_lowest_value(section, name, refused, allowed):
    base = CONFIG.brain if section is Brain else section()
    assert getattr(dataclasses.replace(base, **{name: allowed}), name) == allowed
    with pytest.raises(ConfigError, match=f"^{section.__name__.lower()}.{name}: at least {allowed:g}, not {refused}$"):
        dataclasses.replace(base, **{name: refused})


def test_a_hypercolumn_fits_into_a_block_of_threads():
    assert dataclasses.replace(CONFIG.brain, hypercolumn=1024).hypercolumn == 1024
    with pytest.raises(ConfigError, match="^brain.hypercolumn: at most 1,024, not 1025$"):
        dataclasses.replace(CONFIG.brain, hypercolumn=1025)


@pytest.mark.parametrize("speakers", ["User:", "User: System: Other:"])
def test_a_dialogue_has_two_speakers(speakers):
    with pytest.raises(ConfigError, match='^text.speakers: how lines of a person and replies begin, as in "User: System:", not '):
        Text(speakers=speakers)


@pytest.mark.parametrize("name", ["bundle", "memory_bundle"])
def test_a_bundle_has_one_of_three_sizes(name):
    assert getattr(dataclasses.replace(CONFIG.brain, **{name: 32}), name) == 32
    with pytest.raises(ConfigError, match=f"^brain.{name}: 16, 32 or 64, not 48$"):
        dataclasses.replace(CONFIG.brain, **{name: 48})


def test_every_number_is_checked():
    """Without a check, a wrong number would only show where it is used, if at all."""
    elsewhere = {"bundle", "memory_bundle", "clip", "dropout", "axon_dropout", "reset_prob", "validation"}  # the tests below
    elsewhere |= {"weight_drop", "word_dropout", "dropout_end", "surrogate_width"}  # test_regularisation, test_neurons
    elsewhere |= {"rewire_share", "prune_keep"}  # test_rewiring, test_prune
    numbers = {field.name for section in (Brain, Training, Text) for field in dataclasses.fields(section) if field.type in ("int", "float")}
    assert numbers == {name for _, name, _, _ in LOWEST} | elsewhere


def test_a_config_from_when_dropout_had_one_rate_keeps_it():
    old = CONFIG.to_dict()
    del old["training"]["axon_dropout"]
    assert Config.from_dict(old).training.axon_dropout == old["training"]["dropout"] == 0.25


def test_a_config_with_an_earlier_name_of_a_field_is_read():
    old = CONFIG.replace(training={"reset_prob": 0.125}).to_dict()
    old["training"]["fresh"] = old["training"].pop("reset_prob")
    assert Config.from_dict(old).training.reset_prob == 0.125


@pytest.mark.parametrize(
    "section, fields",
    [
        (Training, {"clip": 0.0}),
        (Training, {"clip": float("nan")}),
        (Training, {"dropout": 1.0}),
        (Training, {"dropout": -0.1}),
        (Training, {"dropout": float("nan")}),
        (Training, {"axon_dropout": 1.0}),
        (Training, {"axon_dropout": -0.1}),
        (Training, {"axon_dropout": float("nan")}),
        (Training, {"reset_prob": -0.1}),
        (Training, {"reset_prob": 1.1}),
        (Training, {"reset_prob": float("nan")}),
        (Training, {"learning_rate": float("nan")}),
        (Training, {"learning_rate": float("inf")}),
        (Training, {"seed": 2**64}),
        (Text, {"validation": 0.0}),
        (Text, {"validation": 1.0}),
        (Text, {"workers": 62}),
        (brain, {"events": "analog"}),
        (brain, {"pfc": Module(0)}),
        (brain, {"pfc": Module(19, outputs=-1)}),
        (brain, {"pfc": Module(19, outputs=20)}),
        (brain, {"pfc": Module(19, lateral=-1)}),
        (brain, {"thalamus": Module(13, outputs=5)}),
        (brain, {"hippocampus": Module(17, outputs=5)}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_by_name(section, fields):
    with pytest.raises(ConfigError, match=rf"^(brain|training|text)\.{next(iter(fields))}(\.outputs)?: "):
        section(**fields)


def test_the_edges_of_what_can_work():
    assert brain(pfc=Module(1, outputs=1, lateral=0), events="binary").pfc.output_size == 1
    assert (Training(dropout=0.0).dropout, Training(dropout=0.999).dropout) == (0.0, 0.999)
    assert (Training(reset_prob=0.0).reset_prob, Training(reset_prob=1.0).reset_prob) == (0.0, 1.0)


def test_sizes_that_follow_from_others():
    assert (Module(19).output_size, Module(19, outputs=7).output_size) == (19, 7)
    assert brain().neurons == sum(SIZES.values())


def test_replace_changes_only_what_it_is_told():
    replaced = CONFIG.replace(training={"steps": 5}, brain={"vocabulary": 65})
    expected = CONFIG.to_dict()
    expected["training"]["steps"], expected["brain"]["vocabulary"] = 5, 65
    assert replaced.to_dict() == expected
    assert CONFIG.training.steps == Training().steps
    smaller = CONFIG.replace(brain={"pfc": {"neurons": 320}}).brain.pfc
    assert smaller == dataclasses.replace(CONFIG.brain.pfc, neurons=320)
    with pytest.raises(ConfigError, match="^brain.pfc: unknown setting 'neurns'; did you mean 'neurons'"):
        CONFIG.replace(brain={"pfc": {"neurns": 320}})
    with pytest.raises(ConfigError, match="^brain.pfc: a dictionary of its settings is needed, not 320"):
        CONFIG.replace(brain={"pfc": 320})
    with pytest.raises(ConfigError, match=r"^training\.steps: at least 1, not 0$"):
        CONFIG.replace(training={"steps": 0})


@pytest.mark.parametrize(
    "part", [CONFIG, CONFIG.brain, CONFIG.brain.pfc, CONFIG.training, CONFIG.text], ids=lambda part: type(part).__name__
)
def test_nothing_can_be_changed_in_place(part):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, dataclasses.fields(part)[0].name, 1)


@pytest.mark.parametrize(
    "word, known, tail",
    [
        ("stps", ["batch", "steps"], "did you mean 'steps'?"),
        ("nan", ["baseline", "nano"], "did you mean 'nano'?"),
        ("zzz", ["batch", "steps"], "known: batch, steps"),
        ("", {"batch": 1, "steps": 2}, "known: batch, steps"),
    ],
)
def test_did_you_mean(word, known, tail):
    assert did_you_mean(word, known) == tail


def test_a_preset_knows_its_name():
    assert {"nano", "shakespeare-cpu", "baseline"} <= set(PRESETS)
    for name in PRESETS:
        assert get_preset(name) is PRESETS[name] and PRESETS[name].preset == name


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^unknown preset 'nanno'; did you mean 'nano'\?$"):
        get_preset("nanno")


def test_rows_that_are_tied_need_an_optimizer_that_waits_for_them():
    tied = CONFIG.replace(brain={"tied": True, "embedding": CONFIG.brain.broca.output_size})
    with pytest.raises(ConfigError, match=r"^training\.optimizer: adafactor updates .* use adamw or muon"):
        tied.replace(training={"optimizer": "adafactor"})
    assert tied.replace(training={"optimizer": "muon"}).brain.tied
    with pytest.raises(ConfigError, match=r"^brain\.tied: .* must be as large as Broca's output"):
        CONFIG.replace(brain={"tied": True, "embedding": CONFIG.brain.broca.output_size + 1})
