"""`neurogen migrate`: transfer a trained model into a brain of another size, as a new run for further training."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from pathlib import Path

from .cli import Parser, command
from .config import Config
from .configure import add_config_flags, assigned, config_of, import_neurons
from .errors import CheckpointError, ConfigError
from .hints import hint
from .presets import get_preset
from .text.sources import absolute


def parser() -> Parser:
    what = (
        "Neurons, synapses and decoder are copies of the old ones, repeated in their order; schedule, optimiser and neuron state start new."
    )
    flags = Parser("migrate", what)
    flags.add_argument("old", metavar="OLD", help="a run, RUN@best, or a checkpoint")
    flags.add_argument("new", metavar="NEW", type=Path, help="folder of the new run, for example runs/larger")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs, if OLD is the name of a run")
    add_config_flags(flags)
    return flags


def configure(args, old: Config, same: bool = False) -> Config:
    """The configuration of the new run: preset or file, else the old configuration, and --set. The text is the old one, unless changed; the
    tokens are always the old ones.

    Raises ConfigError if the brain would be the old one, unless `same` allows it, or if another tokenizer is requested.
    """
    config = config_of(args, base=old)
    default = (get_preset(config.preset) if args.preset or args.config else old).text
    given = {word.partition("=")[0].strip().removeprefix("text.") for word in args.assignments}
    text = {name: value for name, value in dataclasses.asdict(config.text).items() if name in given or value != getattr(default, name)}
    for name in ("tokenizer", "vocabulary"):
        if name in text:
            raise ConfigError(f"text.{name}: the new model keeps the tokens of the old one; drop it")
    if "data" in text:
        text["data"] = absolute(text["data"])  # a resumed run may start in another folder
    config = dataclasses.replace(config, text=dataclasses.replace(old.text, **text))
    config = config.replace(brain={"vocabulary": old.brain.vocabulary, "pruned": ""}, training={"distill": "", "prune_keep": 1.0})
    if config.brain == old.brain and not same:
        asked = " ".join(filter(None, [args.preset and f"--preset {args.preset}", args.config and f"--config {args.config}"]))
        asked = " ".join([asked, *(f"--set {word}" for word in args.assignments if word.strip().startswith("brain."))]).strip()
        what = f"{asked}: the old model has that size already; give another" if asked else "the new size is missing; give"
        raise ConfigError(f"{what} --preset, --config or --set brain.MODULE.neurons=N")
    return config


@command("migrate")
def main(argv=None):
    args = parser().parse_args(argv)
    from .brain.model import NeuroGenModel
    from .brain.resize import carry_over
    from .learning.first_checkpoint import begin_run, make_empty
    from .show import find
    from .storage import run_folder

    folder = find(args.old, args.out)
    for assignment in args.assignments:  # before loading a checkpoint with these neurons
        import_neurons(assigned(assignment), f"--set {assignment}")
    old = NeuroGenModel.load_to_migrate(folder)
    if old.quantization:
        raise CheckpointError(f"{folder} is quantised, and has no weights to migrate; migrate the run that it was made from")
    if old.tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer, so its model cannot read text; use a checkpoint of `neurogen train`")
    config = configure(args, old.config, same=bool(old.brain.drawn_anew))
    run = make_empty(args.new)
    new = NeuroGenModel.from_config(config, old.tokenizer, backend="cpu")
    rows = carry_over(old.brain, new.brain)
    with run_folder.lock(run):
        size = begin_run(new, run)
    print(f"{folder} -> {run}")
    _show(rows)
    print(f"{old.parameters:,} parameters became {new.parameters:,}; saved {size / 1e6:,.1f} MB")
    print(f"To train it: {hint('train --resume', run, config)}   To talk to it: {hint('chat', run, config)}")
    return 0


def _show(rows):
    """Print the tensors, grouped by what was done with them, in lines of up to 80 columns."""
    groups = {}
    for row in rows:
        groups.setdefault(row.how, []).append((row.name, _shape(row.old), _shape(row.new)))
    names, old, new = (max(map(len, column)) for column in zip(*itertools.chain(*groups.values()), strict=True))
    for how, tensors in groups.items():
        print(textwrap.fill(f"{how}:", 80, initial_indent="\n"))
        for name, before, after in tensors:
            print(f"  {name:{names}}  {before:>{old}} -> {after:>{new}}")
    print()


def _shape(shape):
    return "none" if shape is None else " x ".join(f"{n:,}" for n in shape)


if __name__ == "__main__":
    raise SystemExit(main())
