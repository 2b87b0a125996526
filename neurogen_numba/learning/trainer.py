"""The training loop: reads text, updates the model, and yields reports; views show them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .. import backends
from ..backends.base import Backend
from ..brain.model import NeuroGenModel
from ..config import Config
from ..distributed.communicator import SOLO, Solo
from ..distributed.team import Team, assemble, begin
from ..errors import CheckpointError, ConfigError, DataError, TrainingError
from ..inference.generation import Sampling, Session, stream
from ..neurons.loading import match_names
from ..planning import budget
from ..storage import checkpoint
from ..storage.run_folder import CONFIG, METRICS, SUMMARY, TOKENIZER, MetricsLog, read_config, set_aside, write_json
from ..storage.saver import Saver, Snapshot, save
from ..system.waiting import doing
from ..text.batches import open_corpus
from ..text.prefetch import Prefetch
from ..text.tokenizer import Tokenizer
from . import pruning
from .brain_snapshot import brain_snapshot
from .distillation import Teacher, load_teacher
from .evaluation import answer_questions, evaluate, streams_for, streams_of, unknown_share
from .report import CheckpointReport, EvalReport, FinalReport, Notice, Report, SampleReport, StepReport
from .samples import SAMPLE_TOKENS, pieces
from .schedule import learning_rate
from .temperature import fit as fit_temperature
from .time_budget import LAST, Mark, Throughput
from .watchdog import Watchdog

PLAN_AT = 50  # updates after which the throughput is stable enough to plan a run of `max_minutes`
MARGIN = 0.03  # of the time limit, reserved
NOTABLE = 0.05  # share of the planned steps by which they become fewer before a notice says so, or more before there is a new plan
POLL_SECONDS = 1.0  # interval at which the wait for text is checked
QUESTIONS = 300  # asked at the end about the held-out stories, at most
SAMPLING = Sampling(temperature=0.7, top_p=0.95)


def beginning(config: Config) -> dict:
    """The trainer document of a run before its first step. It makes `training.steps` steps, or as many as `text.max_chunks` allow."""
    training, text = config.training, config.text
    enough = max(1, text.max_chunks * text.chunk_tokens // (training.batch * training.segment))
    steps = min(training.steps, enough) if text.max_chunks else training.steps
    start = {"step": 0, "tokens": 0, "seconds": 0.0, "looking": 0.0, "looked": 0, "position": None}
    return start | {"steps": steps, "planned": not training.max_minutes}


class Trainer:
    """A run in its directory. `Trainer(config, run)` begins one, `Trainer.resume(run)` resumes the last checkpoint, bit for bit."""

    def __init__(
        self,
        config: Config,
        run: Path,
        backend="auto",
        fit: bool = False,
        begun: bool = False,
        tokenizer: Tokenizer | None = None,
        communicator: Solo = SOLO,
    ):
        """fit: make the first change that lets the run fit into memory. begun: the run has begun before, perhaps on another backend.
        tokenizer: given by the caller, not built from the text; it is saved in the folder. communicator: to the ranks that train with this
        one. Raises BackendError if the run does not fit."""
        if tokenizer:
            tokenizer.save(run / TOKENIZER)
        elif (run / TOKENIZER).is_dir():
            tokenizer = Tokenizer.load(run / TOKENIZER)
        teacher = None
        if config.training.distill:
            backend = backend if isinstance(backend, Backend) else backends.get(backend)
            teacher = load_teacher(config, backend, run)
            tokenizer = tokenizer or teacher.tokenizer
        if tokenizer:
            config = config.replace(brain={"vocabulary": tokenizer.vocabulary})
        with doing("getting ready: reading the text", patience=0):
            corpus = open_corpus(config, tokenizer, run)
            corpus.batches()  # raises for a text that is too short, before the brain is built, which may take long
        config = config.replace(brain={"vocabulary": corpus.tokenizer.vocabulary})
        backend = backend if isinstance(backend, Backend) else backends.get(backend)
        self._fitted = None
        if backend.memory():
            config, self._fitted = budget.settle(config, backend, fit, communicator)
        elif fit or (config.training.memory_limit and not begun):
            raise ConfigError("--fit and --memory-limit are about a GPU's memory, and this run is on the CPU; drop them")
        with doing("getting ready: building the brain", patience=0):
            begin(communicator, config, corpus.tokenizer)
            team = assemble(communicator, lambda: NeuroGenModel.from_config(config, corpus.tokenizer, backend=backend))
            self._setup(team, corpus, run, beginning(config), teacher)

    @classmethod
    def resume(
        cls, run: Path, steps: int | None = None, backend="auto", folder: Path | None = None, communicator: Solo = SOLO, **changes: dict
    ) -> Trainer:
        """Resume from the newest sound checkpoint, or from `folder`, one of the run's; without any checkpoint, from the beginning.

        steps: a new total number of steps, for a longer run; it also removes a time limit. changes: settings that do not affect learning,
        in the form of `Config.replace`: of saving and display, or the new location of the text. Checkpoints after the chosen one are set
        aside when training begins.
        Raises CheckpointError if there is no sound checkpoint or its text has changed; ConfigError if no steps are left.
        """
        if steps is not None:
            changes["training"] = changes.get("training", {}) | {"steps": steps, "max_minutes": 0.0}
        if folder is None and not checkpoint.saved(run) and (run / CONFIG).is_file():
            config = match_names(read_config(run).replace(**changes), str(run))
            trainer = cls(config, run, backend, begun=True, communicator=communicator)
            trainer.steps = steps or trainer.steps  # an explicit number overrides `text.max_chunks`
            trainer._notices = ["no checkpoint had been saved yet: the run starts from the beginning"]
            return trainer
        folder, passed_over = (folder, []) if folder else checkpoint.newest(run)
        backend = backend if isinstance(backend, Backend) else backends.get(backend)
        if backend.memory() and (run / CONFIG).is_file():
            with contextlib.suppress(CheckpointError):  # a damaged file; the checkpoint has the settings too
                budget.settle(read_config(run), backend, communicator=communicator)
        with doing("getting ready: reading the checkpoint", patience=0):
            model, state, saved = NeuroGenModel.restore(folder, backend=backend)
            model.brain.decoder.set_temperature(1.0)
        if model.tokenizer is None:
            raise CheckpointError(f"{folder}: no tokenizer was saved with it; it was not made by `neurogen train`")
        model.config = model.config.replace(**changes)
        trainer = cls.__new__(cls)
        trainer._fitted = None
        try:
            with doing("getting ready: reading the text", patience=0):
                corpus = open_corpus(model.config, model.tokenizer, run)
                begin(communicator, model.config, model.tokenizer, lambda: (*model.content(), state))
                trainer._setup(assemble(communicator, lambda: model), corpus, run, saved)
        except KeyError as missing:
            raise CheckpointError(f"{folder}: trainer.json lacks {missing.args[0]!r}; use another checkpoint") from None
        trainer.team.load_state(state)
        if trainer.act.teacher and trainer.step:  # before the first step its state is zero
            trainer.act.teacher.load_state(state)
        trainer._notices = [*passed_over, f"resuming from step {trainer.step:,}"]
        if steps is not None:
            trainer.steps, trainer.planned = steps, True
        ended = trainer.step == trainer.steps and (run / SUMMARY).is_file()
        if trainer.step > trainer.steps or ended:
            raise ConfigError(f"{run} has made {trainer.step} steps already; to continue, give a higher --steps")
        return trainer

    def _setup(self, team: Team, corpus, run, saved, teacher=None):
        self.team, self.act, model = team, team.act, team.model
        self.model, self.corpus, self.run = model, corpus, run
        model.trained_in = Path(run).absolute()
        self.config = model.config
        training = self.config.training
        self.batches = Prefetch(corpus.batches(saved["position"]))
        self._reset_token = corpus.tokenizer.end_of_text if self.config.text.reset_at_documents else None
        self._val_subset = corpus.validation(training.eval_tokens)
        self._pieces = pieces(self._val_subset.tokens, corpus.tokenizer.end_of_text)
        if training.distill:
            teacher = teacher or load_teacher(self.config, model.backend, run)
            self.act.teacher = Teacher(teacher, corpus.tokenizer, training.segment, training.batch)
        self.step = saved["step"]
        # targets so far; older checkpoints lack it, and their runs counted padding
        self.tokens = saved.get("tokens", self.step * training.batch * training.segment)
        self.steps = saved["steps"]
        self.planned = saved["planned"]  # whether `steps` is planned; with a time limit after PLAN_AT updates
        self.seconds = saved["seconds"]
        self._eval_seconds = saved["looking"]  # of training time, on evaluation, samples and checkpoints
        self._evaluated_at = saved.get("looked", self.step)  # the last step whose evaluations are done
        self.rewired = saved.get("rewired", 0)  # bundles so far
        self._rewiring = team.rewiring
        self._most = self.steps  # that a plan may have: those asked for, or those planned before a resume
        self._announced = self.steps  # the plan that a notice named last
        self._notices = []  # to report first
        self._stopping = False

    def stop(self):
        """End the run after the current update, with a checkpoint. May be called from a signal handler."""
        self._stopping = True

    def reports(self) -> Iterator[Report]:
        """Train to the end, or until `stop`. Yields reports, and appends them to metrics.jsonl.

        A full disk causes notices, and an error only at the end. Raises TrainingError, which names step, module and last checkpoint, if
        loss or gradient are NaN or infinite; DataError, after a checkpoint, if the text fails; CheckpointError or BackendError if the last
        checkpoint, the summary or the copy of a teacher cannot be written.
        """
        aside = set_aside(self.run, self.step)
        if aside:
            self._notices.append(f"the checkpoints after step {self.step:,} were moved to {aside}, with a copy of the log")
        write_json(self.run / CONFIG, self.config.to_dict())
        (self.run / SUMMARY).unlink(missing_ok=True)  # of an earlier end of this run
        if self.act.teacher:
            with doing("saving a copy of the larger model"):
                self.act.teacher.keep(self.run)
        log, saver = MetricsLog(self.run / METRICS, self.step), Saver(self.run, self.config.training.keep_checkpoints)
        with log, saver, contextlib.closing(self.batches), contextlib.ExitStack() as measuring:
            for report in self._train(saver, measuring):
                trouble = log.write(report.to_record())
                yield report
                if trouble:
                    yield Notice(trouble)

    def _train(self, saver, measuring):
        training, watchdog, waited = self.config.training, Watchdog(), 0.0
        yield from self._first_notices()
        self._compile_kernels()
        self._snapshot(None)  # allocate the memory of checkpoint copies now, not during training
        began = time.monotonic() - self.seconds
        plan_at = max(PLAN_AT, self.step + min(PLAN_AT, 12))  # a resumed run has compiled its kernels by then
        throughput = Throughput(Mark(self.step, self.tokens, began + self.seconds, 0.0))
        if self._evaluated_at < self.step:  # the run was stopped before its evaluation
            yield from self._evaluate(watchdog)
        judged = self._last_saved = time.monotonic()
        planned_steps = 0  # of the plan that the time limit ended early
        first, updates = self.step, training.log_interval - self.step % training.log_interval  # until the first report
        show_updates = measuring.enter_context(doing("measuring the speed", min(updates, self.steps - self.step)))
        while self.step < self.steps:
            if pruning.due(self.model, self.step, self.steps):
                yield from self._prune(saver)
            rate = learning_rate(training, self.step, self.steps)
            segment = yield from self._segment(saver, watchdog)
            if segment is None:  # stopped while waiting
                break
            due = self._rewiring and self._rewiring.due(self.step + 1, self.steps)
            reset = self._reset_mask(segment[0])
            if self.act.teacher:
                self.act.teacher.read(*segment, reset)
            loss, accuracy, norm, rewired = self.team.update(*segment, rate, reset, self.step + 1, self.steps, bool(due))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                yield from saver.wait()
                raise self._non_finite_error(loss, norm)
            self.step += 1
            self.rewired += rewired
            self._stopping |= self.team.communicator.stopping
            self.tokens += int((segment[1] >= 0).sum())
            now = time.monotonic()
            self.seconds = now - began
            throughput.add(Mark(self.step, self.tokens, now, self.batches.waited))
            if self.step - first <= updates:
                show_updates(self.step - first)
            if training.max_minutes and self.seconds > training.max_minutes * 60:
                planned_steps, self.steps = self.steps, self.step
            elif training.max_minutes and self.step >= plan_at:
                yield from self._plan(throughput)
            if self.step % training.log_interval == 0 or self.step == self.steps or self._stopping:
                measuring.close()
                report = StepReport(
                    step=self.step,
                    steps=self.steps,
                    tokens=self.tokens,
                    loss=loss,
                    accuracy=accuracy,
                    bits_per_byte=loss / math.log(2) / self._bytes_per_token(segment[1]),
                    learning_rate=rate,
                    gradient_norm=norm,
                    tokens_per_second=throughput.tokens_per_second,
                    seconds=self.seconds,
                    activity=self.act.rates(training.segment),
                    waited=throughput.waited,
                    time_limit=training.max_minutes * 60 or math.inf,
                )
                yield report
                yield from watchdog.step(report)
                yield from watchdog.loading(self.batches.waited - waited, now - judged)
                waited, judged = self.batches.waited, now
            yield from self._written(saver.poll(), watchdog)
            if self._stopping or self.step == self.steps:
                if training.viz_interval:
                    yield brain_snapshot(self.model, self.act, self.step)
                break
            began_evaluation = time.monotonic()
            yield from self._evaluate_and_save(saver, watchdog)
            pause = time.monotonic() - began_evaluation
            self._eval_seconds += pause
            throughput.pause(pause)
            judged += pause
        if planned_steps > self.step:
            yield self._out_of_time(planned_steps)
        yield from saver.wait()
        yield from self._end()

    def _first_notices(self):
        yield from map(Notice, self._notices)
        yield Notice(self.corpus.shares)
        if self._fitted:
            yield Notice(self._fitted)
        if self._rewiring and not self._rewiring.due_before(self.steps):
            yield Notice(f"{self.steps:,} steps are too few to rewire every {self.config.training.rewire_interval:,}: the wiring stays")
        tokenizer, asked = self.model.tokenizer, self.config.text.vocabulary
        if tokenizer.kind == "word":
            yield self._unknown()
        if tokenizer.kind == self.config.text.tokenizer == "sentencepiece" and tokenizer.vocabulary < asked:
            yield Notice(f"the text has {tokenizer.vocabulary:,} pieces, fewer than the {asked:,} asked for")

    def _compile_kernels(self):
        """Compile the kernels of updates, evaluations and samples, with one progress for all."""
        model = self.model
        streams = streams_for(len(self._val_subset.tokens) - 1, streams_of(self.config.training))

        def steps():
            scored = model.activity(model.config.brain.chunk, streams)
            model.score(scored, *np.zeros((2, scored.tokens, streams), np.int32))
            session = Session(model, SAMPLING)
            session.feed(self._pieces[0].context[:1, None])
            session.draw()
            if self.act.teacher:
                self.act.teacher.read(*np.zeros((2, self.act.tokens, self.act.batch), np.int32))
            model.learning_step(self.act, reset=True)
            for act in (scored, session.act):
                act.recorded.clear()  # its steps refer to it: breaking the cycle frees its memory now, without the garbage collector

        model.backend.compile_kernels(steps, lambda: self._stopping)

    def _segment(self, saver, watchdog):
        """The next (inputs, targets), or None after `stop`. Yields the watchdog's notices while it waits."""
        asked = time.monotonic()
        while not self.batches.wait(POLL_SECONDS, lambda: self._stopping) and not self._stopping:
            yield from watchdog.stalled(time.monotonic() - asked)
        try:
            return self.batches.next(lambda: self._stopping)
        except DataError as error:
            if self._stopping:  # a signal to all processes of the run has ended the encoders
                return None
            yield from self._save_and_raise(saver, error)

    def _save_and_raise(self, saver, error: DataError):
        """Save a checkpoint, and raise the error of a text that cannot be read."""
        yield from saver.wait()
        yield self.save()
        raise DataError(f"{error}; a checkpoint is in {self.run}; continue with --resume") from None

    def _prune(self, saver):
        """Train a model with fewer bundles from the next update on, with the same state of the neurons. Yields a notice."""
        try:
            segments = pruning.coming(self.corpus.batches(self.batches.position()))
        except DataError as error:
            yield from self._save_and_raise(saver, error)
        with doing("removing synapses"):
            teacher, state, communicator = self.act.teacher, self.team.state()[0], self.team.communicator
            self.act.recorded.clear()  # its steps refer to it: breaking the cycle frees its memory now, without the garbage collector
            del self.team, self.act
            model = pruning.prune(self.model, segments, self.step, self.steps)
            self.team = assemble(communicator, lambda: model)
            self.team.load_state(state)
        self.model, self.config, self.act = model, model.config, self.team.act
        self.act.teacher = teacher
        yield Notice(f"{sum(len(p.tile) for p in model.brain.projections):,} bundles of synapses are left")

    def _evaluate_and_save(self, saver, watchdog):
        """Do what is due after a step: evaluation, sample, brain snapshot, checkpoint."""
        training = self.config.training
        loss = yield from self._evaluate(watchdog)
        if training.viz_interval and self.step % training.viz_interval == 0:
            yield brain_snapshot(self.model, self.act, self.step)
        if self.step % training.checkpoint_interval == 0:
            yield from self._written(saver.begin(lambda: self._snapshot(loss)), watchdog)

    def _evaluate(self, watchdog):
        """Evaluate and sample, if due. Returns the validation loss, or None."""
        training, loss, self._evaluated_at = self.config.training, None, self.step
        if self.step % training.checkpoint_interval == 0 or self.step % training.eval_interval == 0:
            score = self._score(self._val_subset)
            loss = score.loss
            yield EvalReport(self.step, *dataclasses.astuple(score))
            yield from watchdog.evaluated(self.step, loss)
        if self.step % training.sample_interval == 0:
            yield self.sample()
        return loss

    def _score(self, validation, stopping=lambda: False):
        """Evaluate the averaged model, and show the progress. None if `stopping()` became true."""
        tokens = len(validation.tokens) - 1
        with self.model.averaged(), doing(f"evaluating on {tokens:,} held-out tokens", tokens) as show:
            return evaluate(self.model, validation, stopping, tell=show)

    def _end(self):
        """The last checkpoint. A run that was not stopped is evaluated before."""
        if self.step < self.steps:
            yield self.save()
            return
        self.act.recorded.clear()  # its steps have the temperature 1
        with self.model.averaged(), doing("fitting the temperature"):
            fit_temperature(self.model, self._val_subset)
        score, self._evaluated_at = self._score(self._val_subset), self.step
        yield EvalReport(self.step, *dataclasses.astuple(score))
        yield self.save(score.loss)
        yield from self._finish(score)

    def _written(self, reports, watchdog):
        """Yield the reports of the saver, and the watchdog's notices about them."""
        for report in reports:
            yield report
            if isinstance(report, CheckpointReport):
                now = time.monotonic()
                yield from watchdog.saved(report.seconds, now - report.seconds - self._last_saved)
                self._last_saved = now

    def _reset_mask(self, inputs):
        """Mask [B] bool of the sequences to reset before inputs [T, B], or None: a random share, and those at a document if configured."""
        training, mask = self.config.training, None
        if training.reset_prob:
            mask = np.random.default_rng([training.seed, self.step]).random(training.batch) < training.reset_prob
        if self._reset_token is None:
            return mask
        begins = inputs[0] == self._reset_token
        return begins if mask is None else begins | mask

    def _bytes_per_token(self, targets):
        """Mean UTF-8 bytes per target of targets [T, B]; for words the mean of the held-out text."""
        if self.model.tokenizer.kind == "word":
            return self._val_subset.bytes / (len(self._val_subset.tokens) - 1)
        targets = targets[targets >= 0]
        return max(1, self.model.tokenizer.byte_count(targets)) / len(targets)  # 1: all targets may be ends of text

    def _unknown(self):
        """A notice of the share of unknown words."""
        share = unknown_share(self._val_subset.tokens, self.model.tokenizer)
        counted = "are those of its token file's mean word" if self._val_subset.estimated else "count those of the text itself"
        return Notice(f"of the held-out words {100 * share:.1f} % are <unk>; bits per byte {counted}")

    def _plan(self, throughput):
        """Set `steps` to those that fit into the time limit at the measured throughput, evaluations included, `self._most` at most.

        A plan reserves MARGIN of the limit. Every LAST updates it is replaced if its steps no longer fit into the whole limit, or if more
        by NOTABLE fit. Yields a notice of the first plan, and of one that is lower by more than NOTABLE.
        """
        training = self.config.training
        if self.planned and self.step % LAST:
            return
        updates = (len(self._val_subset.tokens) - 1) / (training.batch * training.segment)  # as many tokens
        evaluation = updates * throughput.seconds_per_step / 2  # forward pass only: at most half the time

        def fitting(share):
            left = share * training.max_minutes * 60 - self.seconds
            return self.step + throughput.steps_within(left, evaluation / training.eval_interval)

        if not self.planned:
            self.steps, self.planned = min(self._most, fitting(1 - MARGIN)), True
            self._announced = self.steps
            yield Notice(f"{fitting(1 - MARGIN):,} steps fit into {training.max_minutes:g} minutes; {self.steps:,} will be made")
        elif self.steps > fitting(1) or (1 + NOTABLE) * self.steps < min(self._most, fitting(1 - MARGIN)):
            self.steps = min(self._most, fitting(1 - MARGIN))
            throughput.plan_made()
            if self.steps < (1 - NOTABLE) * self._announced:
                self._announced = self.steps
                yield Notice(f"training is slower than planned: {self.steps:,} steps fit into {training.max_minutes:g} minutes")

    def _out_of_time(self, planned):
        """A notice at the time limit. planned: steps."""
        limit = f"{self.config.training.max_minutes:g} minutes"
        done = f"{self.step:,} of {planned:,} planned steps"
        return Notice(f"stopped at the limit of {limit} after {done}; `--resume --steps {planned}` continues")

    def _non_finite_error(self, loss, norm):
        """The TrainingError for a loss or gradient that is NaN or infinite. No such update was made or saved."""
        where = self.team.origin()
        try:
            kept = f"what was saved last is kept: {checkpoint.latest(self.run)}"
            with contextlib.suppress(CheckpointError):
                kept += f"; the best of them by held-out text is {checkpoint.best(self.run)[0].name}"
        except CheckpointError:
            kept = "no checkpoint had been saved yet"
        return TrainingError(f"step {self.step + 1}: loss {loss}, gradient norm {norm}{where}; {kept}")

    def sample(self) -> SampleReport:
        """A sample: the model's continuation of a piece of held-out text, and the true one."""
        piece = self._pieces[self.step // self.config.training.sample_interval % len(self._pieces)]
        tokenizer = self.model.tokenizer
        with self.model.averaged(), doing("writing a sample"):
            session = Session(self.model, dataclasses.replace(SAMPLING, seed=self.step))
            session.feed(piece.context[:, None])
            text = "".join(stream(session, tokenizer, "", SAMPLE_TOKENS))
        return SampleReport(self.step, tokenizer.decode(piece.prompt), text, tokenizer.decode(piece.truth))

    def save(self, loss: float | None = None) -> CheckpointReport:
        """Write a checkpoint of everything that a resumed run needs, and remove older ones. Raises CheckpointError.

        loss: on the validation subset, if measured at this step; the lowest one makes the best checkpoint.
        """
        with doing("saving a checkpoint"):
            return save(self.run, lambda: self._snapshot(loss), self.config.training.keep_checkpoints)

    def _snapshot(self, loss):
        trainer = {
            "step": self.step,
            "tokens": self.tokens,
            "steps": self.steps,
            "planned": self.planned,
            "seconds": self.seconds,
            "looking": self._eval_seconds,
            "looked": self._evaluated_at,
            "position": self.batches.position(),
            "rewired": self.rewired,
        }
        state, moments = self.team.state()
        state |= self.act.teacher.state() if self.act.teacher else {}
        tensors, documents = self.model.snapshot(state, trainer, moments)
        return Snapshot(self.step, tensors, documents, self.model.tokenizer, loss)

    def _finish(self, score):
        """The final evaluation, unless `score` is of the same text, and the summary."""
        validation = self.corpus.validation(self.config.training.final_eval_tokens or None)
        if not np.array_equal(validation.tokens, self._val_subset.tokens):
            score = self._score(validation, lambda: self._stopping)
            if score is None:
                yield Notice("stopped before the final evaluation; --resume makes it, everything else is done")
                return
            yield EvalReport(self.step, *dataclasses.astuple(score), last=True)
        summary = {
            "preset": self.config.preset,
            "parameters": self.model.parameters,
            "steps": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens / max(1e-9, self.seconds - self._eval_seconds)),
            "temperature": self.model.brain.decoder.temperature,
            "val_loss": score.loss,
            "val_accuracy": score.accuracy,
            "val_bits_per_byte": score.bits_per_byte,
        }
        if self._rewiring:
            summary["bundles_rewired"] = self.rewired
        if validation.questions:
            asked = validation.questions[:QUESTIONS]
            with self.model.averaged(), doing(f"asking {len(asked)} questions about held-out stories", len(asked)) as show:
                right, chance = answer_questions(self.model, asked, tell=show)
            summary |= {"entropy_floor_bits_per_byte": score.floor_bits_per_byte, "questions": len(asked)}
            summary |= {"question_accuracy": right, "chance_accuracy": chance}
        yield self.sample()
        write_json(self.run / SUMMARY, summary)
        yield FinalReport(summary)
