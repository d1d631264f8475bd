"""Taylor: how much the loss would change without a channel, by its gradient."""

import numpy as np

from tfprune.importances.first_order import FirstOrder


class Taylor(FirstOrder):
    """Scores a unit by the first-order change of the loss if its gate closed.

    Over mini-batches: the sum of |phi * dL/dphi|, phi being the gate of the channel,
    for a layer without gate the gate it would get. On a batch normalization that is
    |gamma * dL/dgamma + beta * dL/dbeta|, so models without gates are scored alike. The
    absolute value is taken per mini-batch, not per sample.

    Args:
        reduction: `"sum"` or `"mean"`, over the layers of a group. Defaults to
            `"sum"`.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Raises:
        ValueError: when called, if it has seen no data; in `update_state`, if the model
            has no loss.

    Source: You et al., "Gate Decorator", 2019, section 3.1.

    Example:

    ```python
    taylor = tfprune.importances.Taylor()
    for x, y in data:
        taylor.update_state(model, x, y)
    masks = tfprune.select(tfprune.Graph(model), taylor, budget)
    ```
    """

    def of_batch(self, calls: list) -> np.ndarray:
        products = sum(each for each, _ in calls)
        return np.abs(products.mean(axis=0))
