"""The memory budget: bytes of GPU memory that a training run needs, by component, computed before it allocates anything (meta.py)."""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from ..backends.cublas import WORKSPACE
from ..backends.cuda import OUTSIDE
from ..brain.connectome import arcs
from ..brain.model import NeuroGenModel
from ..config import ACTIVATION_MEMORY, OPTIMIZERS, ROW_WISE, Config, size_in_words, size_of
from ..distributed.communicator import SOLO, Solo
from ..errors import BackendError
from ..learning.evaluation import streams_of
from ..presets import FOUR_GB
from .meta import MetaBackend

HOPELESS = "no single change makes it fit, nor do all changes together that keep the brain; use a smaller --preset or --vocab-size"
SMALL, LARGE = 4 * 2**30, 24 * 2**30  # bytes of an assumed card
TRIED = 64  # values of a knob that are tried, at most


@dataclass(frozen=True)
class Card:
    """The properties of a GPU that allocations depend on. Defaults: a large card, Ampere (2020) or newer."""

    memory: int  # bytes
    product_dtype: str = "bfloat16"
    shared_memory: int = 98 * 2**10  # bytes, of a block
    multiprocessors: int = 80

    @classmethod
    def assumed(cls, config: Config, limit: int | None = None) -> Card:
        """A card to plan for without a GPU: of `limit` bytes, or of the size that the preset is made for.

        A card of 4 GiB or less is taken to be a GTX 1650 (Turing), which has no bfloat16.
        """
        memory = limit or (SMALL if config.preset in FOUR_GB else LARGE)
        return cls(memory, "float32", 63 * 2**10, 14) if memory <= SMALL else cls(memory)

    @classmethod
    def of(cls, backend, limit: float | None = None) -> Card:
        """The card of a backend, with at most `limit` bytes of memory."""
        memory = min(limit or math.inf, backend.memory()[1])
        return cls(memory, backend.product_dtype, backend.shared_memory, backend.multiprocessors)


@dataclass(frozen=True)
class Change:
    """A change: `words`, the flags that make it, and the configuration with it."""

    words: str
    config: Config


@dataclass(frozen=True)
class Choice:
    """A knob: a flag of `training` with its values, later ones needing less memory."""

    flag: str
    field: str
    known: tuple[str, ...]

    def less(self, config: Config) -> Sequence[str]:
        """Values that need less memory, from the most to the least."""
        return self.known[self.known.index(getattr(config.training, self.field)) + 1 :]

    def turned(self, config: Config, value: str) -> Change:
        return Change(f"{self.flag} {value}", config.replace(training={self.field: value}))


@dataclass(frozen=True)
class Optimizer(Choice):
    """A knob: the optimisers that save memory. Tied embeddings need another one."""

    def less(self, config):
        return () if config.brain.tied else [name for name in super().less(config) if name in ROW_WISE]


@dataclass(frozen=True)
class Count:
    """A knob: a numeric flag of `training`."""

    flag: str
    field: str

    def less(self, config: Config) -> Sequence[int]:
        # a segment shorter than a chunk is not faster, and gives lateral synapses no gradient
        chunk = config.brain.chunk
        less = _down(getattr(config.training, self.field), chunk if self.field == "segment" else 1)
        whole = self.field == "segment" and config.brain.neuromodulation  # its segments are whole chunks
        return [value for value in less if not whole or value % chunk == 0]

    def turned(self, config: Config, value: int) -> Change:
        return Change(f"{self.flag} {value}", config.replace(training={self.field: value}))


