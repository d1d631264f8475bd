"""WeightFisher: what removing a weight costs, by the gradients of single samples."""

import keras
import numpy as np
import tensorflow as tf

from tfprune.importances.of_weights import OfWeights
from tfprune.losses import as_tensors, at_best_scale, loss_of, unscaled


class WeightFisher(OfWeights):
    """Scores a weight by half its square times the mean squared gradient of a sample.

    Which is the second-order change of the loss where the model fits its data. The
    gradients are those of each sample alone: squaring the mean gradient of a batch, as
    is often done, is something else, and much smaller near a minimum. Weights are meant
    to be removed a few at a time. For graphs of single weights; for channels there is
    `Fisher`.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Raises:
        ValueError: when called, if it has seen no data; in `update_state`, if the model
            has no loss.

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher
    pruning", 2018, equation 4, as the response of Ding et al., 2019, gives it.

    Example:

    ```python
    fisher = tfprune.importances.WeightFisher()
    for x, y in data:
        fisher.update_state(model, x, y)
    graph = tfprune.Graph(model, unit="weight")
    masks = tfprune.select(graph, fisher, tfprune.Budget(sparsity=0.5))
    ```
    """

    def function(self, model, kernels: dict):
        if getattr(model, "loss", None) is None:
            raise ValueError(
                f"`WeightFisher` scores by the loss of a model, and {model.name!r} has "
                "none. Call `model.compile(optimizer, loss)`."
            )
        squares = _squared_gradients(model, kernels)

        def of_batch(x, y, sample_weight):
            batch = as_tensors(x, y, sample_weight)
            return squares(*batch), len(keras.tree.flatten(x)[0])

        return of_batch

    def _score(self, name: str, kernel) -> np.ndarray:
        weights = kernel.variable.numpy().astype(np.float64)
        return (weights**2 * self._totals[name] / (2 * self._count)).reshape(-1)


def _squared_gradients(model, kernels: dict):
    """Returns a function: the sum over a batch of each sample's squared gradients."""
    variables = [kernel.variable.value for kernel in kernels.values()]

    @tf.function(reduce_retracing=True, autograph=False)
    def squares(scale, x, y, sample_weight):
        def add_sample(number, totals):
            def row(batch):
                return batch if batch is None else batch[number : number + 1]

            one = tf.nest.map_structure(row, [x, y, sample_weight])
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss = _data_loss(model, *one)
                loss *= tf.cast(scale, loss.dtype)
            gradients = tape.gradient(
                loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            squared = [tf.square(unscaled(g, scale)) for g in gradients]
            return number + 1, [a + b for a, b in zip(totals, squared, strict=True)]

        size = tf.shape(tf.nest.flatten(x)[0])[0]
        totals = [tf.zeros(variable.shape) for variable in variables]
        _, totals = tf.while_loop(
            lambda number, totals: number < size, add_sample, (0, totals)
        )
        return dict(zip(kernels, totals, strict=True))

    return at_best_scale(model, squares)


def _data_loss(model, x, y, sample_weight):
    y_pred = model(x, training=False)
    loss = loss_of(model, x, y, y_pred, sample_weight)
    # Penalties on weights are no matter of data.
    return loss - sum(model.losses)
