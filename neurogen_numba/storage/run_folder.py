"""The run directory: everything that one training run writes, under OUT/NAME.

nano-1/
    lock               held by the process that trains
    config.json        every setting, written when training begins
    metrics.jsonl      one record per line
    summary.json       the results, written at the end
    encoded/           the training text as tokens: see text/batches.py
    checkpoints/       step-00000100, ...: see checkpoint.py
    teacher/           the larger model that the run learns from: see learning/distillation.py
    conversations/     files that /save of the chat has written: see conversation.py
    aside-1/           after a resume from an earlier checkpoint: the later checkpoints, and the previous metrics.jsonl
    training_viz/      figures: see ui/pictures.py
    tensorboard/       event files, with --tensorboard: see ui/tensorboard.py
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..errors import BackendError, CheckpointError, ConfigError
from . import checkpoint

LOCK, CONFIG, METRICS, SUMMARY = "lock", "config.json", "metrics.jsonl", "summary.json"
TOKENIZER = "tokenizer"  # files of a tokenizer that the caller gave
TOKENS = "encoded/tokens.bin"  # written before the run begins, and again if it is missing
SAVING = ".saving"  # suffix of a file until it is complete
TAIL = 1_000_000  # bytes at the end of metrics.jsonl that are searched for the latest records
LATEST, BEST = "latest", "@best"  # names by which commands choose a run, and a checkpoint


def create(out: Path, name: str | None, preset: str) -> Path:
    """Create the directory of a new run, `out/name`; without a name, the first free one of PRESET-1, PRESET-2, ...

    Raises ConfigError if the name is not a plain folder name, the directory already contains a run, or it cannot be created.
    """
    out = Path(out)
    if name is not None:
        if name in ("", ".", "..") or not _printable(name) or any(character in name for character in "/\\"):
            raise ConfigError(f"--name {name!r}: a plain folder name is needed; --out names the folder around it")
        check_name(name)
    try:
        make_folder(out)
        if name is None:
            return _next_free(out, preset)
        run = out / name
        make_folder(run)
        if _begun(run):
            raise ConfigError(f"{run} already contains a run; continue it with --resume, or choose another --name")
        return run
    except OSError as error:
        raise ConfigError(f"no run can be started under {out}: {error.strerror}; choose another --out or --name") from None


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if they do not exist. Raises OSError that names an obstacle."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, in_the_way(folder) or error.strerror) from None


def in_the_way(folder: Path) -> str | None:
    """The obstacle where a folder cannot be created (a file, a broken link), as a clause; None if there is none."""
    try:
        return None if stat.S_ISDIR(os.stat(folder).st_mode) else f"{folder} is a file"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"{folder} {'is' if os.path.islink(folder) else 'lies in'} a link to itself"
    return f"{folder} is a broken link" if os.path.islink(folder) else None


def _printable(name: str) -> bool:
    """Whether a name can be displayed and typed. In an ASCII locale, its bytes are decoded as UTF-8."""
    try:
        return os.fsencode(name).decode("utf-8").isprintable()
    except UnicodeError:
        return False


def check_name(name: str) -> None:
    """Raises ConfigError if commands would interpret the name of a new run as something else."""
    taken = {LATEST: "the newest run"}.get(name) or (name.endswith(BEST) and "a checkpoint of a run") or (name.startswith("-") and "a flag")
    if taken:
        raise ConfigError(f"{name!r} cannot name a run: commands would take it for {taken}; choose another name")


def _begun(run):
    """Whether a folder contains any file of a run. The configuration is written first; a kill may leave it incomplete."""
    return any(path.name != CONFIG + SAVING and not is_lock(path) and not _encoded(path) for path in Path(run).iterdir())


def is_lock(path: Path) -> bool:
    """Whether a file is the lock of a run, which contains the id of a process or nothing."""
    if path.name != LOCK or not path.is_file():
        return False
    with open(path, "rb") as file:
        return re.fullmatch(rb"[0-9]{0,20}", file.read(21)) is not None


def _encoded(folder):
    """Whether a folder contains only the tokens that a run writes before it begins."""
    from ..text.tokenfile import PART

    made = Path(TOKENS)
    if folder.name != made.parent.name or not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if names <= {made.name + PART}:
        return True
    try:
        description = json.loads((folder / made.with_suffix(".json").name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    ours = {made.name, *(made.with_suffix(suffix).name for suffix in (".json", ".tokenizer"))}
    return names <= ours and isinstance(description, dict) and "made_of" in description


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run, or of one that is starting."""
    lock, config, metrics, checkpoints = (os.path.exists(Path(folder) / name) for name in (LOCK, CONFIG, METRICS, "checkpoints"))
    return (config and (lock or metrics or checkpoints)) or (lock and not _begun(folder))


