"""Layers around models of one image: what they do with batches, and which one runs."""

import keras
import tensorflow as tf

from tfprune.layers.runtime_gate import pool

_ONE_IMAGE = (
    "Channels are chosen for one image, so the batch must be one image. Deploy with "
    "`batches=True` to run the images of a batch one after the other."
)


class ForImages(keras.layers.Wrapper):
    """Base of layers around a model of one image.

    Args:
        layer: the model.
    """

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("name", "images")
        super().__init__(layer, **kwargs)
        self.supports_jit = False

    def build(self, input_shape=None):
        self.built = True

    def compute_output_spec(self, inputs):
        return self.layer.compute_output_spec(inputs)


@keras.saving.register_keras_serializable("tfprune")
class OneImage(ForImages):
    """Refuses a batch of several images, also in what was exported."""

    def call(self, inputs):
        first = tf.nest.flatten(inputs)[0]
        if first.shape[0] == 1:
            return self.layer(inputs)
        if first.shape[0] is not None:
            raise ValueError(f"{_ONE_IMAGE} Received: {first.shape[0]} images.")
        is_one = tf.equal(tf.shape(first)[0], 1)
        with tf.control_dependencies([tf.debugging.Assert(is_one, [_ONE_IMAGE])]):
            return self.layer(tf.nest.map_structure(tf.identity, inputs))


@keras.saving.register_keras_serializable("tfprune")
class EachImage(ForImages):
    """Runs a model of one image on each image of a batch."""

    def call(self, inputs):
        spec = self.layer.compute_output_spec(
            tf.nest.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), inputs)
        )
        return tf.map_fn(
            self._one,
            inputs,
            fn_output_signature=tf.nest.map_structure(
                lambda x: tf.TensorSpec(x.shape[1:], x.dtype), spec
            ),
        )

    def _one(self, image):
        batch = tf.nest.map_structure(lambda x: x[None], image)
        return tf.nest.map_structure(lambda x: x[0], self.layer(batch, training=False))


@keras.saving.register_keras_serializable("tfprune")
class Buckets(keras.layers.Layer):
    """Runs the one of several models that a policy chooses for an image.

    It is called on what the policy looks at and, where the models read something else,
    on their inputs.

    Args:
        choice: `RuntimeChoice` of a number.
        models: list of models, the narrowest first.
        channels: list with the channels that each model reads; empty for all.
    """

    def __init__(self, choice, models, channels=(), **kwargs):
        super().__init__(**kwargs)
        self.supports_jit = False
        self.choice, self.models = choice, list(models)
        self.channels = [list(each) for each in channels]
        self.built = True

    def call(self, source, inputs=None):
        _, _, number, _ = self.choice(pool(source))
        given = source if inputs is None else inputs
        return self._run(given, number, 0, len(self.models))

    def _run(self, inputs, number, first, end):
        # Nested conditions can be converted to LiteRT, one switch cannot.
        if end - first == 1:
            return self.models[first](self._read_by(first, inputs), training=False)
        middle = (first + end) // 2
        return tf.cond(
            number < middle,
            lambda: self._run(inputs, number, first, middle),
            lambda: self._run(inputs, number, middle, end),
        )

    def _read_by(self, number: int, inputs):
        if not self.channels:
            return inputs
        channels = self.channels[number]
        if channels == list(range(len(channels))):
            # A slice takes a fraction of the time.
            return inputs[..., : len(channels)]
        return tf.gather(inputs, channels, axis=-1)

    def compute_output_spec(self, source, inputs=None):
        # What the first model reads, which may be fewer channels than are given.
        spec = tf.nest.map_structure(
            lambda x: keras.KerasTensor((source.shape[0], *x.shape[1:]), x.dtype),
            self.models[0].input,
        )
        return self.models[0].compute_output_spec(spec)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        models = [serialize(model) for model in self.models]
        choice = serialize(self.choice)
        config = {"choice": choice, "models": models, "channels": self.channels}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def load(value):
            return keras.saving.deserialize_keras_object(
                value, custom_objects=custom_objects
            )

        models = [load(model) for model in config["models"]]
        return cls(**{**config, "choice": load(config["choice"]), "models": models})
