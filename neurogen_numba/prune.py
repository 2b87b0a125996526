"""`neurogen prune`: a trained model without the bundles of synapses that matter least, trained a little further."""

from __future__ import annotations

from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command
from .configure import add_neuron_flag, named_neurons
from .errors import CheckpointError, ConfigError
from .hints import hint

CRITERIA = ("gradient", "magnitude")
SEGMENTS = 30  # of the training text, over which the criterion `gradient` is summed
STEPS = 500  # of the training afterwards
RATE = 0.5  # its learning rate, relative to that of the run


def parser() -> Parser:
    what = "The result is a new run: the pruned model, trained further on the text of the old one."
    flags = Parser("prune", what, ("neurogen prune nano-1@best --keep 0.25", "neurogen quantize nano-1-pruned"))
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("new", nargs="?", type=Path, metavar="NEW", help="folder of the new run; without it RUN-pruned, beside the run")
    flags.add_argument("--keep", type=float, default=0.25, metavar="KEEP", help="share of the bundles that is kept, above 0 and at most 1")
    by = "gradient: the sum of |w dL/dw| over a bundle; magnitude: its weights, relative to those of its projection"
    flags.add_argument("--by", choices=CRITERIA, default=CRITERIA[0], help=by)
    flags.add_argument("--steps", type=int, default=STEPS, help="updates afterwards; 0: none")
    flags.add_argument("--out", type=Path, default=None, help="where runs are kept (default: runs)")
    flags.add_argument("--plain", action="store_true", help="plain lines instead of the live view")
    add_neuron_flag(flags)
    add_backend_flag(flags)
    return flags


@command("prune")
def main(argv=None):
    args = parser().parse_args(argv)
    if not 0 < args.keep <= 1:
        raise ConfigError(f"--keep: a share above 0 and at most 1, not {args.keep}")
    if args.steps < 0:
        raise ConfigError(f"--steps: at least 0, not {args.steps}")
    from .learning.first_checkpoint import new_run
    from .show import beside, find, load

    folder = find(args.run, args.out or Path("runs"))
    run = args.new or beside(folder, args.out, "pruned")
    model = load(folder, backend_of(args), named_neurons(args.assignments))
    if model.quantization or model.config.brain.pruned:
        raise CheckpointError(f"{folder} is quantised or pruned already; prune the run that it was made from")
    with new_run(run):
        return _prune(args, model, folder, run)


def _prune(args, model, folder, run):
    """Prune a model into a new run, and train it further."""
    from .benchmarks import sizes
    from .brain import prune
    from .learning.first_checkpoint import begin_run
    from .learning.stopping import Signals
    from .learning.trainer import Trainer
    from .show import find, load
    from .storage import run_folder
    from .text.batches import open_corpus

    corpus = open_corpus(model.config, model.tokenizer)
    validation = corpus.validation(model.config.training.final_eval_tokens or None)
    if args.by == "gradient":
        batches, learning = corpus.batches(), load(folder, model.backend)
        score = prune.gradients(learning, (batches.next() for _ in range(SEGMENTS)))
    else:
        score = prune.magnitudes(model)
    steps, rate = max(1, args.steps), RATE * model.config.training.learning_rate
    training = {"steps": steps, "max_minutes": 0.0, "warmup": steps // 10, "learning_rate": rate, **prune.PLAIN}
    models = {"before": model, "pruned": prune.pruned(model, args.keep, score, training)}
    with Signals() as signals, run_folder.lock(run):
        begin_run(models["pruned"], run)
        if args.steps:
            trainer = Trainer.resume(run, backend=model.backend)
            signals.hand_over(trainer.stop)
            _watch(trainer, args.plain)
            if trainer.step < trainer.steps:
                done = f"Stopped after {trainer.step:,} of {trainer.steps:,} steps"
                print(f"{done}; to continue: {hint('train --resume', run, model.config)}")
                return 130
            models["trained"] = load(find(str(run), run.parent), model.backend)
    left = [sum(len(p.block.ravel()) for p in each.brain.projections) for each in models.values()]
    sizes.show(list(models), sizes.compare(list(models.values()), validation))
    print(f"{folder} -> {run}, {left[-1]:,} of {left[0]:,} bundles, by {args.by}")
    print(f"To talk to it: {hint('chat', run, model.config)}")
    return 0


def _watch(trainer, plain):
    """Train to the end, or until `trainer.stop`, and show it."""
    from .system import streams
    from .ui import Unbreakable, open_view

    title = f"{trainer.run.name} · {trainer.model.parameters:,} parameters"
    with Unbreakable(lambda: open_view(title, plain=plain or None), streams.complain) as view:
        for report in trainer.reports():
            view.show(report)


if __name__ == "__main__":
    raise SystemExit(main())
