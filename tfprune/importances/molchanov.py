"""Molchanov: the criterion of 2016, on feature maps, normalized by layer."""

import numpy as np

from tfprune.importances.first_order import FirstOrder


class Molchanov(FirstOrder):
    """Scores a unit by the change of the loss without its feature map, per sample.

    The mean over samples of |mean over the map of output * gradient|, divided by the
    L2 norm of all scores of the layer, which makes up for the mean over maps of
    different sizes. Behind a ReLU the map before and behind it give the same.

    Args:
        reduction: `"sum"` or `"mean"`, over the layers of a group. Defaults to
            `"sum"`.
        normalize: whether scores are divided by the layer's L2 norm. Defaults to True.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Raises:
        ValueError: when called, if it has seen no data; in `update_state`, if the model
            has no loss.

    Source: Molchanov et al., "Pruning convolutional neural networks for resource
    efficient inference", 2017, sections 2.2 and 2.3.

    Example:

    ```python
    molchanov = tfprune.importances.Molchanov()
    for x, y in data:
        molchanov.update_state(model, x, y)
    scores = molchanov(tfprune.Graph(model))
    ```
    """

    def __init__(self, reduction: str = "sum", normalize: bool = True):
        super().__init__(reduction)
        self.normalize = normalize

    def of_batch(self, calls: list) -> np.ndarray:
        means = sum(products / places for products, places in calls)
        return np.abs(means).sum(axis=0)

    def of_data(self, total: np.ndarray, samples: int) -> np.ndarray:
        scores = total / samples
        norm = np.linalg.norm(scores)
        return scores / norm if self.normalize and norm > 0 else scores
