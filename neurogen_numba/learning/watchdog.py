"""The watchdog: rules on the numbers of a run that warn early when it goes wrong. Each warning is given once."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from .report import Notice, StepReport

PATIENCE = 3  # reports in a row before a module counts as silent or saturated
SATURATED = 0.5  # share of a module's neurons that fire per token; in healthy modules far below 0.2
NORMS = 50  # gradient norms whose median is the usual one
FEWEST_NORMS = 3  # for a median
EXPLODED = 10  # times the usual norm; healthy norms hardly double from report to report
RISEN = 1.0  # nats of the mean loss of PATIENCE reports above the lowest such mean
NOISY, MOVES = 2, 20  # and times the median change of the loss over MOVES reports: with few tokens per update the loss is noisy
OVERFITTED = 0.1  # nats of two validation losses in a row above the lowest
STALLED = 30.0  # seconds without a segment
WINDOW = 30.0  # seconds over which waiting for text is judged
WAITING = 0.5  # share of them
SLOW_SAVE = 5.0  # seconds; quicker saves are no problem
SAVING = 0.2  # share of the time from one checkpoint to the next


class Watchdog:
    """Rules that take measurements and return notices; an empty list while all is well."""

    def __init__(self):
        self._reported = set()  # causes already reported
        self._silent, self._saturated = {}, {}  # module -> reports in a row
        self._norms, self._losses, self._lowest = deque(maxlen=NORMS), deque(maxlen=PATIENCE), math.inf
        self._moves = deque(maxlen=MOVES)  # of the loss, from report to report
        self._best, self._worse = math.inf, 0  # the lowest validation loss, and how many in a row lie above it
        self._waited = self._elapsed = 0.0  # seconds in the current window

    def step(self, report: StepReport) -> list[Notice]:
        """Check for silent modules, saturated modules, an exploding gradient and a rising loss."""
        return [*self._modules(report), *self._gradient(report), *self._loss(report)]

    def evaluated(self, step: int, loss: float) -> list[Notice]:
        """Check for a rising validation loss: overfitting, or divergence."""
        self._worse = self._worse + 1 if loss > self._best + OVERFITTED else 0
        self._best = min(self._best, loss)
        if self._worse < 2:
            return []
        return self._once(
            "held out",
            f"the loss of held-out text rises: {loss:.2f} nats at step {step}, {self._best:.2f} before. If the training loss falls, it "
            "overfits: stop, or start again with more text or --dropout; else with a lower --learning-rate",
        )

    def stalled(self, seconds: float) -> list[Notice]:
        """Check for a text source that delivers nothing."""
        if seconds < STALLED:
            return []
        return self._once(
            "stalled",
            f"no text for {seconds:.0f} seconds: training waits for what --data names; check the disk or the network that it comes from. "
            "Ctrl-C stops with a checkpoint",
        )

    def loading(self, waited: float, elapsed: float) -> list[Notice]:
        """Check for a slow text source. waited: seconds without text, of the last `elapsed` seconds."""
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
            "check the disk or the network that it comes from, or keep the text on a local disk",
        )

    def saved(self, seconds: float, since: float) -> list[Notice]:
        """Check for a slow disk: a checkpoint took `seconds`, `since` seconds after the previous one or the start."""
        if seconds < SLOW_SAVE or seconds <= SAVING * since:
            return []
        return self._once(
            "disk",
            f"the disk is slow: a checkpoint took {seconds:.0f} seconds, after {since:.0f} seconds of training; "
            "raise training.checkpoint_interval, or keep runs on another disk with --out",
        )

    def _modules(self, report):
        notices = []
        for name, share in report.activity.items():
            self._silent[name] = self._silent.get(name, 0) + 1 if share == 0 else 0
            self._saturated[name] = self._saturated.get(name, 0) + 1 if share > SATURATED else 0
            if self._silent[name] == PATIENCE:
                notices += self._once(
                    f"silent {name}",
                    f"{name} is silent: no event in the last {PATIENCE} reports, up to step {report.step}; the modules after it get "
                    "no input from it. If it stays so, start again with a lower --learning-rate or another --seed",
                )
            if self._saturated[name] == PATIENCE:
                notices += self._once(
                    f"saturated {name}",
                    f"{name} is saturated: {100 * share:.0f} % of its neurons have an event per token at step {report.step}; that carries "
                    "little information, and costs time. If it stays so, start again with a lower --learning-rate",
                )
        return notices

    def _gradient(self, report):
        norm = report.gradient_norm
        usual = median(self._norms) if len(self._norms) >= FEWEST_NORMS else math.inf
        self._norms.append(norm)
        if not norm > EXPLODED * usual:
            return []
        return self._once(
            "gradient",
            f"the gradient explodes: norm {norm:.3g} at step {report.step}, {norm / usual:.0f} times the usual {usual:.3g}; it is "
            "clipped. If the loss rises with it, start again with a lower --learning-rate",
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
            "if it stays so, start again with a lower --learning-rate, or resume from an older checkpoint",
        )

    def _once(self, cause, text):
        if cause in self._reported:
            return []
        self._reported.add(cause)
        return [Notice("warning: " + text)]
