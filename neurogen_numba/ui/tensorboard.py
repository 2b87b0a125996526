"""A run for TensorBoard: event files, written by tensorboardX, which needs neither TensorFlow nor PyTorch."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

from ..errors import ConfigError
from ..learning.report import BrainReport, CheckpointReport, EvalReport, Notice, Report, SampleReport, StepReport

FOLDER = "tensorboard"
MEASURED = ("loss", "accuracy", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second")
HELD_OUT = ("loss", "accuracy", "bits_per_byte")
MISSING = "tensorboardX is not installed: pip install 'neurogen-numba[tensorboard]'"


def check() -> None:
    """Raises ConfigError if tensorboardX is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(f"--tensorboard: {MISSING}")


class TensorBoard:
    """A view that writes an event file: `with TensorBoard(run, step, tell) as view: view.show(report)`.

    A run that resumes from `step` starts a new file, which makes TensorBoard discard later steps of older files. If the disk is full, or
    tensorboardX is missing, `tell` gets a Notice, and no more events are written.
    """

    def __init__(self, run: Path, step: int, tell):
        self.folder, self.step, self.tell = Path(run) / FOLDER, step, tell
        self._file = None

    def __enter__(self) -> TensorBoard:
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            self.folder.mkdir(exist_ok=True)
            # Not SummaryWriter: it writes in a thread, and blocks forever after a full disk has ended that thread.
            self._file = EventsWriter(str(self.folder / "events"), f".{self.step:08d}.{os.getpid()}")
            self._file.write_event(Event(wall_time=time.time(), step=self.step + 1, session_log=SessionLog(status=SessionLog.START)))
            self._file.flush()
        except (OSError, ImportError) as error:
            self._give_up(error)
        return self

    def show(self, report: Report) -> None:
        """Write the numbers of a report. At a checkpoint, everything is flushed, so that a resumed run has no gap."""
        if self._file is None:
            return
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        match report:
            case StepReport():
                parts = [summary.scalar(f"training/{name}", getattr(report, name)) for name in MEASURED]
                parts += [summary.scalar(f"activity/{name}", share) for name, share in report.activity.items()]
            case EvalReport():
                evaluation = "final" if report.last else "validation"
                parts = [summary.scalar(f"{evaluation}/{name}", getattr(report, name)) for name in HELD_OUT]
            case SampleReport():
                parts = [summary.text("sample", _markdown(report))]
            case BrainReport():
                parts = [summary.scalar(f"neuromodulators/{name}", level) for name, level in report.levels.items()]
            case _:
                parts = []
        try:
            for part in parts:
                self._file.write_event(Event(wall_time=time.time(), step=report.step, summary=part))
            if isinstance(report, (EvalReport, CheckpointReport)):
                self._file.flush()
        except OSError as error:
            self._give_up(error)

    def __exit__(self, *failure) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error):
        self._file = None
        why = MISSING if isinstance(error, ImportError) else f"{self.folder} cannot be written: {error.strerror}"
        self.tell(Notice(f"warning: no more events for TensorBoard: {why}; training continues, metrics.jsonl has all of them"))


def _markdown(sample):
    """Prompt, continuation and truth, each as a block without formatting."""
    parts = {"it was given": sample.prompt, "it wrote": sample.text, "the truth": sample.truth}
    blocks = ("\n".join(f"    {line}" for line in text.splitlines()) for text in parts.values() if text is not None)
    return "\n\n".join(f"{name}:\n\n{block}" for name, block in zip(parts, blocks, strict=False))
