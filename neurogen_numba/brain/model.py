"""NeuroGenModel: brain, optimiser and tokenizer behind one interface. NumPy in, NumPy out."""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import numpy as np

from .. import backends
from ..backends.base import Backend
from ..config import DROPOUTS, FLOAT32, NEURONS, Config, counted, size_of
from ..distributed.buckets import Buckets
from ..distributed.communicator import SOLO, Solo
from ..errors import CheckpointError, ConfigError
from ..kernels.codes import DTYPE
from ..neurons import loading
from ..optim.low_memory import OPTIMIZERS
from ..presets import get_preset
from ..storage import checkpoint
from ..system.contexts import context
from .activity import Activity
from .brain import Brain
from .chunked_cross_entropy import learn_by_blocks, losses_by_blocks
from .graph import Connectome

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from ..inference.recording import Recording
    from ..learning.online import Lesson
    from ..optim.optimizer import Optimizer
    from ..text.tokenizer import Tokenizer

TEMPERATURE = "decoder.temperature"  # its tensor in a checkpoint, [1] float32; without it the temperature is 1


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _by_one_thread(method: _Method) -> _Method:
    """Decorates a method of a model that raises ConfigError while another thread runs one, since both would write to the same neurons."""

    @functools.wraps(method)
    def call(model, *arguments, **named):
        with model._one_thread():
            return method(model, *arguments, **named)

    return cast(_Method, call)


