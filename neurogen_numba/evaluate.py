"""`neurogen evaluate`: what a trained model makes of held-out text."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command
from .config import Text
from .errors import ConfigError


def parser() -> Parser:
    flags = Parser("evaluate")
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    flags.add_argument("--data", default=None, help="text to score, named as for `neurogen train` (default: what the run held out)")
    flags.add_argument("--text-field", default="text", help="name of the text in JSON lines, parquet and data sets of the hub")
    flags.add_argument("--max-tokens", type=int, default=0, metavar="N", help="score no more than the first N tokens; 0: all")
    flags.add_argument("--json", action="store_true", help="print one JSON object")
    add_backend_flag(flags)
    return flags


@command("evaluate")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.max_tokens < 0:
        raise ConfigError(f"--max-tokens: at least 0, not {args.max_tokens}")
    from .learning.evaluation import answer_questions, evaluate
    from .learning.trainer import QUESTIONS
    from .show import find, load
    from .text.batches import open_corpus, text_to_score
    from .ui.plain import figure, words

    folder = find(args.run, args.out)
    model = load(folder, backend_of(args))
    if args.data:
        validation = text_to_score(Text(data=args.data, field=args.text_field), model.tokenizer, args.max_tokens)
    else:
        validation = open_corpus(model.config, model.tokenizer).validation(args.max_tokens or None)
    score = evaluate(model, validation)
    result = {
        "checkpoint": str(folder),
        "text": args.data or model.config.text.data or "built-in stories, held out",
        "tokens": score.tokens,
        "loss": score.loss,
        **({"perplexity_per_word": math.exp(score.loss)} if model.tokenizer.kind == "word" else {}),
        "accuracy": score.accuracy,
        "bits_per_byte": score.bits_per_byte,
    }
    if validation.questions:
        right, chance = answer_questions(model, validation.questions[:QUESTIONS])
        result |= {"entropy_floor_bits_per_byte": score.floor_bits_per_byte, "question_accuracy": right, "chance_accuracy": chance}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{words(name):28} {figure(value)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
