"""`neurogen train`: flags -> configuration -> trainer -> view."""

from __future__ import annotations

import contextlib
import shlex
import sys
import types
from pathlib import Path

from .cli import Parser, add_backend_flag, command
from .config import Config
from .configure import add_config_flags, check_neurons, config_of, named_neurons
from .distributed import launch
from .distributed.communicator import current
from .errors import ConfigError, DataError, MissingText
from .hints import hint
from .learning.stopping import Signals
from .storage import checkpoint, run_folder
from .system import streams
from .system.waiting import doing
from .text.sources import absolute, is_token_file, open_source

TRAINING_FLAGS = {  # flag: (field of config.Training, type, help)
    "--steps": ("steps", int, "updates, and no time limit except --max-minutes; with --resume, the new total"),
    "--max-minutes": ("max_minutes", float, "limit of the training time; reduces the number of updates if necessary"),
    "--batch-size": ("batch", int, "sequences trained side by side"),
    "--seq-length": ("segment", int, "tokens of truncated back-propagation through time"),
    "--learning-rate": ("learning_rate", float, "peak rate"),
    "--distill": ("distill", str, "larger run or checkpoint with the same tokenizer, whose predictions are learned too"),
    "--optimizer": ("optimizer", str, "adamw; muon for synapses; with less memory adamw8bit, with the least adafactor"),
    "--activation-memory": ("activation_memory", str, "kept for the backward pass: full; half, in 16 bits; recompute, least memory"),
    "--weight-decay": ("weight_decay", float, "on synapses, decoder and the projection of the embedding"),
    "--dropout": ("dropout", float, "share of embedding and readout that is dropped"),
    "--axon-dropout": ("axon_dropout", float, "share of axon values dropped"),
    "--weight-drop": ("weight_drop", float, "fraction of the synapses dropped for a segment"),
    "--word-dropout": ("word_dropout", float, "fraction of the vocabulary whose embeddings are dropped for a segment"),
    "--learning": ("learning", str, "bptt; eprop, with memory that does not grow with the segment; or three-factor, by dopamine"),
    "--learning-signal": ("learning_signal", str, "of eprop: symmetric or random feedback from the decoder"),
    "--rewire-interval": ("rewire_interval", int, "updates between two rewirings of the synapses; 0: the wiring stays"),
    "--rewire": ("rewire", str, "rigl (not with three-factor), set or deep_r: which bundles of synapses are removed, and which grow"),
    "--replay": ("replay", int, "updates between two replays of the most surprising segments; 0: none"),
    "--average": ("average", int, "updates whose weights are averaged, for use and evaluation: at most an eighth of those so far; 0: none"),
    "--memory-limit": ("memory_limit", str, "of GPU memory, for example 3.2GB: a run that needs more does not start"),
    "--seed": ("seed", int, "wiring, first weights, order of the text"),
    "--eval-interval": ("eval_interval", int, "updates between evaluations on held-out text"),
    "--sample-interval": ("sample_interval", int, "updates between samples"),
    "--checkpoint-interval": ("checkpoint_interval", int, "updates between checkpoints"),
    "--keep-checkpoints": ("keep_checkpoints", int, "number of the newest ones that are kept, in addition to the best by validation"),
    "--viz-interval": ("viz_interval", int, "updates between figures in RUN/training_viz; 0: none"),
}
# Flags that may change at --resume: they do not affect learning, and moved text must have the same content.
ON_RESUME = ("--steps", "--checkpoint-interval", "--keep-checkpoints", "--sample-interval", "--viz-interval", "--data", "--workers")
TEXT_FLAGS = {
    "--data": (
        "data",
        str,
        "file, folder, glob or URL of text, JSON lines or parquet; hf:NAME[:CONFIG][@SPLIT]; token file; - for standard input; "
        "without it, the built-in stories",
    ),
    "--text-field": ("field", str, "name of the text in JSON lines, parquet and data sets of the hub"),
    "--tokenizer": ("tokenizer", str, "sentencepiece, char, byte, word, or the path of a SentencePiece .model"),
    "--vocab-size": ("vocabulary", int, "pieces of a SentencePiece tokenizer trained on the text, or number of known words"),
    "--max-chunks": ("max_chunks", int, "maximum number of chunks to train on; 0: no such limit"),
    "--tokens-per-chunk": ("chunk_tokens", int, "tokens of a chunk: streamed text is read and shuffled by chunks"),
    "--workers": ("workers", int, "processes that tokenize streamed text; 0: a thread"),
}
TEST_STEPS = 20  # updates of --test, in TEST_CHUNKS chunks
TEST_CHUNKS = 2
TEST_EVAL_TOKENS = 2000  # held-out tokens of each evaluation of --test


