"""The configuration of a run: frozen dataclasses, from which flags, presets and checkpoints are derived.

Times are in tokens. This module imports nothing slow.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
import re
import typing
from dataclasses import dataclass, field

from .errors import ConfigError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MIN_BYTES = 1_000_000  # smallest size that is accepted without a unit
MAX_SEQUENCES = 1_000_000  # sequences, tokens of a segment
MAX_HYPERCOLUMN = 1024  # neurons: a CUDA block has one thread for each, and at most 1,024 threads
FLOAT32 = 3.4028234663852886e38  # the largest number of float32
STREAMS = 16  # pieces of held-out text that are evaluated in parallel, at most, each from a zero state
MAX_WORKERS = 61  # Windows can wait for at most this number of processes
MEMORY_RULES = ("delta", "hebbian", "none")  # kernels/memory.py
LEARNING = ("bptt", "eprop", "three-factor")  # brain/eligibility.py, brain/exploration.py
LEARNING_SIGNALS = ("symmetric", "random")  # brain/learning_signal.py
REWIRE = ("rigl", "set", "deep_r")  # learning/rewiring.py
ACTIVATION_MEMORY = ("full", "half", "recompute")
OPTIMIZERS = ("adamw", "muon", "adamw8bit", "adafactor")
DROPOUTS = ("dropout", "axon_dropout", "weight_drop", "word_dropout")  # rates of a training, kernels/dropout.py
ROW_WISE = ("adamw8bit", "adafactor")  # of these, those that update the decoder row by row (optim/low_memory.py)
BUNDLE_SIZES = (16, 32, 64)
QUANTIZED_BITS = (8, 4)  # of a weight in a quantised model
NEURONS = ("lif_a", "lif", "adlif", "resonate_and_fire", "izhikevich")  # included in NeuroGen, in neurons/; the first is the default
SURROGATES = ("triangle", "fast_sigmoid", "arctan")  # kernels/surrogate.py
NEUROMODULATORS = ("dopamine", "norepinephrine", "serotonin")  # kernels/neuromodulation.py
MODULES = ("thalamus", "wernicke", "hippocampus", "pfc", "basal_ganglia", "broca")  # in the order a token passes them


@dataclass(frozen=True)
class Module:
    """One cortical module."""

    neurons: int  # number of its neurons
    outputs: int = 0  # size of its population readout (PFC: slots of the working memory); 0: as many as neurons
    lateral: int = 16  # lateral synapses per neuron
    neuron: str = NEURONS[0]  # lif_a, lif, adlif, resonate_and_fire, izhikevich, or MODULE:NAME of a neuron that Python code defines

    def __post_init__(self):
        object.__setattr__(self, "neuron", getattr(self.neuron, "reference", self.neuron))  # from a Neuron (neurons/definition.py)
        plain_types(self, "module.")
        if self.neuron not in NEURONS and not all(self.neuron.partition(":")):
            known = did_you_mean(self.neuron, NEURONS)
            raise ConfigError(
                f"neuron: unknown {self.neuron!r}; {known}; a neuron of your own is named MODULE:NAME, for example mine:resonator"
            )

    @property
    def output_size(self) -> int:
        return self.outputs or self.neurons


@dataclass(frozen=True)
class Brain:
    """The network: sizes, wiring and neuron type. `vocabulary` comes from the tokenizer."""

    thalamus: Module
    wernicke: Module
    hippocampus: Module
    pfc: Module
    basal_ganglia: Module
    broca: Module
    embedding: int = 512  # size of a token's embedding
    tied: bool = False  # weight tying: a token's embedding is its row of the decoder; `embedding` must be the decoder's input size
    vocabulary: int = 50257  # tokens
    fan_in: int = 128  # synapses per target neuron and projection, rounded to whole bundles
    bundle: int = 32  # neurons on a side of a bundle of synapses, 16, 32 or 64; the largest up to this that divides the fan-in
    memory_bundle: int = 16  # the same for projections into the associative memory: small, so that a head reads many different sources
    feedback: int = 16  # synapses per target of a feedback projection
    late_delays: int = 8  # number of delays of lateral synapses, from one chunk on, and of feedback
    feedback_chunks: int = 1  # shortest delay of feedback, in chunks; the longer, the further modules may overlap on a GPU
    delays: int = 24  # number of delays of the long arcs (from the Thalamus), from 0 tokens on
    hypercolumn: int = 256  # neurons normalised together; at most 1,024
    memory_rule: str = MEMORY_RULES[0]  # of the associative memory: delta, hebbian (with decay), none
    memory_heads: int = 8  # heads of the associative memory
    memory_width: int = 64  # size of the key and of the value of a head
    memory_fan_in: int = 96  # synapses per target of a projection into the associative memory
    memory_context: int = 3  # tokens that form the key under which the associative memory stores the next token
    events: str = "graded"  # graded: an event carries its membrane potential; binary: it carries 1
    surrogate: str = SURROGATES[0]  # surrogate gradient, which replaces the derivative of an event: triangle, fast_sigmoid, arctan
    surrogate_width: float = 1.0  # width of the surrogate, in units of the threshold
    without: str = ""  # names of parts to omit: projections, with * for any letters, normalization, dopamine ...: "go_broca lateral_*"
    pruned: str = ""  # bundles that are left of projections, as `neurogen prune` chose them: "thalamus_wernicke=24 lateral_pfc=7"
    neuromodulation: bool = False  # dopamine, norepinephrine and serotonin follow the surprise of the tokens, and act on every module
    chunk: int = 16  # tokens processed together; the shortest lateral delay; the delay of feedback is a multiple

    def __post_init__(self):
        plain_types(self, "brain.")
        for name in MODULES:
            module = getattr(self, name)
            if module.neurons < 1 or module.outputs < 0 or module.outputs > module.neurons or module.lateral < 0:
                raise ConfigError(f"brain.{name}: needs neurons >= 1, 0 <= outputs <= neurons, lateral >= 0; got {module}")
        for name in ("thalamus", "hippocampus"):
            if getattr(self, name).outputs:
                raise ConfigError(f"brain.{name}.outputs: nothing reads a readout of this module; leave it 0")
        for name in (
            "embedding",
            "vocabulary",
            "fan_in",
            "delays",
            "late_delays",
            "feedback_chunks",
            "hypercolumn",
            "memory_heads",
            "memory_width",
            "memory_fan_in",
            "memory_context",
            "chunk",
        ):
            _at_least(self, "brain", name, 1)
        _at_least(self, "brain", "feedback", 0)
        if self.hypercolumn > MAX_HYPERCOLUMN:
            raise ConfigError(f"brain.hypercolumn: at most {MAX_HYPERCOLUMN:,}, not {self.hypercolumn}")
        if self.vocabulary >= 2**31:
            raise ConfigError(f"brain.vocabulary: token ids have 31 bits, so below {2**31}, not {self.vocabulary}")
        if self.tied and self.embedding != self.broca.output_size:
            raise ConfigError(
                f"brain.tied: embeddings are rows of the decoder then, so brain.embedding must be as large as Broca's output, "
                f"{self.broca.output_size}, not {self.embedding}; set it, or brain.broca.outputs"
            )
        for name in ("bundle", "memory_bundle"):
            if getattr(self, name) not in BUNDLE_SIZES:
                raise ConfigError(f"brain.{name}: 16, 32 or 64, not {getattr(self, name)}")
        if self.memory_rule not in MEMORY_RULES:
            raise ConfigError(f"brain.memory_rule: unknown {self.memory_rule!r}; {did_you_mean(self.memory_rule, MEMORY_RULES)}")
        if self.events not in ("graded", "binary"):
            raise ConfigError(f"brain.events: 'graded' or 'binary', not {self.events!r}")
        if self.surrogate not in SURROGATES:
            raise ConfigError(f"brain.surrogate: unknown {self.surrogate!r}; {did_you_mean(self.surrogate, SURROGATES)}")
        if not 0.01 <= self.surrogate_width <= 100:
            raise ConfigError(f"brain.surrogate_width: from 0.01 to 100, not {self.surrogate_width}")

    @property
    def neurons(self) -> int:
        return sum(getattr(self, name).neurons for name in MODULES)

    @property
    def own_neurons(self) -> dict[str, str]:
        """Module -> its neuron, MODULE:NAME, of the modules whose neuron is not included in NeuroGen."""
        named = {name: getattr(self, name).neuron for name in MODULES}
        return {name: neuron for name, neuron in named.items() if neuron not in NEURONS}


@dataclass(frozen=True)
class Training:
    """Training."""

    steps: int = 1000  # updates
    batch: int = 16  # sequences trained side by side
    segment: int = 64  # tokens of truncated back-propagation through time
    learning: str = LEARNING[0]  # bptt, eprop, three-factor: where the gradients of a segment come from
    learning_signal: str = LEARNING_SIGNALS[0]  # of eprop: symmetric, through transposed weights; random, through fixed random ones
    learning_rate: float = 4e-3  # its peak, at the end of the warm-up
    warmup: int = 100  # updates over which the learning rate rises
    final_rate: float = 0.05  # fraction of learning_rate at the end of the cosine
    weight_decay: float = 0.1  # on synapses, decoder and the projection of the embedding
    clip: float = 1.0  # largest global norm of the gradient
    dropout: float = 0.0  # share of embedding and readout that is dropped
    axon_dropout: float = 0.0  # share of axon values that is dropped
    weight_drop: float = 0.0  # fraction of the synapses dropped for a segment
    word_dropout: float = 0.0  # fraction of the vocabulary whose embeddings are dropped for a segment
    dropout_end: float = 1.0  # share of the updates after which nothing is dropped
    average: int = 0  # updates whose weights are averaged for evaluation and use, at most an eighth of those so far; 0: no average
    rewire_interval: int = 0  # updates between two rewirings; 0: the wiring stays
    rewire: str = REWIRE[0]  # rigl (not with three-factor), set, deep_r: what is removed, and what grows
    rewire_share: float = 0.5  # share of the bundles that the first rewiring removes; it falls to 0 at three quarters of the run
    prune_keep: float = 1.0  # share of the bundles of synapses that is left from the middle of the run on; the others are removed in stages
    replay: int = 0  # updates between two replays of the most surprising segments; 0: none
    reset_prob: float = 0.02  # probability that a sequence is reset before a segment, because a conversation begins with a zero state
    distill: str = ""  # checkpoint of a larger model with the same tokenizer, whose predictions are learned too; empty: none
    optimizer: str = "adamw"  # adamw; muon for bundles of synapses, adamw for the rest; with less memory: adamw8bit, adafactor
    activation_memory: str = "full"  # activations kept for the backward pass: full, half (16 bits), recompute
    memory_limit: str = ""  # largest GPU memory, for example 3.2GB; empty: all free memory
    seed: int = 0  # of wiring, first weights and the order of the text
    max_minutes: float = 0.0  # limit of the training time; 0: no limit; otherwise fewer steps are made if `steps` do not fit
    eval_interval: int = 250  # updates between evaluations on held-out text
    eval_tokens: int = 20000  # held-out tokens for validation during training
    final_eval_tokens: int = 0  # held-out tokens for the final evaluation; 0: all
    checkpoint_interval: int = 2000  # updates between checkpoints
    keep_checkpoints: int = 5  # number of the newest ones that are kept, in addition to the best by validation
    sample_interval: int = 100  # updates between samples
    log_interval: int = 10  # updates between reports
    viz_interval: int = 500  # updates between figures; 0: none

    def __post_init__(self):
        plain_types(self, "training.")
        for name in ("steps", "batch", "segment", "eval_interval", "eval_tokens", "checkpoint_interval", "keep_checkpoints"):
            _at_least(self, "training", name, 1)
        for name in ("sample_interval", "log_interval"):
            _at_least(self, "training", name, 1)
        for name in ("learning_rate", "warmup", "final_rate", "weight_decay", "max_minutes", "seed", "viz_interval", "final_eval_tokens"):
            _at_least(self, "training", name, 0)
        for name in ("average", "rewire_interval", "replay"):
            _at_least(self, "training", name, 0)
        for name in ("batch", "segment"):
            if getattr(self, name) > MAX_SEQUENCES:
                raise ConfigError(f"training.{name}: at most {MAX_SEQUENCES:,}, not {getattr(self, name)}")
        if self.seed >= 2**64:
            raise ConfigError(f"training.seed: below 2^64, not {self.seed}")
        for name in ("learning_rate", "weight_decay", "final_rate"):
            if getattr(self, name) > FLOAT32:
                raise ConfigError(f"training.{name}: at most {FLOAT32:.2g}, the largest float32, not {getattr(self, name)}")
        if not self.clip > 0:
            raise ConfigError(f"training.clip: a positive norm, not {self.clip}")
        if not 0 <= self.reset_prob <= 1:
            raise ConfigError(f"training.reset_prob: a share from 0 to 1, not {self.reset_prob}")
        for name in DROPOUTS:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"training.{name}: at least 0 and below 1, not {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"training.optimizer: unknown {self.optimizer!r}; {did_you_mean(self.optimizer, OPTIMIZERS)}")
        if self.learning not in LEARNING:
            raise ConfigError(f"training.learning: unknown {self.learning!r}; {did_you_mean(self.learning, LEARNING)}")
        if self.learning_signal not in LEARNING_SIGNALS:
            known = did_you_mean(self.learning_signal, LEARNING_SIGNALS)
            raise ConfigError(f"training.learning_signal: unknown {self.learning_signal!r}; {known}")
        if self.rewire not in REWIRE:
            raise ConfigError(f"training.rewire: unknown {self.rewire!r}; {did_you_mean(self.rewire, REWIRE)}")
        if not 0 < self.rewire_share <= 1:
            raise ConfigError(f"training.rewire_share: above 0 and at most 1, not {self.rewire_share}")
        if not 0 <= self.dropout_end <= 1:
            raise ConfigError(f"training.dropout_end: a share from 0 to 1, not {self.dropout_end}")
        if not 0 < self.prune_keep <= 1:
            raise ConfigError(f"training.prune_keep: a share above 0 and at most 1, not {self.prune_keep}")
        if self.prune_keep < 1 and (self.rewire_interval or self.learning != "bptt"):
            raise ConfigError("training.prune_keep: a pruned brain learns with bptt, and its wiring stays; set rewire_interval to 0")
        if self.activation_memory not in ACTIVATION_MEMORY:
            known = did_you_mean(self.activation_memory, ACTIVATION_MEMORY)
            raise ConfigError(f"training.activation_memory: unknown {self.activation_memory!r}; {known}")
        if self.memory_limit:
            size_of(self.memory_limit, "training.memory_limit")


@dataclass(frozen=True)
class Text:
    """Text and tokenizer."""

    data: str = ""  # file, folder, glob, URL, hf:NAME[:CONFIG][@SPLIT], token file, or - for standard input; empty: the built-in stories
    field: str = "text"  # name of the text in JSON lines, parquet and data sets of the hub
    tokenizer: str = "sentencepiece"  # sentencepiece, char, byte, word, or the path of a SentencePiece .model
    vocabulary: int = 1024  # pieces, for a SentencePiece tokenizer trained on the corpus; words known, for words
    validation: float = 0.1  # fraction of the text that is held out: the end of files, the first documents of streamed text
    chunk_tokens: int = 1_000_000  # tokens of a chunk: streamed text is read and shuffled by chunks; the unit of max_chunks
    max_chunks: int = 0  # chunks to train on, if that is less than `training.steps`; 0: no such limit
    workers: int = 0  # processes that tokenize streamed text; 0: a thread of the training process
    reset_at_documents: bool = False  # whether each document begins a new segment, after a reset
    speakers: str = ""  # of a text of dialogues, how the lines of a person and the replies begin, for the chat: "User: System:"; else empty

    def __post_init__(self):
        plain_types(self, "text.")
        if self.speakers and len(self.speakers.split()) != 2:
            raise ConfigError(f'text.speakers: how lines of a person and replies begin, as in "User: System:", not {self.speakers!r}')
        for name, low in (("vocabulary", 1), ("chunk_tokens", 1), ("max_chunks", 0), ("workers", 0)):
            _at_least(self, "text", name, low)
        if self.workers > MAX_WORKERS:
            raise ConfigError(f"text.workers: at most {MAX_WORKERS}, not {self.workers}")
        if not 0 < self.validation < 1:
            raise ConfigError(f"text.validation: a share between 0 and 1, not {self.validation}")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    preset: str  # name of the preset from which the other settings come
    brain: Brain
    training: Training = field(default_factory=Training)
    text: Text = field(default_factory=Text)

    def __post_init__(self):
        chunk, segment = self.brain.chunk, self.training.segment
        if self.brain.neuromodulation and segment % chunk and chunk % segment:
            raise ConfigError(
                f"training.segment: with brain.neuromodulation levels change every brain.chunk = {chunk} tokens, also across segments: a "
                f"multiple of it or a divisor is needed, not {segment}"
            )
        if self.training.learning != "bptt" and self.training.optimizer in ROW_WISE:
            raise ConfigError(
                f"training.optimizer: {self.training.optimizer} updates the decoder after each chunk, and training.learning = "
                f"{self.training.learning} sums gradients over the chunks of a segment; use adamw or muon, or training.learning = bptt"
            )
        if self.training.learning != "eprop" and self.training.learning_signal != LEARNING_SIGNALS[0]:
            raise ConfigError(f"training.learning_signal: {self.training.learning_signal} is for training.learning = eprop; drop it")
        if self.training.learning == "three-factor" and not self.brain.neuromodulation:
            raise ConfigError("training.learning: three-factor learns from dopamine, which needs brain.neuromodulation = true")
        if self.training.learning == "three-factor" and "dopamine" in self.brain.without.split():
            raise ConfigError("training.learning: three-factor learns from dopamine, which brain.without leaves out; drop one of them")
        if self.training.learning == "three-factor" and self.training.rewire_interval and self.training.rewire == "rigl":
            raise ConfigError("training.rewire: rigl is for gradients of synapses, which three-factor does not have; use --rewire set")
        if self.training.learning == "three-factor" and self.training.optimizer == "muon":
            raise ConfigError("training.optimizer: muon is for gradients of synapses, which three-factor does not have; use adamw")
        if self.training.learning == "three-factor" and self.training.weight_drop:
            raise ConfigError("training.weight_drop: three-factor sets the weights anew in every chunk; set it to 0")
        if self.brain.tied and self.training.optimizer in ROW_WISE:
            raise ConfigError(
                f"training.optimizer: {self.training.optimizer} updates the decoder before the embeddings have their gradient, and with "
                "brain.tied both are the same rows; use adamw or muon, or set brain.tied to false"
            )

    def replace(self, **sections: dict[str, typing.Any]) -> Config:
        """A copy with fields replaced: `config.replace(training={"steps": 5}, brain={"vocabulary": 65, "pfc": {"neurons": 128}})`. Raises
        ConfigError for an unknown field."""
        for section in sections:
            if section not in ("brain", "training", "text"):
                raise ConfigError(f"unknown section {section!r}; {did_you_mean(section, ('brain', 'training', 'text'))}")
        return _replaced(self, "", sections)

    def with_neuron(self, neuron, *modules: str) -> Config:
        """A copy in which these modules (all, if none is named) have another type of neuron: its name, or a Neuron (neurons/definition.py).
        Raises ConfigError for an unknown module."""
        for name in modules:
            if name not in MODULES:
                raise ConfigError(f"unknown module {name!r}; {did_you_mean(name, MODULES)}")
        made = {name: dataclasses.replace(getattr(self.brain, name), neuron=neuron) for name in modules or MODULES}
        return self.replace(brain=made)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Config:
        """Inverse of `to_dict`. Raises ConfigError for a missing, unknown or mistyped field."""
        training = values.get("training") if isinstance(values, dict) else None
        if isinstance(training, dict):  # of earlier versions: one dropout rate for all, and another name of reset_prob
            training = {**training, "axon_dropout": training.get("axon_dropout", training.get("dropout", 0.0))}
            if "reset_prob" not in training and "fresh" in training:
                training["reset_prob"] = training.pop("fresh")
            values = {**values, "training": training}
        return _build(cls, values, "config")


def comments(cls: type) -> dict[str, str]:
    """Field of a dataclass of this module -> the comment at the end of its line. Reads the source."""
    import inspect

    lines = inspect.getsource(cls).splitlines()
    fields = (re.match(r"    (\w+): .*?  # (.*)", line) for line in lines)
    return {match[1]: match[2] for match in fields if match}


def size_of(text: str, what: str = "--memory-limit") -> int:
    """Bytes of a size, for example 3.2GB, 500 MiB or 4000000000. Raises ConfigError for anything else; `what` begins the sentence.

    A number below MIN_BYTES is assumed to lack its unit.
    """
    match = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2].upper() not in UNITS or float(match[1]) == 0:
        raise ConfigError(f"{what} {text}: not a size; write for example 3.2GB or 500MiB")
    if not match[2] and float(match[1]) < MIN_BYTES:
        raise ConfigError(f"{what} {text}: a unit is missing, as in {text.strip()}GB or {text.strip()}MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def size_in_words(size: int) -> str:
    """Bytes for display: 3.20 GB."""
    from rich.filesize import decimal

    return decimal(size, precision=2)


def counted(number: int, what: str) -> str:
    """A number with its noun, plural unless the number is 1: 1 token, 2,000 tokens."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def did_you_mean(word: str, known) -> str:
    """The end of an error message: the nearest known word, or the list of all."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known)


def _at_least(section, prefix, name, low):
    value = getattr(section, name)
    if not value >= low:
        raise ConfigError(f"{prefix}.{name}: at least {low}, not {value}")
    if name != "seed" and value >= 2**63 and value != math.inf:
        raise ConfigError(f"{prefix}.{name}: below 2^63, not {value}")
    if value == math.inf:
        raise ConfigError(f"{prefix}.{name}: a finite number, not {value}")


def plain_types(section, where: str) -> None:
    """Convert NumPy scalars, which JSON does not support, to Python's, in the int, float, bool and str fields of a frozen dataclass.

    Raises ConfigError for a value of another type; `where` is the prefix of the field's name.
    """
    for field_ in dataclasses.fields(section):
        value = getattr(section, field_.name)
        if isinstance(value, int) and abs(value) >= 2**64:
            raise ConfigError(f"{where}{field_.name}: a number of at most 64 bits, not {value}")
        if field_.type in _PLAIN and type(value) is not _PLAIN[field_.type][0]:
            try:
                object.__setattr__(section, field_.name, _PLAIN[field_.type][1](value))
            except (TypeError, OverflowError):
                raise ConfigError(f"{where}{field_.name}: {field_.type} expected, not {value!r}") from None


def _integer(value):
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _real(value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _truth(value):
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _text(value):
    if not isinstance(value, str):
        raise TypeError
    return str(value)


_PLAIN = {"int": (int, _integer), "float": (float, _real), "bool": (bool, _truth), "str": (str, _text)}


def _replaced(part, where, fields):
    """A copy of a dataclass with fields replaced; those of a dataclass in it by a dictionary."""
    known = [field.name for field in dataclasses.fields(part)]
    for name, value in fields.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown setting {name!r}; {did_you_mean(str(name), known)}")
        before, path = getattr(part, name), f"{where}.{name}".lstrip(".")
        if dataclasses.is_dataclass(before) and isinstance(value, dict):
            fields = fields | {name: _replaced(before, path, value)}
        elif dataclasses.is_dataclass(before) and not isinstance(value, type(before)):
            raise ConfigError(f"{path}: a dictionary of its settings is needed, not {value!r}")
    return dataclasses.replace(part, **fields)


def _meant(name, value, hints):
    """The end of an error message for a value of another type: a setting of a similar name that takes the value, if there is one."""
    others = [other for other, kind in hints.items() if other != name and type(value) is kind]
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    return f"; did you mean {near[0]!r}?" if near else ""


def _build(cls, values, where):
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a table of settings was expected, not {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise ConfigError(f"{where}: unknown setting {name!r}; {did_you_mean(name, hints)}")
    built = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            built[name] = _build(kind, value, f"{where}.{name}")
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            built[name] = float(value)
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            built[name] = value
        else:
            raise ConfigError(f"{where}.{name}: {kind.__name__} expected, not {value!r}{_meant(name, value, hints)}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in built and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    return cls(**built)
