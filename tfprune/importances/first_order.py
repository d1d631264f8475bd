"""What importances that look at gradients have in common."""

import abc

import keras
import numpy as np

from tfprune.graph import Graph
from tfprune.importances.gradient_tape import output_products
from tfprune.importances.members import (
    check_reduction,
    members_of,
    scores_by_group,
)
from tfprune.losses import as_tensors, compiled_loss


class FirstOrder(abc.ABC):
    """Base of importances made of outputs and their gradients, batch by batch.

    The model is run for inference, so nothing of it changes. Scores are those of the
    loss it is compiled with: the mean over each batch, without weight regularizers.

    Args:
        reduction: `"sum"` or `"mean"`, over the layers of a group.
    """

    def __init__(self, reduction: str = "sum"):
        self.reduction = check_reduction(reduction)
        self._running = None
        self.reset_state()

    def reset_state(self) -> None:
        """Forgets all data."""
        self._totals: dict[str, np.ndarray] = {}
        self._samples = 0

    def update_state(self, model: keras.Model, x, y, sample_weight=None) -> None:
        """Adds one batch.

        Args:
            model: compiled model, with gates or without.
            x: inputs, as the model takes them.
            y: targets of the batch.
            sample_weight: weights of the samples, for models of several outputs in
                the structure of `y`, if not the same for all. Defaults to None.
        """
        members, products = self._function(model)
        x, y, sample_weight = as_tensors(x, y, sample_weight)
        batch = products(x, y, sample_weight)
        for member in members:
            calls = [(p.numpy(), float(m)) for p, m in batch[member.path]]
            if not calls:
                continue
            score = self.of_batch(calls)
            total = self._totals.get(member.path, 0.0)
            self._totals[member.path] = total + np.asarray(score, np.float64)
        self._samples += len(keras.tree.flatten(x)[0])

    def __call__(self, graph: Graph) -> dict[str, np.ndarray]:
        if not self._samples:
            name = type(self).__name__
            raise ValueError(
                f"`{name}` scores by data, and has seen none. Call `importance."
                "update_state(model, x, y)` on some batches first, or give `data` to "
                "`tfprune.callbacks.PruneToBudget`."
            )
        members = [m for m in members_of(graph) if self._score(m) is not None]
        return scores_by_group(graph, members, self._score, self.reduction)

    @abc.abstractmethod
    def of_batch(self, calls: list) -> np.ndarray:
        """Returns what one batch adds to the scores of a layer's channels.

        Args:
            calls: for each call of the layer `(products, places)`: for every sample
                and channel the sum over the map of output times gradient of the
                sample's loss, shape `(batch, channels)`; and the size of the map.
        """

    def of_data(self, total: np.ndarray, samples: int) -> np.ndarray:
        """Returns a layer's scores from the sum over all batches."""
        del samples
        return total

    def _score(self, member) -> np.ndarray | None:
        total = self._totals.get(member.path)
        if total is None or total.shape != member.labels.shape:
            return None
        return self.of_data(total, self._samples)

    def _function(self, model):
        if getattr(model, "loss", None) is None:
            raise ValueError(
                f"`{type(self).__name__}` scores by the loss of a model, and "
                f"{model.name!r} has none. Call `model.compile(optimizer, loss)`."
            )
        # Masks and weights are variables, but what `compile` makes is another function.
        key = model, compiled_loss(model)
        if self._running is None or self._running[0] != key:
            members = members_of(Graph(model))
            self._running = key, members, output_products(model, members)
        return self._running[1:]
