"""Buckets of gradients, each summed over all ranks as soon as it is complete, while the rest of the backward pass still runs.

The backward pass completes them in this order: the decoder's, which is the largest; the embedding's, whose sum goes on beside the weight
gradients of the synapses; and the rest, which is mostly these.
"""

from __future__ import annotations

from .communicator import Solo


class Buckets:
    """The buckets of a brain, for one backward pass. Row-wise parameters are in none: their rows are summed where they are updated."""

    def __init__(self, brain, act, communicator: Solo):
        self._communicator, self._rows = communicator, act.token_rows
        if communicator.size == 1:
            return
        self._parameters, self._flat = brain.parameters, brain.parameters.flat_gradient
        decoder = [parameter.name for parameter in brain.decoder.parameters()]
        late = ["decoder.weight"] if brain.config.tied else []  # it gets the gradient of the embedding, too
        self._spans = {
            "decoder": self._of([name for name in decoder if name not in late]),
            "embedding": self._of([parameter.name for parameter in brain.components[0].parameters()]) + self._of(late),
        }

    def _of(self, names):
        """[(first, end)] of neighbouring parameters in the flat gradient; those without a whole gradient are not in it."""
        table, offset = self._parameters.table, self._parameters.offset
        whole = [name for name in names if name in self._parameters.gradient]
        ends = [offset[name] + self._parameters.numbers(table[name]) for name in whole]
        return [(min(offset[name] for name in whole), max(ends))] if whole else []

    def sum(self, name: str) -> None:
        """Begin to sum a bucket: decoder, embedding, or rest, what is in neither."""
        if self._communicator.size == 1:
            return
        for first, end in self._gaps() if name == "rest" else self._spans[name]:
            if first < end:
                self._communicator.begin(self._flat[first:end])
        if name == "embedding" and self._rows:
            self._communicator.begin(self._rows.gradient)

    def _gaps(self):
        spans = sorted(span for spans in self._spans.values() for span in spans)
        return zip([0, *(end for _, end in spans)], [*(first for first, _ in spans), self._flat.size], strict=True)
