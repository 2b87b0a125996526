"""`neurogen quantize`: a trained model with its weights as integers of 8 or 4 bits, beside the one that it was made from."""

from __future__ import annotations

from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command
from .config import QUANTIZED_BITS
from .configure import add_neuron_flag, named_neurons
from .errors import CheckpointError, ConfigError, DataError
from .hints import hint

CALIBRATION = 16_000  # tokens that are read, at most; more do not help (docs/decisions.md)
STREAMS = 16  # pieces of the text of --calibrate that are read in parallel, at most


def parser() -> Parser:
    what = "Decoder and embedding get a scale per row, synapses one per bundle. The result is a checkpoint that is not trained further."
    flags = Parser("quantize", what, ("neurogen quantize nano-1@best --bits 8", "neurogen chat nano-1-int8"))
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument(
        "new", nargs="?", type=Path, metavar="NEW", help="folder of the new checkpoint; without it RUN-int8 or RUN-int4, beside the run"
    )
    flags.add_argument("--bits", type=int, default=8, help="of a weight: 8 or 4")
    calibrate = "text that the rounding is chosen for, named as for `neurogen train --data` (default: what it learned from)"
    flags.add_argument("--calibrate", default=None, metavar="FILE", help=calibrate)
    flags.add_argument("--out", type=Path, default=None, help="where runs are kept (default: runs)")
    add_neuron_flag(flags)
    add_backend_flag(flags)
    return flags


@command("quantize")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.bits not in QUANTIZED_BITS:
        raise ConfigError(f"--bits: 8 or 4, not {args.bits}")
    from .benchmarks import sizes
    from .brain.quantize import quantized
    from .config import Text
    from .show import beside, find, load
    from .storage import checkpoint
    from .text.batches import open_corpus, text_to_score

    folder = find(args.run, args.out or Path("runs"))
    new = args.new or beside(folder, args.out, f"int{args.bits}")
    if new.exists():
        raise ConfigError(f"{new} is there already; give the new checkpoint another name")
    if checkpoint.is_quantized(folder):
        raise CheckpointError(f"{folder} is quantised already; quantise the run that it was made from")
    model = load(folder, backend_of(args), named_neurons(args.assignments))
    corpus = open_corpus(model.config, model.tokenizer)
    validation = corpus.validation(model.config.training.final_eval_tokens or None)
    if args.calibrate:
        segments = _segments(text_to_score(Text(data=args.calibrate), model.tokenizer, CALIBRATION).tokens, model.config.brain.chunk)
    else:
        batches, training = corpus.batches(), model.config.training
        segments = (batches.next()[0] for _ in range(-(-CALIBRATION // (training.batch * training.segment))))
    small = quantized(model, args.bits, segments)
    measured = sizes.compare([model, small], validation)
    if new.exists():
        raise ConfigError(f"{new} has been made meanwhile; give the new checkpoint another name")
    small.quantization |= {"made_from": str(folder), "calibrated": args.calibrate, "on": model.backend.device_name(), **measured}
    size = checkpoint.save(new, *small.snapshot(), small.tokenizer, measured["loss"][1], small.quantization)
    sizes.show([model.backend.product_dtype, f"int{args.bits}"], measured)
    print(f"{folder} -> {new}, {size / 1e6:,.1f} MB")
    print(f"To talk to it: {hint('chat', new, model.config)}")
    return 0


def _segments(tokens, length):
    """Segments [length, B] int32 of tokens [n], cut into up to STREAMS pieces; the rest is left out."""
    import numpy as np

    streams = min(STREAMS, len(tokens) // length)
    if not streams:
        raise DataError(f"--calibrate: the text has {len(tokens)} tokens, and {length} are needed; name a longer one")
    pieces = tokens[: len(tokens) // streams * streams].reshape(streams, -1).T.astype(np.int32)
    return (pieces[first : first + length] for first in range(0, len(pieces) - length + 1, length))


if __name__ == "__main__":
    raise SystemExit(main())
