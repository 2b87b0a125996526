"""Tokens in: a row per token, straight into the Thalamus where the sizes agree, otherwise through a dense projection.

Where embedding and decoder are tied the rows are those of the decoder (Press & Wolf 2017, "Using the output embedding to improve language
models"), made as large as embeddings of their own would be.
"""

from __future__ import annotations

import math

import numpy as np

from ..config import Brain
from ..kernels.reduce import BLOCK
from .buffers import Parameter, Parameters, Rows
from .connectome import generator


class Embedding:
    """The first component: it adds the tokens to the current of the Thalamus."""

    inputs, outputs, kept, lane = ("thalamus.current",), (), (), "thalamus"

    def __init__(self, brain: Brain, backend, apart: bool = False):
        """apart: only the rows of tokens that were heard have a gradient, and are updated."""
        self.apart = apart
        self.vocabulary, self.size, self.neurons, self.backend = brain.vocabulary, brain.embedding, brain.thalamus.neurons, backend
        self.projected, self.tied = self.size != self.neurons, brain.tied
        self.gain = np.float32(math.sqrt(3 * self.size) if brain.tied else 1)  # decoder.py draws its rows so much smaller

    def parameters(self):
        if not self.tied:
            yield Parameter("embedding.weight", (self.vocabulary, self.size), "a row per token", file="embeddings", apart=self.apart)
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
        own = "decoder.weight" if self.tied else "embedding.weight"
        self.weight, self.d_weight = parameters.value[own], parameters.gradient.get(own)
        if self.projected:
            name = "embedding_thalamus.weight"
            self.projection, self.d_projection = parameters.value[name], parameters.gradient[name]

    def allocate(self, act):
        zeros, heard = self.backend.zeros, act.tokens * act.batch
        act.embedded = zeros((act.tokens, act.batch, self.size))
        if self.apart and act.learning:
            act.places = zeros((act.tokens, act.batch), "int32")
            room = zeros((heard, self.size)), zeros(heard, "int32"), zeros(-(-heard * self.size // BLOCK), "float64"), zeros(1)
            act.token_rows = Rows("embedding.weight", *room)

    def hear(self, act, ids):
        """ids [T', B]: where each token is heard first in the segment gathers its gradient."""
        _, first, which = np.unique(np.asarray(ids), return_index=True, return_inverse=True)
        where = np.full(len(act.token_rows.where), -1)
        where[first] = np.asarray(ids).reshape(-1)[first]
        act.token_rows.where[...] = self.backend.asarray(where, "int32")
        act.places[: len(ids)] = self.backend.asarray(first[which.reshape(-1)].reshape(np.shape(ids)), "int32")

    def forward(self, act, first, last):
        x, current = act.embedded[first:last], act.currents["thalamus.current"].value[act.here(first, last)]
        self.backend.embedding_forward(x, self.weight, act.ids[first:last])
        self._scale(x)
        self._drop(x, act, first)
        if self.projected:
            self.backend.product(current.reshape(-1, self.neurons), x.reshape(-1, self.size), self.projection, add=True)
        else:
            np.add(current, x, out=current)

    again = forward

    def backward(self, act, first, last):
        d_current, x = act.currents["thalamus.current"].gradient[: last - first], act.embedded[first:last]
        if self.projected:
            flat = d_current.reshape(-1, self.neurons)
            self.backend.product(self.d_projection, x.reshape(-1, self.size).T, flat, add=True)
            self.backend.product(x.reshape(-1, self.size), flat, self.projection.T)  # x is not needed any more
        else:
            x[:] = d_current
        self._drop(x, act, first)
        self._scale(x)
        if self.apart:
            self.backend.embedding_backward(act.token_rows.gradient, x, act.places[first:last])
        else:
            self.backend.embedding_backward(self.d_weight, x, act.ids[first:last])

    def _scale(self, x):
        if self.tied:
            np.multiply(x, self.gain, out=x)

    def _drop(self, x, act, first):
        if act.dropout.rate:
            self.backend.dropout(x.reshape(-1, self.size), *act.dropout.at("embedding", first, self.size))
