"""Layers of deployed models, which compute only what the image at hand needs."""

import keras
import numpy as np
import tensorflow as tf

from tfprune.layers.narrow import Narrow
from tfprune.layers.runtime_gate import pool, signed_product
from tfprune.layers.runtime_masks import spread, top_mask

OF_CONVOLUTIONS = (
    "filters",
    "kernel_size",
    "strides",
    "padding",
    "dilation_rate",
    "activation",
)


class OfOneImage(keras.layers.Layer):
    """Base of layers whose output is as wide as the image at hand needs.

    Args:
        reads: `Narrow`: what it reads; None for whole maps.
    """

    def __init__(self, reads=None, **kwargs):
        # What agents hand on is float32 whatever the convolutions compute in.
        super().__init__(**{**kwargs, "autocast": False})
        # Widths are known when an image is, and XLA compiles each of them anew.
        self.supports_jit = False
        self.reads = reads

    def whole(self, values, numbers):
        return values if self.reads is None else self.reads.whole(values, numbers)

    def get_config(self):
        reads = self.reads and self.reads.as_config()
        return {**super().get_config(), "reads": reads}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "reads": Narrow.of_config(config["reads"])})


@keras.saving.register_keras_serializable("tfprune")
class Widen(OfOneImage):
    """Makes a whole map of a narrow one, with zeros for what was not computed."""

    def call(self, inputs, numbers=None):
        return self.whole(inputs, numbers)

    def compute_output_spec(self, inputs, numbers=None):
        shape = (*inputs.shape[:-1], self.reads.channels)
        return keras.KerasTensor(shape, inputs.dtype)


