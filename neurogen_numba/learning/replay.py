"""Replay: the most surprising episodes are read and learned once more, between segments of new text (as the hippocampus replays episodes to
the cortex: McClelland, McNaughton & O'Reilly 1995, "Why there are complementary learning systems", Psychological Review 102:419).

An episode is a segment of one sequence. Of those since the last replay, as many as a batch has are kept: those with the highest mean loss.
A replay is one update on them, from a zero state.
"""

from __future__ import annotations

import numpy as np


class Replay:
    """The episodes of a run. inputs, targets [T, B] int32, surprise [B] float32: mean loss in nats, -1 where there is none yet."""

    def __init__(self, model):
        training = model.config.training
        shape = training.segment, training.batch
        self.model, self.interval, self._act = model, training.replay, model.activity(*shape, learning=True)
        self.inputs, self.targets = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        self.surprise = np.full(training.batch, -1, np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for a checkpoint."""
        return {"replay.inputs": self.inputs, "replay.targets": self.targets, "replay.surprise": self.surprise}

    def load_state(self, state: dict[str, np.ndarray]):
        """Inverse of `state`; a checkpoint without episodes leaves none."""
        if "replay.inputs" in state and state["replay.inputs"].shape == self.inputs.shape:
            self.inputs, self.targets, self.surprise = (state[f"replay.{name}"].copy() for name in ("inputs", "targets", "surprise"))

    def after(self, step: int, act, inputs, targets, rate: float):
        """After update `step` on inputs, targets [T, B]: keep its most surprising episodes, by act.surprise [B] in nats, and
        replay if it is time. rate: learning rate of the replay."""
        found = np.concatenate([self.surprise, act.surprise])
        chosen = np.sort(np.argsort(-found, kind="stable")[: found.size // 2])
        self.inputs = np.concatenate([self.inputs, inputs], axis=1)[:, chosen]
        self.targets = np.concatenate([self.targets, targets], axis=1)[:, chosen]
        self.surprise = found[chosen]
        if step % self.interval == 0:
            self._act.reset()
            self._act.drop(act.dropout.drops)
            self.model.update(self._act, self.inputs, self.targets, rate)
            self.targets[...], self.surprise[...] = -1, -1
