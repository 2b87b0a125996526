"""`neurogen config`; and one configuration from preset, file and flags, of which each overrides the previous one."""

from __future__ import annotations

import argparse
import sys
from functools import reduce
from pathlib import Path

from .cli import Parser, command
from .config import MODULES, Brain, Config, Module, Text, Training, comments
from .errors import ConfigError
from .presets import PRESETS, get_preset
from .system import streams

UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks of files written by PowerShell


def add_config_flags(flags: argparse.ArgumentParser, preset: str = "nano") -> None:
    """Add the flags of every command that builds a model; `config_of` interprets them, with the default `preset` as its base."""
    flags.add_argument("--preset", default=None, help=f"{', '.join(PRESETS)} (default: {preset})")
    flags.add_argument("--config", type=Path, default=None, metavar="FILE", help="settings in TOML, as `neurogen config` prints them")
    flags.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a single setting, for example brain.pfc.neurons=2048; may be repeated",
    )


def add_neuron_flag(flags: argparse.ArgumentParser) -> None:
    """Add --set for the commands that load a trained model; `named_neurons` interprets it."""
    what = "your own neuron with which it was trained, for example brain.pfc.neuron=mine:resonator; may be repeated"
    flags.add_argument("--set", dest="assignments", action="append", default=[], metavar="SECTION.KEY=VALUE", help=what)


def named_neurons(assignments: list[str]) -> dict[str, str]:
    """Module of the brain -> the neuron that --set names, whose Python module is imported. Raises ConfigError for any other setting,
    because a trained model keeps its settings."""
    named = {}
    for assignment in assignments:
        values = assigned(assignment)
        found = list(_neurons(values))
        if not found:
            raise ConfigError(f"--set {assignment}: a trained model keeps its settings; only brain.MODULE.neuron=NAME names its neurons")
        named |= dict(found)
        import_neurons(values, f"--set {assignment}")
    return named


def check_neurons(config: Config, named: dict[str, str]) -> None:
    """Raises ConfigError if a module of a trained brain has another neuron than the given one."""
    for module, neuron in named.items():
        if getattr(config.brain, module).neuron != neuron:
            trained = getattr(config.brain, module).neuron
            raise ConfigError(f"--set brain.{module}.neuron={neuron}: it was trained with {trained}; drop this, or train a new model")


def _neurons(values: dict):
    """(module, neuron) of the neurons in settings."""
    brain = values.get("brain")
    for module, fields in brain.items() if isinstance(brain, dict) else ():
        if module in MODULES and isinstance(fields, dict) and isinstance(fields.get("neuron"), str):
            yield module, fields["neuron"]


def import_neurons(values: dict, source: str) -> None:
    """Import the Python modules of the neurons in settings. source: their origin, for messages."""
    for _, neuron in _neurons(values):
        if all(neuron.partition(":")):
            from .neurons.loading import import_named

            import_named(neuron, source)


def config_of(args, flags: dict | None = None, base: Config | None = None) -> Config:
    """The configuration of a command. Base: --preset, else the preset that the file names, else `base`, else nano. Then the settings of the
    file, of --set, and of `flags`, {section: {field: value}}, in this order.

    A number of steps removes a time limit that has lower priority: that of the preset, and if the steps are given on the command line, that
    of the file. Raises ConfigError for a file that cannot be read, and for a setting that is unknown, mistyped or out of range, with its
    origin.
    """
    values = read(args.config) if args.config else {}
    name = args.preset or values.get("preset", "nano")
    if args.preset and "preset" in values and values["preset"] != args.preset:
        raise ConfigError(f"--preset {args.preset}: {args.config} has the settings of preset {values['preset']!r}; drop one of them")
    if not isinstance(name, str):
        raise ConfigError(f"{args.config}: preset: a name is needed, not {name!r}")
    try:
        config = base if base and not (args.preset or args.config) else get_preset(name)
    except ConfigError as error:
        raise (error if args.preset else ConfigError(f"{args.config}: {error}")) from None
    asked = [(0, values.get("training"))]  # (0 for the file or 1 for the command line, its settings)
    if args.config:
        config = overlay(config, values | {"preset": name}, str(args.config))
    given = [(f"--set {assignment}", assigned(assignment)) for assignment in args.assignments]
    asked += [(1, values.get("training")) for _, values in given] + [(1, (flags or {}).get("training"))]
    config = _together(config, [values for _, values in given], flags or {}) or _one_by_one(config, given, flags or {})
    for source, settings in [(str(args.config), values), *given]:
        import_neurons(settings, source)
    named = {name: where for where, fields in asked if isinstance(fields, dict) for name in fields}
    return config.replace(training={"max_minutes": 0.0}) if named.get("steps", -1) > named.get("max_minutes", -1) else config


