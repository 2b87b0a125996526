"""The ranks at work. Rank 0 runs the trainer. For what needs all ranks it gives an order, and every rank carries it out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

from ..errors import ConfigError, NeuroGenError
from .communicator import Solo, check_batch


def axis(name: str) -> int:
    """The axis of the sequences in an array of `Activity.state`."""
    return 1 if name.endswith("history") else 0


class Team:
    """All ranks, each with a copy of the model, and with the activity of its sequences (`Activity.columns`).

    Of a process that trains alone, every method does its work here and asks nobody. rewiring: a `Rewiring` of the model, or None; replay: a
    `Replay` of it, or None.
    """

    def __init__(self, model, act, rewiring=None, replay=None):
        self.model, self.act, self.rewiring, self.replay = model, act, rewiring, replay
        self.communicator: Solo = model.communicator

    def update(self, inputs, targets, rate: float, reset=None, step: int = 0, steps: int = 0, rewire=False) -> tuple:
        """`NeuroGenModel.update` on a whole batch: (loss, accuracy, norm of the gradient, bundles rewired). step: number of this update
        of `steps` in a run, after which episodes may be replayed; rewire: whether it rewires."""
        return self._do("update", inputs, targets, rate, reset, step, steps, rewire)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(state of all sequences, as `Activity.state` of a process that trains alone; parts of the optimiser's state, joined)."""
        return self._do("state")

    def origin(self) -> str:
        """Where a loss or gradient first became NaN or infinite, as `learning.diagnosis.origin` says it, and on which rank."""
        return self._do("origin")

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Load this rank's part of a state of all sequences."""
        if self.replay:
            self.replay.load_state(state)
        state = {name: array for name, array in state.items() if not name.startswith("replay.")}
        if self.act.batch < self.act.among:
            state = {name: np.take(array, range(self.act.among)[self.act.columns], axis(name)) for name, array in state.items()}
        self.act.load_state(state)

    def carry_out(self, what: str, *how):
        """Carry out an order."""
        with self.communicator.together():
            return getattr(self, f"_{what}")(*how)

    def _do(self, what, *how):
        self.communicator.order(what, *how)
        return self.carry_out(what, *how)

    def _update(self, inputs, targets, rate, reset, step, steps, rewire):
        grown = 0

        def rewired(act):
            nonlocal grown
            grown = self.rewiring(act, step, steps)

        self.act.drop(step <= self.model.config.training.dropout_end * steps)
        with self.communicator.working(f"update {self.model.optimizer.steps + 1}"):
            figures = self.model.update(self.act, inputs, targets, rate, reset, rewired if rewire else None)
            if self.replay and step and np.isfinite(figures).all():
                self.act.surprise = self.communicator.whole(self.act.surprise)
                self.replay.after(step, self.act, inputs, targets, rate)
        return *figures, grown

    def _state(self):
        moments = self.model.optimizer.moments() if self.communicator.shard else {}
        local = self.act.state(), {letter: self.model.backend.fetch(array) for letter, (array, _) in moments.items()}
        states, parts = zip(*self.communicator.gather(local), strict=True)
        episodes = self.replay.state() if self.replay else {}  # the same on every rank
        if len(states) == 1:
            return states[0] | episodes, parts[0]
        state = {name: np.concatenate([each[name] for each in states], axis(name)) for name in states[0]}
        return state | episodes, {letter: np.concatenate([each[letter] for each in parts]) for letter in moments}

    def _origin(self):
        from ..learning.diagnosis import origin

        broken = bool(self.act.non_finite())
        found = self.communicator.gather((broken, origin(self.model, self.act), getattr(self.communicator, "host", "")))
        rank = next((rank for rank, (broken, *_) in enumerate(found) if broken), 0)
        _, sentence, host = found[rank]
        return f" on rank {rank}, {host}{sentence}" if len(found) > 1 else sentence


def assemble(communicator: Solo, make_model: Callable) -> Team:
    """The team that trains the model which make_model() makes on every rank. Raises on all ranks what one raises."""
    from ..learning.replay import Replay
    from ..learning.rewiring import Rewiring

    with communicator.agreed():
        model = make_model()
        training = model.config.training
        check_batch(training.batch, communicator.size)
        if training.distill and communicator.size > 1:
            raise ConfigError("training.distill: the larger model is read by one process; train in one, or without it")
        if training.prune_keep < 1 and communicator.size > 1:
            raise ConfigError("training.prune_keep: bundles are removed by one process; train in one, or keep all of them")
        model.join(communicator)
        act = model.activity(training.segment, training.batch, learning=True)
        rewiring = Rewiring(model) if training.rewire_interval else None
        replay = Replay(model) if training.replay else None
    return Team(model, act, rewiring, replay)


def begin(communicator: Solo, config, tokenizer, begun: Callable | None = None) -> None:
    """Let the other ranks make the model that this one makes next.

    begun: for a model that has learned, a function to (its `content`, the state of all sequences).
    """
    if communicator.size > 1:
        communicator.order("begin", config, tokenizer, begun() if begun else None)


def follow(communicator: Solo, backend) -> int:
    """Carry out the orders of rank 0. Returns the exit code that it ends with."""
    from ..brain.model import NeuroGenModel, made_from

    def make(config, tokenizer, begun):
        return (
            made_from(config, tokenizer, backend, *begun[:-1]) if begun else NeuroGenModel.from_config(config, tokenizer, backend=backend)
        )

    team = None
    while True:
        what, *how = communicator.order()
        if what == "end":
            return how[0]
        if what == "begin":
            with contextlib.suppress(NeuroGenError):  # rank 0 has it too, and gives the order to end
                team = assemble(communicator, lambda how=how: make(*how))
                if how[2]:
                    team.load_state(how[2][-1])
        else:
            team.carry_out(what, *how)
