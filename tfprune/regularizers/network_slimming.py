"""Network slimming: the L1 norm of the scales."""

import keras
from keras import ops

from tfprune.regularizers.over_scales import OverScales


@keras.saving.register_keras_serializable("tfprune")
class NetworkSlimming(OverScales):
    """Pulls all scales to 0: the sum of their absolute values.

    Prune with a quantile of all scales: `tfprune.select(graph, "scale",
    threshold=tfprune.thresholds.Quantile(0.6))`.

    Args:
        strength: float. The paper takes 1e-5 to 1e-4. Defaults to 1e-4.

    Source: Liu et al., "Learning efficient convolutional networks through network
    slimming", 2017.

    Example:

    >>> model = tfprune.regularize(model, tfprune.regularizers.NetworkSlimming(1e-4))
    """

    pull = 1.0

    def __init__(self, strength=1e-4):
        super().__init__(strength)

    def term(self, scales):
        return ops.sum(ops.abs(scales))