@keras.saving.register_keras_serializable("tfprune")
class RuntimeConv2D(OfOneImage):
    """A convolution of one image that leaves out the channels its gate closes.

    It takes the place of a convolution, its normalization and its gate, and reads and
    makes narrow maps. Made by `tfprune.runtime.deploy`.

    Args:
        filters, kernel_size, strides, padding, dilation_rate, activation: of the
            convolution.
        channels: int. Channels of the whole map it reads.
        reads: `Narrow`: what it reads; None for whole maps.
        makes: `Narrow`: what it makes; None for whole maps, which are masked.
        choice: `RuntimeChoice`; None for a convolution that only reads narrow maps.
        block: int. Channels of a block of the gate.
        weighted: int. Weights of each channel beside its bias: none, its shift, or its
            shift and its score for all images.
        places: list of ints: the place of each channel in a prefix.
        looks_back: bool. Whether the choice looks at what the convolution makes, all
            of which is computed then.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides,
        padding,
        dilation_rate,
        activation,
        channels,
        reads=None,
        makes=None,
        choice=None,
        block=1,
        weighted=0,
        places=(),
        looks_back=False,
        **kwargs,
    ):
        super().__init__(reads, **kwargs)
        self.filters, self.channels = filters, channels
        self.kernel_size, self.strides = tuple(kernel_size), tuple(strides)
        self.padding, self.dilation_rate = padding, tuple(dilation_rate)
        self.activation = keras.activations.get(activation)
        self.makes, self.choice, self.block = makes, choice, block
        self.weighted, self.places = weighted, list(places)
        self.looks_back = looks_back
        self._rows = (reads or Narrow(channels)).axes
        self._columns = (makes or Narrow(filters)).axes
        shape = (*self.kernel_size, *self._rows, *self._columns)
        self.kernel = self._add("kernel", shape)
        # Bias, shift and score: gathered together.
        self.vectors = self._add("vectors", (1 + weighted, *self._columns))
        self.built = True

    def _add(self, name, shape):
        settings = {"initializer": "zeros", "trainable": False}
        return self.add_weight(name=name, shape=shape, **settings)

    def assign(self, kernel, vectors) -> None:
        """Takes weights of a plain convolution over, and vectors of its channels.

        Args:
            kernel: array of shape `(*kernel_size, channels, filters)`.
            vectors: array of shape `(1 + weighted, filters)`.
        """
        reads = self.reads or Narrow(self.channels)
        makes = self.makes or Narrow(self.filters)
        self.kernel.assign(makes.sorted(reads.sorted(kernel, 2), -1))
        self.vectors.assign(makes.sorted(vectors, -1))

    def call(self, inputs, numbers=None, hidden=None):
        inputs = tf.cast(inputs, self.compute_dtype)
        kernel = tf.cast(self.kernel.value, self.compute_dtype)
        vectors = tf.convert_to_tensor(self.vectors)
        if self.reads is not None and self.reads.block:
            kernel = tf.gather(kernel, numbers, axis=2)
        elif self.reads is not None:
            kernel = kernel[:, :, :, : tf.shape(inputs)[-1]]
        if self.choice is None:
            return self._finished(inputs, kernel, vectors)
        if self.looks_back:
            return self._looked_back(self._finished(inputs, kernel, vectors))
        chosen = self.choice(self.whole(pool(inputs), numbers), hidden)
        found, hidden = self._chosen(inputs, kernel, vectors, *chosen[:3]), chosen[3]
        found += [] if hidden is None else [hidden]
        return found[0] if len(found) == 1 else tuple(found)

    def _looked_back(self, outputs) -> tuple:
        """Returns what is kept of all that was computed, and what is handed on."""
        pooled = pool(outputs)
        if self.makes is not None:
            pooled = tf.gather(pooled, self.places, axis=-1)
        _, _, count, hidden = self.choice(pooled)
        if self.makes is None:
            return outputs * self._mask(None, count), hidden
        return self._first(outputs, count), hidden

    def _chosen(self, inputs, kernel, vectors, predicted, scores, count) -> list:
        """Returns the map of what was chosen, and the numbers of blocks in it."""
        if self.makes is not None and not self.makes.block:
            kernel, vectors = (self._first(x, count) for x in (kernel, vectors))
            return [self._finished(inputs, kernel, vectors)]
        if predicted is not None:
            by_block = tf.reshape(self._padded(predicted), (1, *self._columns))
            vectors = tf.concat([vectors, by_block], 0)
        if self.makes is None:
            mask = self._mask(scores, count)
            return [self._finished(inputs, kernel, vectors) * mask]
        _, numbers = tf.math.top_k(scores, count, sorted=False)
        kernel = tf.gather(kernel, numbers, axis=4)
        vectors = tf.gather(vectors, numbers, axis=1)
        return [self._finished(inputs, kernel, vectors), numbers]

    def _first(self, values, count):
        return values[..., : tf.minimum(count * self.block, self.filters)]

    def _padded(self, values):
        missing = np.prod(self._columns) - self.filters
        return tf.pad(values, [[0, missing]]) if missing else values

    def _finished(self, inputs, kernel, vectors):
        """Returns the convolution with a part of its kernel, scaled and shifted.

        Args:
            vectors: tensor of shape `(vectors, blocks, block)`: bias, shift, scores for
                all images, and what was predicted, as far as there are any.
        """
        rows = self.channels if self.reads is None else tf.shape(inputs)[-1]
        width = self.filters if self.makes is None else -1
        kernel = tf.reshape(kernel, (*self.kernel_size, rows, width))
        if not self.weighted:
            bias = tf.cast(tf.reshape(vectors, (-1,)), self.compute_dtype)
            return self.activation(self._convolved(inputs, kernel) + bias)
        bias, shift, *others = tf.unstack(tf.reshape(vectors, (vectors.shape[0], -1)))
        factors = others[-1]
        if self.weighted > 1:
            factors = signed_product(factors, others[0])
        bias, factors, shift = (
            tf.cast(each, self.compute_dtype) for each in (bias, factors, shift)
        )
        if self.activation is keras.activations.linear:
            # One pass over the map for all of it.
            return self._convolved(inputs, kernel) * factors + (bias * factors + shift)
        outputs = self.activation(self._convolved(inputs, kernel) + bias)
        return outputs * factors + shift

    def _convolved(self, inputs, kernel):
        padding, dilations = self.padding.upper(), self.dilation_rate
        return tf.nn.conv2d(inputs, kernel, self.strides, padding, "NHWC", dilations)

    def _mask(self, scores, count):
        if scores is None:
            mask = tf.constant(self.places) < count * self.block
        else:
            mask = spread(top_mask(scores, count), self.filters, self.block)
        return tf.cast(mask, self.compute_dtype)

    def compute_output_spec(self, inputs, numbers=None, hidden=None):
        made = self._plain.compute_output_shape((*inputs.shape[:-1], self.channels))
        narrow = self.makes is not None
        shape = (*made[:-1], None if narrow else self.filters)
        found = [keras.KerasTensor(shape, self.compute_dtype)]
        if narrow and self.makes.block:
            found.append(keras.KerasTensor((None,), "int32"))
        if self.choice is not None and self.choice.hidden_size:
            found.append(keras.KerasTensor((self.choice.hidden_size,), "float32"))
        return found[0] if len(found) == 1 else tuple(found)

    @property
    def is_dynamic(self) -> bool:
        """Whether the width of what it makes is known only when an image is."""
        return self.makes is not None and self.choice.kind != "fixed"

    @property
    def _plain(self):
        """The convolution that makes whole maps."""
        settings = (self.kernel_size, self.strides, self.padding)
        return keras.layers.Conv2D(
            self.filters, *settings, dilation_rate=self.dilation_rate
        )

    def get_config(self):
        config = {name: getattr(self, name) for name in OF_CONVOLUTIONS}
        config["activation"] = keras.activations.serialize(self.activation)
        for name in ("channels", "block", "weighted", "places", "looks_back"):
            config[name] = getattr(self, name)
        config["makes"] = self.makes and self.makes.as_config()
        choice = self.choice and keras.saving.serialize_keras_object(self.choice)
        return {**super().get_config(), **config, "choice": choice}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        choice = config["choice"] and keras.saving.deserialize_keras_object(
            config["choice"], custom_objects=custom_objects
        )
        makes = Narrow.of_config(config["makes"])
        return super().from_config({**config, "choice": choice, "makes": makes})
