"""The run directory: everything that one training run writes, under OUT/NAME.

nano-1/
    lock               held by the process that trains
    metrics.jsonl      one record per line
    checkpoints/       step-00000100, ...: see checkpoint.py
    training_viz/      figures: see ui/pictures.py
    tensorboard/       event files, with --tensorboard: see ui/tensorboard.py
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from . import checkpoint
from .errors import BackendError, CheckpointError, ConfigError

LOCK = "lock"


def create(out: Path, name: str | None, preset: str) -> Path:
    """Make the directory of a new run, `out/name`; without a name PRESET-1, PRESET-2, ..., the first that is free.

    Raises ConfigError if the name is not a plain folder name, the directory holds a run already, or it cannot be made.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if name is None:
            return _next_free(out, preset)
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise ConfigError(f"--name {name!r}: a plain folder name is needed; the folder that it goes in is --out")
        run = out / name
        run.mkdir(exist_ok=True)
        if any(path.name != LOCK for path in run.iterdir()):
            raise ConfigError(f"{run} already holds a run; go on with it by --resume, or choose another --name")
        return run
    except OSError as error:
        raise ConfigError(f"no run can be started under {out}: {error.strerror}; choose another --out or --name") from None


def _next_free(out, preset):
    for number in itertools.count(1):
        run = out / f"{preset}-{number}"
        try:
            run.mkdir()  # fails if another process was quicker, which a look beforehand would not see
            return run
        except FileExistsError:
            continue


def discard(run: Path) -> None:
    """Remove a run directory in which nothing has been written yet; any other is left alone."""
    if all(path.name == LOCK for path in Path(run).iterdir()):
        shutil.rmtree(run, ignore_errors=True)


def latest_run(out: Path) -> Path:
    """The run under `out` whose newest whole checkpoint was saved last. Raises ConfigError if there is none."""
    try:
        runs = list(Path(out).iterdir())
    except OSError:
        runs = []
    saved = []
    for run in runs:
        try:
            saved.append(((checkpoint.latest(run) / checkpoint.MANIFEST).stat().st_mtime_ns, run))
        except CheckpointError:
            continue  # not a run, or one that has saved nothing yet
    if not saved:
        raise ConfigError(f"no trained run under {out}; train one first with `neurogen train`, or give its folder with --out")
    return max(saved)[1]


def find_run(path: str, out: Path) -> Path:
    """The run meant by `path`: a folder, or the name of a run under `out`."""
    named = Path(out) / path
    return named if (named / "checkpoints").is_dir() and not Path(path).exists() else Path(path)


def find_checkpoint(path: str | None, out: Path) -> Path:
    """The checkpoint meant by `path`: a checkpoint folder, a run (its newest), or None for the newest run under `out`.

    Raises ConfigError if there is no run, CheckpointError if it has no whole checkpoint.
    """
    run = latest_run(out) if path is None else find_run(path, out)
    return checkpoint.latest(run) if (run / "checkpoints").is_dir() else run


# The lock

if os.name == "nt":
    import msvcrt

    _FAR = 1 << 30  # Windows forbids others to read a locked byte, so it is one far behind the process id

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
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough while a forked child still has the file open


@contextmanager
def lock(run: Path):
    """Keep a run to this process: `with lock(run): ...`. The system lets go of it when the process ends, however it ends.

    Raises ConfigError if another process has it, BackendError if the file system has no locks.
    """
    path = Path(run) / LOCK
    try:
        # Never removed: whoever opened it before the removal would hold a lock that nobody else can see.
        file = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by the `with` below
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror}; choose another run or change its permissions") from None
    with file:
        try:
            if not _acquire(file.fileno()):
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


# Files that are whole or not there


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file, or leave the one before as it was. Raises BackendError if it cannot be written."""
    try:
        write_whole(Path(path), (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, or leave the one before as it was. Raises OSError if it cannot be written."""
    temporary = path.with_name(path.name + ".saving")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path, error):
    return BackendError(f"{path} cannot be written: {error.strerror}; make room or change its permissions, then go on with --resume")


class MetricsLog:
    """The measurements of a run, one JSON object per line, each flushed as it is written.

    Opened at `step`, the log is first cut back to what was known then: a run that goes on from a checkpoint repeats the later steps.
    A line torn by a kill goes too. Both happen at once or not at all. Raises BackendError if the log cannot be read or written.
    """

    def __init__(self, path: Path, step: int = 0):
        self.path = Path(path)
        try:
            if self.path.exists():
                write_whole(self.path, _until(step, self.path.read_bytes()))
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  open as long as the log
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def write(self, record: dict) -> None:
        """Append one record; its "step", if it has one, is what a later resume cuts by."""
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _until(step, data):
    """The lines before the first record of a step after `step`, without those that are not JSON objects."""
    kept = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict):
            continue
        if record.get("step", 0) > step:
            break
        kept.append(line + b"\n")
    return b"".join(kept)
