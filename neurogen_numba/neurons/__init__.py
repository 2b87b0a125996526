"""Neurons: how one is written (definition.py), its derived adjoint, its check, and those that ship with NeuroGen, a file each."""

from .definition import Learned, Neuron, TimeConstant, event, get, neuron, slope

__all__ = ["Learned", "Neuron", "TimeConstant", "event", "get", "neuron", "slope"]