def parser() -> Parser:
    order = "Other settings come from --set, --config or the preset, in this order."
    examples = ("neurogen train --data book.txt --max-minutes 20", "neurogen train --resume nano-1 --steps 4000")
    flags = Parser("train", order, examples)
    group = flags.add_argument_group("what to train on")
    add_config_flags(group)
    _add(group, "--data", "--text-field", "--tokenizer", "--vocab-size")

    group = flags.add_argument_group("how long")
    _add(group, "--steps", "--max-minutes")
    quick = (
        f"a quick run to see that everything works: {TEST_CHUNKS} chunks in {TEST_STEPS} updates, samples, checkpoints, "
        f"and evaluations on {TEST_EVAL_TOKENS:,} tokens"
    )
    group.add_argument("--test", action="store_const", const=True, default=None, help=quick)
    resume = "continue a run, or from RUN@best, or from one checkpoint of a run; without PATH, the latest run"
    group.add_argument("--resume", nargs="?", const="latest", default=None, metavar="PATH|latest", help=resume)

    group = flags.add_argument_group("where")
    group.add_argument("--name", default=None, help="name of the run (default: PRESET-1, PRESET-2, ...); with --resume, which run")
    group.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    add_backend_flag(group)
    launch.add_flags(group)

    group = flags.add_argument_group("how it learns")
    _add(group, "--batch-size", "--seq-length", "--learning-rate", "--optimizer", "--distill", "--seed")

    group = flags.add_argument_group("regularisation, for little text")
    _add(group, "--weight-decay", "--dropout", "--axon-dropout", "--weight-drop", "--word-dropout", "--average")

    group = flags.add_argument_group("what it shows and saves")
    _add(group, "--eval-interval", "--sample-interval", "--checkpoint-interval", "--keep-checkpoints", "--viz-interval")
    board = "event files for TensorBoard in RUN/tensorboard; a resumed run continues them"
    group.add_argument("--tensorboard", action="store_true", help=board)
    group.add_argument("--plain", action="store_true", help="plain lines instead of the live view")

    group = flags.add_argument_group("advanced")
    _add(group, "--memory-limit")
    fit = "make the first change that lets the run fit into --memory-limit, or into the GPU (`neurogen plan` says which)"
    group.add_argument("--fit", action="store_const", const=True, default=None, help=fit)
    _add(
        group,
        "--learning",
        "--learning-signal",
        "--activation-memory",
        "--rewire-interval",
        "--rewire",
        "--replay",
        "--max-chunks",
        "--tokens-per-chunk",
        "--workers",
    )
    begins = "begin a new segment for each document, after a reset"
    group.add_argument("--reset-at-documents", action="store_const", const=True, default=None, help=begins)
    return flags


def _add(group, *flags):
    """Add flags of TEXT_FLAGS and TRAINING_FLAGS to a group."""
    for flag in flags:
        field, kind, text = (TEXT_FLAGS | TRAINING_FLAGS)[flag]
        group.add_argument(flag, dest=field, type=kind, default=None, help=text)


@contextlib.contextmanager
def _flags_by_name(args):
    """In this context, an error about a setting that a flag gave begins with the flag, as it was typed."""
    try:
        yield
    except ConfigError as error:
        for section, table in (("training", TRAINING_FLAGS), ("text", TEXT_FLAGS)):
            for flag, (field, _, _) in table.items():
                if str(error).startswith(f"{section}.{field}: ") and getattr(args, field) is not None:
                    raise ConfigError(flag + str(error).removeprefix(f"{section}.{field}")) from None
        raise


