"""`neurogen evaluate`: the loss of a trained model on held-out text."""

from __future__ import annotations

import math
from pathlib import Path

from .cli import STDOUT, Parser, add_backend_flag, add_json_flag, backend_of, command, tell_json
from .config import STREAMS, Text
from .configure import add_neuron_flag, named_neurons
from .errors import ConfigError, DataError, MissingText

MAX_NATS = 700  # beyond it, exp overflows


def parser() -> Parser:
    flags = Parser("evaluate")
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    flags.add_argument("--data", default=None, help="text to score, named as for `neurogen train` (default: what the run held out)")
    flags.add_argument("--text-field", default="text", help="name of the text in JSON lines, parquet and data sets of the hub")
    flags.add_argument("--max-tokens", type=int, default=0, metavar="N", help="score no more than the first N tokens; 0: all")
    # independent of the training batch, so that the same weights have the same score
    side_by_side = f"pieces into which the text is split, each read from a zero state; fewer if they would be short (default: {STREAMS})"
    flags.add_argument("--streams", type=int, default=STREAMS, metavar="N", help=side_by_side)
    add_json_flag(flags, "checkpoint", "method")
    add_neuron_flag(flags)
    add_backend_flag(flags)
    return flags


def method(validation, text: str, streams: int, factors: str) -> str:
    """A sentence that describes the measurement. text: its name, in a word or two; factors: dtype of the factors of products."""
    read = "one stream" if streams == 1 else f"{streams} streams side by side, each"
    scored = f"all of the {text}" if validation.whole else f"the beginning of the {text}"
    lost = ", as many as a token of the file has on average, which has lost its words" if validation.estimated else ""
    return (
        f"nats per token over {scored}, every token but the very first; {read} from a zero state, with the state carried to its end; "
        f"bytes of the text in UTF-8{lost}; factors of products {factors}"
    )


def perplexity(nats_per_word: float) -> float | None:
    """exp of the loss; None if it overflows, as in languages without spaces between words."""
    return math.exp(nats_per_word) if nats_per_word < MAX_NATS else None


@command("evaluate")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.max_tokens < 0:
        raise ConfigError(f"--max-tokens: at least 0, not {args.max_tokens}")
    if args.streams < 1:
        raise ConfigError(f"--streams: at least 1, not {args.streams}")
    from .learning.evaluation import answer_questions, evaluate, streams_for, unknown_share, words_in
    from .learning.trainer import QUESTIONS
    from .show import find, load
    from .system.waiting import Waiting
    from .text.batches import open_corpus, text_to_score
    from .ui.plain import item

    folder = find(args.run, args.out)
    model = load(folder, backend_of(args), named_neurons(args.assignments))
    if args.data:
        validation = text_to_score(Text(data=args.data, field=args.text_field), model.tokenizer, args.max_tokens)
    else:
        try:
            validation = open_corpus(model.config, model.tokenizer).validation(args.max_tokens or None)
        except MissingText as error:
            raise DataError(f"{error}; restore the text of the run, or name another one with --data") from None
    with Waiting("scoring", len(validation.tokens) - 1, "tokens") as waiting:
        score = evaluate(model, validation, most_streams=args.streams, tell=waiting.show)
    targets, tokenizer = validation.tokens[1:], model.tokenizer
    words, streams = words_in(targets, tokenizer), streams_for(score.tokens, args.streams)
    result = {
        "checkpoint": str(folder),
        "text": args.data or model.config.text.data or "built-in stories, held out",
        "tokens": score.tokens,
        "loss": score.loss,
        "words": words,
        "perplexity_per_word": perplexity(score.loss * (score.tokens / words) if words else math.inf),
        **({} if tokenizer.unknown is None else {"unknown_words": unknown_share(targets, tokenizer)}),
        "accuracy": score.accuracy,
        "bits_per_byte": score.bits_per_byte,
    }
    if validation.questions:
        right, chance = answer_questions(model, validation.questions[:QUESTIONS], streams=args.streams)
        result |= {"entropy_floor_bits_per_byte": score.floor_bits_per_byte, "question_accuracy": right, "chance_accuracy": chance}
    text = "text" if args.data else "held-out text"
    factors = model.backend.product_dtype + (f", weights of {model.quantization['bits']} bits" if model.quantization else "")
    result |= {"streams": streams, "method": method(validation, text, streams, factors)}
    if args.json != STDOUT:
        for name, value in result.items():
            label, shown = item(name, value)
            print(f"{label:28} {shown}")
    tell_json(args.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
