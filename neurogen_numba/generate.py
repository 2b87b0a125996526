"""`neurogen generate`: continue a prompt."""

from __future__ import annotations

import sys
from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command, typed
from .configure import add_neuron_flag, named_neurons
from .errors import ConfigError


def parser() -> Parser:
    flags = Parser("generate")
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    flags.add_argument("--prompt", type=typed, default="", help="text to continue")
    flags.add_argument("--length", type=int, default=200, help="tokens to write at most")
    flags.add_argument("--temperature", type=float, default=0.8, help="how freely words are drawn; 0 takes the most probable")
    flags.add_argument("--top-k", type=int, default=0, help="draw from the K most probable tokens; 0 is all")
    flags.add_argument("--top-p", type=float, default=1.0, help="draw from the most probable tokens that together have this probability")
    flags.add_argument("--seed", type=int, default=0, help="of the random numbers")
    flags.add_argument("--stream", action="store_true", help="print the text as it is drawn")
    flags.add_argument("--learn-online", action="store_true", help="learn the prompt by bounded steps before it is continued")
    flags.add_argument("--keep", type=Path, help="with --learn-online: write the weights into this new checkpoint")
    add_neuron_flag(flags)
    add_backend_flag(flags)
    return flags


@command("generate")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.length < 1:
        raise ConfigError(f"--length: at least 1, not {args.length}")
    if args.keep and not args.learn_online:
        raise ConfigError("--keep writes what --learn-online learned; give both, or neither")
    if args.keep and args.keep.exists():
        raise ConfigError(f"--keep {args.keep}: is there already; choose another name")
    from .inference.generation import Sampling, Session, stream
    from .show import find, load
    from .ui.plain import forgiving

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    model = load(find(args.run, args.out), backend_of(args), named_neurons(args.assignments))
    model.tokenizer.encode(args.prompt)  # raises for unknown characters before anything is printed
    if args.learn_online and (lesson := model.learn(args.prompt)).alone:
        print(f"neurogen generate: {lesson.alone}", file=sys.stderr)
    if args.keep:
        model.save(args.keep)
    pieces = stream(Session(model, sampling), model.tokenizer, args.prompt, args.length)
    forgiving(sys.stdout).write(args.prompt)
    for piece in pieces if args.stream else ["".join(pieces)]:
        print(piece, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
