"""`neurogen evaluate`: what a trained model makes of held-out text."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command


def parser() -> Parser:
    flags = Parser("evaluate")
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    flags.add_argument("--data", default=None, help="a file or folder to score whole (default: what the run held out)")
    flags.add_argument("--json", action="store_true", help="print one JSON object")
    add_backend_flag(flags)
    return flags


@command("evaluate")
def main(argv=None):
    args = parser().parse_args(argv)
    from .learning.evaluation import answer_questions, evaluate
    from .learning.trainer import QUESTIONS
    from .show import find, load
    from .text.batches import StoryCorpus, open_corpus, read_whole
    from .ui.plain import figure, words

    folder = find(args.run, args.out)
    model = load(folder, backend_of(args))
    corpus = None if args.data else open_corpus(model.config, model.tokenizer)
    score = evaluate(model, corpus.validation() if corpus else read_whole(args.data, model.tokenizer))
    result = {
        "checkpoint": str(folder),
        "text": args.data or model.config.text.data or "built-in stories, held out",
        "tokens": score.tokens,
        "loss": score.loss,
        **({"perplexity_per_word": math.exp(score.loss)} if model.tokenizer.kind == "word" else {}),
        "accuracy": score.accuracy,
        "bits_per_byte": score.bits_per_byte,
    }
    if isinstance(corpus, StoryCorpus):
        right, chance = answer_questions(model, corpus.questions(QUESTIONS))
        result |= {"entropy_floor_bits_per_byte": score.floor_bits_per_byte, "question_accuracy": right, "chance_accuracy": chance}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{words(name):28} {figure(value)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
