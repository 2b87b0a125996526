"""The package as a library: `train` and `load`, and the `Run` that training returns."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config
from .errors import BackendError, ConfigError
from .learning.stopping import Signals
from .presets import get_preset
from .storage import run_folder
from .system import streams, waiting
from .text.sources import absolute

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .backends.base import Backend
    from .brain.model import NeuroGenModel
    from .learning.report import StepReport
    from .neurons import Neuron
    from .text.tokenizer import Tokenizer
    from .ui.history import History

CORPUS = "corpus.jsonl"  # texts that came from Python, in the folder of the run


def train(
    config: str | Config = "nano",
    data: str | os.PathLike[str] | Iterable[str] = "",
    *,
    brain: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    neuron: Neuron | str | None = None,
    tokenizer: Tokenizer | None = None,
    name: str | None = None,
    out: str | os.PathLike[str] = "runs",
    backend: str | Backend = "auto",
    on_step: Callable[[StepReport], object] | None = None,
    progress: bool = True,
) -> Run:
    """Train a model, as `neurogen train` does, and return the run.

    config: name of a preset, or a Config; brain, training, text replace fields of it, as in `train("nano", training={"steps": 500})`.
    data: a file, folder, address or data set, as --data names them; or texts, an iterable of str, each a document; it is read to its end
    and kept in the folder of the run. Empty: the built-in stories.
    neuron: what all modules are made of: a Neuron (`neurogen_numba.neuron`), or the name of one.
    tokenizer: one to use in place of the one that `config.text` asks for. It is saved with the run.
    name, out: the run is the folder out/name; without a name PRESET-1, PRESET-2, ...
    on_step: called with the report of every step that is logged; if it returns False, training ends, with everything kept.
    progress: show a bar, the loss and what was evaluated: in a notebook as one output that changes, else on standard error.

    An interrupt (Ctrl-C, or a notebook's stop button) also ends training with a checkpoint; `Run.resume` continues. Raises ConfigError,
    DataError, BackendError or TrainingError, in one sentence each; what `on_step` raises, after a checkpoint.
    """
    from .learning.trainer import Trainer
    from .neurons.loading import compile_own
    from .show import find

    config, texts = _configured(config, data, {"brain": brain, "training": training, "text": text})
    config = config.with_neuron(neuron) if neuron else config
    compile_own(config.brain)
    if config.training.distill:
        config = config.replace(training={"distill": absolute(str(find(config.training.distill, Path(out))))})
    made = run_folder.absent(Path(out))
    with Signals() as signals, _quiet(not progress):
        folder = run_folder.create(Path(out), name, config.preset)
        with run_folder.lock(folder):
            try:
                if texts is not None:
                    config = config.replace(text={"data": _write_texts(texts, folder / CORPUS), "field": "text"})
                trainer = Trainer(config, folder, backend, tokenizer=tokenizer)
            except BaseException:  # an interrupt too: nothing was trained, so leave no empty folder behind
                (folder / CORPUS).unlink(missing_ok=True)
                shutil.rmtree(folder / run_folder.TOKENIZER, ignore_errors=True)
                run_folder.discard(folder, made)
                raise
            signals.hand_over(trainer.stop)
            _watch(trainer, on_step, progress, signals)
    return Run(folder, trainer.model)


def load(run: str | os.PathLike[str] = "latest", *, out: str | os.PathLike[str] = "runs", backend: str | Backend = "auto") -> NeuroGenModel:
    """A trained model: of a run ("nano-1": its newest checkpoint; "nano-1@best"), of a folder, or of the run trained last ("latest").

    Raises ConfigError where there is no such run, CheckpointError where it cannot be read.
    """
    from .show import find
    from .show import load as load_checkpoint

    return load_checkpoint(find(os.fspath(run), Path(out)), backend)


class Run:
    """A training run: its folder, its measurements, and its model."""

    def __init__(self, folder: str | os.PathLike[str], model: NeuroGenModel | None = None):
        """Raises ConfigError if the folder is not that of a run."""
        self.folder, self._model = Path(folder), model
        if not run_folder.is_run(self.folder):
            raise ConfigError(f"{self.folder} is not the folder of a run; name one, for example runs/nano-1")

    @property
    def history(self) -> History:
        """The measurements: `history.training["loss"]` and the like, float64 [reports]; `history.validation`; `history.samples`."""
        from .ui.history import read_history

        return read_history(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The result of a run that has ended: steps, seconds, losses. Empty before."""
        try:
            return json.loads((self.folder / run_folder.SUMMARY).read_bytes())
        except (OSError, ValueError):
            return {}

    @property
    def model(self) -> NeuroGenModel:
        """The model as training left it, or of the newest checkpoint, with averaged weights if the run averages them."""
        if self._model is None:
            self._model = load(self.folder)
        return self._model

    def best(self, backend: str | Backend = "auto") -> NeuroGenModel:
        """The model of the checkpoint with the lowest validation loss."""
        return load(f"{self.folder}{run_folder.BEST}", backend=backend)

    def plot(self) -> Figure:
        """A figure of losses, throughput, learning rate and samples."""
        from .ui.training_page import training_page

        return training_page(self.history, self.folder.name)

    def brain(self, backend: str | Backend = "auto") -> Figure:
        """A figure of the brain of the newest checkpoint: raster, time constants, weights, memories. Raises ConfigError if nothing was
        saved yet."""
        from .figures import snapshot_of
        from .ui.brain_page import brain_page

        snapshot = snapshot_of(self.folder, backend)
        if snapshot is None:
            raise ConfigError(f"{self.folder}: no checkpoint, or no sample of text, was saved yet; train on")
        return brain_page(snapshot, self.history, self.folder.name)

    def resume(
        self,
        steps: int | None = None,
        *,
        backend: str | Backend = "auto",
        on_step: Callable[[StepReport], object] | None = None,
        progress: bool = True,
    ) -> Run:
        """Continue training, bit for bit, from the newest checkpoint; to a total of `steps` if given. Otherwise as `train`."""
        from .learning.trainer import Trainer

        with Signals() as signals, _quiet(not progress), run_folder.lock(self.folder):
            trainer = Trainer.resume(self.folder, steps, backend)
            signals.hand_over(trainer.stop)
            _watch(trainer, on_step, progress, signals)
        return Run(self.folder, trainer.model)

    def __repr__(self) -> str:
        summary = self.summary
        if not summary:
            return f"Run({str(self.folder)!r}, not ended)"
        return f"Run({str(self.folder)!r}, {summary['steps']:,} steps, validation {summary['val_loss']:.4f} nats)"


def _configured(config, data, sections):
    """(configuration, texts or None) for the arguments of `train`."""
    config = get_preset(config) if isinstance(config, str) else config
    if not isinstance(config, Config):
        raise ConfigError(f"config: the name of a preset, or a Config, is needed, not {config!r}")
    if "steps" in (sections["training"] or {}) and "max_minutes" not in sections["training"]:
        sections["training"] = {**sections["training"], "max_minutes": 0.0}  # an explicit number of steps has no time limit
    config = config.replace(**{section: fields for section, fields in sections.items() if fields})
    if isinstance(data, (str, os.PathLike)):
        name = os.fspath(data) or config.text.data
        return config.replace(text={"data": absolute(name)}), None
    if not isinstance(data, Iterable):
        raise ConfigError(f"data: a path, or an iterable of texts, is needed, not {data!r}")
    return config, data


def _write_texts(texts, path):
    """Write texts as JSON lines. Returns the path. Raises ConfigError for a value that is not a str."""
    try:
        with open(path, "w", encoding="ascii") as file:
            for number, text in enumerate(texts):
                if not isinstance(text, str):
                    raise ConfigError(f"data: text {number} is {type(text).__name__}; a str is needed for each document")
                file.write(json.dumps({"text": text}) + "\n")
    except OSError as error:
        raise BackendError(f"{path} cannot be written: {error.strerror}; make room, or choose another out") from None
    return str(path.absolute())


def _quiet(quiet):
    """A context in which, if `quiet`, no work that takes long is shown."""
    return waiting.shown_by(lambda sentence, done, total: None) if quiet else contextlib.nullcontext()


def _watch(trainer, on_step, progress, signals):
    """Train to the end, or until it is stopped."""
    from .learning.report import StepReport
    from .ui import Unbreakable
    from .ui.progress import ProgressView

    failure, view = None, None
    with contextlib.ExitStack() as views:
        if progress:
            view = views.enter_context(Unbreakable(lambda: ProgressView(trainer.run.name), streams.complain))
            signals.tell = view.say
        for report in trainer.reports():
            if view:
                view.show(report)
            if isinstance(report, StepReport) and on_step and failure is None:
                try:
                    if on_step(report) is False:
                        trainer.stop()
                except BaseException as error:
                    failure = error
                    trainer.stop()
        if view and trainer.step < trainer.steps:
            view.say(f"stopped after {trainer.step:,} of {trainer.steps:,} steps; Run.resume continues")
    if failure is not None:
        raise failure