@dataclass(frozen=True)
class Neurons:
    """A knob: the size of a module, down to a quarter, and at least its readout."""

    module: str

    def less(self, config: Config) -> Sequence[int]:
        module = getattr(config.brain, self.module)
        if self.module == "broca" and config.brain.tied and not module.outputs:
            return ()  # the embedding is as large as Broca's output
        return _down(module.neurons, max(-(-module.neurons // 4), module.outputs))

    def turned(self, config: Config, value: int) -> Change:
        module = replace(getattr(config.brain, self.module), neurons=value)
        return Change(f"--set brain.{self.module}.neurons={value}", config.replace(brain={self.module: module}))


def _down(now, least):
    """At most TRIED smaller numbers, the last of them `least`."""
    step = max(1, -(-now // TRIED))
    return (*range(now - step, least, -step), least) if now > least else ()


# Possible changes, in order of their effect on training: first those that cost time, then the batch, then the brain.
TRAINING = (
    Choice("--activation-memory", "activation_memory", ACTIVATION_MEMORY),
    Optimizer("--optimizer", "optimizer", OPTIMIZERS),
    Count("--batch-size", "batch"),
    Count("--seq-length", "segment"),
)
KNOBS = (*TRAINING, Neurons("pfc"), Neurons("wernicke"), Neurons("broca"))


@functools.cache  # advice and fitting evaluate the same configurations
def plan(config: Config, card: Card, shards: int = 1) -> Mapping[str, int]:
    """Bytes of a training run with this configuration, by component; brain.vocabulary must be the tokenizer's.

    shards: parts of the optimiser's moments; a rank keeps one."""
    meta, training = MetaBackend(**asdict(card)), config.training
    with meta.part("neurons"):
        model = NeuroGenModel.on_meta(config, meta)
    parameters = model.brain.parameters
    tensors, moments = model.optimizer.tensors(), model.optimizer.moments()
    meta.used["optimiser"] = sum(tensor.nbytes for tensor in tensors.values())
    meta.used["neurons"] -= meta.used["optimiser"]
    parts = sum(tensor.nbytes for name, tensor in tensors.items() if name.partition(".")[0] in moments)
    meta.used["optimiser"] -= parts - parts // shards
    for flat in (parameters.flat_value, parameters.flat_gradient):  # count them by component instead
        meta.used["neurons"] -= flat.nbytes
        for name, parameter in parameters.table.items():
            meta.used[_component(name, parameter)] += 4 * parameters.numbers(parameter) if parameters.offset[name] < len(flat) else 0
    if model.brain.decoder.factor is not model.brain.decoder.weight:
        meta.used["neurons"] -= model.brain.decoder.factor.nbytes
        meta.used["decoder"] += model.brain.decoder.factor.nbytes
    with meta.part("synapses"):
        model.brain.synapses.wire()
    with meta.part("activity"):
        act = model.activity(training.segment, training.batch, learning=True)
        model.learning_step(act, True)
    with meta.part("evaluation, samples"):
        for streams in (streams_of(training), 1):
            model.brain.forward(model.activity(config.brain.chunk, streams))
    if training.rewire_interval:  # gradients of the bundles that grow, and their squares (learning/rewiring.py)
        meta.used["workspace"] += int(2 * training.rewire_share * model.brain.synapses.gradient.nbytes)
    meta.used["workspace"] += WORKSPACE + OUTSIDE
    return dict(meta.used)


def _component(name: str, parameter) -> str:
    if parameter.file != "brain":
        return {"embeddings": "embedding", "decoder": "decoder"}[parameter.file]
    return "synapses" if name.endswith(".weight") else "neurons"


def rounded_fan_ins(brain) -> list[str]:
    """The projections whose fan-in is rounded to whole bundles: name, configured and rounded fan-in."""
    bundled = [arc for arc in arcs(brain) if arc.synapses_per_target != min(arc.fan_in, arc.sources * arc.delays)]
    return [f"{arc.name} {arc.fan_in} to {arc.synapses_per_target}" for arc in bundled]


def what_would_fit(config: Config, card: Card, limit: int) -> Iterator[Change]:
    """The single changes that make a run fit into `limit` bytes, each as small as possible."""
    for knob in KNOBS:
        if change := _least_change(knob, config, card, limit):
            yield change


def what_would_fit_together(config: Config, card: Card, limit: int) -> Change | None:
    """The fewest changes, combined, that make a run fit without changing the brain; None if all of them do not."""
    words = []
    for knob in TRAINING:
        if less := knob.less(config):
            fitting = _least_change(knob, config, card, limit)
            change = fitting or knob.turned(config, less[-1])
            words.append(change.words)
            if fitting:
                return Change(" ".join(words), change.config)
            config = change.config
    return None


def _least_change(knob, config, card, limit):
    def fits(value):
        return _fits(knob.turned(config, value).config, card, limit)

    less = knob.less(config)
    if not less or not fits(less[-1]):
        return None
    return knob.turned(config, less[bisect_left(less, True, hi=len(less) - 1, key=fits)])


def _fits(config, card, limit):
    return sum(plan(config, card).values()) <= limit


def advice(config: Config, card: Card, limit: int) -> str:
    """The end of a sentence: the changes that make a run fit into `limit` bytes, first the one that `fit` makes."""
    if single := [change.words for change in what_would_fit(config, card, limit)]:
        return f"{'any of these' if len(single) > 1 else 'this'} makes it fit: {', '.join(single)}"
    together = what_would_fit_together(config, card, limit)
    return f"no single change makes it fit, but together these do: {together.words}" if together else HOPELESS


def fit(config: Config, card: Card, limit: int) -> tuple[Config, str]:
    """(configuration with the first change that makes it fit into `limit` bytes, or several if no single one does; a sentence about them).

    Raises BackendError if nothing makes it fit.
    """
    total = sum(plan(config, card).values())
    if total <= limit:
        return config, f"fits into {size_in_words(limit)} as it is"
    change = next(what_would_fit(config, card, limit), None) or what_would_fit_together(config, card, limit)
    if change is None:
        raise BackendError(f"{size_in_words(total)} do not fit into {size_in_words(limit)}; {HOPELESS}")
    return change.config, f"made to fit into {size_in_words(limit)}: {change.words}"


def of_rank(config: Config, ranks: int) -> Config:
    """The configuration of a run of the sequences of one of several ranks, that with the most."""
    return config.replace(training={"batch": -(-config.training.batch // ranks)})


def settle(config: Config, backend, make_fit: bool = False, communicator: Solo = SOLO) -> tuple[Config, str | None]:
    """(configuration of a training run on a backend whose memory is planned, a sentence about its changes or None).

    communicator: to the ranks that share the batch. make_fit: make the first change that lets it fit, of a run on one rank. Raises
    BackendError if it does not fit into free memory or its own limit, with the largest component and changes that would help.
    """
    limit = size_of(config.training.memory_limit) if config.training.memory_limit else math.inf
    card, room, change = Card.of(backend, limit), min(limit, backend.memory()[0]), None
    if make_fit:
        config, change = fit(config, card, room)
    rows = plan(of_rank(config, communicator.size), card, communicator.size if communicator.shard else 1)
    total, largest = sum(rows.values()), max(rows, key=rows.get)
    if total > room:
        raise BackendError(
            f"out of GPU memory: training needs {size_in_words(total)}, {size_in_words(room)} are free; the largest part is "
            f"{largest}, {size_in_words(rows[largest])}; {advice(config, card, room)}"
        )
    return config, change