def configure(args) -> Config:
    """The configuration from preset, file, --set and flags."""
    sections = {}
    for section, table in (("training", TRAINING_FLAGS), ("text", TEXT_FLAGS)):
        fields = [field for field, _, _ in table.values()]
        sections[section] = {field: getattr(args, field) for field in fields if getattr(args, field) is not None}
    if args.reset_at_documents:
        sections["text"]["reset_at_documents"] = True
    if args.test:
        sections = _quick(config_of(args, sections), sections)
    config = config_of(args, sections)
    if args.rewire and not config.training.rewire_interval:
        raise ConfigError(f"--rewire {args.rewire}: nothing is rewired without --rewire-interval; add --rewire-interval 300")
    if config.training.distill:
        teacher, passed_over = run_folder.find_checkpoint(config.training.distill, args.out)
        for sentence in passed_over:
            print(f"neurogen train: {sentence}", file=sys.stderr)
        config = config.replace(training={"distill": absolute(str(teacher))})
    data = config.text.data
    given = [flag for flag in ("--tokenizer", "--vocab-size") if getattr(args, TEXT_FLAGS[flag][0]) is not None]
    if given and is_token_file(data) and Path(data).with_suffix(".json").is_file():
        raise ConfigError(f"{', '.join(given)}: the tokens of {data} are those of the tokenizer that wrote it; drop it")
    try:
        return config.replace(text={"data": absolute(data)})  # a resumed run may start in another folder
    except ValueError as error:
        raise ConfigError(f"text.data: {data!r} is no path ({error})") from None


