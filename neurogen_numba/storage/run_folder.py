"""The run directory: everything that one training run writes, under OUT/NAME.

nano-1/
    lock               held by the process that trains
    config.json        every setting, written when training begins
    metrics.jsonl      one record per line
    summary.json       what came out of it, written at the end
    encoded/           the text that is trained on as tokens: see text/batches.py
    checkpoints/       step-00000100, ...: see checkpoint.py
    conversations/     what /save of the chat has written: see conversation.py
    aside-1/           what came after a checkpoint that the run went on from: its checkpoints, and metrics.jsonl as it was
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
from pathlib import Path

from ..config import Config
from ..errors import BackendError, CheckpointError, ConfigError
from . import checkpoint

LOCK, CONFIG, METRICS, SUMMARY = "lock", "config.json", "metrics.jsonl", "summary.json"
TOKENIZER = "tokenizer"  # one that the run was given, in files
TOKENS = "encoded/tokens.bin"  # made before the run begins, and made again where it is gone
SAVING = ".saving"  # ends the name of a file until it is whole
LATEST, BEST = "latest", "@best"  # how a command may be told which run, and which checkpoint of it


def create(out: Path, name: str | None, preset: str) -> Path:
    """Make the directory of a new run, `out/name`; without a name PRESET-1, PRESET-2, ..., the first that is free.

    Raises ConfigError if the name is not a plain folder name, the directory holds a run already, or it cannot be made.
    """
    out = Path(out)
    try:
        make_folder(out)
        if name is None:
            return _next_free(out, preset)
        if name in ("", ".", "..") or not _printable(name) or any(character in name for character in "/\\"):
            raise ConfigError(f"--name {name!r}: a plain folder name is needed; the folder that it goes in is --out")
        check_name(name)
        run = out / name
        make_folder(run)
        if _begun(run):
            raise ConfigError(f"{run} already holds a run; go on with it by --resume, or choose another --name")
        return run
    except OSError as error:
        raise ConfigError(f"no run can be started under {out}: {error.strerror}; choose another --out or --name") from None


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, where there is none. Raises OSError that says what is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, in_the_way(folder) or error.strerror) from None


def in_the_way(folder: Path) -> str | None:
    """What is there in place of a folder, of which the system says "File exists", or None."""
    try:
        return None if stat.S_ISDIR(os.stat(folder).st_mode) else f"{folder} is a file"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"{folder} {'is' if os.path.islink(folder) else 'lies in'} a link to itself"
    return f"{folder} is a link that leads nowhere" if os.path.islink(folder) else None


def _printable(name: str) -> bool:
    """Whether a name can be shown, and typed again. Where the locale is ASCII, its bytes count as UTF-8."""
    try:
        return os.fsencode(name).decode("utf-8").isprintable()
    except UnicodeError:
        return False


def check_name(name: str) -> None:
    """Raises ConfigError for the name of a new run that commands would take for something else."""
    taken = {LATEST: "the newest run"}.get(name) or (name.endswith(BEST) and "a checkpoint of a run") or (name.startswith("-") and "a flag")
    if taken:
        raise ConfigError(f"{name!r} cannot name a run: commands would take it for {taken}; choose another name")


def _begun(run):
    """Whether anything of a run is there. The first that is written is its configuration; a kill may leave it half done."""
    return any(path.name != CONFIG + SAVING and not is_lock(path) and not _encoded(path) for path in Path(run).iterdir())


def is_lock(path: Path) -> bool:
    """Whether a file is the lock of a run, which holds at most the id of a process."""
    if path.name != LOCK or not path.is_file():
        return False
    with open(path, "rb") as file:
        return re.fullmatch(rb"[0-9]{0,20}", file.read(21)) is not None


def _encoded(folder):
    """Whether a folder holds the tokens that a run has made before it began, and nothing else."""
    from ..text.tokenfile import PART

    made = Path(TOKENS)
    if folder.name != made.parent.name or not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if names <= {made.name + PART}:
        return True
    try:
        said = json.loads((folder / made.with_suffix(".json").name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    ours = {made.name, *(made.with_suffix(suffix).name for suffix in (".json", ".tokenizer"))}
    return names <= ours and isinstance(said, dict) and "made_of" in said


def is_run(folder: str | Path) -> bool:
    """Whether a run writes into a folder, or is about to."""
    lock, config, metrics, checkpoints = (os.path.exists(Path(folder) / name) for name in (LOCK, CONFIG, METRICS, "checkpoints"))
    return (config and (lock or metrics or checkpoints)) or (lock and not _begun(folder))


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
    if not _begun(run):
        shutil.rmtree(run, ignore_errors=True)


def latest_run(out: Path, begun: bool = False) -> Path:
    """The run under `out` whose newest whole checkpoint was saved last; begun: or that began training last, saved or not.

    Raises ConfigError if there is none.
    """
    try:
        runs = list(Path(out).iterdir())
    except OSError:
        runs = []
    times = [(when, run) for run in runs if (when := _when(run, begun))]
    if not times:
        raise ConfigError(f"no trained run under {out}; train one first with `neurogen train`, or give its folder with --out")
    return max(times)[1]


def _when(run, begun):
    """When a run last saved, in ns; begun: or began, whichever was later. 0 where that never happened."""
    try:
        saved = (checkpoint.latest(run) / checkpoint.MANIFEST).stat().st_mtime_ns
    except CheckpointError:  # not a run, or one that has saved nothing yet
        saved = 0
    return max(saved, (run / CONFIG).stat().st_mtime_ns if begun and (run / CONFIG).is_file() else 0)


def find_run(path: str, out: Path) -> Path:
    """The run meant by `path`: a folder, or the name of a run under `out`. Raises ConfigError if there is neither."""
    folder, named = Path(path), Path(out) / path
    if not (os.path.exists(named) or os.path.exists(folder)):
        raise ConfigError(f"there is no {path}: neither a folder, nor a run of that name under {out}")
    if _resumable(named) and not (_resumable(folder) or os.path.isfile(folder / checkpoint.MANIFEST)):
        return named
    if os.path.isfile(folder):
        raise ConfigError(f"{path} is a file; the folder of a run is wanted, and text is named by --data")
    return folder


def _resumable(folder):
    return os.path.isdir(folder / "checkpoints") or os.path.isfile(folder / CONFIG)


def find_checkpoint(path: str | None, out: Path) -> tuple[Path, list[str]]:
    """The checkpoint meant by `path`: a checkpoint folder, a run (its newest sound one), RUN@best, or None or "latest" for the newest run
    under `out`; and for each damaged one that would have come before it a sentence that says so.

    Raises ConfigError if there is no run, CheckpointError if it has no such checkpoint.
    """
    best = path is not None and path.endswith(BEST)
    run = latest_run(out) if path in (None, LATEST) else find_run(path.removesuffix(BEST) if best else path, out)
    if (run / LOCK).is_file() and not checkpoint.saved(run):
        raise CheckpointError(f"{run} has saved no checkpoint yet; train it first: neurogen train --resume {shlex.quote(str(run))}")
    if best:
        return checkpoint.best(run)
    return checkpoint.newest(run) if (run / "checkpoints").is_dir() else (run, [])


def find_resumable(path: str | None, out: Path) -> tuple[Path, Path | None, list[str]]:
    """(run, checkpoint, sentences) to go on from, as `path` says in the words of `find_checkpoint`; checkpoint None: the newest sound one.

    Raises ConfigError if there is no run, CheckpointError if it has no such checkpoint, or one that is not in a run.
    """
    if path is not None and path.endswith(BEST):
        run = find_run(path.removesuffix(BEST), out)
        return run, *checkpoint.best(run)
    run = latest_run(out, begun=True) if path in (None, LATEST) else find_run(path, out)
    if not (run / checkpoint.MANIFEST).exists():
        if not (run / CONFIG).is_file():
            checkpoint.latest(run)  # says that this is no run, before a lock is put into it
        checkpoint.saved(run)  # says where they cannot be, before it is trained for hours
        return run, None, []
    if checkpoint.step_of(run.absolute()) is None or run.absolute().parent.name != "checkpoints":
        raise CheckpointError(f"{run} is a checkpoint outside a run; make a run of it with `neurogen migrate {run} runs/NAME --preset ...`")
    checkpoint.verify(run)
    return run.absolute().parent.parent, run, []


def set_aside(run: Path, step: int) -> Path | None:
    """Move the checkpoints after `step` into a folder of their own, run/aside-1 or the first that is free, itself a run with a copy of the
    log. Returns that folder, or None where there are none. Raises BackendError if they cannot be moved."""
    run = Path(run)
    later = [folder for folder in checkpoint.saved(run) if checkpoint.step_of(folder) > step]
    if not later:
        return None
    try:
        aside = _next_free(run, "aside")
        (aside / "checkpoints").mkdir()
        if (run / METRICS).is_file():
            shutil.copy2(run / METRICS, aside / METRICS)
        for folder in reversed(later):  # killed half-way, what is left is what came before
            folder.rename(aside / "checkpoints" / folder.name.removesuffix(".old"))
    except OSError as error:
        raise BackendError(f"{run}: checkpoints after step {step} cannot be moved: {error.strerror}; make room, or allow it") from None
    return aside


def read_config(run: Path) -> Config:
    """The settings that a run began with. Raises CheckpointError if they cannot be read."""
    path = Path(run) / CONFIG
    try:
        return Config.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; start the run again under another --name") from None


# The lock

PATIENCE = 0.5  # seconds: a process killed in the moment in which it starts another leaves its lock to that one until that one runs

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


@contextlib.contextmanager
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
    """Whether a process keeps a run to itself now."""
    try:
        with open(Path(run) / LOCK, "r+b", buffering=0) as file:
            if not _acquire(file.fileno()):
                return True
            _release(file.fileno())
    except OSError:  # no lock was ever taken, or this person may not take one
        pass
    return False


# Files that are whole or not there


def write_json(path: Path, values: dict) -> None:
    """Write a JSON file, or leave the one before as it was. Raises BackendError if it cannot be written."""
    try:
        write_whole(Path(path), (json.dumps(values, indent=2) + "\n").encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, or leave the one before as it was. Raises OSError if it cannot be written."""
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
    return BackendError(f"{path} cannot be written: {error.strerror}; make room or change its permissions, then go on with --resume")


