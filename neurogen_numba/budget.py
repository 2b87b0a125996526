"""What a training run needs of a GPU's memory, by component, before anything is allocated (backends/paper.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from .backends.paper import Paper
from .brain.model import NeuroGenModel
from .config import Config, size_in_words, size_of
from .errors import BackendError
from .learning.evaluation import streams_of
from .presets import FOUR_GB

HOPELESS = "no single change makes it fit; take a smaller --preset or --vocab-size"
SMALL, LARGE = 4 * 2**30, 24 * 2**30  # bytes of a card that is assumed
CUBLAS = 64 * 2**20  # bytes: cuBLAS' own workspace and that of the stream
KNOBS = (  # what may be made smaller, in this order: (what a person sets, section, field)
    ("--set brain.pfc.neurons=", "brain", "pfc"),
    ("--set brain.wernicke.neurons=", "brain", "wernicke"),
    ("--set brain.broca.neurons=", "brain", "broca"),
    ("--batch-size ", "training", "batch"),
    ("--seq-length ", "training", "segment"),
)


@dataclass(frozen=True)
class Card:
    """What of a GPU decides what is allocated on it. What is not said is as on a large card of Ampere (2020) or newer."""

    memory: int  # bytes
    product_dtype: str = "bfloat16"
    shared_memory: int = 98 * 2**10  # bytes, of a block
    multiprocessors: int = 80

    @classmethod
    def assumed(cls, config: Config, limit: int | None = None) -> Card:
        """What is planned for where there is no GPU to ask: a card of `limit` bytes, or as large as those that the preset is made for.
        One of 4 GiB or less is taken for one of Turing (GTX 1650), which has no bfloat16."""
        memory = limit or (SMALL if config.preset in FOUR_GB else LARGE)
        return cls(memory, "float32", 63 * 2**10, 14) if memory <= SMALL else cls(memory)

    @classmethod
    def of(cls, backend, limit: float | None = None) -> Card:
        """The backend's, with at most `limit` bytes of its memory."""
        memory = min(limit or math.inf, backend.memory()[1])
        return cls(memory, backend.product_dtype, backend.shared_memory, backend.multiprocessors)


@dataclass(frozen=True)
class Change:
    """A single change: `words` as a person would make it, and the configuration that it leads to."""

    words: str
    config: Config


def plan(config: Config, card: Card) -> dict[str, int]:
    """Bytes of a training run with this configuration, by component, with `--mode sequential`; brain.vocabulary must be the tokenizer's."""
    paper, training = Paper(**asdict(card)), config.training
    with paper.part("neurons"):
        model = NeuroGenModel.on_paper(config, paper)
    parameters = model.brain.parameters
    paper.used["optimiser"] = sum(kept.nbytes for kept in model.optimizer.tensors().values())
    paper.used["neurons"] -= paper.used["optimiser"]
    for flat in (parameters.flat_value, parameters.flat_gradient):  # they are told apart now
        paper.used["neurons"] -= flat.nbytes
        for name, own in parameters.table.items():
            paper.used[_component(name, own)] += 4 * parameters.numbers(own) if parameters.offset[name] < len(flat) else 0
    if model.brain.decoder.factor is not model.brain.decoder.weight:
        paper.used["neurons"] -= model.brain.decoder.factor.nbytes
        paper.used["decoder"] += model.brain.decoder.factor.nbytes
    with paper.part("synapses"):
        model.brain.synapses.wire()
    with paper.part("activity"):
        act = model.activity(training.segment, training.batch, learning=True)
        model._learn(act, True)
    with paper.part("evaluation, samples"):
        for streams in (streams_of(training), 1):
            look = model.activity(config.brain.chunk, streams)
            model.brain.think(look)
    paper.used["workspace"] += CUBLAS
    return dict(paper.used)


def _component(name: str, parameter) -> str:
    if parameter.file != "brain":
        return {"embeddings": "embedding", "decoder": "decoder"}[parameter.file]
    return "synapses" if name.endswith(".weight") else "neurons"


def what_would_fit(config: Config, card: Card, limit: int) -> Iterator[Change]:
    """Single changes that make a run fit into `limit` bytes, each as small as it may be; none, where none of them does."""
    for words, section, field in KNOBS:
        whole = getattr(getattr(config, section), field)
        now = whole if section == "training" else whole.neurons

        if field == "broca" and config.brain.tied and not whole.outputs:
            continue  # the embedding is as large as what Broca says

        def changed(value, section=section, field=field, whole=whole):
            return config.replace(**{section: {field: value if section == "training" else replace(whole, neurons=value)}})

        least = 1 if section == "training" else max(1, whole.outputs)  # a readout is no larger than its module
        low, high = least - 1, now  # the first fits, or nothing does; the last does not
        while high - low > max(1, now // 64):
            middle = (low + high) // 2
            low, high = (middle, high) if _fits(changed(middle), card, limit) else (low, middle)
        if low >= least:
            yield Change(f"{words}{low}", changed(low))


def _fits(config, card, limit):
    return sum(plan(config, card).values()) <= limit


def advice(config: Config, card: Card, limit: int) -> str:
    """The end of a sentence: what would make a run fit into `limit` bytes."""
    fitting = [change.words for change in what_would_fit(config, card, limit)]
    if fitting:
        return f"any of these would: {', '.join(fitting)}"
    if not config.brain.tied and _fits(config.replace(training={"optimizer": "adafactor", "activation_memory": "recompute"}), card, limit):
        return "--optimizer adafactor and --activation-memory recompute together would make it fit"
    return HOPELESS


def fit(config: Config, card: Card, limit: int) -> tuple[Config, str]:
    """(the configuration with the first change that makes it fit into `limit` bytes, a sentence that says which it was).

    Raises BackendError where no single change does.
    """
    total = sum(plan(config, card).values())
    if total <= limit:
        return config, f"fits into {size_in_words(limit)} as it is"
    change = next(what_would_fit(config, card, limit), None)
    if change is None:
        raise BackendError(f"{size_in_words(total)} do not fit into {size_in_words(limit)}; {HOPELESS}")
    return change.config, f"made to fit into {size_in_words(limit)}: {change.words}"


def settle(config: Config, backend, make_fit: bool = False) -> tuple[Config, str | None]:
    """(the configuration of a training run on a backend whose memory is planned, what was changed of it). make_fit: make the first change
    that lets it fit.

    Raises BackendError where it does not fit into what is free, nor into its own limit: what is largest, and what would fit.
    """
    limit = size_of(config.training.memory_limit) if config.training.memory_limit else math.inf
    card, room, change = Card.of(backend, limit), min(limit, backend.memory()[0]), None
    if make_fit:
        config, change = fit(config, card, room)
    rows = plan(config, card)
    total, largest = sum(rows.values()), max(rows, key=rows.get)
    if total > room:
        raise BackendError(
            f"out of GPU memory: training needs {size_in_words(total)}, {size_in_words(room)} are free; the largest part is "
            f"{largest}, {size_in_words(rows[largest])}; {advice(config, card, room)}"
        )
    return config, change
