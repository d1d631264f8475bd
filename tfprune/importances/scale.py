"""Scale: batch normalization scales as importance."""

import keras
import numpy as np

from tfprune.graph import Graph
from tfprune.graph.scales import Roles, scaled_members
from tfprune.importances.members import check_reduction, scores_by_group
from tfprune.layers import ChannelGate


class Scale:
    """Scores a unit by the absolute scale it is multiplied with.

    This is |gamma| of the batch normalization of the unit, or the gate around it.
    Training with a sparsity regularizer on the scales makes it meaningful. A unit
    without a scale scores infinity, so it stays.

    Args:
        reduction: `"mean"` or `"sum"`, over the layers of a group. Defaults to
            `"mean"`.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Source: Liu et al., "Learning efficient convolutional networks through network
    slimming", 2017.

    Example:

    >>> scores = tfprune.importances.Scale()(tfprune.Graph(model))
    """

    def __init__(self, reduction: str = "mean"):
        self.reduction = check_reduction(reduction)

    def __call__(self, graph: Graph) -> dict[str, np.ndarray]:
        return scores_by_group(graph, _members(graph), _size, self.reduction)

    def by_layer(self, graph: Graph) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns `{layer path: (units, scores)}`, for rules that look at layers.

        Normalizations of depthwise convolutions are left out: their channels follow
        the layer before.
        """
        roles = Roles(graph)
        return {
            member.path: (graph.units(member.labels), _size(member))
            for member in _members(graph)
            if not roles.is_depthwise(member.path)
        }


def _members(graph: Graph) -> list:
    members = scaled_members(graph)
    return [member for member in members if _scale_of(member.layer) is not None]


def _size(member) -> np.ndarray:
    return np.abs(_scale_of(member.layer))


def _scale_of(layer) -> np.ndarray | None:
    """Returns what a layer multiplies its channels with, None if nothing does."""
    if isinstance(layer, ChannelGate):
        return layer.scales().numpy()
    if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None:
        return layer.gamma.numpy()
    return None
