"""What importances of single weights that look at data have in common."""

import abc

import keras
import numpy as np

from tfprune.graph import Graph, WeightGraph
from tfprune.losses import compiled_loss


class OfWeights(abc.ABC):
    """Base of importances of single weights that are made of sums over data."""

    def __init__(self):
        self._running = None
        self.reset_state()

    def reset_state(self) -> None:
        """Forgets all data."""
        self._totals: dict[str, np.ndarray] = {}
        self._count = 0

    def update_state(self, model: keras.Model, x, y=None, sample_weight=None) -> None:
        """Adds one batch.

        Args:
            model: compiled model; it is run for inference, so nothing of it changes.
            x: inputs, as the model takes them.
            y: targets of the batch.
            sample_weight: weights of the samples, for models of several outputs in
                the structure of `y`, if not the same for all. Defaults to None.
        """
        key = model, compiled_loss(model)
        if self._running is None or self._running[0] != key:
            kernels = Graph(model, unit="weight").kernels
            self._running = key, self.function(model, kernels)
        batch, count = self._running[1](x, y, sample_weight)
        for name, value in batch.items():
            total = self._totals.get(name, 0.0)
            self._totals[name] = total + np.asarray(value, np.float64)
        self._count += int(count)

    def __call__(self, graph: WeightGraph) -> dict[str, np.ndarray]:
        name = type(self).__name__
        if graph.unit != "weight" or graph.block:
            raise ValueError(
                f"{name} scores single weights. Received: a graph with unit="
                f'{graph.unit!r}. Pass `Graph(model, unit="weight")`, without blocks.'
            )
        if not self._count:
            raise ValueError(
                f"`{name}` scores by data, and has seen none. Call `importance."
                "update_state(model, x, y)` on some batches first."
            )
        return {
            name: self._score(name, kernel).astype(np.float32)
            for name, kernel in graph.kernels.items()
        }

    @abc.abstractmethod
    def function(self, model, kernels: dict):
        """Returns a function of a batch: `(x, y, sample_weight) -> (sums, count)`.

        Args:
            model: the model.
            kernels: its kernels by name.
        """

    @abc.abstractmethod
    def _score(self, name: str, kernel) -> np.ndarray:
        """Returns the scores of one kernel's weights, flat."""
