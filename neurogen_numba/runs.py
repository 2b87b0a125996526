"""`neurogen runs`: the runs in a folder, with the commands for each."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from .cli import Parser, add_json_flag, command, tell_json
from .errors import NeuroGenError
from .hints import hint
from .storage import checkpoint
from .storage.run_folder import CONFIG, METRICS, SUMMARY, is_run, last_record, latest_run, progress, read_config

LEAVE_OUT = ("size", "changed", "preset")  # columns that a narrow terminal does without, in this order


def parser() -> Parser:
    flags = Parser("runs")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    add_json_flag(flags, "runs")
    return flags


@command("runs")
def main(argv=None):
    from .cli import STDOUT

    args = parser().parse_args(argv)
    found = [about(run) for run in folders(args.out)]
    if args.json != STDOUT:
        _show(found, args.out)
    tell_json(args.json, {"folder": str(args.out), "runs": found})
    return 0


def folders(out: Path) -> list[Path]:
    """The runs under `out`, latest change first."""
    try:
        with os.scandir(out) as entries:
            runs = [Path(entry.path) for entry in entries if entry.is_dir() and is_run(entry.path)]
    except OSError:
        return []
    return sorted(runs, key=lambda run: (-_changed(run), run.name))


def names(out: Path) -> list[str]:
    """The names of the runs under `out` with a checkpoint, newest first."""
    return [run.name for run in folders(out) if _saved(run)]


def _saved(run):
    try:
        return checkpoint.saved(run)
    except NeuroGenError:
        return []


def _changed(run):
    """The time of a run's last output, in seconds since 1970."""
    written = [run / name for name in (METRICS, SUMMARY, CONFIG)] + [folder / checkpoint.MANIFEST for folder in _saved(run)[-1:]]
    return max((path.stat().st_mtime for path in written if path.is_file()), default=0.0)


def about(run: Path) -> dict:
    """A row about a run: name, folder, preset, steps, steps_planned, validation_loss (nats per token), bytes, checkpoints, changed (local
    time, ISO 8601), state (training, stopped, finished), commands (name -> command line). Unknown values are None."""
    try:
        config = read_config(run)
    except NeuroGenError:  # a checkpoint has a copy, but reading it takes long
        config = None
    saved, reached = _saved(run), progress(run)
    more = 2 * reached.step or (config.training.steps if config else 1)  # a run that `prune --steps 0` made has made none
    resume = hint("train --resume", run, config) + (f" --steps {more}" if reached.finished else "")
    return {
        "name": run.name,
        "folder": str(run),
        "preset": config and config.preset,
        "steps": reached.step,
        "steps_planned": reached.steps,
        "validation_loss": _validation_loss(run),
        "bytes": _size(run),
        "checkpoints": len(saved),
        "changed": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(_changed(run))),
        "state": "training" if reached.training else "finished" if reached.finished else "stopped",
        "commands": ({} if reached.training else {"resume": resume}) | ({"chat": hint("chat", run, config)} if saved else {}),
    }


def _validation_loss(run):
    """The latest loss on held-out text, in nats per token; None if it was never measured."""
    loss = (last_record(run, "evaluation") or {}).get("loss")
    return float(loss) if isinstance(loss, (int, float)) else None


def _size(run):
    """Bytes of all files of a run."""
    total = 0
    for folder, _, files in os.walk(run):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue  # removed meanwhile
    return total


def _abilities(row):
    """The commands for a run in a few words: resume, or resume --steps N after its end, and chat."""
    more = " --steps" + row["commands"]["resume"].rpartition(" --steps")[2] if row["state"] == "finished" else ""
    return ", ".join(name + more * (name == "resume") for name in row["commands"])


def _show(found, out):
    from rich.cells import cell_len
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    from .ui.plain import forgiving, printable

    forgiving(sys.stdout)
    console = Console(highlight=False)
    if not found:
        console.print(Text(f"There is no run under {printable(str(out))}. Train one: neurogen train"), soft_wrap=True)
        return
    date = 16 if console.width >= 100 else 10  # characters of the date, with or without the time
    columns = {  # header -> justification, cell of a run
        "run": ("left", lambda row: row["name"]),
        "preset": ("left", lambda row: row["preset"] or "?"),
        "steps": ("right", lambda row: f"{row['steps']:,}" + (f" / {row['steps_planned']:,}" if row["steps_planned"] else "")),
        "state": ("left", lambda row: row["state"]),
        "val loss": ("right", lambda row: "" if row["validation_loss"] is None else f"{row['validation_loss']:.3f}"),
        "size": ("right", lambda row: decimal(row["bytes"])),
        "changed": ("left", lambda row: row["changed"][:date].replace("T", " ")),
        "can": ("left", _abilities),
    }
    cells = {name: [printable(cell(row)) for row in found] for name, (_, cell) in columns.items()}
    widths = {name: max(map(cell_len, [name, *shown])) + 2 for name, shown in cells.items()}
    for name in LEAVE_OUT:
        if sum(widths.values()) > console.width:
            del columns[name], widths[name]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, (justify, _) in columns.items():
        # a name that is broken over two lines cannot be copied
        table.add_column(name, justify=justify, no_wrap=name != "can", min_width=widths[name] - 2 if name == "run" else None)
    for row in zip(*(cells[name] for name in columns), strict=True):
        table.add_row(*map(Text, row))
    console.print(table, crop=False)
    try:
        latest = str(latest_run(out))  # which commands take if no run is named
    except NeuroGenError:
        latest = found[0]["folder"]
    for each in next((row for row in found if row["folder"] == latest), found[0])["commands"].values():
        console.print(Text(printable(each), "dim"), soft_wrap=True)
