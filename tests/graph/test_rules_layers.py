"""One row per layer with weights, and per fused activation."""

import functools

import keras
import pytest
from keras import layers
from table import Table, between, conv, head, image

TABLE = Table()


# Layers with weights ------------------------------------------------------------


@TABLE.row("tokens", "a")
def _reversible_embedding():
    return _of_tokens(tie_weights=True)


@TABLE.row("tokens", "a")
def _reversible_embedding_with_a_table_of_each_way():
    return _of_tokens(tie_weights=False)


def _of_tokens(**settings):
    table = layers.ReversibleEmbedding(11, 8, name="tokens", mask_zero=True, **settings)
    inputs = layers.Input((9,), dtype="int32")
    x = table(inputs)
    y = layers.Dense(6, "relu", name="a")(x)
    x = layers.Add()([x, layers.Dense(8, name="b")(y)])
    return keras.Model(inputs, table(x, reverse=True))


@TABLE.row("conv", "conv2", keeps=["logits"], locked=["logits"])
def _conv2d():
    return between()


@TABLE.row("conv", "conv2")
def _conv2d_strides_dilation():
    inputs = image()
    x = conv(inputs, 8, strides=2)
    x = conv(x, 6, "conv2", dilation_rate=2, padding="valid", kernel=2)
    return head(inputs, x)


@TABLE.row("a", "b", keeps=["c"])
def _dense():
    inputs = layers.Input((5,))
    x = layers.Dense(8, "tanh", name="a")(inputs)
    x = layers.Dense(7, "sigmoid", name="b")(x)
    return keras.Model(inputs, layers.Dense(3, "softmax", name="c")(x))


@TABLE.row("a", "b")
def _dense_on_sequences_and_without_bias():
    inputs = layers.Input((4, 5))
    x = layers.Dense(8, "relu", use_bias=False, name="a")(inputs)
    x = layers.Dense(6, "softplus", name="b")(x)
    return keras.Model(inputs, layers.Dense(3, name="c")(x))


@TABLE.row("a", "b", "c", "d")
def _conv1d():
    inputs = layers.Input((12, 4))
    x = layers.Conv1D(8, 3, padding="causal", activation="relu", name="a")(inputs)
    x = layers.Conv1D(6, 2, dilation_rate=2, padding="causal", name="b")(x)
    x = layers.DepthwiseConv1D(3, depth_multiplier=2, name="dw")(x)
    x = layers.SeparableConv1D(8, 3, depth_multiplier=2, name="c")(x)
    x = layers.Conv1DTranspose(6, 3, strides=2, name="d")(x)
    x = layers.GlobalMaxPooling1D()(layers.PReLU(shared_axes=[1])(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@TABLE.row("a", "b")
def _conv3d():
    inputs = layers.Input((5, 5, 5, 2))
    x = layers.Conv3D(8, 2, activation="relu", name="a")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv3DTranspose(6, 2, strides=2, activation="relu", name="b")(x)
    x = layers.MaxPooling3D()(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling3D()(x)))


@TABLE.row("a", "b")
def _conv2d_transpose():
    inputs = image()
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="a")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2DTranspose(6, 3, dilation_rate=2, name="b", activation="elu")(x)
    return head(inputs, x)


@TABLE.row("conv", "dw")
def _depthwise():
    return between(layers.DepthwiseConv2D(3, name="dw", activation="relu6"))


@TABLE.row("conv", "dw")
def _depthwise_multiplier():
    return between(
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw"),
        layers.BatchNormalization(),
        layers.ReLU(),
    )


@TABLE.row("conv", keeps=["dw"])
def _depthwise_on_one_channel():
    inputs = image(channels=1)
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, name="dw")(inputs)
    return head(inputs, conv(x))


@TABLE.row("conv")
def _depthwise_on_one_made_channel():
    inputs = image()
    x = conv(inputs, 1, "one")
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, name="dw")(x)
    return head(inputs, conv(x))


@TABLE.row("conv", "sep", "sep2")
def _separable():
    return between(
        layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="relu", name="sep"),
        layers.BatchNormalization(),
        layers.SeparableConv2D(6, 3, padding="same", use_bias=False, name="sep2"),
    )


@TABLE.row("conv", "grouped")
def _grouped_few():
    return between(layers.Conv2D(12, 3, groups=2, name="grouped", activation="relu"))


@TABLE.row("conv", "grouped")
def _grouped_many():
    return between(layers.Conv2D(16, 3, groups=4, name="grouped"), channels=8)


@TABLE.row("conv", "grouped")
def _grouped_depthwise_like():
    return between(layers.Conv2D(8, 3, groups=8, use_bias=False, name="grouped"))


@TABLE.row("conv", keeps=["grouped"])
def _grouped_on_the_input():
    inputs = image(channels=4)
    x = layers.Conv2D(8, 3, groups=2, name="grouped")(inputs)
    return head(inputs, conv(x))


@TABLE.row("a", "b", "d")
def _grouped_residual():
    inputs = image()
    x = conv(inputs, 16, "a")
    y = conv(x, 12, "b")
    y = layers.Conv2D(12, 3, padding="same", groups=3, name="c")(y)
    y = layers.BatchNormalization()(y)
    y = layers.Conv2D(16, 1, name="d")(y)
    return head(inputs, layers.Add()([x, y]))


@TABLE.row("conv", "dense")
def _embedding():
    inputs = layers.Input((6,), dtype="int32")
    x = layers.Embedding(10, 12, name="conv")(inputs)
    x = layers.Dense(8, "relu", name="dense")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


