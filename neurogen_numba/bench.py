"""`neurogen bench`: speed on this machine, compared with the limits of the machine."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path

from .cli import STDOUT, Parser, add_backend_flag, add_json_flag, command, tell_json
from .configure import add_config_flags, config_of
from .distributed import launch
from .distributed.communicator import current
from .errors import ConfigError

WHAT = {
    "train": "updates of a preset, on random tokens or --text",
    "decode": "tokens drawn one after the other",
    "sim": "neurons and synapses alone, driven by noise",
    "decoder": "the decoder for one token, with softmax and sampling",
    "kernels": "the synapses, by current and signal, and every other operation of an update",
    "ablate": "a recipe against the same with one change at a time, by loss; `neurogen bench ablate --help`",
    "tasks": "accuracy on tasks with a right answer; `neurogen bench tasks --help`",
}


def parser() -> Parser:
    flags = Parser("bench")
    flags.add_argument("what", choices=WHAT, help="; ".join(f"{name}: {text}" for name, text in WHAT.items()))
    add_config_flags(flags)
    flags.add_argument("--batch-size", type=int, default=None, help="sequences side by side (default: the preset's; decode, sim: 1)")
    flags.add_argument("--seq-length", type=int, default=None, help="tokens of a segment (default: the preset's)")
    flags.add_argument("--vocab-size", type=int, default=None, help="tokens known (default: the preset's)")
    flags.add_argument("--text", type=Path, metavar="FILE", help="train, kernels: learn the bytes of a file, not random tokens")
    flags.add_argument("--after", type=int, default=0, help="with --text: updates before the measurements")
    flags.add_argument("--repeats", type=int, default=10, help="measurements, after three that warm up")
    add_json_flag(flags, "preset", "backend", "device")
    add_backend_flag(flags)
    launch.add_flags(flags)
    return flags


@command("bench")
def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["ablate"], ["tasks"]):  # with flags of their own
        return importlib.import_module(f".{words[0]}", __package__).main(words[1:])
    if launch.started_from_outside():
        return launch.supervised("bench", argv)
    communicator = current()
    with communicator.agreed():
        args, config = _settings(argv)
        launch.check(args, config.training.batch, communicator)
        text = _bytes_of(args.text, config.brain.vocabulary) if args.text else b""
    if launch.wanted(args):
        return launch.launch("bench", argv, args.gpus)
    backend = launch.backend_of(args, communicator, config.to_dict())
    if communicator.rank:
        return launch.follow(communicator, backend)
    communicator.leads = communicator.size > 1
    from rich.console import Console
    from rich.status import Status

    from .benchmarks import speed
    from .system.waiting import shown_by

    def show(sentence, done, total):
        status.update(sentence or "measuring")

    status = Status("measuring", console=Console(stderr=True))
    shown = shown_by(show) if status.console.is_terminal else contextlib.nullcontext()
    with status, shown:
        bench = speed.Bench(config, backend, args.repeats, args.batch_size or 1, text, args.after, communicator)
        result = getattr(bench, args.what)()
    if args.json != STDOUT:
        speed.show(result)
    tell_json(args.json, result)
    return 0


def _settings(argv):
    """(flags, configuration)."""
    args = parser().parse_args(argv)
    if args.gpus and args.what != "train":
        raise ConfigError(f"--gpus: {args.what} runs in one process; drop it, or measure train")
    if args.what in ("ablate", "tasks"):
        raise ConfigError(f"{args.what} has its own flags, and must come first: neurogen bench {args.what} ...")
    for name in ("batch_size", "seq_length", "vocab_size", "repeats"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: at least 1, not {getattr(args, name)}")
    if args.text and args.what not in ("train", "kernels"):
        raise ConfigError(f"--text: {args.what} does not train; drop it, or measure train or kernels")
    if args.after < 0 or (args.after and not args.text):
        raise ConfigError(f"--after {args.after}: a number of updates, at least 0, and a --text to learn from")
    config = config_of(args)
    config = config.replace(
        brain={"vocabulary": args.vocab_size or config.text.vocabulary},
        training={name: value for name, value in (("batch", args.batch_size), ("segment", args.seq_length)) if value is not None},
    )
    return args, config


def _bytes_of(path, vocabulary):
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--text {path}: {error.strerror}") from None
    if not text:
        raise ConfigError(f"--text {path}: the file is empty")
    if max(text) >= vocabulary:
        raise ConfigError(f"--text {path}: bytes as tokens need --vocab-size {max(text) + 1} or more, not {vocabulary}")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