def _quick(config, sections):
    """The settings of --test, which explicit flags override."""
    steps = sections["training"].get("steps", TEST_STEPS)
    half = max(1, steps // 2)
    training = {"steps": steps, "eval_interval": half, "sample_interval": half, "checkpoint_interval": half}
    training |= {"eval_tokens": TEST_EVAL_TOKENS, "final_eval_tokens": TEST_EVAL_TOKENS}
    tokens = steps * config.training.batch * config.training.segment
    chunks = sections["text"].get("max_chunks", TEST_CHUNKS)
    text = {"max_chunks": chunks, "chunk_tokens": -(-tokens // max(1, chunks))}
    return {"training": training | sections["training"], "text": text | sections["text"]}


def _to_resume(args) -> tuple[Path, Path | None]:
    """(run, checkpoint to resume from); checkpoint None: the newest sound one."""
    fixed = {flag: field for flag, (field, _, _) in (TEXT_FLAGS | TRAINING_FLAGS).items() if flag not in ON_RESUME}
    fixed |= {"--preset": "preset", "--config": "config", "--fit": "fit"}
    fixed |= {"--reset-at-documents": "reset_at_documents", "--test": "test"}
    given = [flag for flag, field in fixed.items() if getattr(args, field) not in (None, [])]
    if given:
        raise ConfigError(f"--resume keeps the settings of the run; drop {', '.join(given)}")
    if args.name and args.resume != "latest":
        raise ConfigError("--resume RUN and --name both name a run; drop one of them")
    named_neurons(args.assignments)  # raises for all other settings
    run, folder, passed_over = run_folder.find_resumable(args.name or args.resume, args.out)
    for sentence in passed_over:
        print(f"neurogen train: {sentence}", file=sys.stderr)
    return run, folder


def _resume(args, run, folder, backend, communicator):
    from .learning.trainer import Trainer

    changes = {
        section: {field: getattr(args, field) for flag, (field, _, _) in table.items() if flag in ON_RESUME and field != "steps"}
        for section, table in (("training", TRAINING_FLAGS), ("text", TEXT_FLAGS))
    }
    given = {section: {field: value for field, value in fields.items() if value is not None} for section, fields in changes.items()}
    if "data" in given["text"]:
        given["text"]["data"] = absolute(given["text"]["data"])
    try:
        with _flags_by_name(args):
            trainer = Trainer.resume(run, args.steps, backend, folder, communicator, **given)
        check_neurons(trainer.config, named_neurons(args.assignments))
        return trainer
    except MissingText as error:
        raise DataError(f"{error}; if the text has moved, name its new location: --resume {shlex.quote(str(run))} --data PATH") from None


def _watch(trainer, title: str, plain: bool, tensorboard: bool, signals):
    """Train to the end, or until `trainer.stop`, and show it."""
    from .ui import Unbreakable, open_view
    from .ui.pictures import Pictures
    from .ui.tensorboard import TensorBoard

    with contextlib.ExitStack() as open_views:
        views = []

        def watch(make):
            views.append(open_views.enter_context(Unbreakable(make, streams.complain)))

        watch(lambda: open_view(title, plain=plain or None))
        tell, signals.tell = views[0].show, views[0].say
        if trainer.config.training.viz_interval:
            watch(lambda: Pictures(trainer.run, tell))
        if tensorboard:
            watch(lambda: TensorBoard(trainer.run, trainer.step, tell))
        for report in trainer.reports():
            for view in views:
                view.show(report)


@command("train")
def main(argv=None):
    if launch.started_from_outside():
        return launch.supervised("train", argv)
    communicator = current()
    with communicator.agreed():
        args = parser().parse_args(argv)
        new = args.resume is None
        if args.tensorboard:
            from .ui import tensorboard

            tensorboard.check()
        with _flags_by_name(args):
            config = configure(args)  # before anything is written
        if new and config.brain.own_neurons:
            from .neurons.loading import compile_own

            compile_own(config.brain)
        launch.check(args, config.training.batch if new else None, communicator)
    if launch.wanted(args):
        return launch.launch("train", argv, args.gpus)
    backend = launch.backend_of(args, communicator, config.to_dict())
    if communicator.rank:
        return launch.follow(communicator, backend)
    communicator.leads = communicator.size > 1
    made = run_folder.absent(args.out) if new else []
    with Signals() as signals:
        run, folder = (run_folder.create(args.out, args.name, config.preset), None) if new else _to_resume(args)
        with run_folder.lock(run), streams.unfailing(lambda error: _lost(run, error)):
            try:
                with doing("getting ready: loading the program", patience=0):
                    from .learning.trainer import Trainer

                if new and config.text.data.startswith(("hf:", "http:", "https:")):
                    open_source(config.text.data, config.text.field)  # raises for an invalid name; reading may take long
                    print(f"reading {config.text.data}", file=sys.stderr, flush=True)
                with _flags_by_name(args):
                    if new:
                        trainer = Trainer(config, run, backend, bool(args.fit), communicator=communicator)
                    else:
                        trainer = _resume(args, run, folder, backend, communicator)
                signals.hand_over(trainer.stop)
            except BaseException:  # Ctrl-C too
                if new:
                    run_folder.discard(run, made)  # nothing was trained: leave no empty folder behind
                raise
            title = f"{run.name} · {trainer.model.parameters:,} parameters · {trainer.config.brain.neurons:,} neurons"
            going_on = hint("train --resume", run, trainer.config)
            try:
                _watch(trainer, title, args.plain, args.tensorboard or (run / "tensorboard").is_dir(), signals)
            except KeyboardInterrupt:
                last = [checkpoint.step_of(folder) for folder in checkpoint.saved(run)][-1:]
                kept = f"step {last[0]:,} was saved last.\nTo continue" if last else "nothing was saved.\nTo begin again"
                streams.complain(f"\nStopped at once; {kept}: {going_on}")
                raise
            if trainer.step < trainer.steps:
                print(f"Stopped after {trainer.step:,} of {trainer.steps:,} steps; everything is saved in {run}.\nTo continue: {going_on}")
                return 130
            if trainer.act.teacher:
                _compare_with_teacher(trainer)
            print(f"To talk to it: {hint('chat', run, trainer.config)}")
    return 0


def _compare_with_teacher(trainer):
    """Print size, loss and speed of the larger model and of the one that learned from it."""
    from .benchmarks import sizes

    models, held_out = [trainer.act.teacher.model, trainer.model], trainer.corpus.validation(trainer.config.training.eval_tokens)
    with trainer.model.averaged():
        sizes.show(["larger", trainer.run.name], sizes.compare(models, held_out))


def _lost(run, error):
    why = getattr(error, "strerror", None) or error
    metrics = run / run_folder.METRICS
    return f"neurogen train: the output cannot be written: {why}; training continues and is recorded in {metrics}; Ctrl-C saves and ends"


class _Callable(types.ModuleType):
    """Makes this module callable as the library's function `train`, because after its import the name `neurogen_numba.train` refers to
    it."""

    def __call__(self, *arguments, **named):
        from .library import train

        return train(*arguments, **named)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    raise SystemExit(main())
