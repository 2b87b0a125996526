"""`neurogen evaluate`: the loss of a trained model on held-out text."""

from __future__ import annotations

import math
from pathlib import Path

from .cli import STDOUT, Parser, add_backend_flag, add_json_flag, backend_of, command, tell_json
from .config import STREAMS, Text
from .configure import add_neuron_flag, named_neurons
from .errors import ConfigError, DataError, MissingText

MAX_NATS = 700  # beyond it, exp overflows
MEASUREMENTS = "--cache", "--adapt", "--windows"  # beside the plain one


def parser() -> Parser:
    flags = Parser("evaluate")
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    flags.add_argument("--data", default=None, help="text to score, named as for `neurogen train` (default: what the run held out)")
    flags.add_argument("--text-field", default="text", help="name of the text in JSON lines, parquet and data sets of the hub")
    flags.add_argument("--max-tokens", type=int, default=0, metavar="N", help="score no more than the first N tokens; 0: all")
    # independent of the training batch, so that the same weights have the same score
    side_by_side = f"pieces into which the text is split, each read from a zero state; fewer if they would be short (default: {STREAMS})"
    flags.add_argument("--streams", type=int, metavar="N", help=side_by_side)
    flags.add_argument("--cache", action="store_true", help="mix in a neural cache: the tokens that followed similar states before")
    flags.add_argument(
        "--adapt", action="store_true", help="dynamic evaluation: a copy learns each segment after it was scored; one stream"
    )
    kept = "divide the logits by this (default: the temperature that the run fitted at its end)"
    flags.add_argument("--temperature", type=float, metavar="X", help=kept)
    windows = "score random windows of N tokens instead, each from a zero state, as nanoGPT does"
    flags.add_argument("--windows", type=int, metavar="N", help=windows)
    add_json_flag(flags, "checkpoint", "method")
    add_neuron_flag(flags)
    add_backend_flag(flags)
    return flags


def check(args) -> None:
    """Raises ConfigError for numbers out of range, and for flags that exclude each other."""
    if args.max_tokens < 0:
        raise ConfigError(f"--max-tokens: at least 0, not {args.max_tokens}")
    for flag, number in (("--streams", args.streams), ("--windows", args.windows)):
        if number is not None and number < 1:
            raise ConfigError(f"{flag}: at least 1, not {number}")
    if args.temperature is not None and not 0 < args.temperature < math.inf:
        raise ConfigError(f"--temperature: a number above 0, not {args.temperature:g}")
    given = [flag for flag in MEASUREMENTS if getattr(args, flag[2:])]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: each is a measurement of its own; give one of them")
    if args.streams and given and given[0] in ("--adapt", "--windows"):
        raise ConfigError(f"--streams: {given[0]} does not split the text into streams; drop one of the flags")


def method(validation, text: str, streams: int, factors: str, measurement: str = "") -> str:
    """A sentence that describes the measurement. text: its name, in a word or two; factors: dtype of the factors of products; measurement:
    how it differs from the plain one."""
    read = "one stream" if streams == 1 else f"{streams} streams side by side, each"
    lost = ", as many as a token of the file has on average, which has lost its words" if validation.estimated else ""
    return (
        f"{measurement and measurement + '; '}nats per token over {scored(validation, text)}, every token but the very first; "
        f"{read} from a zero state, with the state carried to its end; bytes of the text in UTF-8{lost}; factors of products {factors}"
    )


def scored(validation, text: str) -> str:
    """The scored part of a text, in words."""
    return f"all of the {text}" if validation.whole else f"the beginning of the {text}"


def perplexity(nats_per_word: float) -> float | None:
    """exp of the loss; None if it overflows, as in languages without spaces between words."""
    return math.exp(nats_per_word) if nats_per_word < MAX_NATS else None


