"""Magnitude: units with small weights are not important."""

import numpy as np
import tensorflow as tf

from tfprune.graph import Graph, WeightGraph
from tfprune.importances.filters import FilterImportance


class Magnitude(FilterImportance):
    """Scores a unit by the norm of the weights that make it.

    For every kernel that makes a group's units: the Lp norm of each unit's filter,
    divided by the mean norm of all filters of that kernel, so that layers of
    different scale can be ranked together; then the mean over the group's kernels.

    A single weight is scored by its absolute value, a block of them by the mean.

    Args:
        p: order of the norm, 1 or 2. Defaults to 2.
        normalize: whether to divide by the layer's mean norm. Defaults to True.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Raises:
        ValueError: for arguments out of range.

    Source: Li et al., "Pruning filters for efficient convnets", 2017 (p=1, per
    layer).

    Example:

    >>> scores = tfprune.importances.Magnitude()(tfprune.Graph(model))
    """

    def __init__(self, p: int = 2, normalize: bool = True):
        if p not in (1, 2):
            raise ValueError(
                f"`p` must be 1 or 2, the order of the norm. Received: {p}"
            )
        super().__init__(normalize)
        self.p = p

    def __call__(self, graph: Graph) -> dict[str, np.ndarray]:
        if isinstance(graph, WeightGraph):
            return absolute(graph)
        return super().__call__(graph)

    def of_filters(self, filters):
        return np.linalg.norm(filters, ord=self.p, axis=1)


def absolute(graph: WeightGraph) -> dict[str, np.ndarray]:
    """Returns the absolute values of single weights, or their means over blocks."""
    return {
        name: graph.pooled(name, _absolute(kernel.variable))
        for name, kernel in graph.kernels.items()
    }


def _absolute(variable) -> np.ndarray:
    return np.asarray(tf.abs(tf.cast(tf.convert_to_tensor(variable), tf.float32)))
