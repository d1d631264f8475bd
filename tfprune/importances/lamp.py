"""LAMP: magnitudes of single weights that can be compared between layers."""

import numpy as np

from tfprune.graph import WeightGraph
from tfprune.importances.magnitude import absolute


class LAMP:
    """Scores a weight by its square over the sum of all squares not below its own.

    So the largest weight of every kernel scores 1, and no kernel is cut off whole when
    all are ranked together. For graphs of single weights.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Raises:
        ValueError: when called on a graph of channels.

    Source: Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", 2021,
    equation 2.

    Example:

    >>> graph = tfprune.Graph(model, unit="weight")
    >>> masks = tfprune.select(graph, "lamp", tfprune.Budget(sparsity=0.9))
    """

    def __call__(self, graph: WeightGraph) -> dict[str, np.ndarray]:
        if graph.unit != "weight":
            raise ValueError(
                "LAMP scores single weights. Received: a graph with "
                f'unit={graph.unit!r}. Pass `Graph(model, unit="weight")`.'
            )
        return {name: _lamp(array) for name, array in absolute(graph).items()}


def _lamp(magnitudes: np.ndarray) -> np.ndarray:
    squares = np.square(magnitudes, dtype=np.float64)
    order = np.argsort(squares, kind="stable")
    rest = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros(squares.size, np.float32)
    positive = rest > 0
    scores[order[positive]] = squares[order[positive]] / rest[positive]
    return scores
