"""RuntimeGate: channels that stay or go image by image."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfprune.checks import check_integer, check_number
from tfprune.layers.channel_gate import serialize_shared
from tfprune.layers.runtime_masks import (
    block_means,
    deployed_ratios,
    kept,
    spread,
    top_mask,
    traded_off,
)

_SELECTIONS = ("top", "prefix")


@keras.saving.register_keras_serializable("tfprune")
class RuntimeGate(keras.layers.Layer):
    """Closes channels of a convolution that the image at hand does not need.

    It is called on what the convolution makes, normalized but not shifted, and on what
    the convolution reads. Of that it predicts how much each channel matters, keeps the
    channels that matter most, and multiplies them with what was predicted:
    `y = m * (u * inputs + beta)` with `u = mean(source) @ phi + rho`. As it decides
    before the convolution runs, a deployed model need not compute what is closed; see
    `tfprune.runtime.deploy`. Here everything is computed and masked.

    `prune_wrap(model, RuntimeGate, ...)` makes the policy and takes, beside the first
    five arguments, its `agent` (`"gaussian"`, the default, `"groups"`, or None for one
    ratio everywhere), `per_network` (False) and, for agents of groups, `groups` (4), see
    there.

    Args:
        keep_ratio: float in (0, 1]. The fraction of channels that stay, without a
            policy. Defaults to 1.
        runtime_ratio: float in [0, 1]. How much of the pruning depends on the image.
            Defaults to 1.
        block: int. Channels that stay or go together. Defaults to 1.
        selection: `"top"` for the channels with the highest predictions, or
            `"prefix"` for the first ones, in an order that is the same for all images.
            Then nothing is multiplied. Defaults to `"top"`.
        rectify: bool. Whether predictions below zero are zero. Defaults to False.
        policy: `RuntimePolicy` that says how many stay, shared by the gates of a model;
            the gate is then called on `(inputs, source, hidden)` and returns `(outputs,
            hidden)`. Defaults to None.
        number: int. Which of the policy's gates it is.
        total: int. Blocks that ratios are of. By default all that there are.

    Source: Gao et al., "Dynamic channel pruning: feature boosting and suppression",
    2019, equations 5 to 8; Chen et al., "Storage efficient and dynamic flexible runtime
    channel pruning via deep reinforcement learning", 2020, author response.

    Example:

    ```python
    model = tfprune.prune_wrap(base, tfprune.layers.RuntimeGate, keep_ratio=0.5)
    ```
    """

    def __init__(
        self,
        keep_ratio=1.0,
        runtime_ratio=1.0,
        block=1,
        selection="top",
        rectify=False,
        policy=None,
        number=0,
        total=None,
        **kwargs,
    ):
        # Predictions and agents are float32 whatever goes through the gate.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        check_number("keep_ratio", keep_ratio, "(0, 1]")
        check_number("runtime_ratio", runtime_ratio, "[0, 1]")
        check_integer("block", block, 1)
        if selection not in _SELECTIONS:
            raise ValueError(
                f"`selection` must be one of {_SELECTIONS}. Received: {selection!r}"
            )
        self._initial_keep, self.runtime_ratio = keep_ratio, float(runtime_ratio)
        self.block, self.selection, self.rectify = block, selection, rectify
        self.policy, self.number, self.total = policy, number, total
        # Sees, and may change, the mask of each call.
        self.on_mask = None

    def build(self, inputs_shape, source_shape, hidden_shape=None):
        self.channels, self.source_channels = inputs_shape[-1], source_shape[-1]
        self.units = -(-self.channels // self.block)
        self.total = self.total or self.units
        self.stored = self._add("stored", "ones", dtype="bool")
        if self.selection == "top":
            self.phi = self._add(
                "phi", "zeros", (source_shape[-1], self.channels), True
            )
            self.rho = self._add("rho", "ones", trainable=True)
            self.beta = self._add("beta", "zeros", trainable=True)
        else:
            numbers = -np.arange(self.channels, dtype="float32")
            self.order = self._add("order", lambda s, dtype=None: numbers)
        self.keep_ratio = self.static_keep = self.trait = self.features = None
        if self.policy is None:
            initial = keras.initializers.Constant(self._initial_keep)
            self.keep_ratio = self._add("keep_ratio", initial, ())
        elif self.has_static_part:
            self.trait = self._add("trait", "zeros", trainable=True)
            self.features = self._add("features", "zeros", (self.channels, 3))
            self.static_keep = self._add("static_keep", "ones", ())
        self.built = True

    def _add(self, name, initializer, shape=None, trainable=False, dtype="float32"):
        return self.add_weight(
            name=name,
            shape=(self.channels,) if shape is None else shape,
            dtype=dtype,
            initializer=initializer,
            trainable=trainable,
            autocast=False,
        )

    @property
    def has_static_part(self) -> bool:
        return self.policy is not None and self.policy.static_agent is not None

    @property
    def predicts(self) -> bool:
        """Whether channels are scored image by image."""
        return self.selection == "top"

    @property
    def looks_back(self) -> bool:
        """Whether it is called on what its convolution makes, and decides by that."""
        is_first = (
            self.policy is not None and self.policy.per_network and not self.number
        )
        return is_first and self.selection == "prefix"

    @property
    def expected_count(self) -> int:
        """How many blocks stay, as far as is known without an image."""
        ratio = self.keep_ratio if self.policy is None else self.policy.expected_keep
        return int(self.count(np.float32([ratio]))[0])

    def ranks(self) -> np.ndarray:
        """Returns the place of each channel in the order of a prefix."""
        return np.argsort(np.argsort(-self.order.numpy(), kind="stable"))

    # What is predicted and decided ------------------------------------------------

    def predictions(self, pooled):
        """Returns how much each channel matters for each image.

        Args:
            pooled: float32 tensor of shape `(images, channels of the source)`.
        """
        if self.selection == "prefix":
            return tf.repeat(
                ops.convert_to_tensor(self.order)[None], images_in(pooled), 0
            )
        predicted = ops.matmul(pooled, self.phi) + self.rho
        return ops.relu(predicted) if self.rectify else predicted

    def static_scores(self):
        """Returns how much each channel matters for all images, shape `(channels,)`."""
        traits = ops.concatenate([self.trait[:, None], self.features], axis=-1)
        return self.policy.importance(traits)[:, 0]

    def state(self, pooled, predicted):
        """Returns what the policy is told of the images at this gate."""
        stored = ops.cast(self.stored, "float32")
        if self.selection == "prefix":
            return pooled * stored if self.looks_back else pooled
        return ops.concatenate([pooled, predicted * stored], axis=-1)

    def ratios(self, pooled, predicted, hidden, training=False):
        """Returns `(ratios of images, ratios of the layer, hidden)`."""
        if self.policy is None:
            ratio = tf.repeat(
                ops.convert_to_tensor(self.keep_ratio)[None], images_in(pooled)
            )
            return ratio, ops.ones_like(ratio), None
        state = self.state(pooled, predicted)
        return self.policy.decide(self.number, state, hidden, training)

    def count(self, ratios):
        """Returns how many blocks stay of those that are stored.

        Args:
            ratios: float tensor `(images,)`: ratios of images.
        """
        static = 1.0 if self.static_keep is None else self.static_keep
        _, ratio = deployed_ratios(ratios, static, self.runtime_ratio)
        return ops.minimum(kept(ratio, self.total), self.limit)

    def stored_blocks(self):
        """Returns which blocks are stored, a bool tensor."""
        return block_means(ops.cast(self.stored, "float32"), self.block) > 0.5

    @property
    def limit(self):
        """The most blocks that may stay."""
        if self.selection == "prefix":
            stored = ops.sum(ops.cast(self.stored, "int32"))
            return (stored + self.block - 1) // self.block
        return ops.sum(ops.cast(self.stored_blocks(), "int32"))

    def mask(self, predicted, static, ratios, static_ratios):
        """Returns which channels stay open, a bool tensor `(images, channels)`."""
        count = self.count(ratios)
        if self.selection == "prefix":
            return self._first(count)
        predicted = block_means(predicted, self.block)
        lowest = ops.where(self.stored_blocks(), predicted, -float("inf"))
        if static is None:
            blocks = top_mask(lowest, count)
        else:
            static = block_means(static, self.block)
            parts = (predicted, static, ratios, static_ratios, self.runtime_ratio)
            blocks = tf.cond(
                ops.convert_to_tensor(self.policy.settled),
                lambda: top_mask(lowest, count),
                lambda: ops.logical_and(*traded_off(*parts)),
            )
        return spread(blocks, self.channels, self.block)

    def _first(self, count):
        stored = ops.convert_to_tensor(self.stored)
        order = ops.where(stored, self.order, -float("inf"))
        places = ops.argsort(ops.argsort(-order))
        return ops.logical_and(places < (count * self.block)[:, None], stored)

    # The gate -----------------------------------------------------------------------

    def call(self, inputs, source, hidden=None, training=False):
        pooled = pool(source)
        if hidden is None and self.policy is not None:
            hidden = self.policy.begin(images_in(pooled))
        predicted = self.predictions(pooled)
        static = self.static_scores() if self.has_static_part else None
        ratios, static_ratios, hidden = self.ratios(pooled, predicted, hidden, training)
        mask = self.mask(predicted, static, ratios, static_ratios)
        if self.on_mask is not None:
            mask = self.on_mask(self, mask)
        outputs = self._gated(inputs, mask, predicted, static)
        return outputs if self.policy is None else (outputs, hidden)

    def _gated(self, inputs, mask, predicted, static):
        mask = ops.cast(mask, "float32")
        if self.selection == "prefix":
            return inputs * _over_map(mask, inputs)
        factors = mask * signed_product(predicted, static)
        shift = mask * self.beta
        return inputs * _over_map(factors, inputs) + _over_map(shift, inputs)

    def get_config(self):
        policy = None if self.policy is None else serialize_shared(self.policy)
        return {
            **super().get_config(),
            "keep_ratio": self._initial_keep,
            "runtime_ratio": self.runtime_ratio,
            "block": self.block,
            "selection": self.selection,
            "rectify": self.rectify,
            "policy": policy,
            "number": self.number,
            "total": self.total,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        policy = config["policy"] and keras.saving.deserialize_keras_object(
            config["policy"], custom_objects=custom_objects
        )
        return cls(**{**config, "policy": policy})


def signed_product(predicted, static):
    """Returns the product of two scores, negative where both are.

    Args:
        predicted: tensor of shape `(..., channels)`.
        static: tensor of shape `(channels,)`; None for 1.
    """
    if static is None:
        return predicted
    negative = ops.logical_and(predicted < 0, static < 0)
    return ops.where(negative, -1.0, 1.0) * predicted * static


def pool(source):
    """Returns the mean of every channel over the map, float32."""
    source = ops.cast(source, "float32")
    return ops.mean(source, axis=tuple(range(1, len(source.shape) - 1)))


def images_in(tensor):
    """Returns how many images there are."""
    return ops.shape(tensor)[0]


def _over_map(values, inputs):
    """Returns values of channels in a shape and type to be multiplied with a map."""
    places = (1,) * (len(inputs.shape) - 2)
    shape = (-1, *places, values.shape[-1])
    return ops.cast(ops.reshape(values, shape), inputs.dtype)
