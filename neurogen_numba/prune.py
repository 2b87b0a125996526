"""`neurogen prune`: a trained model without the bundles of synapses that matter least, trained a little further."""

from __future__ import annotations

from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command
from .config import DROPOUTS, ROW_WISE
from .configure import add_neuron_flag, named_neurons
from .errors import CheckpointError, ConfigError
from .hints import hint

SHARE = 0.5  # of the updates of the model: those of the training afterwards


def parser() -> Parser:
    what = "The result is a new run: the pruned model, trained further on the text and on the predictions of the old one."
    flags = Parser("prune", what, ("neurogen prune nano-1@best --keep 0.25", "neurogen quantize nano-1-pruned"))
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("new", nargs="?", type=Path, metavar="NEW", help="folder of the new run; without it RUN-pruned, beside the run")
    flags.add_argument("--keep", type=float, default=0.25, metavar="KEEP", help="share of the bundles that is kept, above 0 and at most 1")
    flags.add_argument("--steps", type=int, help="updates afterwards; 0: none (default: half of those of the model)")
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
    if args.steps is not None and args.steps < 0:
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
    from .brain.prune import restarted
    from .learning import pruning
    from .learning.first_checkpoint import begin_run
    from .learning.stopping import Signals
    from .learning.trainer import Trainer
    from .show import find, load
    from .storage import run_folder
    from .text.batches import open_corpus

    corpus = open_corpus(model.config, model.tokenizer)
    validation = corpus.validation(model.config.training.final_eval_tokens or None)
    usual = max(1, round(SHARE * model.optimizer.steps))
    steps = usual if args.steps is None else args.steps
    start = restarted(model, further_training(model, folder, args.keep, steps or usual))  # `train --resume --steps` may follow
    models = {"before": model}
    if not steps:
        start = models["pruned"] = pruning.prune(start, pruning.coming(corpus.batches()), 0, 1)
    with Signals() as signals, run_folder.lock(run):
        begin_run(start, run, trains=steps > 0)
        if steps:
            trainer = Trainer.resume(run, backend=model.backend)
            signals.hand_over(trainer.stop)
            _watch(trainer, args.plain)
            if trainer.step < trainer.steps:
                done = f"Stopped after {trainer.step:,} of {trainer.steps:,} steps"
                print(f"{done}; to continue: {hint('train --resume', run, model.config)}")
                return 130
            models["trained"] = load(find(str(run), run.parent), model.backend)
    left = [sum(len(p.block.ravel()) for p in each.brain.projections) for each in models.values()]
    figures = sizes.compare(list(models.values()), validation)
    if not steps:  # a run that trains writes its own
        summary = {"preset": start.config.preset, "parameters": start.parameters, "steps": 0, "val_loss": figures["loss"][-1]}
        run_folder.write_json(run / run_folder.SUMMARY, summary)
    sizes.show(list(models), figures)
    print(f"{folder} -> {run}, {left[-1]:,} of {left[0]:,} bundles")
    print(f"To talk to it: {hint('chat', run, model.config)}")
    return 0


def further_training(model, folder, keep, steps):
    """The fields of `config.Training` that change for the training of the pruned model: the old model is the teacher, and nothing is
    dropped, because its predictions regularise, and the pruned model is small."""
    from .brain.prune import PLAIN

    teacher = "" if model.config.training.optimizer in ROW_WISE else str(folder.absolute())
    changed = {"steps": steps, "max_minutes": 0.0, "warmup": steps // 10, "distill": teacher}
    return PLAIN | changed | dict.fromkeys(DROPOUTS, 0.0) | {"prune_keep": keep}


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
