"""`neurogen runs`: the runs in a folder, with the commands for each."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path

from .cli import Parser, add_json_flag, command, tell_json
from .errors import NeuroGenError
from .storage import checkpoint
from .storage.run_folder import CONFIG, METRICS, SUMMARY, in_use, is_run, read_config

TAIL = 1_000_000  # bytes at the end of metrics.jsonl that are searched for the latest evaluation


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
    time, ISO 8601), training (whether a process trains it now), commands (name -> command line). Unknown values are None."""
    try:
        config = read_config(run)
        preset, planned = config.preset, config.training.steps
    except NeuroGenError:  # a checkpoint has a copy, but reading it takes long
        preset = planned = None
    saved = _saved(run)
    steps = checkpoint.step_of(saved[-1]) if saved else 0
    word = shlex.quote(str(run))
    done, training = planned is not None and steps >= planned, in_use(run)
    resume = f"neurogen train --resume {word}" + (f" --steps {2 * steps}" if done else "")
    return {
        "name": run.name,
        "folder": str(run),
        "preset": preset,
        "steps": steps,
        "steps_planned": planned,
        "validation_loss": _validation_loss(run),
        "bytes": _size(run),
        "checkpoints": len(saved),
        "changed": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(_changed(run))),
        "training": training,
        "commands": ({} if training else {"resume": resume}) | ({"chat": f"neurogen chat {word}"} if saved else {}),
    }


def _validation_loss(run):
    """The latest loss on held-out text, in nats per token; None if it was never measured."""
    try:
        with open(run / METRICS, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        if b'"evaluation"' not in line:
            continue
        try:
            record = json.loads(line)
            if record["kind"] == "evaluation":
                return float(record["loss"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


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


def _show(found, out):
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
    wide, narrow = console.width >= 100, console.width < 70
    columns = {  # header -> justification, cell of a run
        "run": ("left", lambda row: row["name"]),
        "preset": ("left", lambda row: row["preset"] or "?"),
        "steps": ("right", lambda row: f"{row['steps']:,}" + (f" / {row['steps_planned']:,}" if row["steps_planned"] else "")),
        "val loss": ("right", lambda row: "" if row["validation_loss"] is None else f"{row['validation_loss']:.3f}"),
        "size": ("right", lambda row: decimal(row["bytes"])),
        "changed": ("left", lambda row: row["changed"][: 16 if wide else 10].replace("T", " ")),
        "can": ("left", lambda row: ", ".join(["trains now"] * row["training"] + list(row["commands"]))),
    }
    if narrow:
        del columns["preset"], columns["size"], columns["changed"]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, (justify, _) in columns.items():
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in ("run", "preset", "can"))
    for row in found:
        table.add_row(*(Text(printable(cell(row))) for _, cell in columns.values()))
    console.print(table)
    newest = next((row for row in found if "chat" in row["commands"]), found[0])
    for each in newest["commands"].values():
        console.print(Text(printable(each), "dim"), soft_wrap=True)