@command("evaluate")
def main(argv=None):
    args = parser().parse_args(argv)
    check(args)
    from .show import find, load
    from .text.batches import text_to_score
    from .ui.plain import item

    folder = find(args.run, args.out)
    model = load(folder, backend_of(args), named_neurons(args.assignments))
    if args.temperature:
        model.brain.decoder.set_temperature(args.temperature)
    if args.data:
        validation = text_to_score(Text(data=args.data, field=args.text_field), model.tokenizer, args.max_tokens)
    else:
        validation = held_out(model, args)
    text = "text" if args.data else "held-out text"
    factors = model.backend.product_dtype + (f", weights of {model.quantization['bits']} bits" if model.quantization else "")
    if (temperature := model.brain.decoder.temperature) != 1:
        factors += f"; logits divided by {temperature:.4f}"
    result = {"checkpoint": str(folder), "text": args.data or model.config.text.data or "built-in stories, held out"}
    result["temperature"] = temperature
    how = (model, validation, args, text, factors)
    result |= windows(*how) if args.windows else whole_text(*how)
    if args.json != STDOUT:
        for name, value in result.items():
            label, shown = item(name, value)
            print(f"{label:28} {shown}")
    tell_json(args.json, result)
    return 0


def held_out(model, args):
    """The first --max-tokens targets of the text that the run of a model held out. Raises DataError if it is not there."""
    from .text.batches import open_corpus

    try:
        return open_corpus(model.config, model.tokenizer).validation(args.max_tokens or None)
    except MissingText as error:
        raise DataError(f"{error}; restore the text of the run, or name another one with --data") from None


def measurement_of(model, args) -> tuple:
    """(name, how it differs from the plain one, scorer for `evaluate`) of the measurement that the flags choose."""
    from .learning import dynamic_evaluation, neural_cache
    from .learning.evaluation import Plain

    if args.cache:
        return "neural cache", neural_cache.describe(), neural_cache.NeuralCache
    if args.adapt:
        return "dynamic evaluation", dynamic_evaluation.describe(model), dynamic_evaluation.DynamicEvaluation
    return "plain", "", Plain


def whole_text(model, validation, args, text: str, factors: str) -> dict:
    """The results for a text that is read from its beginning to its end, plain or with a flag of MEASUREMENTS but --windows."""
    from .learning.evaluation import answer_questions, evaluate, streams_for, unknown_share, words_in
    from .learning.trainer import QUESTIONS
    from .system.waiting import Waiting

    targets, tokenizer = validation.tokens[1:], model.tokenizer
    most = 1 if args.adapt else args.streams or STREAMS
    name, how, scorer = measurement_of(model, args)
    with Waiting("scoring", len(targets), "tokens") as waiting:
        score = evaluate(model, validation, most_streams=most, tell=waiting.show, scorer=scorer)
    words, streams = words_in(targets, tokenizer), streams_for(score.tokens, most)
    result = {
        "measurement": name,
        "tokens": score.tokens,
        "loss": score.loss,
        "words": words,
        "perplexity_per_word": perplexity(score.loss * (score.tokens / words) if words else math.inf),
        **({} if tokenizer.unknown is None else {"unknown_words": unknown_share(targets, tokenizer)}),
        **({} if args.cache else {"accuracy": score.accuracy}),  # that of the mixture is not computed
        "bits_per_byte": score.bits_per_byte,
    }
    if validation.questions and name == "plain":
        right, chance = answer_questions(model, validation.questions[:QUESTIONS], streams=most)
        result |= {"entropy_floor_bits_per_byte": score.floor_bits_per_byte, "question_accuracy": right, "chance_accuracy": chance}
    return result | {"streams": streams, "method": method(validation, text, streams, factors, how)}


def windows(model, validation, args, text: str, factors: str) -> dict:
    """The results for random windows of `args.windows` tokens."""
    from .learning.windows import SEED, evaluate_windows
    from .system.waiting import Waiting

    with Waiting("scoring", unit="windows") as waiting:
        score = evaluate_windows(model, validation, args.windows, waiting.show)
    drawn = f"{score.windows:,} random windows of {args.windows:,} tokens (seed {SEED})"
    how = (
        f"nats per token, mean over {drawn} of {scored(validation, text)}, "
        f"each from a zero state, with all of its targets; standard error of the mean {score.spread:.4f}; factors of products {factors}"
    )
    return {
        "measurement": "windows",
        "window": args.windows,
        "windows": score.windows,
        "loss": score.loss,
        "standard_error": score.spread,
        "accuracy": score.accuracy,
        "method": how,
    }


if __name__ == "__main__":
    raise SystemExit(main())
