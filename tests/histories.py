"""A run's metrics.jsonl made up, so that figures have something to show."""

import json

import numpy as np

from neurogen_numba.config import MODULES
from neurogen_numba.learning.report import BrainReport, EvalReport, SampleReport, StepReport

LEVELS = {"dopamine": 0.1, "norepinephrine": 0.0, "serotonin": -0.2}


def step(number, **changes):
    """A report that says which step it is in every number."""
    values = {
        "step": number,
        "steps": 100,
        "tokens": 64 * number,
        "loss": 5 - number / 100,
        "accuracy": number / 1000,
        "bits_per_byte": 3 - number / 100,
        "learning_rate": 1e-3 * number,
        "gradient_norm": 1.0 + number,
        "tokens_per_second": 1000.0 + number,
        "seconds": 0.5 * number,
        "activity": {name: (rank + 1) / 100 for rank, name in enumerate(MODULES)},
    }
    return StepReport(**values | changes)


def evaluation(number, floor=0.5):
    return EvalReport(number, 4.0, 0.25, 2.0, floor, 1000)


def brain(number, tokens=20, text="the cat sat"):
    """Neuron n of each module has an event at the tokens that n divides; weights and memories count up."""
    events = np.arange(tokens)[:, None] % np.arange(1, 9) == 0
    return BrainReport(
        step=number,
        levels={name: level * number for name, level in LEVELS.items()},
        text=text,
        events=dict.fromkeys(MODULES, events),
        membrane={name: np.full(50, np.log(rank + 1)) for rank, name in enumerate(MODULES)},
        adaptation={name: np.full(50, np.log(10.0)) for name in MODULES},
        weights={"wernicke_pfc": np.arange(101) / 100, "lateral_pfc": np.full(5, -1.0)},
        memory=np.arange(tokens * 12).reshape(tokens, 12) / 100,
        memory_heads=3,
        working_memory=np.full((tokens, 4), 2.0),
    )


def write(run, reports):
    """Make a run directory of these reports; returns it."""
    run.mkdir(exist_ok=True)
    lines = [json.dumps(report.to_record()) + "\n" for report in reports]
    (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return run


def life(steps=40, samples=3):
    """The reports of a run: steps, an evaluation each 10, a sample each 10 up to `samples` of them, a brain snapshot each 20."""
    reports = []
    for number in range(1, steps + 1):
        reports.append(step(number))
        if number % 10 == 0:
            reports.append(evaluation(number))
            if number <= 10 * samples:
                reports.append(SampleReport(number, f"given {number}", f"wrote {number}", f"truth {number}"))
        if number % 20 == 0:
            reports.append(brain(number))
    return reports
