"""DeepHoyer: the square of the ratio of L1 to L2 norm."""

import keras
from keras import ops

from tfprune.checks import check_number
from tfprune.regularizers.over_scales import OverScales


@keras.saving.register_keras_serializable("tfprune")
class HoyerSquare(OverScales):
    """Sparsifies scales whatever their size: (sum |scale|)^2 / sum scale^2.

    Between 1, when one scale is all there is, and their number, when all are equal.
    Scales smaller than the ratio of the two sums are pulled to 0, larger ones grow.
    Equal scales are a maximum, where it has no gradient: start from unequal ones.

    Args:
        strength: float. Defaults to 1e-4.

    Source: Yang et al., "DeepHoyer: learning sparser neural network with
    differentiable scale-invariant sparsity measures", 2020, equation 4.

    Example:

    >>> model = tfprune.regularize(model, tfprune.regularizers.HoyerSquare(1e-3))
    """

    def __init__(self, strength=1e-4):
        super().__init__(strength)

    def term(self, scales):
        return _hoyer_square(ops.abs(scales))


@keras.saving.register_keras_serializable("tfprune")
class GroupHoyerSquare(keras.regularizers.Regularizer):
    """Sparsifies filters and input channels of a kernel: Hoyer-square of their norms.

    The square of the sum of the filters' L2 norms plus that of the input channels',
    over the square of the kernel's norm. An ordinary Keras regularizer, for
    `kernel_regularizer`; `tfprune.regularize` puts it on the kernels of all prunable
    convolutions and dense layers of a model.

    Args:
        strength: float. Defaults to 1e-3, the paper's.

    Raises:
        ValueError: for arguments out of range.

    Source: Yang et al., "DeepHoyer", 2020, section 3.3.

    Example:

    >>> regularizer = tfprune.regularizers.GroupHoyerSquare(1e-3)
    >>> layer = keras.layers.Conv2D(16, 3, kernel_regularizer=regularizer)
    """

    def __init__(self, strength=1e-3):
        check_number("strength", strength, "[0, inf)")
        self.strength = float(strength)

    def __call__(self, x):
        squares = ops.square(ops.cast(x, "float32"))
        by_channel = ops.sum(ops.reshape(squares, (-1, *x.shape[-2:])), axis=0)
        filters, channels = (
            _safe_sqrt(ops.sum(by_channel, axis=axis)) for axis in (0, 1)
        )
        # Each of the two norms has the square of the kernel's own below it.
        return self.strength * (_hoyer_square(filters) + _hoyer_square(channels))

    def get_config(self):
        return {"strength": self.strength}


def _hoyer_square(sizes):
    total = ops.sum(ops.square(sizes))
    # Where all is zero it is 0, and so is its gradient.
    return ops.square(ops.sum(sizes)) / ops.where(total > 0, total, 1.0)


def _safe_sqrt(x):
    """Returns square roots whose gradient at 0 is 0."""
    return ops.where(x > 0, ops.sqrt(ops.where(x > 0, x, 1.0)), 0.0)
