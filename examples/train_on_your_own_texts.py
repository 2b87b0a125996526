"""Train on texts that a Python generator makes: sums, which nobody has to store.

    python examples/train_on_your_own_texts.py

Any iterable of `str` will do, each a document. It is read to its end, and kept in the folder of the run, so that the run can be resumed; an
endless one needs `itertools.islice`. A few hundred updates learn what a sum looks like, not how to add.
"""

import itertools
import random

import neurogen_numba as ng


def sums(seed=0):
    """Documents without end, for example "12 + 7 = 19."."""
    rng = random.Random(seed)
    while True:
        a, b = rng.randrange(100), rng.randrange(100)
        yield f"{a} + {b} = {a + b}."


def main(steps=150, out="runs"):
    texts = itertools.islice(sums(), 5000)
    training = {"steps": steps, "segment": 32, "eval_tokens": 2000, "final_eval_tokens": 2000}
    run = ng.train("nano", texts, text={"tokenizer": "char"}, training=training, out=out)
    print(run)
    print(run.model.write("3 + 4 =", 20, temperature=0.5))
    return run


if __name__ == "__main__":
    main()
