"""What ranks send each other in an update, and how long that takes on given links: a cost model of data-parallel training.

A sum over N cards goes round a ring (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"): each
card sends and receives 2 (N − 1) / N of the bytes, in 2 (N − 1) messages. Sums that begin before the backward pass are hidden behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..brain.model import NeuroGenModel
from ..config import Config

BACKWARD = 0.6  # share of an update between the decoder's gradient and the last: the backward pass of all components and synapses
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Link:
    """A kind of link of a card to the next one. bandwidth: bytes per second in one direction; latency: seconds of a message."""

    name: str
    bandwidth: float
    latency: float


# Bandwidths are those of the data sheets of H100 and H200 and of InfiniBand NDR, a port a card; latencies are assumed.
NVLINK, NETWORK = Link("NVLink 4", 450e9, 2e-6), Link("network of 400 Gbit/s a card", 50e9, 5e-6)
CARDS = 8  # of a machine


@dataclass(frozen=True)
class Communication:
    """Bytes that one rank sends in an update.

    early: of sums that begin before the backward pass; late: of those at its end; blocks: of a decoder that is updated row by row, whose
    sums nothing hides; values: of parameters that ranks tell each other (--shard-optimizer); batch: of the text, from the host of
    rank 0. sums: how many sums there are.
    """

    ranks: int
    early: float
    late: float
    blocks: float
    values: float
    batch: float
    sums: int

    @property
    def total(self) -> float:
        return self.early + self.late + self.blocks + self.values

    def seconds(self, link: Link, update: float | None = None) -> float:
        """Seconds that an update of `update` seconds takes longer for these messages, on one kind of link; None: nothing is hidden."""
        hidden = BACKWARD * update if update else 0.0
        waited = max(0.0, self.early / link.bandwidth - hidden) + (self.late + self.blocks + self.values) / link.bandwidth
        return waited + self.sums * 2 * (self.ranks - 1) * link.latency


def link_of(ranks: int) -> Link:
    """The slowest link of a ring through as many cards."""
    return NVLINK if ranks <= CARDS else NETWORK


def communication(config: Config, backend, ranks: int, shard: bool = False) -> Communication:
    """The communication of a run of this configuration; brain.vocabulary must be the tokenizer's. backend: a meta backend (meta.py)."""
    model, training = NeuroGenModel.on_meta(config, backend), config.training
    parameters, ring = model.brain.parameters, 2 * (ranks - 1) / ranks
    whole = FLOAT * parameters.flat_gradient.size
    late = ["embedding.weight", "embedding_thalamus.weight"] + ["decoder.weight"] * config.brain.tied
    early = [name for name in ("decoder.weight", "decoder.bias") if name not in late and name in parameters.gradient]
    begun = FLOAT * sum(parameters.numbers(parameters.table[name]) for name in early)
    rows = blocks = 0
    if model.brain.decoder.row_wise:
        blocks = FLOAT * parameters.numbers(parameters.table["decoder.weight"])
    if "embedding.weight" in parameters.table and "embedding.weight" not in parameters.gradient:
        rows = FLOAT * min(training.segment * training.batch, config.brain.vocabulary) * config.brain.embedding
    number = 4 + (_blocks(model, training, ranks) if blocks else 0)
    values = FLOAT * model.optimizer.updated.size * (ranks - 1) / ranks if shard else 0
    batch = 2 * FLOAT * training.segment * training.batch
    return Communication(ranks, ring * begun, ring * (whole - begun + rows), ring * blocks, values, batch, number)


def _blocks(model, training, ranks):
    """How many blocks of its rows a decoder is updated in."""
    act = model.activity(training.segment, -(-training.batch // ranks), learning=True)
    return len(list(act.decoder_blocks))


def speed(sent: Communication, tokens: int, tokens_per_second: float) -> float:
    """Tokens per second of all ranks. tokens: of an update, of all ranks; tokens_per_second: of one card with its share of them."""
    update = tokens / sent.ranks / tokens_per_second
    return tokens / (update + sent.seconds(link_of(sent.ranks), update))
