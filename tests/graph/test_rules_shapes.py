"""One row per layer or operation without weights."""

import numpy as np
import pytest
from keras import layers, ops
from table import Table, between, conv, head, image

TABLE = Table()


# Layers without weights ---------------------------------------------------------

_MIDDLES = {
    "relu": lambda: [layers.ReLU(max_value=6, negative_slope=0.1)],
    "leaky_relu": lambda: [layers.LeakyReLU()],
    "elu": lambda: [layers.ELU()],
    "activation": lambda: [layers.Activation("swish")],
    "activation_sigmoid": lambda: [layers.Activation("sigmoid")],
    "max_pooling": lambda: [layers.MaxPooling2D(2, 1, "same")],
    "average_pooling": lambda: [layers.AveragePooling2D(2)],
    "zero_padding": lambda: [layers.ZeroPadding2D(((1, 0), (0, 2)))],
    "cropping": lambda: [layers.Cropping2D(((1, 0), (2, 1)))],
    "upsampling": lambda: [layers.UpSampling2D(interpolation="bilinear")],
    "dropout": lambda: [layers.Dropout(0.3, seed=3)],
    "dropout_noise_shape": lambda: [
        layers.Dropout(0.3, noise_shape=(None, 1, 1, None))
    ],
    "spatial_dropout": lambda: [layers.SpatialDropout2D(0.3)],
    "alpha_dropout": lambda: [layers.AlphaDropout(0.3)],
    "gaussian_noise": lambda: [layers.GaussianNoise(0.3)],
    "gaussian_dropout": lambda: [layers.GaussianDropout(0.3)],
    "identity": lambda: [layers.Identity()],
    "activity_regularization": lambda: [layers.ActivityRegularization(0.1)],
    "rescaling": lambda: [layers.Rescaling(1 / 3)],
    "rescaling_offset": lambda: [layers.Rescaling(1 / 3, 0.5)],
    "reshape": lambda: [layers.Reshape((64, 8)), layers.Reshape((8, -1, 8))],
    "reshape_open": lambda: [layers.Reshape((4, 16, -1))],
    "permute": lambda: [layers.Permute((2, 3, 1)), layers.Permute((3, 1, 2))],
    "lambda": lambda: [layers.Lambda(lambda x: x * 2 + 1)],
    "ops_relu": lambda: [ops.relu, lambda x: x * 0.5, lambda x: -x],
    "ops_shift": lambda: [lambda x: x + 1.0],
    "ops_transpose": lambda: [
        lambda x: ops.transpose(x, (0, 3, 1, 2)),
        lambda x: ops.transpose(x, (0, 2, 3, 1)),
    ],
    "ops_reshape": lambda: [
        lambda x: ops.reshape(x, (-1, 64, 8)),
        lambda x: ops.reshape(x, (-1, 8, 8, 8)),
    ],
    "ops_split_concatenate": lambda: [
        lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1)
    ],
    "ops_split_at": lambda: [
        lambda x: ops.concatenate(ops.split(x, [3, 5], axis=-1)[::-1], axis=-1)
    ],
    "ops_pad_space": lambda: [lambda x: ops.pad(x, ((0, 0), (1, 0), (2, 1), (0, 0)))],
    "ops_pad_ones": lambda: [
        lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=1.0)
    ],
    "ops_pad_channels": lambda: [lambda x: ops.pad(x, ((0, 0),) * 3 + ((2, 3),))],
    "slice_channels": lambda: [lambda x: x[..., 2:7]],
    "slice_channels_negative": lambda: [lambda x: x[..., -6:]],
    "slice_space": lambda: [lambda x: x[:, ::2, ::2, :]],
    "slice_space_reverse": lambda: [lambda x: x[:, ::-1]],
    "index_space": lambda: [lambda x: x[:, 0], lambda x: ops.expand_dims(x, 1)],
    "flip": lambda: [lambda x: ops.flip(x, axis=1)],
    "flip_channels": lambda: [lambda x: ops.flip(x, axis=-1)],
    "repeat_channels": lambda: [lambda x: ops.repeat(x, 2, axis=-1)],
    "repeat_space": lambda: [lambda x: ops.repeat(x, 3, axis=1)],
    "tile": lambda: [lambda x: ops.tile(x, (1, 2, 1, 3))],
    "concatenate_itself": lambda: [lambda x: layers.Concatenate()([x, x])],
    "add_itself": lambda: [lambda x: layers.Add()([x, x])],
    "multiply_itself": lambda: [lambda x: x * x],
    "spatial_attention": lambda: [
        lambda x: x * layers.Conv2D(1, 1, activation="sigmoid", name="map")(x)
    ],
    "max_over_space": lambda: [lambda x: x - ops.max(x, axis=(1, 2), keepdims=True)],
    "scalar_constant": lambda: [lambda x: x * np.float32(3), lambda x: 2 - x],
    "shuffle": lambda: [
        lambda x: ops.reshape(x, (-1, 8, 8, 2, 4)),
        lambda x: ops.transpose(x, (0, 1, 2, 4, 3)),
        lambda x: ops.reshape(x, (-1, 8, 8, 8)),
    ],
    "pixel_shuffle": lambda: [
        lambda x: ops.reshape(x, (-1, 8, 8, 2, 2, 2)),
        lambda x: ops.transpose(x, (0, 1, 3, 2, 4, 5)),
        lambda x: ops.reshape(x, (-1, 16, 16, 2)),
    ],
    "where": lambda: [lambda x: ops.where(x > 0.1, x, x * 0.2)],
    "clip": lambda: [lambda x: ops.clip(x, -1.0, 0.5)],
    "cast": lambda: [lambda x: ops.cast(x, "float32")],
}

