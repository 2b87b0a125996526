"""`neurogen quantize`: a trained model with its weights as integers of 8 or 4 bits, beside the one that it was made from."""

from __future__ import annotations

from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command
from .configure import add_neuron_flag, named_neurons
from .errors import CheckpointError, ConfigError, DataError

BITS = (8, 4)
CALIBRATION = 50_000  # tokens that are read, at most
STREAMS = 16  # pieces of the text of --calibrate that are read in parallel, at most
WRITTEN = 64  # tokens of a measurement of the speed
MEASUREMENTS = 7


def parser() -> Parser:
    what = "Decoder and embedding get a scale per row, synapses one per bundle. The result is a checkpoint that is not trained further."
    flags = Parser("quantize", what, ("neurogen quantize nano-1@best --bits 8", "neurogen chat nano-1-int8"))
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument(
        "new", nargs="?", type=Path, metavar="NEW", help="folder of the new checkpoint; without it RUN-int8 or RUN-int4, beside the run"
    )
    flags.add_argument("--bits", type=int, default=8, help="of a weight: 8 or 4")
    calibrate = "text that the rounding of the decoder is chosen for, named as for `neurogen train --data` (default: what it learned from)"
    flags.add_argument("--calibrate", default=None, metavar="FILE", help=calibrate)
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    add_neuron_flag(flags)
    add_backend_flag(flags)
    return flags


@command("quantize")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.bits not in BITS:
        raise ConfigError(f"--bits: 8 or 4, not {args.bits}")
    from .brain.quantize import decoder_moments, quantized
    from .config import Text
    from .show import find, load
    from .storage import checkpoint
    from .text.batches import open_corpus, text_to_score

    folder = find(args.run, args.out)
    new = args.new or args.out / f"{_name(folder.absolute())}-int{args.bits}"
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
    small = quantized(model, args.bits, decoder_moments(model, segments))
    measured = _compare(model, small, validation)
    small.quantization |= {"made_from": str(folder), "calibrated": args.calibrate, "on": model.backend.device_name(), **measured}
    size = checkpoint.save(new, *small.snapshot(), small.tokenizer, measured["loss"][1], small.quantization)
    _show(measured, model.backend.product_dtype, args.bits)
    print(f"{folder} -> {new}, {size / 1e6:,.1f} MB")
    print(f"To talk to it: neurogen chat {new}")
    return 0


def _segments(tokens, length):
    """Segments [length, B] int32 of tokens [n], cut into up to STREAMS pieces; the rest is left out."""
    import numpy as np

    streams = min(STREAMS, len(tokens) // length)
    if not streams:
        raise DataError(f"--calibrate: the text has {len(tokens)} tokens, and {length} are needed; name a longer one")
    pieces = tokens[: len(tokens) // streams * streams].reshape(streams, -1).T.astype(np.int32)
    return (pieces[first : first + length] for first in range(0, len(pieces) - length + 1, length))


def _name(folder):
    """The name of the run of a checkpoint, or of the checkpoint if it is in no run."""
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name


def _compare(model, small, validation):
    """{figure: (of the model, of the quantised one)}: bytes of the weights; held-out loss in nats per token; tokens per second of one
    stream, measured alternately."""
    import numpy as np

    from .benchmarks.speed import times_in_turn
    from .inference.generation import Sampling, Session
    from .learning.evaluation import evaluate

    both = model, small
    losses = [evaluate(each, validation).loss for each in both]
    sessions = [Session(each, Sampling(0.8)) for each in both]
    for session in sessions:
        session.feed(validation.tokens[:1, None].astype(np.int32))
    times = times_in_turn(model.backend, [lambda s=session: s.write(WRITTEN) for session in sessions], MEASUREMENTS)
    rates = [WRITTEN / float(np.median(each)) for each in times]
    return {"bytes": [each.brain.parameters.nbytes for each in both], "loss": losses, "tokens_per_second": rates}


def _show(measured, precision, bits):
    """A table of the figures before and after, and their ratio."""
    print(f"{'':24}{precision:>14}{f'int{bits}':>14}{'ratio':>9}")
    names = {"bytes": "bytes of the weights", "loss": "held-out loss, nats", "tokens_per_second": "tokens/s, one stream"}
    for name, label in names.items():
        before, after = measured[name]
        shown = [f"{x:,.4f}" if name == "loss" else f"{x:,.0f}" for x in (before, after)]
        print(f"{label:24}{shown[0]:>14}{shown[1]:>14}{after / before:9.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