def _next_free(out, preset):
    for number in itertools.count(1):
        run = out / f"{preset}-{number}"
        try:
            run.mkdir()  # atomic: it fails if another process was faster
            return run
        except FileExistsError:
            continue


def absent(out: Path) -> list[Path]:
    """The folders that `create(out, ...)` has to make around a run, innermost first: `out` and its parents, if they do not exist."""
    return [folder for folder in (Path(out), *Path(out).parents) if not os.path.lexists(folder)]


def discard(run: Path, made: list[Path] = ()) -> None:
    """Remove a run directory if nothing has been written into it yet. Then remove the folders `made` around it (see `absent`) that are
    empty."""
    if _begun(run):
        return
    shutil.rmtree(run, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        for folder in made:
            folder.rmdir()


def latest_run(out: Path, begun: bool = False) -> Path:
    """The run under `out` whose newest whole checkpoint was saved last. begun: a run that began later counts, too, with or without
    checkpoints.

    Raises ConfigError if there is none, CheckpointError if one is training that has no checkpoint yet.
    """
    try:
        runs = list(Path(out).iterdir())
    except OSError:
        runs = []
    times = [(when, run) for run in runs if (when := _when(run, begun))]
    if not times:
        for run in runs:
            if in_use(run):
                raise _no_checkpoint(run)
        raise ConfigError(f"no trained run under {out}; train one first with `neurogen train`, or give its folder with --out")
    return max(times)[1]


def _no_checkpoint(run):
    """The error for a run without a checkpoint: when the first one comes, or how to go on."""
    if not in_use(run):
        return CheckpointError(f"{run} has saved no checkpoint yet; train it first: neurogen train --resume {shlex.quote(str(run))}")
    try:
        first = min(read_config(run).training.checkpoint_interval, progress(run).steps)
    except CheckpointError:  # the settings are written when training begins
        return CheckpointError(f"{run.name} is starting and has no checkpoint yet; try again when it trains")
    return CheckpointError(f"{run.name} is training and has no checkpoint yet; the first comes at step {first:,}")


def _when(run, begun):
    """The time in ns at which a run last saved a checkpoint; begun: or began, whichever is later. 0 if it never did."""
    try:
        saved = (checkpoint.latest(run) / checkpoint.MANIFEST).stat().st_mtime_ns
    except CheckpointError:  # not a run, or a run without checkpoints
        saved = 0
    return max(saved, (run / CONFIG).stat().st_mtime_ns if begun and (run / CONFIG).is_file() else 0)


def find_run(path: str, out: Path) -> Path:
    """The run that `path` names: a folder, or the name of a run under `out`. Raises ConfigError if neither exists."""
    folder, named = Path(path), Path(out) / path
    if not (os.path.exists(named) or os.path.exists(folder)):
        run, mark, _ = path.rpartition("@")
        if mark and run and (os.path.exists(Path(out) / run) or os.path.exists(run)):
            raise ConfigError(f"there is no {path}; did you mean {run}{BEST}?")
        raise ConfigError(f"there is no {path}: neither a folder, nor a run of that name under {out}")
    if not os.path.exists(folder):
        return named
    if _resumable(named) and not (_resumable(folder) or os.path.isfile(folder / checkpoint.MANIFEST)):
        return named
    if os.path.isfile(folder):
        raise ConfigError(f"{path} is a file; give the folder of a run, and name text by --data")
    return folder


def _resumable(folder):
    return os.path.isdir(folder / "checkpoints") or os.path.isfile(folder / CONFIG)


def find_checkpoint(path: str | None, out: Path) -> tuple[Path, list[str]]:
    """The checkpoint that `path` names: a checkpoint folder, a run (its newest sound one), RUN@best; None or "latest" is the newest run
    under `out`. And one sentence for each damaged checkpoint that was skipped.

    Raises ConfigError if there is no run, CheckpointError if it has no such checkpoint.
    """
    best = path is not None and path.endswith(BEST)
    run = latest_run(out) if path in (None, LATEST) else find_run(path.removesuffix(BEST) if best else path, out)
    if (run / LOCK).is_file() and not checkpoint.saved(run):
        raise _no_checkpoint(run)
    if best:
        return checkpoint.best(run)
    return checkpoint.newest(run) if (run / "checkpoints").is_dir() else (run, [])


def find_resumable(path: str | None, out: Path) -> tuple[Path, Path | None, list[str]]:
    """(run, checkpoint, sentences) from which training resumes; `path` as in `find_checkpoint`. checkpoint None: the newest sound one.

    Raises ConfigError if there is no run, CheckpointError if it has no such checkpoint, or one that is not in a run.
    """
    if path is not None and path.endswith(BEST):
        run = find_run(path.removesuffix(BEST), out)
        return run, *checkpoint.best(run)
    run = latest_run(out, begun=True) if path in (None, LATEST) else find_run(path, out)
    if not (run / checkpoint.MANIFEST).exists():
        if not (run / CONFIG).is_file():
            checkpoint.latest(run)  # raises for a folder that is not a run, before a lock is written into it
        checkpoint.saved(run)  # raises if checkpoints cannot be written, before hours of training
        return run, None, []
    if checkpoint.is_quantized(run):
        raise CheckpointError(f"{run} is quantised, and is not trained further; resume the run that it was made from")
    if checkpoint.step_of(run.absolute()) is None or run.absolute().parent.name != "checkpoints":
        raise CheckpointError(f"{run} is a checkpoint outside a run; make it a run with `neurogen migrate {run} runs/NAME --preset ...`")
    checkpoint.verify(run)
    return run.absolute().parent.parent, run, []


def set_aside(run: Path, step: int) -> Path | None:
    """Move the checkpoints after `step` into a new folder, run/aside-1 or the first free number, which is a run with a copy of the log.
    Returns that folder, or None if there are no later checkpoints. Raises BackendError if they cannot be moved."""
    run = Path(run)
    later = [folder for folder in checkpoint.saved(run) if checkpoint.step_of(folder) > step]
    if not later:
        return None
    try:
        aside = _next_free(run, "aside")
        (aside / "checkpoints").mkdir()
        if (run / METRICS).is_file():
            shutil.copy2(run / METRICS, aside / METRICS)
        for folder in reversed(later):  # newest first: if killed half-way, the run still has a gapless history
            folder.rename(aside / "checkpoints" / folder.name.removesuffix(".old"))
    except OSError as error:
        raise BackendError(
            f"{run}: checkpoints after step {step} cannot be moved: {error.strerror}; make room, or change the permissions"
        ) from None
    return aside


def read_config(run: Path) -> Config:
    """The settings with which a run began. Raises CheckpointError if they cannot be read."""
    path = Path(run) / CONFIG
    try:
        return Config.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; start the run again under another --name") from None


@dataclass(frozen=True)
class Progress:
    """How far a run is: updates made, updates planned (None: unknown), whether a process trains it now, whether all of it is done."""

    step: int
    steps: int | None
    training: bool
    finished: bool


def progress(run: Path) -> Progress:
    """The progress of a run. While it trains, the latest step of metrics.jsonl; otherwise that of the newest checkpoint, from which it
    resumes. A time limit lowers the planned steps, so config.json tells them only if nothing else does."""
    training, state = in_use(run), {}
    try:
        saved = checkpoint.saved(run)
    except CheckpointError:
        saved = []
    step = checkpoint.step_of(saved[-1]) if saved else 0
    if saved:
        state = _json_object(saved[-1] / "trainer.json")
    steps = state.get("steps")
    record = last_record(run, "step") if training else None
    if record and isinstance(record.get("step"), int) and record["step"] >= step:
        step, steps = record["step"], record.get("steps")
    if not isinstance(steps, int):
        try:
            steps = read_config(run).training.steps
        except CheckpointError:  # the checkpoint has a copy, but reading it takes long
            steps = None
    done = steps is not None and (step > steps or (step == steps and (Path(run) / SUMMARY).is_file()))
    return Progress(step, steps, training, done and not training)


def last_record(run: Path, kind: str) -> dict | None:
    """The latest record of a kind at the end of metrics.jsonl; None if there is none."""
    return next(latest_records(run, kind), None)


def latest_records(run: Path, kind: str) -> Iterator[dict]:
    """The records of a kind in the last TAIL bytes of metrics.jsonl, the latest first. Damaged lines, and a missing file, yield none."""
    try:
        with open(Path(run) / METRICS, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        if f'"{kind}"'.encode() not in line:
            continue
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("kind") == kind:
                yield record


def _json_object(path):
    """A JSON object from a file; empty if the file is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


# The lock

PATIENCE = 0.5  # seconds: if a process is killed while it starts a child, the child inherits the lock until it executes its program

if os.name == "nt":
    import msvcrt

    _FAR = 1 << 30  # Windows forbids reading a locked byte, so the lock is on a byte far behind the process id

    def _acquire(descriptor):
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _release(descriptor):
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquire(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a forked child still has the file open


@contextlib.contextmanager
def lock(run: Path):
    """Lock a run for this process: `with lock(run): ...`. The system releases the lock when the process ends, for any reason.

    Raises ConfigError if another process holds it, BackendError if the file system has no locks.
    """
    path = Path(run) / LOCK
    try:
        # The file is never removed: a process that opened it before the removal would lock an unlinked file, invisible to others.
        file = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by the `with` below
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror}; choose another run or change its permissions") from None
    with file:
        try:
            waited = 0.0
            while not (acquired := _acquire(file.fileno())) and waited < PATIENCE:
                time.sleep(0.05)
                waited += 0.05
            if not acquired:
                file.seek(0)
                holder = file.read().decode(errors="replace") or "(unknown)"
                raise ConfigError(f"{run} is in use by process {holder}; wait until it ends, or choose another --name")
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except OSError as error:
            raise BackendError(f"{path} cannot be locked: {error.strerror}; choose an --out on another disk") from None
        try:
            yield
        finally:
            _release(file.fileno())


def in_use(run: Path) -> bool:
    """Whether a process holds the lock of a run now."""
    try:
        with open(Path(run) / LOCK, "r+b", buffering=0) as file:
            if not _acquire(file.fileno()):
                return True
            _release(file.fileno())
    except OSError:  # there is no lock file, or this user may not open it
        pass
    return False


# Files that are written atomically


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file atomically: on failure the previous file stays. Raises BackendError if it cannot be written."""
    try:
        write_whole(Path(path), (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: on failure the previous file stays. Raises OSError if it cannot be written."""
    temporary = path.with_name(path.name + SAVING)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path, error):
    return BackendError(f"{path} cannot be written: {error.strerror}; make room or change its permissions, then continue with --resume")


class MetricsLog:
    """The measurements of a run, one JSON object per line, each flushed as it is written.

    Opening at `step` removes the records of later steps, because a resumed run repeats them, and lines torn by a kill. The file is
    rewritten atomically. Raises BackendError if the log cannot be read or written.
    """

    def __init__(self, path: Path, step: int = 0):
        self.path = Path(path)
        self._waiting = b""  # records that are not on the disk yet
        try:
            if self.path.exists():
                write_whole(self.path, _until(step, self.path.read_bytes()))
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  open as long as the log
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def write(self, record: dict) -> str | None:
        """Append one record. A later resume removes it if its "step" is later than the checkpoint.

        If the disk refuses a record, it stays in memory until the next write. Returns a sentence about it at the first refusal, else None.
        """
        refused = bool(self._waiting)
        self._waiting += json.dumps(record).encode() + b"\n"
        error = self._flush()
        return f"{_cannot_write(self.path, error)}; until then records stay in memory" if error and not refused else None

    def _flush(self):
        """Write all waiting records or none. Returns the error, or None."""
        try:
            size = os.fstat(self._file.fileno()).st_size
            if self._file.write(self._waiting) < len(self._waiting):
                self._file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._waiting = b""
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        """Raises BackendError if the disk refuses the remaining records."""
        error = self._flush()
        self._file.close()
        if error:
            raise _cannot_write(self.path, error)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind, *_) -> None:
        with contextlib.suppress(BackendError) if kind else contextlib.nullcontext():  # the first exception wins
            self.close()


def _until(step, data):
    """The lines before the first record of a step after `step`, without lines that are not JSON objects or whose step is not a number."""
    lines = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict):
            continue
        record_step = record.get("step", 0)
        if not isinstance(record_step, (int, float)):
            continue
        if record_step > step:
            break
        lines.append(line + b"\n")
    return b"".join(lines)
