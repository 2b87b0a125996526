"""`neurogen sim`: the dynamics of a brain alone, driven by noise."""

from __future__ import annotations

import time

from .cli import Parser, add_backend_flag, backend_of, command
from .config import MODULES
from .configure import add_config_flags, config_of
from .errors import ConfigError

STRONGEST = 1e6  # sums of its square do not overflow


def parser() -> Parser:
    flags = Parser("sim")
    add_config_flags(flags)
    flags.add_argument("--steps", type=int, default=10_000, help="ticks at least; whole segments are run")
    flags.add_argument("--batch-size", type=int, default=1, help="copies of the brain, each with its own noise")
    flags.add_argument("--rate", type=float, default=0.1, help="share of the Thalamus' neurons that are hit in a tick")
    flags.add_argument("--strength", type=float, default=3.0, help="of a hit, before normalisation")
    flags.add_argument("--seed", type=int, default=None, help="of wiring and noise (default: training.seed)")
    add_backend_flag(flags)
    return flags


@command("sim")
def main(argv=None):
    args = parser().parse_args(argv)
    for name in ("steps", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: at least 1, not {getattr(args, name)}")
    if not 0 <= args.rate <= 1:
        raise ConfigError(f"--rate: a share from 0 to 1, not {args.rate}")
    if not abs(args.strength) <= STRONGEST:
        raise ConfigError(f"--strength: a number from -{STRONGEST:g} to {STRONGEST:g}, not {args.strength}")
    if args.seed is not None and not 0 <= args.seed < 2**64:
        raise ConfigError(f"--seed: from 0 to 2^64 - 1, not {args.seed}")
    whole, backend = config_of(args), backend_of(args)
    config, seed = whole.brain, whole.training.seed if args.seed is None else args.seed
    from rich.console import Console
    from rich.progress import Progress

    from .brain.simulation import Simulation
    from .ui.plain import label, percent

    simulation = Simulation(config, backend, args.batch_size, args.rate, args.strength, seed)
    segments, totals = -(-args.steps // simulation.segment), dict.fromkeys(MODULES, 0.0)
    console = Console(stderr=True)
    simulation.run()
    simulation.run()
    seconds = 0.0
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("ticks", total=segments)
        for _ in range(segments):
            began = time.perf_counter()
            simulation.run()
            backend.synchronize()
            seconds += time.perf_counter() - began
            for name, rate in simulation.act.rates(simulation.segment).items():
                totals[name] += rate / segments
            progress.advance(task)
    ticks = segments * simulation.segment
    print(f"{config.neurons:,} neurons, {args.batch_size} at once: {ticks:,} ticks in {seconds:.2f} s, {ticks / seconds:,.0f} ticks/s")
    for name, rate in totals.items():
        print(f"  {label(name):15} {percent(rate):>7} of the neurons fire in a tick")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