class NeuroGenModel:
    """A spiking language model.

    NeuroGenModel(vocab_size, embedding_dim) is the preset `baseline` with another vocabulary and embedding, freshly drawn; `from_preset`
    takes any preset, `load` a checkpoint. backend: auto, cuda or cpu, or a Backend; gpu_device numbers the card, from 0, where there are
    several.
    """

    config: Config
    tokenizer: Tokenizer | None
    backend: Backend
    brain: Brain
    optimizer: Optimizer

    def __init__(self, vocab_size: int = 32000, embedding_dim: int = 512, gpu_device: int = 0, backend: str | Backend = "auto"):
        config = get_preset("baseline").replace(brain={"vocabulary": vocab_size, "embedding": embedding_dim})
        self._setup(config, backend, gpu_device)
        self.brain.initialise(self.config.training.seed)

    @classmethod
    def from_preset(
        cls, name: str, vocab_size: int | None = None, tokenizer=None, gpu_device: int = 0, backend: str | Backend = "auto", neuron=None
    ) -> NeuroGenModel:
        """The preset `name`, freshly drawn. The vocabulary is the tokenizer's, or vocab_size, or else the preset's own. neuron: as in
        `from_config`."""
        config = get_preset(name)
        size = tokenizer.vocabulary if tokenizer else config.text.vocabulary if vocab_size is None else vocab_size
        return cls.from_config(config.replace(brain={"vocabulary": size}), tokenizer, gpu_device, backend, neuron)

    @classmethod
    def from_config(
        cls, config: Config, tokenizer=None, gpu_device: int = 0, backend: str | Backend = "auto", neuron=None
    ) -> NeuroGenModel:
        """A model of this configuration, freshly drawn with its `training.seed`. neuron: what all its modules are made of, a Neuron or its
        name, where that differs from the configuration."""
        model = cls.__new__(cls)
        model._setup(config.with_neuron(neuron) if neuron else config, backend, gpu_device, tokenizer)
        model.brain.initialise(config.training.seed)
        return model

    @classmethod
    def on_meta(cls, config: Config, backend: Backend) -> NeuroGenModel:
        """A model on the meta backend (planning/meta.py): nothing is allocated or drawn."""
        model = cls.__new__(cls)
        model._setup(config, backend, 0)
        return model

    def _setup(self, config, backend, gpu_device, tokenizer=None, quantization=None):
        """quantization: of a quantised model, {"bits": 8 or 4, ...} as the manifest of its checkpoint has it."""
        if not isinstance(gpu_device, (int, np.integer)) or gpu_device < 0:
            raise ConfigError(f"gpu_device: cards are numbered from 0; there is no {gpu_device!r}")
        self.config, self.tokenizer = config, tokenizer
        self.backend = backend if isinstance(backend, Backend) else backends.get(backend, gpu_device)
        if config.training.memory_limit:
            self.backend.limit_memory(size_of(config.training.memory_limit))
        self.quantization, bits, training = quantization, quantization["bits"] if quantization else 0, config.training
        optimizer = OPTIMIZERS["adamw" if bits else training.optimizer]  # that of a quantised model is not used
        self.brain = Brain(config.brain, self.backend, row_wise=optimizer.row_wise, bits=bits)
        with self.backend.part("optimiser"):
            average = 0 if bits else training.average
            self.optimizer = optimizer(self.brain.parameters, self.backend, training.weight_decay, training.clip, average)
            if training.learning == "three-factor":  # weights of modules move together (exploration.py), and do not decay
                decays = self.brain.parameters.per_block(lambda p: training.weight_decay if p.decays and p.file == "decoder" else 0.0)
                self.optimizer.decay[...] = self.backend.asarray(decays)
        self.communicator: Solo = SOLO
        self._activity, self._in_use = None, threading.RLock()
        self._online = None  # what `learn` has made
        self.trained_in: Path | None = None  # folder of the run that has trained it, whose text `learn` rehearses
        self._reading = lambda: None  # the activity that was run last, if somebody still has it

    def __repr__(self) -> str:
        size = f"{self.config.brain.neurons:,} neurons, {self.parameters:,} parameters, {self.config.brain.vocabulary:,} tokens"
        return f"NeuroGenModel({self.config.preset}: {size}, {self.optimizer.steps:,} updates, on {self.backend.name})"

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return self.brain.parameters.size

    def join(self, communicator: Solo):
        """Train with other ranks from now on: each has a copy of this model, and some sequences of every batch that `activity` is for."""
        self.communicator = communicator
        self.optimizer.keep(communicator)

    def check_learns(self):
        """Raises ConfigError for a quantised model."""
        if self.quantization:
            raise ConfigError("a quantised model does not learn: its weights are codes; train the model that it was made from")

    def activity(self, tokens: int, batch: int, learning: bool = False) -> Activity:
        """A new, reset `Activity` of `batch` sequences and at most `tokens` tokens a segment; for learning, with the training's dropout,
        and of this rank's share of the batch."""
        training = self.config.training
        if learning:
            self.check_learns()
        if learning and self.config.brain.pruned and training.learning != "bptt":
            raise ConfigError(f"training.learning: a pruned brain learns with bptt, not with {training.learning}")
        rates = DROPOUTS if learning else ()
        dropout = {name: getattr(training, name) for name in (*rates, "seed")}
        if learning and self.communicator.size > 1:
            share = self.communicator.columns(batch)
            most = self.communicator.most_columns(batch)
            dropout["share"], batch = (share.start, batch, most), share.stop - share.start
        with self.backend.part(f"activity of {counted(batch, 'sequence')} of {counted(tokens, 'token')}"):
            how = {"memory": training.activation_memory, "signal": training.learning_signal}
            how |= {"eligibility": learning and training.learning == "eprop", "explores": learning and training.learning == "three-factor"}
            return Activity(self.brain, tokens, batch, learning, **how, **dropout)

    @contextlib.contextmanager
    def _one_thread(self):
        """A context in which no other thread may run this model. Raises ConfigError where another one does."""
        if not self._in_use.acquire(blocking=False):
            raise ConfigError("this model is at work in another thread; give each thread a copy of its own, copy.copy(model)")
        try:
            yield
        finally:
            self._in_use.release()

    @property
    def connectome(self) -> Connectome:
        """Its projections: a table when printed, each by its name, and `to_networkx()`."""
        return Connectome(self.brain)

    @context("model.lesion")
    def lesion(self, *names: str) -> Iterator[None]:
        """A context in which projections, modules or memories are silent: `with model.lesion("memory_broca"): ...`.

        names: of projections (`model.connectome` lists them; shell patterns name several), of modules, "memory" (the associative one) or
        "working_memory". A silent module fires no events; a silent memory is still written, but not read. Everything that the model
        does inside is done with the lesion, also by sessions that exist already; `save` and copies keep it. Contexts nest and overlap. At
        the end, also after an exception, the weights are the same again, bit for bit.

        Raises ConfigError for a name that is not in this brain, and for a training step inside; `brain.without` trains without projections.
        """
        with self._one_thread(), self.brain.lesions.silence(names):
            yield

    @_by_one_thread
    def listen(
        self,
        text: str | ArrayLike,
        *,
        state: Mapping[str, np.ndarray] | None = None,
        neurons: int | None = 256,
        states: Iterable[str] = (),
    ) -> Recording:
        """Read a text, and record what the brain does at each of its tokens (inference/recording.py). Nothing else is changed: neither the
        model, nor the state of a session or of `train_step`.

        text: a str, or token ids [T]. state: where to begin: `Recording.final_state`, `Session.state()` or `Activity.state()` of one
        sequence; without it a zero state, which reads an end of text first if the tokenizer has one, as `write` does.
        neurons: of each module, evenly taken, whose events and states are kept; None: all. states: of neurons to keep too, as
        "wernicke.v", and "working_memory.m", "memory.out"; "wernicke.y" is the trace, where the module has one.

        Raises ConfigError for a text that the tokenizer cannot read, an empty one, or an unknown name in `states`; CheckpointError for the
        state of another brain.
        """
        from ..inference.recording import record

        return record(self, text, state, neurons, states)

    @contextlib.contextmanager
    def averaged(self):
        """A context in which the weights are their average over the last `training.average` updates, if there is one."""
        if not (self.optimizer.horizon and self.optimizer.steps):
            yield
            return
        self._exchange_average()
        try:
            yield
        finally:
            self._exchange_average()

    def _exchange_average(self):
        self.backend.exchange(self.brain.parameters.flat_value, self.optimizer.average)
        self.brain.refresh()

    @_by_one_thread
    def train_step(
        self, input_ids: ArrayLike, target_ids: ArrayLike, learning_rate: float | None = None, carry_state: bool = False
    ) -> tuple[float, float]:
        """One update on one sequence [T] or a batch of them [B, T]: (loss in nats per token, accuracy 0 to 1), from before the update; with
        the three-factor rule those of the perturbed brain.

        A target below 0 is ignored. carry_state: start from the state after the last call, of the same shape, instead of a zero state.
        Raises ConfigError for token ids out of range, shapes that differ, or an invalid learning rate.
        """
        inputs, targets = self._columns(input_ids, "input_ids"), self._columns(target_ids, "target_ids", low=None)
        if inputs.shape != targets.shape:
            raise ConfigError(f"input_ids and target_ids: one shape is needed, got {np.shape(input_ids)} and {np.shape(target_ids)}")
        if self._activity is None or (self._activity.segment, self._activity.batch) != inputs.shape:
            self._activity = self.activity(*inputs.shape, learning=True)
        elif not carry_state:
            self._activity.reset()
        rate = self.config.training.learning_rate if learning_rate is None else _number(learning_rate)
        loss, accuracy, _ = self.update(self._activity, inputs, targets, rate)
        return loss, accuracy

    def update(
        self,
        act: Activity,
        inputs,
        targets,
        rate: float,
        reset=None,
        rewire: Callable[[Activity], object] | None = None,
        choices=None,
    ) -> tuple[float, float, float]:
        """One update on time-major inputs, targets [T, B] int32: (loss, accuracy, norm of the gradient).

        Every rank gets the whole batch, and trains its sequences. `act` advances to the next segment. reset: [B] bool, the sequences to
        reset before this one. rewire: called between the backward pass and the update (learning/rewiring.py). choices: [T, B] bool, targets
        that the model has chosen itself; the three-factor rule learns them in proportion to dopamine, others ignore it. If loss or gradient
        norm are not finite, nothing is updated, but for a row-wise decoder (optim/low_memory.py), what `rewire` has done, and modules that
        learn from a finite dopamine. Raises ConfigError for a rate below 0 or not finite, and during a lesion. After another exception,
        Ctrl-C too, the neurons of `act` have read a part of the segment: reset it. The three-factor rule moves modules with the update.
        """
        if not (0 <= rate <= FLOAT32):
            raise ConfigError(f"learning_rate: a number from 0 on is needed, not {rate}")
        if self.brain.lesions:
            raise ConfigError("a brain does not learn during a lesion: train it outside of the context, or set brain.without for good")
        counted = self._count_targets(act, targets)
        if reset is not None:
            act.reset_mask[...] = self.backend.asarray(reset[act.columns], "uint8")
        self.optimizer.prepare(rate)
        act.surprise, hits = np.zeros(act.batch), 0.0
        with act.exploration.exploring() if act.exploration else contextlib.nullcontext():
            for part, begin in enumerate(range(0, len(inputs), act.tokens)):  # one part, or a chunk each, as the rule of learning asks
                if part:
                    act.advance(act.length)
                elif act.eligibility:
                    act.eligibility.begin()
                self._load_tokens(act, inputs[begin : begin + act.tokens], targets[begin : begin + act.tokens])
                act.dropout.set_step(self.optimizer.steps, part)
                resets = not part and reset is not None
                if act.exploration:
                    chosen = np.zeros_like(targets) if choices is None else choices
                    chosen = chosen[begin : begin + act.tokens, act.columns]
                    act.exploration.choices[: act.length] = self.backend.asarray(chosen, "uint8")
                    act.exploration.perturb(part)
                    self.run(act, ("reading", act.length, resets), partial(self._read, act, resets))
                    act.exploration.turn()
                alone = self.communicator.size == 1
                which = (not part, resets, alone or begin + act.tokens >= len(inputs))  # begins, resets, ends
                # the loss scale is a constant of the recorded step: one of a few powers of two
                self.run(act, ("gradients", act.length, *which, act.loss_scale), partial(self._gradients, act, *which))
                if act.exploration:
                    act.exploration.observe(rate, self.communicator)
                losses, right = self._result(act)
                act.surprise += losses.sum(0, dtype=np.float64)
                hits += right.sum()
        if rewire:
            rewire(act)
        with act.exploration.moving() if act.exploration else contextlib.nullcontext():
            self.run(act, ("update", act.length), lambda: self._update(act))
        loss, right = self.communicator.sum([act.surprise.sum(), hits])
        act.surprise /= np.maximum(1, (targets[:, act.columns] >= 0).sum(0))
        return float(loss / counted), float(right / counted), self.optimizer.finish()

    def learning_step(self, act: Activity, reset: bool):
        """The operations of an update, with the segment loaded. reset: whether sequences are reset before, those of `act.reset_mask`."""
        self._gradients(act, True, reset)
        self._update(act)

    def _read(self, act, reset):
        """Compute the losses of the loaded tokens. reset: as for `_gradients`."""
        if reset:
            act.reset(act.reset_mask)
        self.brain.forward(act, partial(self.brain.decoder.losses, act))

    def _gradients(self, act, begins, reset, ends=True):
        """The gradients of the loaded tokens. begins: whether they begin a segment; otherwise they are added to those before. ends: whether
        they end it; then gradients are summed over all ranks."""
        brain, decoder = self.brain, self.brain.decoder
        buckets = Buckets(brain, act, self.communicator if ends else SOLO)
        if reset:
            act.reset(act.reset_mask)
        if begins:
            brain.drop_weights(act)
            brain.parameters.clear_gradient(but="decoder.weight")  # which is overwritten
        if act.token_rows:
            act.token_rows.gradient[...] = 0
        if decoder.row_wise:
            brain.forward(act, partial(losses_by_blocks, decoder, act))
            learn_by_blocks(decoder, act, self.optimizer, self.communicator)
        elif act.exploration:  # dopamine follows from the losses
            brain.forward(act, partial(decoder.losses, act))
            self._learn_decoder(act, not begins, 0, act.length)
        else:
            brain.forward(act, partial(self._learn_decoder, act, not begins))
        buckets.sum("decoder")
        if act.exploration:
            buckets.sum("embedding")  # with it goes a tied decoder
        else:
            brain.backward(act, buckets.sum)
        buckets.sum("rest")
        self.communicator.join()

    def _update(self, act):
        self.brain.mask_weight_grad(act)
        self.optimizer.apply(*([(act.token_rows,)] if act.token_rows else []))
        self.communicator.share_parts(self.optimizer.updated)
        self.optimizer.accumulate_average()
        self.brain.refresh()
        act.advance(act.length)

    def _learn_decoder(self, act, add, first, last):
        """Compute losses, hits and the decoder's gradients of tokens first ... last - 1, a block of them at a time. Without `add`, token 0
        overwrites the gradient of the weight."""
        decoder, exploration = self.brain.decoder, act.exploration
        for begin, end in decoder.blocks(act, first, last):
            logits = decoder.scores(act, begin, end)
            d_logits = act.d_logits[: len(logits)]
            decoder.cross_entropy(act, begin, end, logits, d_logits, exploration.decoder_weight(begin, end) if exploration else None)
            if act.teacher:
                act.teacher.soften(begin, end, d_logits)
            decoder.backward(act, begin, end, d_logits, add=add or begin > 0)

    @property
    def has_learned(self) -> bool:
        """Whether the weights contain lessons of `learn` that `unlearn` would revert."""
        return self._online is not None and self._online.changed

    @_by_one_thread
    def learn(self, text: str, rate: float | None = None, passes: int | None = None) -> Lesson:
        """Learn a text by bounded updates (learning/online.py), together with the texts that were learned before; `unlearn` reverts them.

        A model from a checkpoint, or that `train` returns, goes on learning the text that its configuration names meanwhile
        (learning/rehearsal.py); without it, the lesson says so, and is shorter.
        rate: learning rate, 0.0002 if None; passes: updates on each segment of the text, 1 to 1,000, 60 if None; without training text
        0.0003 and 20. Returns `Lesson(before, after, updates, alone)`, losses in nats per token.

        Raises ConfigError if the tokenizer cannot read the text, it has fewer than two tokens, or a number is out of range. With the
        weights unchanged it raises TrainingError if loss or gradient are not finite, and DataError if the training text cannot be read on.
        """
        from ..learning.online import OnlineLearner

        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer, so it cannot read text; `train_step` learns token ids")
        self._online = self._online or OnlineLearner(self)
        return self._online.learn(text, rate, passes)

    @_by_one_thread
    def unlearn(self):
        """Restore the weights and the optimiser from before the first `learn`, bit for bit. Raises ConfigError during a lesion."""
        if self._online:
            if self.brain.lesions:
                raise ConfigError("a brain does not unlearn during a lesion: do it outside of the context")
            self._online.unlearn()

    @_by_one_thread
    def reward(self, x: ArrayLike):
        """Reward the sequences of the last `train_step`, or of the session in use. x: a number, or [B]; it is added to their dopamine at
        the next change of levels. Raises ConfigError for another shape, a number that is not finite, no sequences, or a brain without
        neuromodulators."""
        act = self._reading()
        if act is None:
            raise ConfigError("reward: nothing is being read; it is for the sequences of the last `train_step`, or of a session in use")
        act.reward(x)

    def score(self, act: Activity, inputs, targets):
        """(nats [T, B] float32, hits [T, B] bool), NumPy, of time-major inputs and targets [T, B] int32; 0 for a target below 0.

        `act` advances to the next segment.
        """
        self.load_segment(act, inputs, targets)

        def step():
            self.brain.forward(act, partial(self.brain.decoder.losses, act))
            act.advance(act.length)

        self.run(act, ("score", act.length), step)
        losses, hits = self._result(act)
        return losses, hits.astype(bool)

    def load_segment(self, act, inputs, targets):
        """Load a segment and its targets. Returns the number of targets in the mean loss."""
        self._load_tokens(act, inputs, targets)
        return self._count_targets(act, targets)

    def _load_tokens(self, act, inputs, targets):
        act.load_tokens(inputs)
        act.targets[: act.length] = self.backend.asarray(targets[:, act.columns], "int32")

    def _count_targets(self, act, targets):
        """Set the weight of a target in the mean loss. Returns their number."""
        counted = max(1, int((np.asarray(targets) >= 0).sum()))
        act.loss_scale = self.brain.decoder.loss_scale(counted)
        act.weight[...] = np.float32(act.loss_scale / counted)
        return counted

    def _result(self, act):
        return (self.backend.to_numpy(array[: act.length]) for array in (act.losses, act.hits))

    def run(self, act, what, step, record=None):
        """Run a step on the arrays of an activity, by its recording where `what` has been run before. record: instead of the
        backend's `record`."""
        if act.wiring != self.brain.wiring:
            act.recorded.clear()
            act.wiring = self.brain.wiring
        if what not in act.recorded:
            act.recorded[what] = (record or self.backend.record)(step)
        self._reading = weakref.ref(act)
        with self.backend.working(self.parameters * act.length * act.batch):
            act.recorded[what]()

    @_by_one_thread
    def logits(self, input_ids: ArrayLike) -> np.ndarray:
        """Logits of one sequence [T] -> [T, V], or of a batch [B, T] -> [B, T, V], float32, from a zero state."""
        columns = self._columns(input_ids, "input_ids")
        act = self.activity(min(columns.shape[0], self.config.brain.chunk), columns.shape[1])
        parts = []
        for first in range(0, columns.shape[0], act.tokens):
            part, following = columns[first : first + act.tokens], columns[first + act.tokens : first + act.tokens + 1]
            if not parts:
                self.backend.compile_kernels(partial(self.brain.forward_logits, act, part))
            logits = self.brain.forward_logits(act, part, following[0] if len(following) else None)
            parts.append(self.backend.to_numpy(logits).reshape(*part.shape, -1))
            act.advance(part.shape[0])
        result = np.concatenate(parts).swapaxes(0, 1)
        return result[0] if np.ndim(input_ids) == 1 else result

    @_by_one_thread
    def generate(
        self, prompt_ids: ArrayLike, max_length: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
    ) -> np.ndarray:
        """Continue one prompt [P] or a batch of them [B, P] to max_length tokens, prompt included: int32 [max_length] or [B, max_length].

        For temperature, top_k and top_p see kernels/sampling.py. Raises ConfigError for ids or settings out of range.
        """
        from ..inference.generation import Sampling, Session

        columns = self._columns(prompt_ids, "prompt_ids")
        try:
            max_length = operator.index(max_length)
        except TypeError:
            raise ConfigError(f"max_length: a number of tokens is needed, not {max_length!r}") from None
        if max_length < columns.shape[0]:
            raise ConfigError(f"max_length {max_length}: shorter than the prompt, which has {columns.shape[0]} tokens")
        if max_length >= 2**31:
            raise ConfigError(f"max_length: below 2^31 tokens, not {max_length}")
        session = Session(self, Sampling(temperature, top_k, top_p, seed), columns.shape[1])
        session.feed(columns)
        drawn = session.write(max_length - columns.shape[0]) if max_length > columns.shape[0] else columns[:0]
        result = np.concatenate([columns, drawn]).T
        return result[0] if np.ndim(prompt_ids) == 1 else np.ascontiguousarray(result)

    @overload
    def write(self, prompt: str = "", length: int = 200, *, stream: Literal[False] = False, **sampling: Any) -> str: ...

    @overload
    def write(self, prompt: str = "", length: int = 200, *, stream: Literal[True], **sampling: Any) -> Iterator[str]: ...

    def write(
        self,
        prompt: str = "",
        length: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str = "",
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Continue a text, from a zero state: the continuation, at most `length` tokens of it, up to an end of text or the string `stop`.

        stream: an iterator over its pieces instead, each as soon as it is drawn. For temperature, top_k and top_p see kernels/sampling.py.
        Raises ConfigError for settings out of range, a prompt that the tokenizer cannot read, or a model without a tokenizer.
        """
        from ..inference.generation import Sampling, Session
        from ..inference.generation import stream as pieces

        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer, so it cannot write text; `generate` takes and gives token ids")
        if not isinstance(length, (int, np.integer)) or length < 1:
            raise ConfigError(f"length: a number of tokens, at least 1, not {length!r}")
        sampling = Sampling(temperature, top_k, top_p, seed)
        self.tokenizer.encode(prompt)  # refuses what it cannot read now, not when the first piece is asked for
        text = pieces(Session(self, sampling), self.tokenizer, prompt, int(length), stop)
        return text if stream else "".join(text)

    def save(self, path: str | os.PathLike[str], state: dict[str, np.ndarray] | None = None, trainer: dict[str, Any] | None = None) -> int:
        """Write a checkpoint folder, whole or not at all. Returns its size in bytes.

        state: a state of neurons to keep with it; trainer: what a trainer needs to go on. Raises CheckpointError where it cannot be
        written.
        """
        return checkpoint.save(_path(path), *self.snapshot(state, trainer), self.tokenizer, quantization=self.quantization)

    def snapshot(self, state: dict | None = None, trainer: dict | None = None, moments: dict | None = None) -> tuple[dict, dict]:
        """(tensors, documents) of a checkpoint, as `checkpoint.save` takes them; copies. moments: those that ranks keep in parts, joined,
        NumPy."""
        tables, fetch = self.brain.parameters, self.backend.fetch
        tensors = {"brain": self.brain.structure(), "embeddings": {}, "decoder": {}, "optimizer": {}, "state": state or {}}
        for name, parameter in tables.table.items():
            tensors[parameter.file][name] = fetch(tables.value[name])
        for name, parameter in tables.quantized.items():
            tensors[parameter.file] |= tables.stored(name)
        if self.brain.decoder.temperature != 1:
            tensors["decoder"][TEMPERATURE] = np.array([self.brain.decoder.temperature], np.float32)
        optimizer = {} if self.quantization else self.optimizer.tensors(moments)
        tensors["optimizer"] = {name: x if isinstance(x, np.ndarray) and moments else fetch(x) for name, x in optimizer.items()}
        documents = {"config": self.config.to_dict(), "neurons": self.neurons()}
        return tensors, documents | {"trainer": {"updates": self.optimizer.steps, **(trainer or {})}}

    def content(self) -> tuple:
        """The arguments of `made_from` after the backend."""
        return self.snapshot()[0], self.optimizer.steps, self.neurons(), self.quantization

    def neurons(self) -> dict[str, dict[str, str]]:
        """Module -> {"neuron": its reference, "sha256": of its source, "source": its text}; no text for those that ship."""
        made = {population.name: population.neuron for population in self.brain.populations}
        saved = {name: {"neuron": neuron.reference, "sha256": neuron.source_hash} for name, neuron in made.items()}
        return {name: entry if entry["neuron"] in NEURONS else {**entry, "source": made[name].source} for name, entry in saved.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str], gpu_device: int = 0, backend: str | Backend = "auto") -> NeuroGenModel:
        """The model in a checkpoint folder, with the average of its weights if there is one. Raises CheckpointError where it is damaged,
        foreign or of another shape."""
        model = cls.restore(path, gpu_device, backend)[0]
        if model.optimizer.horizon and model.optimizer.steps:
            model.brain.parameters.flat_value[...] = model.optimizer.average
            model.brain.refresh()
        return model

    @classmethod
    def restore(cls, path, gpu_device: int = 0, backend: str | Backend = "auto") -> tuple[NeuroGenModel, dict[str, np.ndarray], dict]:
        """(model, state, trainer) as `save` was given them, with the weights that training goes on from."""
        model, saved, groups = cls._saved(path, gpu_device, backend)
        if model._drawn_anew(groups["brain"]):
            raise CheckpointError(
                f"{path}: its synapses are not in bundles as this version has them; `neurogen migrate {path} runs/NEW` takes over its "
                "neurons, embedding and decoder, and draws these synapses anew"
            )
        trainer = saved.documents["trainer"]
        if not isinstance(trainer.get("updates"), int):
            raise CheckpointError(f"{path}: trainer.json does not say how many updates were made; use another checkpoint")
        model._fill(groups, trainer["updates"], str(path))
        return model, groups["state"], trainer

    @classmethod
    def load_to_migrate(cls, path) -> NeuroGenModel:
        """As `load`, on the CPU, also for checkpoints from before synapses came in bundles: these synapses are drawn again.

        `brain.drawn_anew` names them.
        """
        model, saved, groups = cls._saved(path, 0, "cpu")
        drawn = model._drawn_anew(groups["brain"])
        if not drawn:
            return cls.load(path, backend="cpu")
        model.brain.initialise(model.config.training.seed)
        model.brain.drawn_anew = frozenset(drawn)
        gone = {f"{name}.{what}" for name in drawn for what in ("row_start", "target", "block", "delay", "weight")}
        groups["brain"] = {name: array for name, array in groups["brain"].items() if name not in gone}
        groups["brain"] |= {name: array for name, array in model.brain.structure().items() if name not in groups["brain"]}
        groups["brain"] |= {f"{name}.weight": model.brain.parameters.value[f"{name}.weight"] for name in drawn}
        groups["optimizer"] = {name: model.backend.to_numpy(x) for name, x in model.optimizer.tensors().items()}
        model._fill(groups, 0, str(path))
        return model

    @classmethod
    def _saved(cls, path, gpu_device, backend):
        """(a model of a checkpoint's configuration, not drawn; the checkpoint; its tensors by group)."""
        from ..text.tokenizer import Tokenizer

        saved = checkpoint.load(_path(path))
        try:
            config, _, tensors = Config.from_dict(saved.documents["config"]), saved.documents["trainer"], saved.tensors
            groups = {group: tensors[group] for group in ("brain", "embeddings", "decoder", "optimizer", "state")}
        except KeyError as missing:
            raise CheckpointError(f"{path}: {missing.args[0]!r} is missing from this checkpoint; use another one") from None
        except ConfigError as error:
            raise CheckpointError(f"{path}: its configuration cannot be read: {error}") from None
        bits = saved.quantization.get("bits") if saved.quantization else None
        if saved.quantization and (not isinstance(bits, int) or bits not in DTYPE):
            raise CheckpointError(f"{path}: codes of {bits} bits are unknown; install a newer NeuroGen")
        config = loading.match_sources(config, saved.documents.get("neurons", {}), str(path))
        tokenizer = Tokenizer.load(saved.tokenizer_folder) if saved.tokenizer_folder else None
        model = cls.__new__(cls)
        model._setup(config, backend, gpu_device, tokenizer, saved.quantization)
        model.trained_in = _path(path).absolute().parent.parent  # as checkpoints/step-... and learned/NAME are placed in it
        return model, saved, groups

    def _drawn_anew(self, tensors) -> list[str]:
        """The projections whose synapses in a checkpoint are of an older form: scattered, dense, or in another number of bundles where the
        fan-in covers all sources."""
        if self.quantization:
            return []
        known = [(arc, np.shape(tensors.get(f"{arc.name}.weight", ()))) for arc in self.brain.arcs]
        scattered_or_dense = [arc.name for arc, shape in known if len(shape) in (1, 2)]
        fewer = [arc.name for arc, shape in known if shape[:1] == (arc.tiles * arc.nearest_bundles,) < arc.weight_shape[:1]]
        return scattered_or_dense + fewer

    def _fill(self, groups, updates, where):
        """Load the tensors of `snapshot`. Raises CheckpointError for tensors of another shape."""
        tables = self.brain.parameters
        expected = {"brain": self.brain.structure_shapes(), "embeddings": {}, "decoder": {}, "optimizer": {}}
        for name, parameter in tables.table.items():
            expected[parameter.file][name] = (parameter.shape, "float32")
        for name, parameter in tables.quantized.items():
            expected[parameter.file] |= tables.stored_shapes(name)
        if TEMPERATURE in groups["decoder"]:
            expected["decoder"][TEMPERATURE] = ((1,), "float32")
        optimizer = {} if self.quantization else self.optimizer.tensors()
        expected["optimizer"] = {name: (x.shape, str(x.dtype)) for name, x in optimizer.items()}
        for group, shapes in expected.items():
            checkpoint.check_shapes(shapes, groups[group], f"{where}, {group}")
        for name, parameter in tables.table.items():
            tables.value[name][...] = self.backend.asarray(groups[parameter.file][name])
        for name, parameter in tables.quantized.items():
            tables.load_stored(name, groups[parameter.file])
        for name, x in optimizer.items():
            x[...] = self.backend.asarray(groups["optimizer"][name])
        self.brain.load_structure(groups["brain"])
        self.optimizer.steps = updates
        temperature = float(groups["decoder"].get(TEMPERATURE, [1])[0])
        if not 0 < temperature < float("inf"):
            raise CheckpointError(f"{where}: a temperature of {temperature:g} divides no logits; use another checkpoint")
        self.brain.decoder.set_temperature(temperature)

    def __copy__(self) -> NeuroGenModel:
        """A model of its own with the same weights, optimiser and tokenizer, on the same backend; its neurons are reset."""
        model = made_from(self.config, self.tokenizer, self.backend, *self.content())
        model.trained_in = self.trained_in
        return model

    def __deepcopy__(self, memo) -> NeuroGenModel:
        return self.__copy__()

    def __reduce__(self):
        """Pickled as it is copied. It comes back on a backend of the same kind, which has to be there."""
        arguments = self.config, self.tokenizer, backends.arguments_of(self.backend), *self.content()
        return made_from, arguments, {"trained_in": self.trained_in}

    def _columns(self, ids, what, low: int | None = 0):
        """One sequence or a batch of them as time-major [T, B] int32, checked."""
        if isinstance(ids, np.ma.MaskedArray):
            raise ConfigError(f"{what}: an array without a mask is needed; fill what is masked, in targets with -1")
        try:
            array = np.asarray(ids)
        except ValueError:
            raise ConfigError(f"{what}: sequences of one length are needed; pad the shorter ones, with targets of -1") from None
        if array.ndim not in (1, 2) or array.size == 0 or array.dtype.kind not in "iu":
            raise ConfigError(f"{what}: integers of shape [T] or [B, T] are needed, at least one; got {array.dtype} {array.shape}")
        vocabulary = self.config.brain.vocabulary
        if array.max() >= vocabulary or (low is not None and array.min() < low):
            worst = array.max() if array.max() >= vocabulary else array.min()
            raise ConfigError(f"{what}: token id {worst} is out of range; this model knows 0 to {vocabulary - 1}")
        return np.ascontiguousarray(np.atleast_2d(array).T, np.int32)


def _path(path):
    try:
        path = os.fsdecode(path)
    except TypeError:
        raise ConfigError(f"the path of a folder is needed, not {path!r}") from None
    if "\0" in path:
        raise ConfigError(f"{path!r}: no path has a character of code 0; choose another name")
    return Path(path)


def _number(rate):
    try:
        return float(rate)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"learning_rate: a number is needed, not {rate!r}") from None


def made_from(config, tokenizer, backend, tensors, updates, neurons, quantization=None):
    """The model that `snapshot` gave these tensors of. backend: one, or the arguments to get it."""
    config = loading.match_sources(config, neurons, "a copy")
    model = NeuroGenModel.__new__(NeuroGenModel)
    model._setup(config, backend if isinstance(backend, Backend) else backends.get(*backend), 0, tokenizer, quantization)
    model._fill(tensors, updates, "a copy")
    return model
