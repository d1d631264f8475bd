"""The loss of a batch as a model computes it, beside its training."""

import contextlib

import keras

from tfprune.layers.swapping import replaced


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


def as_tensors(*structures) -> list:
    """Returns structures of arrays as structures of tensors, in which None stays."""

    def as_tensor(value):
        return value if value is None else keras.ops.convert_to_tensor(value)

    return [keras.tree.map_structure(as_tensor, each) for each in structures]


def _stand_still(*args, **kwargs) -> None:
    pass
