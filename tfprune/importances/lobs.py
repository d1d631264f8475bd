"""LOBS: what removing a weight does to its layer's output, at best."""

import contextlib
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfprune.checks import check_number
from tfprune.graph import WeightGraph
from tfprune.importances.of_weights import OfWeights
from tfprune.layers.swapping import replaced


class LOBS(OfWeights):
    """Scores a weight by the error it leaves when its layer makes the best of the rest.

    With H the mean over data of the outer product of a layer's inputs, the score is
    `w^2 / (2 * inverse(H)[q, q])`: half the mean squared change of the output when the
    weight goes and the others of its output unit are corrected. The corrections are
    those of `compensated`. Errors of different layers are not comparable, so give the
    layers fractions: `scope="uniform"` or by path. Dense layers and two-dimensional
    convolutions without groups; others score infinity, so that they stay whole.

    For graphs of single weights. The inverse of a layer with n inputs (channels times
    places of the kernel) has n squared entries: 170 MB for 3x3x512.

    Args:
        damping: float, not negative: what is added to the diagonal of H, as part of its
            mean. Defaults to 1e-4.

    Returns:
        When called on a graph: `{group name: float32 array of shape (size,)}`.

    Raises:
        ValueError: when called, if it has seen no data; in `update_state`, if the model
            has no loss.

    Source: Dong et al., "Learning to prune deep neural networks via layer-wise optimal
    brain surgeon", 2017, equations 7 to 9.

    Example:

    ```python
    lobs = tfprune.importances.LOBS()
    for x, y in data:
        lobs.update_state(model, x, y)
    graph = tfprune.Graph(model, unit="weight")
    masks = tfprune.select(graph, lobs, tfprune.Budget(sparsity=0.9), scope="uniform")
    sparse = tfprune.apply_masks(graph, masks, kernels=lobs.compensated(graph, masks))
    ```
    """

    def __init__(self, damping: float = 1e-4):
        check_number("damping", damping, "[0, inf)")
        self.damping = damping
        super().__init__()

    def reset_state(self) -> None:
        super().reset_state()
        self._places: dict[str, int] = {}
        self._inverses: dict[str, np.ndarray] = {}

    def update_state(self, model, x, y=None, sample_weight=None) -> None:
        """Adds one batch; targets and sample weights have no part."""
        self._inverses = {}
        super().update_state(model, x, y, sample_weight)

    def compensated(self, graph: WeightGraph, masks: Mapping) -> dict:
        """Returns kernels in which what stays makes up for what goes.

        For every output unit the weights that stay are those with the least squared
        error of the layer's output on the data seen, for inputs as they were.

        Args:
            graph: graph of the model.
            masks: group name to bool array, True = keep.

        Returns:
            `{group name: array of the kernel's shape}` for the layers that were seen,
            zero where masked.
        """
        graph.check(masks)
        kernels = {}
        for name, mask in masks.items():
            if name in self._totals:
                kernel = graph.kernels[name].variable.numpy()
                matrix = _matrix(kernel).astype(np.float64)
                keep = _matrix(graph.expanded(name, mask))
                fixed = _corrected(matrix, keep, self._inverse(name))
                kernels[name] = fixed.reshape(kernel.shape).astype(kernel.dtype)
        return kernels

    def function(self, model, kernels: dict):
        seen = {name: kernel for name, kernel in kernels.items() if _is_seen(kernel)}
        outer = _outer_products(model, seen)

        def of_batch(x, y, sample_weight):
            del y, sample_weight
            x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
            sums, places = outer(x)
            for name, count in places.items():
                self._places[name] = self._places.get(name, 0) + int(count)
            return sums, len(keras.tree.flatten(x)[0])

        return of_batch

    def _score(self, name: str, kernel) -> np.ndarray:
        if name not in self._totals:
            return np.full(kernel.variable.shape, np.inf).reshape(-1)
        squares = _matrix(kernel.variable.numpy()).astype(np.float64) ** 2
        return (squares / (2 * np.diag(self._inverse(name))[:, None])).reshape(-1)

    def _inverse(self, name: str) -> np.ndarray:
        if name not in self._inverses:
            hessian = self._totals[name] / self._places[name]
            self._inverses[name] = self._inverse_of(hessian, name)
        return self._inverses[name]

    def _inverse_of(self, hessian, name: str) -> np.ndarray:
        if not np.isfinite(hessian).all():
            raise ValueError(
                f"The inputs of {name!r} are not finite on the data seen. Look for NaN "
                "in the data, or in the weights of a training that diverged."
            )
        # Where all inputs are zero, no weight matters.
        mean = np.trace(hessian) / len(hessian) or 1.0
        damped = hessian / mean + self.damping * np.eye(len(hessian))
        try:
            factor = np.linalg.cholesky(damped)
            # Products were summed in float32: below its precision is nothing but noise.
            least = np.finfo(np.float32).eps * np.diag(damped)
            if (np.diag(factor) ** 2 <= least).any():
                raise np.linalg.LinAlgError("singular")
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"The inputs of {name!r} are linearly dependent on the data seen. "
                f"Received: damping={self.damping}. Raise it, or show more data."
            ) from error
        half = np.linalg.inv(factor)
        return half.T @ half / mean


def _is_seen(kernel) -> bool:
    layer = kernel.owner
    if isinstance(layer, keras.layers.Conv2D):
        return layer.groups == 1 and layer.data_format == "channels_last"
    return isinstance(layer, keras.layers.Dense)


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as (inputs, outputs)."""
    return kernel.reshape(-1, kernel.shape[-1])


def _corrected(weights, keep, inverse) -> np.ndarray:
    """Returns weights with what is not kept at zero, and the rest at its best."""
    corrected = weights.copy()
    for unit in range(weights.shape[1]):
        gone = np.flatnonzero(~keep[:, unit])
        if len(gone):
            columns = inverse[:, gone]
            push = np.linalg.solve(columns[gone], weights[gone, unit])
            corrected[:, unit] -= columns @ push
            corrected[gone, unit] = 0
    return corrected


def _outer_products(model, kernels: dict):
    """Returns a function of inputs: sums of the outer products of layers' inputs."""

    @tf.function(reduce_retracing=True, autograph=False)
    def outer(x):
        with _inputs_recorded(kernels) as inputs:
            model(x, training=False)
        sums, places = {}, {}
        for name, kernel in kernels.items():
            rows = [_rows(kernel.owner, each) for each in inputs[name]]
            if rows:
                rows = tf.concat(rows, 0)
                sums[name] = tf.matmul(rows, rows, transpose_a=True)
                places[name] = tf.shape(rows)[0]
        return sums, places

    return outer


def _rows(layer, x):
    """Returns the inputs of a layer's output units, a row for each place."""
    x = tf.cast(x, tf.float32)
    if isinstance(layer, keras.layers.Conv2D):
        x = tf.image.extract_patches(
            x,
            [1, *layer.kernel_size, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        )
    return tf.reshape(x, [-1, x.shape[-1]])


@contextlib.contextmanager
def _inputs_recorded(kernels: dict):
    """Records what layers are called on while the context lasts, as `{name: [x]}`."""
    inputs = {name: [] for name in kernels}
    with contextlib.ExitStack() as stack:
        for name, kernel in kernels.items():
            stack.enter_context(_recorded(kernel.owner, inputs[name]))
        yield inputs


def _recorded(layer, inputs: list):
    function = layer.call

    def call(*args, **kwargs):
        inputs.append(args[0] if args else kwargs["inputs"])
        return function(*args, **kwargs)

    return replaced(layer, "call", call)
