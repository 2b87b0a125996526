"""Teach a brain a sentence while it is in use, ask for it from a zero state, and take it back.

    python examples/learn_online.py

The brain is a new one that knows nothing, so it takes larger updates than a lesson makes by default, which is meant for a trained one.
With that, `neurogen chat --learn-online` does the same.
"""

import neurogen_numba as ng
from neurogen_numba.text.tokenizer import CharTokenizer

TEXT = "Jack keeps hares.\n"


def main():
    model = ng.NeuroGenModel.from_preset("nano", tokenizer=CharTokenizer("".join(sorted(set(TEXT))), documents=False), backend="cpu")
    before = model.write("Jack keeps", 7, temperature=0)
    lesson = model.learn(TEXT, rate=5e-3, passes=40)
    after = model.write("Jack keeps", 7, temperature=0)
    model.unlearn()
    again = model.write("Jack keeps", 7, temperature=0)
    print(f"before {before!r}, learned {after!r}, unlearned {again!r}")
    print(f"the loss of what was taught: {lesson.before:.2f} to {lesson.after:.2f} nats per token, in {lesson.updates} updates")
    return before, after, again


if __name__ == "__main__":
    main()
