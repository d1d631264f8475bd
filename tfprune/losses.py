"""The loss of a batch as a model computes it, beside its training."""

import contextlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfprune.layers.swapping import replaced

# What float16 can hold of a loss's gradients: where Keras starts, and far below.
_SCALES = tuple(2.0**power for power in range(15, -31, -1))


def loss_of(model, x, y, y_pred, sample_weight=None, training: bool = False):
    """Returns the loss that a compiled model takes for a batch.

    What a `fit` shows stays what it is: the means of losses and metrics that
    `compute_loss` keeps, one for each output, do not see the batch.

    Args:
        model: compiled model; it may have a `compute_loss` of its own.
        x: inputs.
        y: targets.
        y_pred: what the model returned.
        sample_weight: weights of the samples, None for none.
        training: whether the loss is that of training.
    """
    with contextlib.ExitStack() as stack:
        for metric in model.metrics:
            stack.enter_context(replaced(metric, "update_state", _stand_still))
        return model._compute_loss(x, y, y_pred, sample_weight, training)


def at_best_scale(model, function: Callable) -> Callable:
    """Returns a function of a batch whose gradients do not vanish in float16.

    If any layer computes in float16, the loss is scaled by the largest power of two
    with which nothing overflows, found as batches come; else by 1.

    Args:
        model: the model.
        function: function `(scale, *batch) -> arrays` that multiplies the loss by the
            scale, and has the gradients `unscaled` by it.
    """
    if not any(each.compute_dtype == "float16" for each in model._flatten_layers()):
        return lambda *batch: function(1.0, *batch)
    scales = list(_SCALES)

    def of_batch(*batch):
        for place, scale in enumerate(scales):
            found = function(tf.constant(scale), *batch)
            if all(np.isfinite(each).all() for each in tf.nest.flatten(found)):
                # Later batches are not tried with what has once been too large.
                del scales[:place]
                return found
        raise ValueError(
            f"The gradients of {model.name!r}, which computes in float16, are not finite "
            "on a batch, however small the loss is made. Look for NaN in the data or "
            "in the weights, or compute in float32."
        )

    return of_batch


def unscaled(gradient, scale):
    """Returns a gradient of a loss that was scaled as that of the loss, in float32."""
    # That of an embedding's rows comes as `tf.IndexedSlices`, which does not divide.
    return tf.cast(tf.convert_to_tensor(gradient), tf.float32) / scale


def compiled_loss(model) -> tuple:
    """Returns what another `compile` changes of the loss, to tell whether there was one.

    A model with a `compile` and a `compute_loss` of its own may keep `loss` alone.
    """
    return getattr(model, "_compile_loss", None), getattr(model, "loss", None)


def as_tensors(*structures) -> list:
    """Returns structures of arrays as structures of tensors, in which None stays."""

    def as_tensor(value):
        return value if value is None else keras.ops.convert_to_tensor(value)

    return [keras.tree.map_structure(as_tensor, each) for each in structures]


def _stand_still(*args, **kwargs) -> None:
    pass