@TABLE.row("conv", "bn")
def _batch_normalization():
    return between(layers.BatchNormalization(name="bn"), layers.ReLU())


@TABLE.row("conv", "bn")
def _batch_normalization_without_scale():
    return between(layers.BatchNormalization(scale=False, name="bn"), layers.ReLU())


@TABLE.row("conv", "bn")
def _batch_normalization_without_center():
    return between(layers.BatchNormalization(center=False, name="bn"))


@TABLE.row("conv", "bn")
def _batch_normalization_bare():
    return between(layers.BatchNormalization(scale=False, center=False, name="bn"))


@TABLE.row("conv", "conv2")
def _batch_normalization_twice():
    return between(
        layers.BatchNormalization(name="bn"),
        layers.Activation("sigmoid"),
        layers.BatchNormalization(scale=False, name="bn2"),
    )


@TABLE.row("conv", "bn")
def _batch_normalization_axis_1():
    return between(
        layers.Permute((3, 1, 2)),
        layers.BatchNormalization(axis=1, name="bn"),
        layers.Permute((2, 3, 1)),
    )


@TABLE.row(keeps=["conv"], skipped=["norm"])
def _layer_normalization():
    return between(layers.LayerNormalization(name="norm"))


for _name in ("LayerNormalization", "UnitNormalization"):

    def _normalized(kind=getattr(layers, _name)):
        return between(kind(axis=(1, 2)), layers.ReLU())

    TABLE.add(f"{_name}_over_places", _normalized, "conv", "conv2")


@TABLE.row("conv2", keeps=["conv"], skipped=["norm"])
def _layer_normalization_over_places_and_channels():
    return between(layers.LayerNormalization(axis=(1, 3), name="norm"))


@TABLE.row("conv", "norm", "conv2")
def _group_normalization():
    return between(layers.GroupNormalization(2, name="norm"))


@TABLE.row("conv")
def _prelu():
    return between(layers.PReLU(name="prelu"))


@TABLE.row("conv")
def _prelu_shared():
    return between(layers.PReLU(shared_axes=[1, 2], name="prelu"))


@TABLE.row("conv")
def _prelu_shared_over_channels():
    return between(layers.PReLU(shared_axes=[1, 2, 3], name="prelu"))


# Fused activations --------------------------------------------------------------


def _fused(activation):
    inputs = image()
    return head(inputs, conv(conv(inputs, activation=activation), 6, "conv2"))


for _name in ("sigmoid", "softplus", "gelu", "hard_swish", "exponential", "mish"):
    TABLE.add(f"fused_{_name}", functools.partial(_fused, _name), "conv", "conv2")


@TABLE.row(keeps=["conv"])
def _activation_softmax():
    inputs = image()
    return head(inputs, conv(conv(inputs, activation="softmax"), 6, "conv2"))


@TABLE.row("conv", "conv2")
def _activation_lambda():
    inputs = image()
    x = conv(inputs, activation=lambda x: x * keras.ops.sigmoid(1.5 * x))
    return head(inputs, conv(x, 6, "conv2"))


@TABLE.row("conv", "conv2")
def _activation_lambda_shifted():
    inputs = image()
    x = conv(inputs, activation=lambda x: keras.ops.relu(x) + 0.5)
    return head(inputs, conv(x, 6, "conv2"))


@TABLE.row(keeps=["conv"])
def _activation_lambda_mixing():
    inputs = image()
    x = conv(inputs, activation=lambda x: x - keras.ops.mean(x, -1, keepdims=True))
    return head(inputs, conv(x, 6, "conv2"))


def _channels_on_axis_1(*middle, channels=8):
    """made - channels to axis 1 - the layers in between - flatten - last - logits."""
    inputs = layers.Input((6, 5))
    x = layers.Dense(channels, name="made")(inputs)
    x = layers.Permute((2, 1))(x)
    for layer in middle:
        x = layer(x)
    x = layers.Dense(7, "relu", name="last")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def _softmax_over_axis_1(x):
    return keras.ops.softmax(x, axis=1)


@TABLE.row("last", keeps=["made"])
def _activation_that_mixes_axis_1():
    return _channels_on_axis_1(layers.Activation(_softmax_over_axis_1))


@TABLE.row("last", keeps=["made"])
def _fused_activation_that_mixes_axis_1():
    return _channels_on_axis_1(layers.Dense(4, _softmax_over_axis_1))


@TABLE.row("last", keeps=["made"])
def _einsum_whose_activation_mixes_axis_1():
    layer = layers.EinsumDense("abc,cd->abd", (8, 4), _softmax_over_axis_1)
    return _channels_on_axis_1(layer)


@TABLE.row("last", keeps=["made"])
def _fused_activation_that_mixes_axis_1_of_two():
    inputs = layers.Input((5,))
    x = layers.Dense(8, _softmax_over_axis_1, name="made")(inputs)
    x = layers.Dense(7, "relu", name="last")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


@TABLE.row("conv", "conv2")
def _activation_that_mixes_places():
    return between(layers.Activation(_softmax_over_axis_1))


@TABLE.row(keeps=["conv"])
def _activation_softmax_layer():
    return between(layers.Softmax(name="softmax"))


@TABLE.row("conv")
def _softmax_over_space():
    return between(layers.Softmax(axis=(1, 2)))


@pytest.mark.parametrize("name", TABLE.names)
def test_row(name):
    TABLE.check(name)
