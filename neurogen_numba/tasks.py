"""`neurogen bench tasks`: train a preset on a task with a known answer, and print its accuracy."""

from __future__ import annotations

import functools
import time
from pathlib import Path

from .cli import STDOUT, Parser, add_backend_flag, add_json_flag, backend_of, command, tell_json
from .config import LEARNING
from .configure import add_config_flags, config_of
from .errors import ConfigError
from .presets import get_preset

TASKS = {
    "recall": "pairs of a key and a value, then the keys: what was the value? (MQAR)",
    "copy": "symbols, a delay, then the same symbols",
    "smnist": "digits read pixel by pixel",
    "psmnist": "the same in a permuted order",
    "stories": "the built-in stories, and questions about them",
    "bandit": "a two-armed bandit told in text: which arm wins more often?",
}
PRESET, OF_STORIES = "tasks", "nano"
TESTED = 1000  # sequences of a generated task that are tested
NEEDS_DATA = ("smnist", "psmnist")


def parser() -> Parser:
    flags = Parser("bench")
    flags.prog += " tasks"
    flags.description = "Train a preset on a task with a right answer, and say how often it is right on sequences that it has not seen."
    flags.add_argument("task", choices=TASKS, help="; ".join(f"{name}: {text}" for name, text in TASKS.items()))
    add_config_flags(flags, PRESET)
    flags.add_argument("--pairs", type=int, default=None, help="recall: pairs (default: 16)")
    flags.add_argument("--delay", type=int, default=None, help="copy: tokens between the symbols and the marker (default: 100)")
    flags.add_argument("--items", type=int, default=None, help="copy: symbols (default: 10)")
    flags.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="smnist, psmnist: folder with the four files of MNIST")
    rules = "training.learning; bptt by default, for bandit three-factor with neuromodulators"
    flags.add_argument("--learning", choices=LEARNING, default=None, help=rules)
    flags.add_argument(
        "--steps", type=int, default=None, help="updates (default: the preset's, nano's for stories), or pulls of the bandit (default: 200)"
    )
    flags.add_argument("--batch-size", type=int, default=None, help="sequences of an update (default: the preset's)")
    flags.add_argument("--learning-rate", type=float, default=None, help="peak rate (default: the preset's)")
    flags.add_argument("--seed", type=int, default=0, help="wiring, first weights, sequences")
    flags.add_argument("--eval-interval", type=int, default=None, help="updates between tests (default: the preset's; of bandit, 20 pulls)")
    add_json_flag(flags, "task")
    add_backend_flag(flags)
    return flags


def task_of(args):
    """The task that the flags ask for; None for stories. Raises ConfigError for a flag of another task, DataError for files that are not
    MNIST's."""
    from .benchmarks import tasks

    owners = {"pairs": ("recall",), "delay": ("copy",), "items": ("copy",), "data": NEEDS_DATA}
    for name, whose in owners.items():
        if getattr(args, name) is not None and args.task not in whose:
            raise ConfigError(f"--{name} is about {' and '.join(whose)}; leave it out")
    if args.task == "stories":
        return None
    if args.task == "recall":
        return tasks.Recall(16 if args.pairs is None else args.pairs)
    if args.task == "copy":
        return tasks.Copy(100 if args.delay is None else args.delay, 10 if args.items is None else args.items)
    if args.data is None:
        raise ConfigError(f"--data: {args.task} needs the folder with the four files of MNIST")
    return tasks.Digits(args.data, permuted=args.task == "psmnist")


