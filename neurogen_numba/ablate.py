"""`neurogen bench ablate`: train a recipe, and the recipe with one change at a time, several seeds each, and compare."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from . import configure
from .cli import STDOUT, Parser, add_backend_flag, add_json_flag, command, tell_json
from .configure import add_config_flags, config_of
from .errors import ConfigError, NeuroGenError
from .text.sources import absolute, is_pipe, is_token_file, open_source

QUIET = {"keep_checkpoints": 1, "viz_interval": 0}  # settings of runs without a viewer


def parser() -> Parser:
    flags = Parser("bench")
    flags.prog += " ablate"
    flags.description = (
        "Train a recipe, the same with one change at a time, and compare their losses on held-out text. An interrupted study goes "
        "on when the command is given again."
    )
    add_config_flags(flags)
    flags.add_argument("--data", default=None, help="text to learn, named as for `neurogen train` (default: the preset's)")
    flags.add_argument("--steps", type=int, default=None, help="updates of each run")
    changes = (
        'TOML file with a table for each change, for example ["no dropout"] training.dropout = 0 (default: one part of the brain less)'
    )
    flags.add_argument("--changes", type=Path, default=None, metavar="FILE", help=changes)
    flags.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 1, 2, ...")
    flags.add_argument("--jobs", type=int, default=1, help="runs at a time: several small ones share a GPU well")
    flags.add_argument("--out", type=Path, default=Path("ablations/study"), help="where runs, log, table and figure are kept")
    add_json_flag(flags, "rows")
    add_backend_flag(flags)
    return flags


def changes_of(args, base):
    """The recipe and its changes. Raises ConfigError for a file that cannot be read, or a wrong setting."""
    from .benchmarks.ablation import BASE, COMPONENTS, Change

    tables, source = (configure.read(args.changes, "--changes"), str(args.changes)) if args.changes else (COMPONENTS, "")
    changes = [Change(BASE, base)]
    for name, settings in tables.items():
        if not isinstance(settings, dict):
            raise ConfigError(
                f'{source}: {name}: a table of settings is needed for each change, for example ["no dropout"] training.dropout = 0'
            )
        config = configure.overlay(base, settings, f"{source}: {name}" if source else name)
        if config != base:
            changes.append(Change(name, config, settings))
    if len(changes) == 1:
        raise ConfigError(f"--changes {source}: no change in it differs from the recipe")
    return changes


def check_text(config):
    """Raise an error if runs could not read their text: ConfigError for a pipe, DataError for one that is missing or cannot be read."""
    data = config.text.data
    if is_pipe(data):
        raise ConfigError(f"--data {data}: every run reads the text anew, so it cannot come from a pipe; name a file")
    if is_token_file(data):
        from .text.batches import open_corpus

        open_corpus(config)
    elif data:
        next(iter(open_source(data, config.text.field).read()), None)


@command("bench")
def main(argv=None):
    args = parser().parse_args(argv)
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: at least 1, not {getattr(args, name)}")
    given = {
        "training": {"steps": args.steps} if args.steps is not None else {},
        "text": {"data": absolute(args.data)} if args.data else {},
    }
    base = config_of(args, given).replace(training=QUIET)
    changes = changes_of(args, base)
    from .benchmarks.ablation import LOG, Study

    flags = ["--backend", args.backend, "--precision", args.precision]
    flags += ["--gpu-device", str(args.gpu_device)] if args.gpu_device else []
    study = Study(changes, args.seeds, args.out, flags, args.jobs)
    done = sum(run.result() is not None for run in study.runs)
    if done < len(study.runs):
        check_text(base)
    try:
        with contextlib.closing(study.train()) as under_way:
            _watch(under_way, study, done)
    finally:
        rows = study.rows()
        if rows:
            _tell(args, rows, base)
    if study.failed:
        run, last_line = next(iter(study.failed.items()))
        others = f", and {len(study.failed) - 1} more" if len(study.failed) > 1 else ""
        raise NeuroGenError(f"{run.folder.name} did not end{others}: {last_line}")
    if args.json != STDOUT:
        print(f"Every result is in {args.out / LOG}, the figure in {args.out / 'ablation.png'}")
    return 0


def _watch(under_way, study, done):
    """Show a bar over all updates of the study, until it has ended."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    steps = {run: run.change.config.training.steps for run in study.runs}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} updates"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{done} of {len(study.runs)} runs done", total=sum(steps.values()))
        for running in under_way:
            over = [run for run in study.runs if run not in running and run.result() is not None]
            names = ", ".join(run.folder.name for run in running)
            completed = sum(steps[run] for run in over) + sum(run.step() for run in running)
            progress.update(task, completed=completed, description=f"{len(over)} of {len(study.runs)} runs done, now {names}")
        over = [run for run in study.runs if run.result() is not None]
        progress.update(task, completed=sum(map(steps.get, over)), description=f"{len(over)} of {len(study.runs)} runs done")


def _tell(args, rows, base):
    """The table on screen, in a file and as JSON, and the figure."""
    from .storage.run_folder import write_whole
    from .ui.ablation_page import ablation_page
    from .ui.figures import png

    write_whole(args.out / "ablation.png", png(ablation_page(rows, base.preset)))
    if args.json != STDOUT:
        _table(rows)
    tell_json(args.json, {"preset": base.preset, "rows": [dataclasses.asdict(row) | {"verdict": row.verdict} for row in rows]})


def _table(rows):
    from rich.console import Console
    from rich.table import Column, Table

    numbers = ["nats", "±", "against base", "±"] + (["answered"] if any(row.questions is not None for row in rows) else [])
    table = Table("change", Column("seeds", justify="right"), *(Column(name, justify="right") for name in numbers), "")
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:+.4f}"
        cells = [f"{row.loss:.4f}", *_shown(row.spread), difference, *_shown(row.error)]
        answers = [] if "answered" not in numbers else ["" if row.questions is None else f"{row.questions:.1%}"]
        table.add_row(row.name, str(row.seeds), *cells, *answers, row.verdict)
    Console().print(table)


def _shown(number):
    return ["" if number is None else f"{number:.4f}"]
