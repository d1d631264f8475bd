"""Fisher: the second-order change of the loss, by the empirical Fisher information."""

import numpy as np

from tfprune.importances.first_order import FirstOrder


class Fisher(FirstOrder):
    """Scores a unit by the change of the loss that the Fisher information predicts.

    Half of the mean over samples of (sum over the map of output * gradient)^2, which is
    the second-order term where the model fits its data.

    Args:
        reduction: `"sum"` or `"mean"`, over the layers of a group. Defaults to
            `"sum"`.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Raises:
        ValueError: when called, if it has seen no data; in `update_state`, if the model
            has no loss.

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher
    pruning", 2018, section 2.

    Example:

    ```python
    fisher = tfprune.importances.Fisher()
    for x, y in data:
        fisher.update_state(model, x, y)
    scores = fisher(tfprune.Graph(model))
    ```
    """

    def of_batch(self, calls: list) -> np.ndarray:
        products = sum(each for each, _ in calls)
        return np.square(products, dtype=np.float64).sum(axis=0)

    def of_data(self, total: np.ndarray, samples: int) -> np.ndarray:
        return total / (2 * samples)