@command("bench")
def main(argv=None):
    args = parser().parse_args(argv)
    for name in ("steps", "eval_interval"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: at least 1, not {getattr(args, name)}")
    if args.task == "bandit":
        return play(args)
    task = task_of(args)
    flags = {"steps": args.steps, "batch": args.batch_size, "learning_rate": args.learning_rate, "eval_interval": args.eval_interval}
    given = {"seed": args.seed} | {name: value for name, value in flags.items() if value is not None}
    show = _show(args)
    if task:
        config = _config(args, given | {"segment": task.length}, PRESET).replace(brain={"vocabulary": task.vocabulary})
        result = train(config, task, backend_of(args), show)
    else:
        config = _config(args, given, OF_STORIES).replace(text={"data": ""})
        result = learn_stories(config, backend_of(args))
    result = {"task": args.task, "preset": config.preset, **result}
    tested = "questions" if task is None else "sequences"
    show(
        f"{args.task}: {result['accuracy']:.2%} right on {result['tested']:,} {tested}, chance {result['chance']:.2%}; "
        f"{result['parameters']:,} parameters, {result['seconds']:,.0f} s"
    )
    tell_json(args.json, result)
    return 0


def _config(args, training: dict, preset: str):
    """The configuration of a task; preset: its default. The three-factor rule brings the neuromodulators that it needs."""
    assigned = {assignment.partition("=")[0].strip() for assignment in args.assignments}
    rule = args.learning or ("three-factor" if args.task == "bandit" and "training.learning" not in assigned else None)
    learning = {"learning": rule} if rule else {}
    brain = {"neuromodulation": True} if rule == "three-factor" and "brain.neuromodulation" not in assigned else {}
    flags = {"training": training | learning, "brain": brain}
    return config_of(args, flags, get_preset(preset))


def _show(args):
    return (lambda _: None) if args.json == STDOUT else functools.partial(print, flush=True)


def play(args) -> int:
    """`neurogen bench tasks bandit`: pull, and say how often the better arm was chosen."""
    from .benchmarks import bandit
    from .brain.model import NeuroGenModel
    from .system.waiting import Waiting

    for name in ("pairs", "delay", "items", "data"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is not about bandit; leave it out")
    pulls, interval = args.steps or 200, args.eval_interval or 20
    given = {"seed": args.seed, "batch": args.batch_size, "learning_rate": args.learning_rate}
    config = _config(args, {name: value for name, value in given.items() if value is not None}, PRESET)
    config = config.replace(brain={"vocabulary": bandit.VOCABULARY}, training={"segment": config.brain.chunk})
    began, show, better = time.monotonic(), _show(args), []
    game = bandit.Bandit(NeuroGenModel.from_config(config, backend=backend_of(args)), config.training.batch, args.seed)
    with Waiting("pulling", pulls, "pulls") as waiting:
        for pull in range(1, pulls + 1):
            better.append(float(game.pull(config.training.learning_rate)[0].mean()))
            waiting.show(pull)
            if pull % interval == 0:
                show(f"after {pull:,} of {pulls:,} pulls: the better arm {sum(better[-interval:]) / interval:.1%} of the time")
    last = better[-max(1, pulls // 4) :]
    result = {
        "task": "bandit",
        "preset": config.preset,
        "learning": config.training.learning,
        "accuracy": sum(last) / len(last),
        "chance": 0.5,
    }
    result |= {"steps": pulls, "batch": config.training.batch, "seconds": time.monotonic() - began, "pulls": better}
    share, took = f"the better arm {result['accuracy']:.1%} of the time", f"{result['seconds']:,.0f} s"
    show(f"bandit: {share} in the last {len(last):,} pulls, chance 50.0%; {took}")
    tell_json(args.json, result)
    return 0


def learn_stories(config, backend) -> dict:
    """Train a model of this configuration on the built-in stories, in a folder that is removed, and return how many of the questions about
    held-out stories it answers."""
    import tempfile

    from . import library

    with tempfile.TemporaryDirectory() as folder:
        summary = library.train(config, out=folder, backend=backend).summary
    if not summary:
        raise KeyboardInterrupt
    return {
        "accuracy": summary["question_accuracy"],
        "chance": summary["chance_accuracy"],
        "tested": summary["questions"],
        "steps": summary["steps"],
        "parameters": summary["parameters"],
        "seconds": summary["seconds"],
        "loss": summary["val_loss"],
    }


def train(config, task, backend, show) -> dict:
    """Train a model of this configuration on a task; `show` is given a line of text after each test but the last. Returns the accuracy, 0
    to 1, of all tests, and what it took."""
    from .benchmarks.tasks import accuracy
    from .brain.model import NeuroGenModel
    from .learning.diagnosis import origin
    from .learning.schedule import learning_rate
    from .system.waiting import Waiting

    training = config.training
    model = NeuroGenModel.from_config(config, backend=backend)
    act, testing = model.activity(task.length, training.batch, learning=True), model.activity(task.length, training.batch)
    sequences, began, tests = getattr(task, "tests", TESTED), time.monotonic(), []
    with Waiting("training", training.steps, "updates") as waiting:
        for step in range(training.steps):
            act.reset()
            loss, _, norm = model.update(
                act, *task.batch(step, training.batch, training.seed), learning_rate(training, step, training.steps)
            )
            if not (loss < float("inf") and norm < float("inf")):
                raise ConfigError(f"step {step + 1}: the loss or the gradient is not finite{origin(model, act)}")
            waiting.show(step + 1)
            if (step + 1) % training.eval_interval == 0 and step + 1 < training.steps:
                tests.append((step + 1, accuracy(model, testing, task, min(sequences, TESTED))))
                show(f"after {step + 1:,} of {training.steps:,} updates: loss {loss:.4f}, {tests[-1][1]:.2%} right")
    tests.append((training.steps, accuracy(model, testing, task, sequences)))
    return {
        "accuracy": tests[-1][1],
        "chance": task.chance,
        "tested": sequences,
        "steps": training.steps,
        "parameters": model.parameters,
        "seconds": time.monotonic() - began,
        "tests": tests,
    }