class MetricsLog:
    """The measurements of a run, one JSON object per line, each flushed as it is written.

    Opened at `step`, the log is first cut back to what was known then: a run that goes on from a checkpoint repeats the later steps.
    A line torn by a kill goes too. Both happen at once or not at all. Raises BackendError if the log cannot be read or written.
    """

    def __init__(self, path: Path, step: int = 0):
        self.path = Path(path)
        self._waiting = b""  # records that the disk has not taken yet
        try:
            if self.path.exists():
                write_whole(self.path, _until(step, self.path.read_bytes()))
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  open as long as the log
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def write(self, record: dict) -> str | None:
        """Append one record; its "step", if it has one, is what a later resume cuts by.

        A record that the disk refuses waits, in memory, for the next one. Returns a sentence that says so when that begins, otherwise None.
        """
        refused = bool(self._waiting)
        self._waiting += json.dumps(record).encode() + b"\n"
        error = self._flush()
        return f"{_cannot_write(self.path, error)}; until then it is kept in memory" if error and not refused else None

    def _flush(self):
        """Write what waits, all of it or nothing: the error, or None."""
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
        """Raises BackendError if records are left that the disk does not take."""
        error = self._flush()
        self._file.close()
        if error:
            raise _cannot_write(self.path, error)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind, *_) -> None:
        with contextlib.suppress(BackendError) if kind else contextlib.nullcontext():  # what went wrong first is what is told
            self.close()


def _until(step, data):
    """The lines before the first record of a step after `step`, without those that are not JSON objects, or whose step is no number."""
    kept = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict):
            continue
        at = record.get("step", 0)
        if not isinstance(at, (int, float)):
            continue
        if at > step:
            break
        kept.append(line + b"\n")
    return b"".join(kept)
