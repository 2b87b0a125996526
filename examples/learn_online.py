"""Teach a small brain a fact while it is in use, ask for it after everything else is forgotten, and take it back.

    python examples/learn_online.py

It trains a brain for a few seconds on sentences about who keeps what, so that it knows the form of an answer and not this one.
"""

import itertools
import tempfile

import neurogen_numba as ng
from neurogen_numba.config import Module

NAMES, ANIMALS = ("Tom", "Anna", "Ben", "Lucy", "Jack", "Mia"), ("foxes", "cats", "dogs", "hens", "frogs", "hares")


def texts(count):
    """Sentences in which everybody keeps everything."""
    pairs = itertools.islice(itertools.cycle(itertools.product(NAMES, ANIMALS)), 0, 7 * count, 7)
    return [f"{name} keeps {animal} .\n" for name, animal in pairs]


def main(steps=100):
    brain = {name: Module(64, lateral=4) for name in ("thalamus", "wernicke", "hippocampus", "pfc", "basal_ganglia", "broca")}
    brain |= {"embedding": 64, "fan_in": 16, "feedback": 4, "delays": 8, "memory_heads": 2, "memory_width": 16, "memory_fan_in": 16}
    with tempfile.TemporaryDirectory() as out:
        training = {"steps": steps, "max_minutes": 0.0, "batch": 8, "segment": 32, "warmup": 10, "eval_tokens": 200, "viz_interval": 0}
        run = ng.train(
            "nano", texts(600), brain=brain, training=training, text={"tokenizer": "word"}, out=out, backend="cpu", progress=False
        )
        model = run.model
    before = model.write("Jack keeps", 2, temperature=0)
    lesson = model.learn("Jack keeps hares .\n")
    after = model.write("Jack keeps", 2, temperature=0)
    model.unlearn()
    again = model.write("Jack keeps", 2, temperature=0)
    print(f"before {before!r}, learned {after!r}, unlearned {again!r}")
    print(f"the loss of what was taught: {lesson.before:.2f} to {lesson.after:.2f} nats per token")
    return before, after, again


if __name__ == "__main__":
    main()
