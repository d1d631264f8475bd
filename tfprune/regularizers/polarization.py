"""Polarization: scales go to 0 or stay away from it."""

import keras
from keras import ops

from tfprune.checks import check_number
from tfprune.regularizers.over_scales import OverScales


@keras.saving.register_keras_serializable("tfprune")
class Polarization(OverScales):
    """Pulls some scales to 0 and the others up, so that little is lost by pruning.

    The term is the sum over all scale factors of the model of `t * |scale| -
    |scale - mean|`, with one mean over all of them; gradients go through the mean.
    `tfprune.regularize` puts it into a model and holds every scale in `[0, upper]`.

    With a share r of the scales above the mean, a scale below it is pulled down with
    `strength * (t + 2 * r)`, one above it with `strength * (t - 2 + 2 * r)`, which is
    upwards while r < 1 - t / 2. Both strength and t raise the FLOPs reduction. How far
    scales move is `strength` times the sum of the learning rates of all steps over
    1 - momentum, see `strength_for_push`: the paper's strengths are for 200 epochs.

    Args:
        t: float: how much smaller scales weigh against separated ones. The paper takes
            1.0 to 1.5. Defaults to 1.2.
        strength: float. The paper takes 2.5e-5 to 8e-5. Defaults to 1e-4.
        upper: float: the largest a scale may get. None takes 1, or the largest scale
            of a trained model if that is more. Defaults to None.

    Raises:
        ValueError: for arguments out of range.

    Source: Zhuang et al., "Neuron-level structured pruning using polarization
    regularizer", 2020, equation 2.

    Example:

    >>> regularizer = tfprune.regularizers.Polarization(t=1.2, strength=1e-4)
    >>> model = tfprune.regularize(model, regularizer)
    """

    clips = True

    def __init__(self, t=1.2, strength=1e-4, upper=None):
        super().__init__(strength)
        check_number("t", t, "(-inf, inf)")
        if upper is not None:
            check_number("upper", upper, "(0, inf)", "the largest a scale may get")
        self.t = float(t)
        self.upper = None if upper is None else float(upper)

    @property
    def pull(self):
        # With half of the scales above the mean.
        return self.t + 1

    def term(self, scales):
        away = ops.abs(scales - ops.mean(scales))
        return ops.sum(self.t * ops.abs(scales) - away)

    def get_config(self):
        return {**super().get_config(), "t": self.t, "upper": self.upper}