def assigned(assignment: str) -> dict:
    """SECTION.KEY=VALUE as nested dictionaries."""
    setting, equals, value = assignment.partition("=")
    if not equals or "." not in setting:
        raise ConfigError(f"--set {assignment}: write SECTION.KEY=VALUE, for example training.steps=500")
    return _nested(setting.strip(), _value(value.strip()))


def _together(config: Config, given: list[dict], flags: dict) -> Config | None:
    """All settings applied together, because one may need another; None if something is wrong."""
    if any("vocabulary" in values["brain"] for values in given if isinstance(values.get("brain"), dict)):
        return None
    try:
        return Config.from_dict(reduce(_merged, [*given, flags], config.to_dict()))
    except ConfigError:
        return None


def _one_by_one(config: Config, given: list[tuple[str, dict]], flags: dict) -> Config:
    """All settings applied one after another. Raises ConfigError that names the first wrong one."""
    for source, values in given:
        config = overlay(config, values, source)
    return config.replace(**flags)


def read(path: Path, flag: str = "--config") -> dict:
    """A TOML file, which a flag named, as a dict. Raises ConfigError where there is none, or no TOML in it."""
    try:
        content = path.read_bytes()
        return _toml().loads(content.decode("utf-16" if content[:2] in UTF_16 else "utf-8-sig").replace("\r\n", "\n"))
    except FileNotFoundError:
        more = "; `neurogen config nano > FILE` makes one to start from" if flag == "--config" else ""
        raise ConfigError(f"{flag} {path}: there is no such file{more}") from None
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{flag} {path}: not text; it must be a TOML file with settings, as `neurogen config` prints them") from None
    except _toml().TOMLDecodeError as error:
        raise ConfigError(f"{flag} {path}: not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{flag} {path}: not settings: tables within tables without end") from None


def _toml():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib


def _value(text: str):
    """What a setting's text means in TOML; where it means nothing, the text itself, so that words need no quotes."""
    try:
        parsed = _toml().loads(f"value = {text}")
    except _toml().TOMLDecodeError:
        return text
    return parsed["value"] if list(parsed) == ["value"] else text


def _nested(name: str, value) -> dict:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def overlay(config: Config, values: dict, source: str) -> Config:
    """A configuration with the settings of tables in the place of its own. Raises ConfigError that begins with `source`."""
    if isinstance(values.get("brain"), dict) and "vocabulary" in values["brain"]:
        raise ConfigError(f"{source}: brain.vocabulary is the tokenizer's; leave it out, and set text.vocabulary for one that is trained")
    try:
        return Config.from_dict(_merged(config.to_dict(), values))
    except ConfigError as error:
        raise ConfigError(f"{source}: {str(error).removeprefix('config').lstrip('.: ')}") from None


def _merged(base: dict, values: dict) -> dict:
    both = dict(base)
    for name, value in values.items():
        both[name] = _merged(both[name], value) if isinstance(value, dict) and isinstance(both.get(name), dict) else value
    return both


def parser() -> Parser:
    flags = Parser("config")
    flags.add_argument("name", nargs="?", default=None, metavar="PRESET", help=f"{', '.join(PRESETS)} (default: nano)")
    add_config_flags(flags)
    return flags


@command("config")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.name and args.preset and args.name != args.preset:
        raise ConfigError(f"{args.name} and --preset {args.preset} name two presets; leave one out")
    args.preset = args.name or args.preset
    config = config_of(args)
    import tomli_w

    print(f"# neurogen train --config FILE goes by these settings; what is left out of FILE is as in the preset {config.preset!r}.")
    values = config.to_dict()
    del values["brain"]["vocabulary"]  # it is the tokenizer's
    with streams.utf_8():  # TOML is UTF-8
        print(_commented(tomli_w.dumps(values)), end="")
    return 0


def _commented(text: str) -> str:
    """A configuration in TOML, with the comment of its field in config.py at the end of each setting."""
    sections, known, lines = {"brain": Brain, "training": Training, "text": Text}, comments(Config), []
    for line in text.splitlines():
        if line.startswith("["):
            known = comments(sections.get(line.strip("[]"), Module))
        name, equals, _ = line.partition(" = ")
        lines.append(f"{line}  # {known[name]}" if equals else line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
