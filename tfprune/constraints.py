"""Constraints: what holds weights at zero, or scales in range, in training."""

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
    >>> hold(np.ones((2, 3))).numpy().tolist()
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
            "constraint": _serialize(self.constraint),
        }


@keras.saving.register_keras_serializable("tfprune")
class Clip(keras.constraints.Constraint):
    """Holds every entry of a variable in an interval.

    Args:
        lower: float. Defaults to 0.
        upper: float. Defaults to 1.
        constraint: the variable's own constraint, applied first. Defaults to None.

    Example:

    >>> clip = tfprune.constraints.Clip(0.0, 1.0)
    >>> clip(np.array([-0.5, 0.5, 1.5])).numpy().tolist()
    [0.0, 0.5, 1.0]
    """

    def __init__(self, lower=0.0, upper=1.0, constraint=None):
        if not lower < upper:
            raise ValueError(
                "`lower` must be below `upper`. Received: "
                f"lower={lower!r}, upper={upper!r}"
            )
        self.lower, self.upper = float(lower), float(upper)
        self.constraint = keras.constraints.get(constraint)

    def __call__(self, w):
        if self.constraint is not None:
            w = self.constraint(w)
        return ops.clip(w, self.lower, self.upper)

    def get_config(self):
        return {
            "lower": self.lower,
            "upper": self.upper,
            "constraint": _serialize(self.constraint),
        }


def _serialize(constraint):
    return keras.constraints.serialize(constraint) if constraint else None
