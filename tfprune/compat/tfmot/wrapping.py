"""prune_low_magnitude: layers and models with masks, tfmot's way."""

import abc
import contextlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfprune import surgery
from tfprune.checks import is_integer
from tfprune.compat.tfmot import schedules
from tfprune.largest import largest
from tfprune.layers import WeightMask
from tfprune.layers.kernels import is_depthwise, kernels_of
from tfprune.layers.swapping import attribute_of, in_training
from tfprune.surgery.rebuild import Rebuilder, copy_operation_like, copy_state
from tfprune.surgery.weights import built_copy
from tfprune.weight_cuts import keep_of_m


class PrunableLayer(abc.ABC):
    """Base of layers that say themselves which of their weights are pruned."""

    @abc.abstractmethod
    def get_prunable_weights(self):
        """Returns the list of variables to prune."""


@keras.saving.register_keras_serializable("tfprune.tfmot")
class PruneLowMagnitude(WeightMask):
    """A layer whose smallest weights are masked while it trains.

    Args:
        layer: a layer of any type. What is pruned are its kernels, but for depthwise
            ones, as in tfmot; or what its `get_prunable_weights()` returns.
        pruning_schedule: a `PruningSchedule`.
        block_size: `(height, width)` of blocks on the last two axes of a kernel.
        block_pooling_type: `"AVG"` or `"MAX"`.
        sparsity_m_by_n: None, or `(m, n)`: m zeros in every n weights along the input.
    """

    def __init__(
        self,
        layer,
        pruning_schedule=None,
        block_size=(1, 1),
        block_pooling_type="AVG",
        sparsity_m_by_n=None,
        **kwargs,
    ):
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                "`layer` must be a `keras.layers.Layer` of Keras 3. "
                f"Received: {layer!r} (of type {type(layer)})"
            )
        if block_pooling_type not in ("AVG", "MAX"):
            raise ValueError(
                '`block_pooling_type` must be "AVG" or "MAX". '
                f"Received: block_pooling_type={block_pooling_type!r}"
            )
        _check_block(block_size, sparsity_m_by_n)
        self.pruning_schedule = schedules.deserialize(
            pruning_schedule or schedules.ConstantSparsity(0.5, 0)
        )
        if not callable(self.pruning_schedule):
            raise ValueError(
                "`pruning_schedule` must be a `PruningSchedule`, such as "
                "`ConstantSparsity(0.5, 0)`. "
                f"Received: pruning_schedule={pruning_schedule!r}"
            )
        self.block_size = tuple(block_size)
        self.block_pooling_type = block_pooling_type
        self.sparsity_m_by_n = sparsity_m_by_n and tuple(sparsity_m_by_n)
        kwargs.setdefault("name", f"prune_low_magnitude_{layer.name}")
        super().__init__(layer, **kwargs)

    def find_kernels(self):
        if hasattr(self.layer, "get_prunable_weights"):
            weights = self.layer.get_prunable_weights()
            return {attribute_of(self.layer, each): each for each in weights}
        return {
            place: kernel
            for place, kernel in kernels_of(self.layer).items()
            if not is_depthwise(self.layer, kernel)
        }

    def build_gate(self):
        super().build_gate()
        self.pruning_step = self.add_weight(
            name="pruning_step",
            shape=(),
            dtype="int64",
            initializer=_before_the_first,
            trainable=False,
        )

    def swaps(self):
        if in_training():
            tf.debugging.assert_greater_equal(
                ops.convert_to_tensor(self.pruning_step),
                tf.zeros((), "int64"),
                "A model of `prune_low_magnitude` is trained with the callback "
                "`UpdatePruningStep()` in `fit`: without it nothing is pruned.",
            )
        return super().swaps()

    def update_masks(self, sparsity):
        """Chooses the masks anew by magnitude.

        Args:
            sparsity: float, the fraction of each kernel to mask.
        """
        for index, kernel in enumerate(self.gated_kernels.values()):
            weights = np.abs(ops.convert_to_numpy(kernel))
            self.set_mask(index, self._mask(weights, sparsity))

    def _mask(self, weights, sparsity):
        if self.sparsity_m_by_n is not None:
            zeros, out_of = self.sparsity_m_by_n
            axis = 0 if weights.ndim == 2 else weights.ndim - 2
            return keep_of_m(weights, axis, (out_of - zeros, out_of))
        if self.block_size == (1, 1) or weights.ndim < 2:
            return _largest(weights, sparsity)
        height, width = self.block_size
        blocks = _blocks(weights, self.block_size)
        if self.block_pooling_type == "MAX":
            pooled = blocks.max((-1, -3))
        else:
            sizes = _blocks(np.ones_like(weights), self.block_size).sum((-1, -3))
            pooled = blocks.sum((-1, -3)) / sizes
        mask = _largest(pooled, sparsity).repeat(height, -2).repeat(width, -1)
        return mask[..., : weights.shape[-2], : weights.shape[-1]]

    def get_config(self):
        return {
            **super().get_config(),
            "pruning_schedule": schedules.serialize(self.pruning_schedule),
            "block_size": self.block_size,
            "block_pooling_type": self.block_pooling_type,
            "sparsity_m_by_n": self.sparsity_m_by_n,
        }


