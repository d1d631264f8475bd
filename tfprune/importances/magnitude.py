"""Magnitude: units with small weights are not important."""

import numpy as np
from keras import ops

from tfprune.graph import Graph, Group, WeightGraph


class Magnitude:
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
        self.p = p
        self.normalize = normalize

    def __call__(self, graph: Graph) -> dict[str, np.ndarray]:
        if isinstance(graph, WeightGraph):
            return absolute(graph)
        norms: dict = {}
        return {group.name: self._score(group, norms) for group in graph.groups}

    def _score(self, group: Group, norms: dict) -> np.ndarray:
        scores = [
            self._norms(each, norms)[each.indices].mean(axis=1)
            for each in _makers(group)
        ]
        if not scores:
            # Channels of padding: no weight makes them, so nothing is lost with them.
            return np.zeros(group.size, np.float32)
        return np.mean(scores, axis=0, dtype=np.float32)

    def _norms(self, part, norms: dict) -> np.ndarray:
        """Returns the norm at every position of the part's axis, once per variable."""
        key = (id(part.variable), part.axis)
        if key not in norms:
            rows = np.moveaxis(part.variable.numpy(), part.axis, 0)
            rows = rows.reshape(len(rows), -1).astype(np.float32)
            norm = np.linalg.norm(rows, ord=self.p, axis=1)
            if not np.isfinite(norm).all():
                raise ValueError(
                    f"Layer {part.path!r} has weights that are NaN or infinite, in "
                    f"{part.variable.name!r}. Look for where training went wrong."
                )
            mean = norm.mean()
            norms[key] = norm / mean if self.normalize and mean > 0 else norm
        return norms[key]


def _makers(group: Group) -> list:
    """Returns the slices whose weights make the units: kernels, else what there is."""
    made = [part for part in group.slices if not part.read]
    kernels = [part for part in made if len(part.variable.shape) > 1]
    return kernels or made


def absolute(graph: WeightGraph) -> dict[str, np.ndarray]:
    """Returns the absolute values of single weights, or their means over blocks."""
    return {
        name: graph.pooled(name, np.asarray(ops.abs(_as_float32(kernel.variable))))
        for name, kernel in graph.kernels.items()
    }


def _as_float32(variable):
    return ops.cast(ops.convert_to_tensor(variable), "float32")
