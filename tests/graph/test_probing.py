"""One row per layer of a user's own that has weights: channelwise, or kept and listed."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.src.applications.convnext import LayerScale
from table import Table, between, conv, head, image

import tfprune

TABLE = Table()
register = keras.saving.register_keras_serializable("tfprune_tests_probing")


@register
class Affine(layers.Layer):
    """Scale and shift of every channel, as wide as its input."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.shift = self.add_weight(shape=(1, 1, shape[-1]), name="shift")

    def call(self, x):
        return x * self.scale + self.shift


@register
class Sized(layers.Layer):
    """Is told how wide it is, among other numbers."""

    def __init__(self, width, shape=None, steps=3, **kwargs):
        super().__init__(**kwargs)
        self.width, self.shape, self.steps = width, shape or (1, width), steps

    def build(self, shape):
        self.scale = self.add_weight(shape=self.shape, name="scale")
        self.power = self.add_weight(shape=(self.steps, self.width), name="power")

    def call(self, x):
        return x * self.scale + ops.tanh(x) * ops.sum(ops.exp(self.power), axis=0)

    def get_config(self):
        own = {"width": self.width, "shape": self.shape, "steps": self.steps}
        return {**super().get_config(), **own}


@register
class Whitened(layers.Layer):
    """Statistics of its own, and one weight for all channels."""

    def build(self, shape):
        names = {
            "gamma": shape[-1],
            "moving_mean": shape[-1],
            "moving_variance": shape[-1],
        }
        for name, size in names.items():
            setattr(self, name, self.add_weight(shape=(size,), name=name))
        self.slope = self.add_weight(shape=(), name="slope")

    def call(self, x):
        x = (x - self.moving_mean) / ops.sqrt(ops.abs(self.moving_variance) + 1e-3)
        return ops.maximum(x, self.slope * x) * self.gamma


@register
class Pooled(layers.Layer):
    """Weights along two axes; the output has lost another."""

    def build(self, shape):
        self.places = self.add_weight(shape=(shape[1], shape[-1]), name="places")

    def call(self, x):
        return ops.einsum("bhwc,hc->bwc", x, self.places)


@register
class Averaged(Affine):
    """Divides by the number of channels: narrower, it computes something else."""

    def call(self, x):
        return super().call(x) / ops.shape(x)[-1]


@register
class Centered(Affine):
    def call(self, x):
        return super().call(x - ops.mean(x, axis=-1, keepdims=True))


@register
class Rolled(Affine):
    def call(self, x):
        return super().call(ops.roll(x, 1, axis=-1))


@register
class Constants(Affine):
    """One number per channel in its settings."""

    def __init__(self, numbers, **kwargs):
        super().__init__(**kwargs)
        self.numbers = numbers

    def call(self, x):
        return super().call(x) * ops.array(self.numbers, "float32")

    def get_config(self):
        return {**super().get_config(), "numbers": self.numbers}


@register
class Contracted(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel)


class Random(layers.Layer):
    """Layers that do something in training only, as random numbers say."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)


@register
class Noisy(Random):
    def call(self, x, training=True):
        if not training:
            return x
        return x + keras.random.normal(ops.shape(x), seed=self.generator)


@register
class Shuffled(Random):
    def call(self, x, training=True):
        if not training:
            return x
        return x + keras.random.shuffle(x, axis=-1, seed=self.generator)


@register
class FixedInTraining(Random):
    def call(self, x, training=True):
        return x + ops.arange(8, dtype="float32") if training else x


def _own(layer):
    return lambda: between(layer(name="own"))


TABLE.add("affine", _own(Affine), "conv", "own", "conv2")
TABLE.add("sized", _own(lambda name: Sized(8, name=name)), "conv", "own")
TABLE.add("whitened", _own(Whitened), "conv", "own")
TABLE.add(
    "layer_scale", _own(lambda name: LayerScale(1e-6, 8, name=name)), "conv", "own"
)
TABLE.add("noisy", _own(Noisy), "conv", "conv2")
TABLE.add("flipped", _own(layers.RandomFlip), "conv", "conv2")
for kind in (
    *(Averaged, Centered, Rolled, Contracted),
    *(Shuffled, FixedInTraining),
):
    TABLE.add(
        kind.__name__.lower(), _own(kind), "conv2", keeps=["conv"], skipped=["own"]
    )
TABLE.add(
    "constants",
    _own(lambda name: Constants(list(range(1, 9)), name=name)),
    "conv2",
    keeps=["conv"],
    skipped=["own"],
)


@TABLE.row("conv", "own", "conv2")
def _pooled():
    inputs = image()
    x = Pooled(name="own")(conv(inputs))
    x = layers.Conv1D(6, 2, activation="relu", name="conv2")(x)
    return head(inputs, layers.Reshape((1, 7, -1))(x))


@TABLE.row("conv", "own", "conv2")
def _affine_used_twice():
    inputs, shared = image(), Affine(name="own")
    x = shared(layers.ReLU()(shared(conv(inputs))))
    return head(inputs, conv(x, 6, "conv2"))


@TABLE.row("left", "right", "own")
def _two_tensors():
    @register
    class Mixed(layers.Layer):
        def build(self, shape):
            self.ratio = self.add_weight(shape=(shape[0][-1],), name="ratio")

        def call(self, pair):
            return self.ratio * pair[0] + (1 - self.ratio) * pair[1]

    inputs = image()
    x = Mixed(name="own")([conv(inputs, 8, "left"), conv(inputs, 8, "right")])
    return head(inputs, conv(x, 6, "conv2"))


@register
class CenteredInTraining(layers.Layer):
    def call(self, x, training=False):
        return x - ops.mean(x, axis=-1, keepdims=True) if training else x


@register
class FixedInTraining(layers.Layer):
    def call(self, x, training=False):
        return x + ops.arange(8, dtype="float32") if training else x


@TABLE.row("conv2", keeps=["conv"], skipped=["own"])
def _without_weights_mixes_in_training():
    return between(CenteredInTraining(name="own"))


@TABLE.row("conv2", keeps=["conv"], skipped=["own"])
def _without_weights_is_of_one_width_in_training():
    return between(FixedInTraining(name="own"))


@register
class NoiseInTraining(layers.Layer):
    def call(self, x, training=False):
        return x + keras.random.normal(ops.shape(x), seed=3) if training else x


def test_noise_from_nowhere_reaches_no_reader_of_closed_channels():
    inputs = layers.Input((10,))
    x = NoiseInTraining()(layers.Dense(16, "relu", name="a")(inputs))
    model = tfprune.prune_wrap(keras.Model(inputs, layers.Dense(3, name="b")(x)))
    tfprune.set_masks(tfprune.Graph(model), {"a": np.arange(16) < 1})
    reader = model.get_layer("b")
    reader.layer.kernel.assign(np.eye(16, 3, -1))
    assert not np.any(model(np.ones((2, 10), "float32"), training=True))


@pytest.mark.parametrize("name", TABLE.names)
def test_row(name):
    TABLE.check(name)


def test_trying_out_leaves_no_losses():
    class Penalized(layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(x))
            return x

    class PenalizedAffine(Affine):
        def call(self, x):
            self.add_loss(ops.mean(x))
            return super().call(x)

    model = between(Penalized(), PenalizedAffine())
    model(ops.ones((1, 8, 8, 3)))
    tfprune.read_masks(model)
    assert len(model.losses) == 2