def _check_block(block_size, m_by_n) -> None:
    def are_two_ints(pair):
        return (
            isinstance(pair, (tuple, list)) and [*map(is_integer, pair)] == [True] * 2
        )

    if not are_two_ints(block_size) or min(block_size) < 1:
        raise ValueError(
            "`block_size` must be `(height, width)`, two ints of at least 1. "
            f"Received: block_size={block_size!r}"
        )
    if m_by_n and not (are_two_ints(m_by_n) and 0 < m_by_n[0] < m_by_n[1]):
        raise ValueError(
            "`sparsity_m_by_n` must be two ints `(m, n)` with 0 < m < n: m zeros in "
            f"every n weights, such as (2, 4). Received: sparsity_m_by_n={m_by_n!r}"
        )


def _before_the_first(shape, dtype=None):
    return ops.full(shape, -1, dtype=dtype)


def _largest(values: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns the mask of the largest; as many as tfmot keeps, in float32."""
    kept = np.round(np.float32(values.size) * (np.float32(1) - np.float32(sparsity)))
    return largest([values.ravel()], max(1, int(kept)))[0].reshape(values.shape)


def _blocks(values: np.ndarray, size: tuple) -> np.ndarray:
    """Returns values as `(..., rows, height, columns, width)`, zeros at the ends."""
    *others, rows, columns = values.shape
    missing = -rows % size[0], -columns % size[1]
    pads = [(0, 0)] * len(others) + [(0, each) for each in missing]
    values = np.pad(values, pads)
    rows, columns = values.shape[-2:]
    return values.reshape(
        *others, rows // size[0], size[0], columns // size[1], size[1]
    )


def prune_low_magnitude(
    to_prune,
    pruning_schedule=None,
    block_size=(1, 1),
    block_pooling_type="AVG",
    pruning_policy=None,
    sparsity_m_by_n=None,
    **kwargs,
):
    """Wraps a layer, a list of layers or a model to be pruned by magnitude in training.

    Args:
        to_prune: layer, list of layers, or Functional or Sequential model.
        pruning_schedule: a `PruningSchedule`. Defaults to `ConstantSparsity(0.5, 0)`.
        block_size: `(height, width)` of blocks that are pruned together.
        block_pooling_type: `"AVG"` or `"MAX"`.
        pruning_policy: a `PruningPolicy`; None prunes every layer that can be.
        sparsity_m_by_n: None, or `(m, n)`: m zeros in every n weights.
        **kwargs: passed to the wrapper of a single layer.

    Returns:
        The same kind of thing, of new objects; a model is not compiled.

    Raises:
        ValueError: for anything else, or a model that the policy does not support.

    Example:

    ```python
    from tfprune.compat import tfmot

    model = tfmot.sparsity.keras.prune_low_magnitude(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    model = tfmot.sparsity.keras.strip_pruning(model)
    ```
    """
    settings = {
        "pruning_schedule": pruning_schedule or schedules.ConstantSparsity(0.5, 0),
        "block_size": block_size,
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": sparsity_m_by_n,
    }
    if isinstance(to_prune, (list, tuple)):
        return [_wrapped(each, settings) for each in to_prune]
    if isinstance(to_prune, keras.Model):
        if pruning_policy is not None:
            pruning_policy.ensure_model_supports_pruning(to_prune)
        return _wrapped_model(to_prune, pruning_policy, settings)
    if isinstance(to_prune, keras.layers.Layer):
        return _wrapped(to_prune, {**settings, **kwargs})
    raise ValueError(
        "`to_prune` must be a layer, a list of layers or a model of Keras 3. Received: "
        f"{to_prune!r} (of type {type(to_prune)}). A model of tf_keras comes over with "
        "`from_tfmot`."
    )


def _wrapped(layer, settings: dict):
    if isinstance(layer, (PruneLowMagnitude, keras.layers.InputLayer)):
        return layer
    return PruneLowMagnitude(layer, **settings)


def _wrapped_model(model, policy, settings: dict):
    if isinstance(model, keras.Sequential) and not model.built:
        layers = [copy_operation_like(layer, draw=True) for layer in model.layers]
        wrapped = [
            _wrapped(each, settings) if _is_chosen(each, policy) else each
            for each in layers
        ]
        return keras.Sequential(wrapped, name=model.name)

    def make(operation, path):
        if _is_chosen(operation, policy) and _has_prunable(operation):
            return PruneLowMagnitude(built_copy(operation), **settings)
        return copy_operation_like(operation)

    rebuilder = Rebuilder(make)
    new = rebuilder.model(model)
    for old, twin in rebuilder.pairs:
        if type(twin) is type(old):
            copy_state(old, twin)
    return new


def _is_chosen(layer, policy) -> bool:
    is_layer = isinstance(layer, keras.layers.Layer)
    if not is_layer or isinstance(layer, PruneLowMagnitude):
        return False
    return policy is None or policy.allow_pruning(layer)


def _has_prunable(layer) -> bool:
    if hasattr(layer, "get_prunable_weights"):
        return bool(layer.get_prunable_weights())
    return any(not is_depthwise(layer, each) for each in kernels_of(layer).values())


def strip_pruning(model):
    """Returns a plain model with the masks multiplied into its weights.

    Args:
        model: a model with pruned layers; not changed.

    Raises:
        ValueError: if it is no Keras 3 model.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`model` must be a `keras.Model` of Keras 3. Received: {model!r}"
        )
    return surgery.strip(model)


@contextlib.contextmanager
def prune_scope():
    """Scope in which files of pruned models can be loaded; outside they can, too."""
    with keras.saving.custom_object_scope({"PruneLowMagnitude": PruneLowMagnitude}):
        yield


def pruned_layers(model) -> list[PruneLowMagnitude]:
    """Returns the wrapped layers of a model, nested ones too."""
    layers = model._flatten_layers()
    return [layer for layer in layers if isinstance(layer, PruneLowMagnitude)]
