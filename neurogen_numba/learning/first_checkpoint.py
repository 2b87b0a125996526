"""A run that begins with a model: its folder with one checkpoint, of step 0, from which training resumes."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from ..errors import ConfigError
from ..storage import checkpoint, run_folder
from .trainer import beginning


def make_empty(run: Path) -> Path:
    """Create the folder of a new run; it may contain a lock, and nothing else. Raises ConfigError."""
    run_folder.check_name(run.name)
    try:
        run_folder.make_folder(run)
        if not all(run_folder.is_lock(path) for path in run.iterdir()):
            raise ConfigError(f"{run} is not empty; choose another folder for the new run")
    except OSError as error:
        raise ConfigError(f"{run} cannot be made: {error.strerror}; choose another folder for the new run") from None
    return run


@contextlib.contextmanager
def new_run(run: Path):
    """A context in which the folder of a new run is made: empty at the beginning, and gone at the end if nothing was written. Raises
    ConfigError."""
    make_empty(run)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            run.rmdir()


def begin_run(model, run: Path, trains: bool = True) -> int:
    """Write the first checkpoint of a run, with a zero state, and its configuration; whole or not at all. Returns the checkpoint's bytes.

    trains: whether any updates are planned. The caller holds the lock of the run. Raises ConfigError if another process has used the
    folder meanwhile.
    """
    make_empty(run)
    saved = checkpoint.step_folder(run, 0)
    trainer = beginning(model.config) | ({} if trains else {"steps": 0, "planned": True})
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, saved.parent, ignore_errors=True)
        size = model.save(saved, model.activity(1, model.config.training.batch).state(), trainer)
        run_folder.write_json(run / run_folder.CONFIG, model.config.to_dict())
        undo.pop_all()
    return size
