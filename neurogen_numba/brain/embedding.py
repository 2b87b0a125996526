"""Embedding: adds a row per token to the current of the Thalamus, through a dense projection if the sizes differ.

Tied embeddings are the rows of the decoder (Press & Wolf 2017, "Using the output embedding to improve language models"), scaled to the size
of untied ones.
"""

from __future__ import annotations

import math

import numpy as np

from ..config import Brain
from ..kernels.reduce import BLOCK
from ..optim.parameters import Parameter, Parameters, Rows
from .component import Component
from .connectome import generator


class Embedding(Component):
    """The first component. Its input is the current of the Thalamus, to which it adds the tokens."""

    name, stream, inputs = "embedding", "thalamus", ("thalamus.current",)

    def __init__(self, brain: Brain, backend, row_wise: bool = False):
        """row_wise: only the rows of tokens in the segment have a gradient, and are updated."""
        self.row_wise = row_wise
        self.vocabulary, self.size, self.neurons, self.backend = brain.vocabulary, brain.embedding, brain.thalamus.neurons, backend
        self.projected, self.tied = self.size != self.neurons, brain.tied
        self.gain = np.float32(math.sqrt(3 * self.size) if brain.tied else 1)  # decoder.py draws its rows smaller by this factor

    def parameters(self):
        if not self.tied:
            how = {"file": "embeddings", "row_wise": self.row_wise, "quantizable": True}
            yield Parameter("embedding.weight", (self.vocabulary, self.size), "a row per token", **how)
        if self.projected:
            shape = (self.size, self.neurons)
            yield Parameter("embedding_thalamus.weight", shape, "embedding -> thalamus.current", file="embeddings", decays=True)

    def initialise(self, parameters: Parameters, seed: int):
        if not self.tied:
            weight = parameters.value["embedding.weight"]
            weight[:] = self.backend.asarray(generator(seed, "embedding").standard_normal(weight.shape, "float32"))
        if self.projected:
            weight = parameters.value["embedding_thalamus.weight"]
            drawn = generator(seed, "embedding_thalamus").standard_normal(weight.shape) / math.sqrt(self.size)
            weight[:] = self.backend.asarray(drawn, "float32")

    def bind(self, parameters: Parameters):
        name = "decoder.weight" if self.tied else "embedding.weight"
        self.codes = parameters.codes.get(name)
        self.weight, self.d_weight = parameters.value.get(name), parameters.gradient.get(name)
        if self.projected:
            name = "embedding_thalamus.weight"
            self.projection, self.d_projection = parameters.value[name], parameters.gradient[name]

    def allocate(self, act):
        zeros = self.backend.zeros
        rows = min(act.tokens * act.among, self.vocabulary)  # of the tokens of the whole batch: all ranks update the same
        act.embedded = zeros((act.tokens, act.batch, self.size))
        if self.row_wise and act.learning:
            act.row_index = zeros((act.tokens, act.batch), "int32")
            room = zeros((rows, self.size)), zeros(rows, "int32"), zeros(-(-rows * self.size // BLOCK), "float64"), zeros(1)
            act.token_rows = Rows("embedding.weight", *room)

    def load_tokens(self, act, ids):
        """Row-wise: map each position to a row of act.token_rows, one for each token in the segment."""
        if not act.token_rows:
            return
        tokens, which = np.unique(np.asarray(ids), return_inverse=True)
        rows = np.full(len(act.token_rows.rows), -1)
        rows[: len(tokens)] = tokens
        act.token_rows.rows[...] = self.backend.asarray(rows, "int32")
        act.row_index[: len(ids)] = self.backend.asarray(which.reshape(np.shape(ids))[:, act.columns], "int32")

    def forward(self, act, first, last):
        x, current = act.embedded[first:last], act.currents["thalamus.current"].value[act.buffer_slice(first, last)]
        if self.codes:
            self.backend.code_rows(x, self.codes.codes, act.ids[first:last], self.codes.scale)
        else:
            self.backend.embedding_forward(x, self.weight, act.ids[first:last])
        self._scale(x, act, first)
        self._drop(x, act, first)
        if self.projected:
            self.backend.product(current.reshape(-1, self.neurons), x.reshape(-1, self.size), self.projection, add=True)
        else:
            self.backend.apply(np.add, current, x, out=current)

    recompute = forward

    def backward(self, act, first, last):
        d_current, x = act.currents["thalamus.current"].gradient[: last - first], act.embedded[first:last]
        if self.projected:
            flat = d_current.reshape(-1, self.neurons)
            self.backend.product(self.d_projection, x.reshape(-1, self.size).T, flat, add=True)
            self.backend.product(x.reshape(-1, self.size), flat, self.projection.T)  # overwrites x, which is not read any more
        else:
            x[:] = d_current
        self._drop(x, act, first)
        self._scale(x, act, first)
        if self.row_wise:
            self.backend.embedding_backward(act.token_rows.gradient, x, act.row_index[first:last])
        else:
            self.backend.embedding_backward(self.d_weight, x, act.ids[first:last])

    def _scale(self, x, act, first):
        rate, key, _ = act.dropout.arguments("words", 0, 0)
        if self.tied or rate:
            self.backend.scale_words(x, act.ids[first : first + len(x)], self.gain, rate, key)

    def _drop(self, x, act, first):
        if act.dropout.rates["embedding"]:
            self.backend.dropout(x.reshape(-1, self.size), *act.dropout.arguments("embedding", first, self.size))
