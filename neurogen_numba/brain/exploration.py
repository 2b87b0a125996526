"""The three-factor rule: weight perturbation with dopamine (Jabri & Flower 1992, IEEE Transactions on Neural Networks 3:154; Züge, Klos and
Memmesheimer 2023, Physical Review X 13:021006, for tasks that extend over time).

The synapses of a projection share one gain, the neurons of a module one shift of the bias and of each time constant. In each chunk of
tokens all of these parameters are perturbed, together and for all sequences. The chunk is read twice from the same state, with opposite
signs (Spall 1992, IEEE Transactions on Automatic Control 37:332):

    weight exp(±SIGMA xi),  bias ± SIGMA_BIAS xi,  log_tau ± SIGMA xi        xi ~ N(0, 1), one for each projection, module and time constant

A sequence has a surprise s after each reading. Dopamine is expectation less surprise, and reward; expectation and reward are the same in
both readings, so the difference of the two dopamines is that of the surprises, and is computed from these:

    d = s(-) - s(+)                                                          s: mean loss of the chunk's targets, nats
    step += STEP rate xi mean(d) / sqrt(mean(d^2))                           means over the sequences

xi is the eligibility, d the third factor. No gradient of the loss reaches a module. The parameters are few, because the noise of the
estimate grows with their count; that of the text is the same in both readings. xi depends on seed, update and chunk only. The decoder
learns from its own error in the second reading, which is local to it, and the state goes on from there.

A reward is of what was done before xi was drawn. It teaches the decoder its choices, and not the modules.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..config import MODULES
from ..kernels.adamw import BLOCK

if TYPE_CHECKING:
    from .activity import Activity

SIGMA = 0.2  # standard deviation of the perturbation of a gain, or of the logarithm of a time constant
SIGMA_BIAS = 0.1  # that of a bias; the threshold is 1
SHIFTED = "bias", "log_tau_v", "log_tau_y"  # of a module, where its neurons have them
STEP = 16.0  # of a number, times the learning rate, where dopamine is the same in all sequences and xi is 1


class Exploration:
    """Perturbs the parameters of a brain during the readings of an update, and moves them by dopamine afterwards.

    choices [T, B] uint8: targets that the model has chosen itself. The decoder learns them in proportion to dopamine, all others as always.
    """

    def __init__(self, act: Activity):
        self.act, self._brain, zeros = act, act.brain, act.brain.backend.zeros
        self.choices, self._weight, self._less_1 = zeros((act.tokens, act.batch), "uint8"), zeros((act.tokens, act.batch)), zeros(act.batch)
        table = self._brain.parameters.table
        self.scaled = [f"{projection.arc.name}.weight" for projection in self._brain.projections]
        self.shifted = [name for name in table if name.partition(".")[0] in MODULES and name.partition(".")[2] in SHIFTED]
        names = *self.scaled, *self.shifted
        self.sigma = np.array([SIGMA_BIAS if name.endswith(".bias") else SIGMA for name in names])
        order = {name: index for index, name in enumerate(names)}
        of = self._brain.parameters.per_block(lambda p: order.get(p.name, -1)).astype(int)
        first, end = np.flatnonzero(of >= 0)[[0, -1]] + (0, 1)
        self._number_of_block, self._blocks = of[first:end], slice(first * BLOCK, end * BLOCK)
        self._base, self._factor = zeros((end - first, BLOCK)), zeros((end - first, 1))
        self._levels = zeros(act.modulators.shape)
        self._before = act.S_before[0], act.key_before[0], self._levels  # the state before a chunk, of what changes in place

    @contextlib.contextmanager
    def exploring(self) -> Iterator[None]:
        """The readings of an update: parameters are perturbed inside, and as before at the end, also after an exception."""
        self.step = np.zeros(len(self.scaled) + len(self.shifted))
        with self._restoring():
            yield
            self._set(np.zeros_like(self.step))

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Moves the parameters by the step, if that is finite, and restores them if the context raises."""
        with self._restoring():
            self._set(self.step if np.isfinite(self.step).all() else np.zeros_like(self.step))
            yield

    @contextlib.contextmanager
    def _restoring(self):
        """Parameters begin from those of now, and get their values back if the context raises anything, Ctrl-C too."""
        self._base[...] = self._values
        try:
            yield
        except BaseException:
            self._set(np.zeros_like(self.step))
            raise

    @property
    def _values(self):
        return self._brain.parameters.flat_value[self._blocks].reshape(self._base.shape)

    def perturb(self, part: int):
        """Perturb the parameters for the first reading of part number `part` of the segment, a chunk."""
        words = self.act.dropout.seed, self.act.dropout.step, part, zlib.crc32(b"exploration")
        self.xi = np.random.default_rng(words).standard_normal(len(self.step))
        self._set(self.sigma * self.xi)
        self._levels[...] = self.act.modulators

    def turn(self):
        """After the first reading: restore the state before it, and perturb with the other sign. Neurons keep theirs in row 0."""
        self._first = self._surprise()
        for array, before in zip((self.act.S, self.act.key, self.act.modulators), self._before, strict=True):
            array[...] = before
        self._set(-self.sigma * self.xi)

    def observe(self, rate: float, communicator):
        """After the second reading: add to the step. Its dopamine counts over the sequences of all ranks."""
        dopamine = self._surprise() - self._first
        total, square, count = communicator.sum([dopamine.sum(), (dopamine**2).sum(), dopamine.size])
        if square != 0:  # what is not finite makes the step so, and then it is not made
            self.step += STEP * rate * self.xi * total / np.sqrt(square * count)

    def _set(self, by):
        """Set the parameters to those at the beginning of the context, changed by these numbers."""
        logarithm = np.append(np.where(np.arange(len(by)) < len(self.scaled), by, 0), 0)[self._number_of_block]
        self._factor[...] = self._brain.backend.asarray(np.exp(logarithm)[:, None], "float32")
        apply = self._brain.backend.apply
        apply(np.multiply, self._base, self._factor, out=self._values)
        for name, shift in zip(self.shifted, by[len(self.scaled) :], strict=True):
            value = self._brain.parameters.value[name]
            apply(np.add, value, np.float32(shift), out=value)
        self._brain.refresh()

    def _surprise(self):
        """Mean loss of the chunk's targets, of the sequences that have some."""
        losses, targets = (self._brain.backend.to_numpy(array[: self.act.length]) for array in (self.act.losses, self.act.targets))
        counted = (targets >= 0).sum(0)
        return losses.sum(0, dtype=np.float64)[counted > 0] / counted[counted > 0]

    def decoder_weight(self, first: int, last: int):
        """Weights [(last - first) B] of the decoder's gradient for tokens first ... last - 1: act.weight, at choices times dopamine."""
        act, apply, weight = self.act, self._brain.backend.apply, self._weight[first:last]
        apply(np.subtract, act.levels["dopamine"], np.float32(1), out=self._less_1)
        apply(np.multiply, self.choices[first:last], self._less_1, out=weight)
        apply(np.add, weight, np.float32(1), out=weight)
        apply(np.multiply, weight, act.weight, out=weight)
        return weight.reshape(-1)
