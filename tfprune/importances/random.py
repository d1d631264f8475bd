"""Random: the control."""

import numpy as np

from tfprune.graph import Graph


class Random:
    """Scores units by chance: the control every other importance has to beat.

    Args:
        seed: int. The same seed and model give the same scores. Defaults to 0.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Example:

    >>> scores = tfprune.importances.Random(seed=1)(tfprune.Graph(model))
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, graph: Graph) -> dict[str, np.ndarray]:
        random = np.random.default_rng(self.seed)
        return {g.name: random.random(g.size, np.float32) for g in graph.groups}
