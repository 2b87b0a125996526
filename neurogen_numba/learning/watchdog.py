"""What tells a person early that a run goes wrong: plain rules on numbers that the trainer has anyway. Each warning is given once."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from .report import Notice, StepReport

PATIENCE = 3  # reports in a row before a module counts as silent or saturated
SATURATED = 0.5  # share of a module's neurons with an event per token; healthy ones stay far below 0.2
NORMS = 50  # gradient norms that "usual" is the median of
FEWEST_NORMS = 3  # fewer do not say what is usual
EXPLODED = 10  # times the usual norm; from one report to the next healthy ones hardly double
RISEN = 1.0  # nats that the loss of PATIENCE reports lies above the lowest such mean
NOISY, MOVES = 2, 20  # and times what it moves by from report to report, the median of so many: an update of few tokens has no steady loss
FORGETS = 0.1  # nats that two looks at held-out text, one after the other, lie above the lowest
STALLED = 30.0  # seconds without a segment
WINDOW = 30.0  # seconds over which waiting for text is judged
WAITING = 0.5  # share of them
SLOW_SAVE = 5.0  # seconds; what is quicker disturbs nobody
SAVING = 0.2  # share of the time from one checkpoint to the next


class Watchdog:
    """Rules that are handed numbers and answer with what to say: a list of Notice, empty while all is well."""

    def __init__(self):
        self._told = set()  # causes that have been named
        self._silent, self._saturated = {}, {}  # module -> reports in a row
        self._norms, self._losses, self._lowest = deque(maxlen=NORMS), deque(maxlen=PATIENCE), math.inf
        self._moves = deque(maxlen=MOVES)  # of the loss, from report to report
        self._best, self._worse = math.inf, 0  # of the looks: the lowest loss, and how many in a row lie above it
        self._waited = self._elapsed = 0.0  # seconds of the window under way

    def step(self, report: StepReport) -> list[Notice]:
        """Modules without events, modules with far too many, a gradient that explodes, and a loss that rises."""
        return [*self._modules(report), *self._gradient(report), *self._loss(report)]

    def looked(self, step: int, loss: float) -> list[Notice]:
        """A loss of held-out text that rises: by over-fitting, or because learning goes wrong."""
        self._worse = self._worse + 1 if loss > self._best + FORGETS else 0
        self._best = min(self._best, loss)
        if self._worse < 2:
            return []
        return self._once(
            "held out",
            f"the loss of held-out text rises: {loss:.2f} nats at step {step}, {self._best:.2f} before. Where the other one falls, the "
            "text is learned by heart: stop, or start again with more text or --dropout; else with a lower --learning-rate",
        )

    def stalled(self, seconds: float) -> list[Notice]:
        """A loader that has brought nothing for so long, while it lasts."""
        if seconds < STALLED:
            return []
        return self._once(
            "stalled",
            f"no text for {seconds:.0f} seconds: training waits for what --data names; look at the disk or the network that it comes from. "
            "Ctrl-C stops with a checkpoint",
        )

    def loading(self, waited: float, elapsed: float) -> list[Notice]:
        """A loader that keeps the model waiting: `waited` of the last `elapsed` seconds went by without text to train on."""
        self._waited, self._elapsed = self._waited + waited, self._elapsed + elapsed
        if self._elapsed < WINDOW:
            return []
        share, seconds = self._waited / self._elapsed, self._waited
        self._waited = self._elapsed = 0.0
        if share <= WAITING:
            return []
        return self._once(
            "loader",
            f"the text comes too slowly: {seconds:.0f} seconds waited for it, {100 * share:.0f} % of the time; "
            "look at the disk or the network that it comes from, or keep the text on a local disk",
        )

    def saved(self, seconds: float, since: float) -> list[Notice]:
        """A slow disk: a checkpoint took `seconds`, `since` seconds after the one before, or after the start."""
        if seconds < SLOW_SAVE or seconds <= SAVING * since:
            return []
        return self._once(
            "disk",
            f"the disk is slow: a checkpoint took {seconds:.0f} seconds, after {since:.0f} seconds of training; "
            "raise training.checkpoint_interval, or keep runs on another disk with --out",
        )

    def _modules(self, report):
        said = []
        for name, share in report.activity.items():
            self._silent[name] = self._silent.get(name, 0) + 1 if share == 0 else 0
            self._saturated[name] = self._saturated.get(name, 0) + 1 if share > SATURATED else 0
            if self._silent[name] == PATIENCE:
                said += self._once(
                    f"silent {name}",
                    f"{name} is silent: no event in the last {PATIENCE} reports, up to step {report.step}; what comes after it hears "
                    "nothing from it. Where it stays so, start again with a lower --learning-rate or another --seed",
                )
            if self._saturated[name] == PATIENCE:
                said += self._once(
                    f"saturated {name}",
                    f"{name} is saturated: {100 * share:.0f} % of its neurons have an event per token at step {report.step}; little can "
                    "be told apart by that, and it costs time. Where it stays so, start again with a lower --learning-rate",
                )
        return said

    def _gradient(self, report):
        norm = report.gradient_norm
        usual = median(self._norms) if len(self._norms) >= FEWEST_NORMS else math.inf
        self._norms.append(norm)
        if not norm > EXPLODED * usual:
            return []
        return self._once(
            "gradient",
            f"the gradient explodes: norm {norm:.3g} at step {report.step}, {norm / usual:.0f} times the usual {usual:.3g}; it is "
            "clipped. Where the loss rises with it, start again with a lower --learning-rate",
        )

    def _loss(self, report):
        if self._losses:
            self._moves.append(abs(report.loss - self._losses[-1]))
        self._losses.append(report.loss)
        mean = sum(self._losses) / len(self._losses)
        risen, full = mean - self._lowest, len(self._losses) == PATIENCE
        self._lowest = min(self._lowest, mean) if full else self._lowest
        if not (full and risen > max(RISEN, NOISY * median(self._moves))):
            return []
        return self._once(
            "loss",
            f"the loss rises: {mean:.2f} nats in the last {PATIENCE} reports, up to step {report.step}, {risen:.2f} more than it was; "
            "where it stays so, start again with a lower --learning-rate, or go on from an older checkpoint",
        )

    def _once(self, cause, text):
        if cause in self._told:
            return []
        self._told.add(cause)
        return [Notice("warning: " + text)]
