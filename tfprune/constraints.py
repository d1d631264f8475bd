"""Constraints: what holds pruned weights at zero while training goes on."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("tfprune")
class ZeroSlices(keras.constraints.Constraint):
    """Holds slices of a variable at exactly zero.

    The optimizer applies it right after each update, so the variable is sparse at
    every batch.

    Args:
        dropped: `{axis: indices}`, the positions held at zero on each axis.
        constraint: the variable's own constraint, applied first. Defaults to None.

    Example:

    >>> hold = tfprune.constraints.ZeroSlices({1: [0, 2]})
    >>> hold(np.ones((2, 3))).tolist()
    [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, dropped, constraint=None):
        # JSON turns the keys of a mapping into strings.
        self.dropped = {int(axis): list(map(int, i)) for axis, i in dropped.items()}
        self.constraint = keras.constraints.get(constraint)

    def __call__(self, w):
        if self.constraint is not None:
            w = self.constraint(w)
        for axis, indices in self.dropped.items():
            keep = np.ones(w.shape[axis], bool)
            keep[indices] = False
            shape = [1] * len(w.shape)
            shape[axis] = -1
            # A product would turn infinite weights into NaN.
            w = ops.where(keep.reshape(shape), w, ops.zeros((), w.dtype))
        return w

    def get_config(self):
        return {
            "dropped": {str(axis): i for axis, i in self.dropped.items()},
            "constraint": keras.constraints.serialize(self.constraint)
            if self.constraint
            else None,
        }