for _name, _middle in _MIDDLES.items():
    TABLE.add(_name, lambda middle=_middle: between(*middle()), "conv", "conv2")


@TABLE.row("conv")
def _constant_per_channel():
    constant = np.linspace(1, 2, 8).astype("float32")
    return between(lambda x: x * constant)


@TABLE.row(keeps=["conv"])
def _rescaling_per_channel():
    return between(layers.Rescaling([1.0, 2.0] * 4))


@TABLE.row(keeps=["conv"])
def _normalization_per_channel():
    constants = {"mean": np.arange(8) / 8, "variance": np.arange(1, 9)}
    return between(layers.Normalization(**constants))


@TABLE.row("conv", "conv2")
def _normalization_of_the_input():
    inputs = image()
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(inputs)
    x = layers.Rescaling([1.0, 2.0, 3.0])(x)
    return head(inputs, conv(conv(x), 6, "conv2"))


@TABLE.row(keeps=["conv"])
def _mean_over_channels():
    return between(lambda x: x - ops.mean(x, axis=-1, keepdims=True))


@TABLE.row("conv2", keeps=["conv"])
def _noise_shape_per_channel():
    return between(layers.Dropout(0.3, noise_shape=(None, 1, 1, 8)))


@TABLE.row("conv2", keeps=["conv"])
def _strided_slice_of_channels():
    return between(lambda x: x[..., ::2])


@TABLE.row("conv2", keeps=["conv"])
def _index_of_channels():
    return between(lambda x: ops.expand_dims(x[..., 1], -1))


@TABLE.row("conv", "conv2")
def _pad_channels_with_ones():
    return between(lambda x: ops.pad(x, ((0, 0),) * 3 + ((0, 2),), constant_values=1.0))


@TABLE.row("conv", "dense")
def _flatten():
    inputs = image(4)
    x = layers.Flatten()(conv(inputs))
    x = layers.Dense(10, "relu", name="dense")(x)
    return head(inputs, x, pool=False)


@TABLE.row("conv", "dense")
def _flatten_reshape_back():
    inputs = image(4)
    x = layers.Reshape((4, 4, 8))(layers.Flatten()(conv(inputs)))
    x = layers.Dense(10, "relu", name="dense")(x)
    return head(inputs, x)


@TABLE.row("dense", "conv")
def _reshape_splits_features():
    inputs = layers.Input((5,))
    x = layers.Dense(4 * 4 * 6, "relu", name="dense")(inputs)
    x = layers.Reshape((4, 4, 6))(x)
    return head(inputs, conv(x))


@TABLE.row("dense", "conv")
def _repeat_vector():
    inputs = layers.Input((5,))
    x = layers.Dense(6, "relu", name="dense")(inputs)
    x = layers.RepeatVector(4)(x)
    x = layers.Conv1D(8, 2, name="conv")(x)
    return head(inputs, layers.GlobalAveragePooling1D()(x), pool=False)


@pytest.mark.parametrize("name", TABLE.names)
def test_row(name):
    TABLE.check(name)
