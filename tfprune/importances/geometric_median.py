"""Geometric median: a filter that others stand in for is not important."""

import numpy as np

from tfprune.importances.filters import FilterImportance


class GeometricMedian(FilterImportance):
    """Scores a unit by how far its filter is from the other filters of its layer.

    For every kernel that makes a group's units: the sum of the Euclidean distances
    from each unit's filter to all others. The lowest lie nearest to the layer's
    geometric median, and what they contribute the others can make up for, whatever
    their norm.

    Args:
        normalize: whether to divide by the layer's mean, so that layers of different
            scale can be ranked together. Defaults to True.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Source: He et al., "Filter pruning via geometric median for deep convolutional
    neural networks acceleration", 2019, equation 8; there with one fraction for all
    layers, which is `scope="uniform"`, chosen anew after every epoch.

    Example:

    ```python
    budget = tfprune.Budget(sparsity=0.4)
    masks = tfprune.select(graph, "geometric_median", budget, scope="uniform")
    ```
    """

    def of_filters(self, filters):
        # In double precision, which holds products of floats exactly: filters that lie
        # close together would lose most digits otherwise.
        rows = filters.astype(np.float64)
        squares = np.einsum("ij,ij->i", rows, rows)
        distances = squares[:, None] + squares - 2 * rows @ rows.T
        np.fill_diagonal(distances, 0.0)
        return np.sqrt(np.maximum(distances, 0.0)).sum(axis=1).astype(np.float32)
