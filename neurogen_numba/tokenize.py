"""`neurogen tokenize`: text -> a token file, which `neurogen train --data` reads at the speed of the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .cli import Parser, command
from .config import Text, counted
from .errors import ConfigError


def parser() -> Parser:
    flags = Parser("tokenize")
    flags.add_argument("data", metavar="IN", help="file, folder, glob, URL, hf:NAME[:CONFIG][@SPLIT], or - for standard input")
    flags.add_argument("--out", type=Path, required=True, metavar="FILE.bin", help="where the tokens go")
    flags.add_argument("--tokenizer", default=Text.tokenizer, help="sentencepiece, char, byte, word, or the path of a SentencePiece .model")
    flags.add_argument("--vocab-size", type=int, default=Text.vocabulary, help="pieces of a SentencePiece tokenizer, or words known")
    flags.add_argument("--text-field", default=Text.field, help="name of the text in JSON lines, parquet and data sets of the hub")
    flags.add_argument(
        "--workers", type=int, default=None, help="processes that tokenize; 0: none but this one (default: one for each core)"
    )
    return flags


@command("tokenize")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.out.suffix.lower() != ".bin":
        raise ConfigError(f"--out {args.out}: the name must end with .bin")
    from .text.tokenfile import refuse_foreign, write

    refuse_foreign(args.out)  # before the text is read
    cores = os.cpu_count() or 1
    workers = (cores if cores > 1 else 0) if args.workers is None else args.workers
    text = Text(data=args.data, field=args.text_field, tokenizer=args.tokenizer, vocabulary=args.vocab_size, workers=workers)
    from .system.waiting import watched
    from .text.encoding import encoded
    from .text.sources import open_source
    from .text.stream import tokenizer_for

    source = open_source(text.data, text.field)
    began = time.monotonic()
    read = watched(source.read(), f"tokenizing {source.name}", source.size if source.plain else None)
    tokenizer, pieces = tokenizer_for(text, source, read, 1 - text.validation)
    written = write(args.out, encoded(pieces, tokenizer, not source.single, workers), tokenizer)
    seconds = time.monotonic() - began
    print(
        f"{args.out}: {counted(written['tokens'], 'token')} of {counted(tokenizer.vocabulary, 'kind')} ({written['dtype']}), "
        f"{counted(written['documents'], 'document')}, {counted(written['bytes'], 'byte')} of text, in {seconds:.1f} s. "
        f"To train on it: neurogen train --data {args.out}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
