"""`neurogen plan`: the GPU memory that a training run will need, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
import sys

from .backends import NAMES, PRECISIONS
from .cli import STDOUT, Parser, add_gpu_flag, add_json_flag, command, tell_json
from .config import ACTIVATION_MEMORY, OPTIMIZERS, counted, size_in_words, size_of
from .configure import add_config_flags, config_of
from .errors import BackendError, ConfigError


def parser() -> Parser:
    flags = Parser("plan")
    add_config_flags(flags)
    flags.add_argument("--batch-size", type=int, default=None, help="sequences trained side by side (default: the preset's)")
    flags.add_argument("--seq-length", type=int, default=None, help="tokens of a segment (default: the preset's)")
    flags.add_argument("--optimizer", default=None, help=f"{', '.join(OPTIMIZERS)} (default: the preset's)")
    flags.add_argument("--activation-memory", default=None, help=f"{', '.join(ACTIVATION_MEMORY)} (default: the preset's)")
    flags.add_argument("--vocab-size", type=int, default=None, help="tokens known (default: the preset's)")
    limit = "for example 3.2GB: exit code 2 if the run needs more, with changes that would fit"
    flags.add_argument("--memory-limit", default=None, help=limit)
    several = "processes that share each batch, one a GPU: the memory of one, and what they send each other"
    flags.add_argument("--gpus", type=int, default=1, help=several)
    flags.add_argument("--shard-optimizer", action="store_true", help="each process keeps a part of the optimizer's state")
    speed = "with --gpus: speed of one GPU with its share of the batch (`neurogen bench train`), to estimate that of all"
    flags.add_argument("--tokens-per-second", type=float, default=None, help=speed)
    flags.add_argument("--fit", action="store_true", help="make the first change that makes it fit into the limit, or into the GPU")
    precision = "of the factors of products; auto: the card's; without a GPU fp32 for a card of 4 GiB or less, else bf16"
    flags.add_argument("--precision", choices=PRECISIONS, default="auto", help=precision)
    flags.add_argument("--backend", choices=NAMES, default="auto", help="cpu: do not look for a GPU, plan for any")
    add_gpu_flag(flags)
    add_json_flag(flags, "optimiser", "workspace", "total")
    return flags


@command("plan")
def main(argv=None):
    args = parser().parse_args(argv)
    limit = size_of(args.memory_limit) if args.memory_limit else None
    config = config_of(args)
    training = {"batch": args.batch_size, "segment": args.seq_length}
    training |= {"optimizer": args.optimizer, "activation_memory": args.activation_memory}
    config = config.replace(
        brain={"vocabulary": args.vocab_size or config.text.vocabulary},
        training={name: value for name, value in training.items() if value is not None},
    )
    _check_ranks(args, config.training.batch)
    if not limit and config.training.memory_limit:
        limit = size_of(config.training.memory_limit)
    from . import backends
    from .backends.cuda import DTYPES
    from .planning import budget

    backend = backends.get(args.backend, args.gpu_device)
    memory = backend.memory()
    card = budget.Card.of(backend, limit) if memory else budget.Card.assumed(config, limit)
    if DTYPES[args.precision]:
        card = dataclasses.replace(card, product_dtype=DTYPES[args.precision])
    given = limit or (memory[0] if memory else None)  # bytes into which it must fit
    words = sys.stderr if args.json == STDOUT else sys.stdout
    whole, config = config, budget.of_rank(config, args.gpus)
    shards = args.gpus if args.shard_optimizer else 1
    if args.fit:
        if not given:
            raise ConfigError("--fit: there is no GPU; give a --memory-limit")
        config, change = budget.fit(config, card, given)
        print(change, file=words)
    rows = budget.plan(config, card, shards)
    total = sum(rows.values())
    precision = next(name for name, dtype in DTYPES.items() if dtype == card.product_dtype)
    if args.json != STDOUT:
        _show(rows, total, config)
    sent = _communication(args, whole, card) if args.gpus > 1 else {}
    tell_json(args.json, rows | {"total": total} | sent)
    if memory:
        print(
            f"Planned in {precision} for {backend.device_name()} with {size_in_words(card.memory)}, "
            f"{card.multiprocessors} multiprocessors and {card.shared_memory // 2**10} KiB of shared memory for a block.",
            file=words,
        )
    else:
        print(f"No GPU here: planned for a card with {_size_of_card(card.memory)}, in {precision}.", file=words)
        print("For another card, give --memory-limit and --precision.", file=words)
    if sent:
        _show_communication(args, whole, sent, words)
    if rounded := budget.rounded_fan_ins(config.brain):
        print(f"Synapses come in bundles, so some fan-ins are rounded: {', '.join(rounded)}.", file=words)
    room = given or card.memory
    fits = total <= room
    size = size_in_words(room)
    where = f"the limit of {size}" if limit else f"the {size} that are free" if memory else f"the {_size_of_card(room)} of such a card"
    verdict = f"{size_in_words(total)} in {precision} {'fit' if fits else 'do not fit'} into {where}"
    if not fits:
        verdict += f"; {budget.advice(config, card, room)}"
    if given and not fits:
        raise BackendError(verdict)
    print(f"{verdict}.", file=words)
    return 0


def _check_ranks(args, batch):
    if not 1 <= args.gpus <= batch:
        wrong = "at least 1" if args.gpus < 1 else f"at most one for each of {counted(batch, 'sequence')}; raise --batch-size"
        raise ConfigError(f"--gpus {args.gpus}: {wrong}")
    if args.gpus == 1:
        for flag in ("shard_optimizer", "tokens_per_second"):
            if getattr(args, flag):
                raise ConfigError(f"--{flag.replace('_', '-')} is about several GPUs; add --gpus N, or drop it")
    elif args.fit:
        raise ConfigError("--fit plans for one GPU; drop it, and take the changes that this command names")
    if args.tokens_per_second is not None and not 0 < args.tokens_per_second < math.inf:
        raise ConfigError(f"--tokens-per-second {args.tokens_per_second}: a speed above 0")


def _communication(args, config, card):
    """What the GPUs of a run send each other in an update, and how long that takes: JSON-able."""
    from .planning import scaling
    from .planning.meta import MetaBackend

    found = scaling.communication(config, MetaBackend(**dataclasses.asdict(card)), args.gpus, args.shard_optimizer)
    link = scaling.link_of(args.gpus)
    sent = dataclasses.asdict(found) | {"bytes_sent": found.total, "link": link.name, "seconds": found.seconds(link)}
    if args.tokens_per_second:
        tokens = config.training.batch * config.training.segment
        sent["tokens_per_second"] = scaling.speed(found, tokens, args.tokens_per_second)
    return {"gpus": sent}


def _show_communication(args, config, sent, words):
    sent, sequences = sent["gpus"], counted(config.training.batch, "sequence")
    print(f"The plan is that of one of {args.gpus} GPUs, which share a batch of {sequences}.", file=words)
    early = f"{size_in_words(sent['early'])} of it may be sent during the backward pass"
    print(f"Each sends {size_in_words(sent['bytes_sent'])} an update in {sent['sums']} sums; {early}.", file=words)
    print(f"All of it takes {1e3 * sent['seconds']:.1f} ms on {sent['link']} (computed, not measured).", file=words)
    if args.tokens_per_second:
        share = sent["tokens_per_second"] / args.gpus / args.tokens_per_second
        print(f"Together about {sent['tokens_per_second']:,.0f} tokens/s, {100 * share:.0f} % of {args.gpus} times one.", file=words)


def _size_of_card(size):
    """Bytes as cards are sold, 24 GiB, or like a limit, 3.20 GB."""
    return f"{size // 2**30} GiB" if size % 2**30 == 0 else size_in_words(size)


def _show(rows, total, config):
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{config.preset}: {counted(config.training.batch, 'sequence')} of {counted(config.training.segment, 'token')}")
    table.add_column("component")
    table.add_column("MB on a GPU", justify="right")
    for name, size in sorted(rows.items(), key=lambda row: -row[1]):
        table.add_row(name, f"{size / 1e6:,.1f}")
    table.add_section()
    table.add_row("all, without the driver's own", f"{total / 1e6:,.1f}")
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
