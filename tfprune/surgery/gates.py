"""Whether a model has gates."""

import keras

from tfprune.graph.nodes import as_functional, flatten_layers
from tfprune.layers import KernelGate, RuntimeGate, SwapWrapper


def has_gates(model: keras.Model) -> bool:
    """Returns whether any layer of a model is wrapped in a gate."""
    return _has(model, SwapWrapper)


def has_kernel_gates(model: keras.Model) -> bool:
    """Returns whether a model has masks on single weights."""
    return _has(model, KernelGate)


def has_runtime_gates(model: keras.Model) -> bool:
    """Returns whether a model has gates that decide image by image."""
    return _has(model, RuntimeGate)


def _has(model, kind) -> bool:
    if not isinstance(model, keras.Model):
        as_functional(model)
    return any(isinstance(layer, kind) for layer in flatten_layers(model))
