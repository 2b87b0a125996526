"""Train on a folder of text files, and have the model go on with a text.

    python examples/train_on_a_folder.py FOLDER

Takes all .txt, .md, .jsonl and .parquet files in FOLDER and below, compressed or not; without FOLDER, the documentation of this project. A
few hundred updates show how it is done. For a model that has learned the text, leave `training` out, or raise `steps`.
"""

import sys
from pathlib import Path

import neurogen_numba as ng

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main(folder=DOCS, steps=150, out="runs"):
    # Bytes need no vocabulary; `text={"tokenizer": "sentencepiece", "vocabulary": 2000}` learns one from the folder.
    training = {"steps": steps, "segment": 32, "eval_tokens": 2000, "final_eval_tokens": 2000}
    run = ng.train("nano", folder, text={"tokenizer": "byte"}, training=training, out=out)
    print(run)
    print(run.model.write("The ", 80, temperature=0.5))
    return run


if __name__ == "__main__":
    main(*sys.argv[1:2])
