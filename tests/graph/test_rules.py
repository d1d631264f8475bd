"""One row per layer and operation: prune half of a model around it, check it all."""

import checker
import keras
import numpy as np
import pytest
from invariants import check_all
from keras import layers, ops

import tfprune

ROWS = {}
BROKEN = {"ops_pad_ones": "B1", "pixel_shuffle": "B2"}


def row(*loses, keeps=(), skipped=(), locked=(), **options):
    """Adds a model to the table.

    Args:
        loses: layers whose output has to lose channels.
        keeps: layers whose output has to keep them all.
        skipped: paths that have to be listed in `graph.skipped`.
        locked: paths that have to be listed in `graph.locked`.
        options: `tolerance`, `size` and `wrap` of `check_all`.
    """

    def add(build):
        name = build.__name__.strip("_")
        assert name not in ROWS, name
        ROWS[name] = (build, loses, keeps, skipped, locked, options)
        return build

    return add


def image(size=8, channels=3, **kwargs):
    return layers.Input((size, size, channels), name="image", **kwargs)


def conv(x, width=8, name="conv", **kwargs):
    kwargs = {"padding": "same", "activation": "relu", **kwargs}
    return layers.Conv2D(width, kwargs.pop("kernel", 3), name=name, **kwargs)(x)


def head(inputs, x, pool=True):
    x = layers.GlobalAveragePooling2D(name="gap")(x) if pool else x
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def between(*middle, channels=8, name="conv", then=True):
    """conv - layers - conv2 - pool - logits."""
    inputs = image()
    x = conv(inputs, channels, name)
    for layer in middle:
        x = layer(x)
    return head(inputs, conv(x, 6, "conv2") if then else x)


def check_row(name):
    build, loses, keeps, skipped, locked, options = ROWS[name]
    model = checker.randomize(build())
    graph, masks, small = check_all(model, **options)
    lost = graph.layer_masks(masks)
    for path in loses:
        assert path in lost, f"{path!r} lost nothing; locked: {graph.locked}"
        assert 0 < lost[path].sum() < lost[path].size
    for path in keeps:
        assert path not in lost
    for path in skipped:
        assert path in graph.skipped
    assert skipped or not graph.skipped, graph.skipped
    for path in locked:
        assert graph.locked[path]
    return model, small


# Layers with weights ------------------------------------------------------------


@row("conv", "conv2", keeps=["logits"], locked=["logits"])
def _conv2d():
    return between()


@row("conv", "conv2")
def _conv2d_strides_dilation():
    inputs = image()
    x = conv(inputs, 8, strides=2)
    x = conv(x, 6, "conv2", dilation_rate=2, padding="valid", kernel=2)
    return head(inputs, x)


@row("a", "b", keeps=["c"])
def _dense():
    inputs = layers.Input((5,))
    x = layers.Dense(8, "tanh", name="a")(inputs)
    x = layers.Dense(7, "sigmoid", name="b")(x)
    return keras.Model(inputs, layers.Dense(3, "softmax", name="c")(x))


@row("a", "b")
def _dense_on_sequences_and_without_bias():
    inputs = layers.Input((4, 5))
    x = layers.Dense(8, "relu", use_bias=False, name="a")(inputs)
    x = layers.Dense(6, "softplus", name="b")(x)
    return keras.Model(inputs, layers.Dense(3, name="c")(x))


@row("a", "b", "c", "d")
def _conv1d():
    inputs = layers.Input((12, 4))
    x = layers.Conv1D(8, 3, padding="causal", activation="relu", name="a")(inputs)
    x = layers.Conv1D(6, 2, dilation_rate=2, padding="causal", name="b")(x)
    x = layers.DepthwiseConv1D(3, depth_multiplier=2, name="dw")(x)
    x = layers.SeparableConv1D(8, 3, depth_multiplier=2, name="c")(x)
    x = layers.Conv1DTranspose(6, 3, strides=2, name="d")(x)
    x = layers.GlobalMaxPooling1D()(layers.PReLU(shared_axes=[1])(x))
    return keras.Model(inputs, layers.Dense(3)(x))


@row("a", "b")
def _conv3d():
    inputs = layers.Input((5, 5, 5, 2))
    x = layers.Conv3D(8, 2, activation="relu", name="a")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv3DTranspose(6, 2, strides=2, activation="relu", name="b")(x)
    x = layers.MaxPooling3D()(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling3D()(x)))


@row("a", "b")
def _conv2d_transpose():
    inputs = image()
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="a")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2DTranspose(6, 3, dilation_rate=2, name="b", activation="elu")(x)
    return head(inputs, x)


@row("conv", "dw")
def _depthwise():
    return between(layers.DepthwiseConv2D(3, name="dw", activation="relu6"))


@row("conv", "dw")
def _depthwise_multiplier():
    return between(
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw"),
        layers.BatchNormalization(),
        layers.ReLU(),
    )


@row("conv", keeps=["dw"])
def _depthwise_on_one_channel():
    inputs = image(channels=1)
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, name="dw")(inputs)
    return head(inputs, conv(x))


@row("conv")
def _depthwise_on_one_made_channel():
    inputs = image()
    x = conv(inputs, 1, "one")
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, name="dw")(x)
    return head(inputs, conv(x))


@row("conv", "sep", "sep2")
def _separable():
    return between(
        layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="relu", name="sep"),
        layers.BatchNormalization(),
        layers.SeparableConv2D(6, 3, padding="same", use_bias=False, name="sep2"),
    )


@row("conv", "grouped")
def _grouped_few():
    return between(layers.Conv2D(12, 3, groups=2, name="grouped", activation="relu"))


@row("conv", "grouped")
def _grouped_many():
    return between(layers.Conv2D(16, 3, groups=4, name="grouped"), channels=8)


@row("conv", "grouped")
def _grouped_depthwise_like():
    return between(layers.Conv2D(8, 3, groups=8, use_bias=False, name="grouped"))


@row("conv", keeps=["grouped"])
def _grouped_on_the_input():
    inputs = image(channels=4)
    x = layers.Conv2D(8, 3, groups=2, name="grouped")(inputs)
    return head(inputs, conv(x))


@row("a", "b", "d")
def _grouped_residual():
    inputs = image()
    x = conv(inputs, 16, "a")
    y = conv(x, 12, "b")
    y = layers.Conv2D(12, 3, padding="same", groups=3, name="c")(y)
    y = layers.BatchNormalization()(y)
    y = layers.Conv2D(16, 1, name="d")(y)
    return head(inputs, layers.Add()([x, y]))


@row("conv", "dense")
def _embedding():
    inputs = layers.Input((6,), dtype="int32")
    x = layers.Embedding(10, 12, name="conv")(inputs)
    x = layers.Dense(8, "relu", name="dense")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


@row("conv", "bn")
def _batch_normalization():
    return between(layers.BatchNormalization(name="bn"), layers.ReLU())


@row("conv", "bn")
def _batch_normalization_without_scale():
    return between(layers.BatchNormalization(scale=False, name="bn"), layers.ReLU())


@row("conv", "bn")
def _batch_normalization_without_center():
    return between(layers.BatchNormalization(center=False, name="bn"))


@row("conv", "bn")
def _batch_normalization_bare():
    return between(layers.BatchNormalization(scale=False, center=False, name="bn"))


@row("conv", "conv2")
def _batch_normalization_twice():
    return between(
        layers.BatchNormalization(name="bn"),
        layers.Activation("sigmoid"),
        layers.BatchNormalization(scale=False, name="bn2"),
    )


@row("conv", "bn")
def _batch_normalization_axis_1():
    return between(
        layers.Permute((3, 1, 2)),
        layers.BatchNormalization(axis=1, name="bn"),
        layers.Permute((2, 3, 1)),
    )


@row(keeps=["conv"], skipped=["norm"])
def _layer_normalization():
    return between(layers.LayerNormalization(name="norm"))


@row(keeps=["conv"], skipped=["norm"])
def _group_normalization():
    return between(layers.GroupNormalization(2, name="norm"))


@row("conv")
def _prelu():
    return between(layers.PReLU(name="prelu"))


@row("conv")
def _prelu_shared():
    return between(layers.PReLU(shared_axes=[1, 2], name="prelu"))


@row("conv")
def _prelu_shared_over_channels():
    return between(layers.PReLU(shared_axes=[1, 2, 3], name="prelu"))


# Fused activations --------------------------------------------------------------

for _name in ("sigmoid", "softplus", "gelu", "hard_swish", "exponential", "mish"):

    def _build(name=_name):
        inputs = image()
        return head(inputs, conv(conv(inputs, activation=name), 6, "conv2"))

    _build.__name__ = f"_fused_{_name}"
    row("conv", "conv2")(_build)


@row(keeps=["conv"])
def _activation_softmax():
    inputs = image()
    return head(inputs, conv(conv(inputs, activation="softmax"), 6, "conv2"))


@row("conv", "conv2")
def _activation_lambda():
    inputs = image()
    x = conv(inputs, activation=lambda x: x * keras.ops.sigmoid(1.5 * x))
    return head(inputs, conv(x, 6, "conv2"))


@row("conv", "conv2")
def _activation_lambda_shifted():
    inputs = image()
    x = conv(inputs, activation=lambda x: keras.ops.relu(x) + 0.5)
    return head(inputs, conv(x, 6, "conv2"))


@row(keeps=["conv"])
def _activation_lambda_mixing():
    inputs = image()
    x = conv(inputs, activation=lambda x: x - keras.ops.mean(x, -1, keepdims=True))
    return head(inputs, conv(x, 6, "conv2"))


@row(keeps=["conv"])
def _activation_softmax_layer():
    return between(layers.Softmax(name="softmax"))


@row("conv")
def _softmax_over_space():
    return between(layers.Softmax(axis=(1, 2)))


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
    "dropout_noise_shape": lambda: [layers.Dropout(0.3, noise_shape=(None, 1, 1, None))],
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

    def _build(middle=_middle):
        return between(*middle())

    _build.__name__ = f"_{_name}"
    row("conv", "conv2")(_build)


@row(keeps=["conv"])
def _constant_per_channel():
    constant = np.linspace(1, 2, 8).astype("float32")
    return between(lambda x: x * constant)


@row(keeps=["conv"])
def _rescaling_per_channel():
    return between(layers.Rescaling([1.0, 2.0] * 4))


@row(keeps=["conv"])
def _normalization_per_channel():
    constants = {"mean": np.arange(8) / 8, "variance": np.arange(1, 9)}
    return between(layers.Normalization(**constants))


@row("conv", "conv2")
def _normalization_of_the_input():
    inputs = image()
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(inputs)
    x = layers.Rescaling([1.0, 2.0, 3.0])(x)
    return head(inputs, conv(conv(x), 6, "conv2"))


@row(keeps=["conv"])
def _mean_over_channels():
    return between(lambda x: x - ops.mean(x, axis=-1, keepdims=True))


@row("conv2", keeps=["conv"])
def _noise_shape_per_channel():
    return between(layers.Dropout(0.3, noise_shape=(None, 1, 1, 8)))


@row("conv2", keeps=["conv"])
def _strided_slice_of_channels():
    return between(lambda x: x[..., ::2])


@row("conv2", keeps=["conv"])
def _index_of_channels():
    return between(lambda x: ops.expand_dims(x[..., 1], -1))


@row("conv", "conv2")
def _pad_channels_with_ones():
    return between(
        lambda x: ops.pad(x, ((0, 0),) * 3 + ((0, 2),), constant_values=1.0)
    )


@row("conv", "dense")
def _flatten():
    inputs = image(4)
    x = layers.Flatten()(conv(inputs))
    x = layers.Dense(10, "relu", name="dense")(x)
    return head(inputs, x, pool=False)


@row("conv", "dense")
def _flatten_reshape_back():
    inputs = image(4)
    x = layers.Reshape((4, 4, 8))(layers.Flatten()(conv(inputs)))
    x = layers.Dense(10, "relu", name="dense")(x)
    return head(inputs, x)


@row("dense", "conv")
def _reshape_splits_features():
    inputs = layers.Input((5,))
    x = layers.Dense(4 * 4 * 6, "relu", name="dense")(inputs)
    x = layers.Reshape((4, 4, 6))(x)
    return head(inputs, conv(x))


@row("dense", "conv")
def _repeat_vector():
    inputs = layers.Input((5,))
    x = layers.Dense(6, "relu", name="dense")(inputs)
    x = layers.RepeatVector(4)(x)
    x = layers.Conv1D(8, 2, name="conv")(x)
    return head(inputs, layers.GlobalAveragePooling1D()(x), pool=False)


# Merging ------------------------------------------------------------------------


def _merge(layer):
    inputs = image()
    x, y = conv(inputs, 8, "a"), conv(inputs, 8, "b", activation="sigmoid")
    return head(inputs, conv(layer([x, y]), 6, "conv2"))


for _type in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"):

    def _build(name=_type):
        return _merge(getattr(layers, name)())

    _build.__name__ = f"_merge_{_type.lower()}"
    row("a", "b", "conv2")(_build)


@row("a", "b", "conv2")
def _merge_concatenate():
    return _merge(layers.Concatenate())


@row("a", "b", "conv2")
def _merge_concatenate_height():
    return _merge(layers.Concatenate(axis=1))


@row("a", "b", "conv2")
def _merge_divide():
    return _merge(lambda pair: pair[0] / (pair[1] + 1.0))


@row("a", "b", "conv2")
def _merge_stack():
    return _merge(lambda pair: ops.sum(ops.stack(pair, axis=1), axis=1))


@row("a", "conv2")
def _concatenate_with_the_input():
    inputs = image()
    x = layers.Concatenate()([inputs, conv(inputs, 8, "a"), inputs])
    return head(inputs, conv(x, 6, "conv2"))


@row("conv", "reduce", "expand")
def _squeeze_and_excite():
    inputs = image()
    x = conv(inputs, 12)
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(4, 1, activation="relu", name="reduce")(y)
    y = layers.Conv2D(12, 1, activation="sigmoid", name="expand")(y)
    return head(inputs, layers.Multiply()([x, y]))


@row("conv", "expand")
def _squeeze_to_one_and_excite():
    inputs = image()
    x = conv(inputs, 12)
    y = layers.Dense(1, "relu", name="reduce")(layers.GlobalAveragePooling2D()(x))
    y = layers.Dense(12, "hard_sigmoid", name="expand")(y)
    return head(inputs, layers.Multiply()([x, layers.Reshape((1, 1, 12))(y)]))


@row("conv", keeps=["map"])
def _broadcast_single_channel():
    inputs = image()
    x = conv(inputs, 12)
    return head(inputs, layers.Multiply()([x, conv(inputs, 1, "map")]))


@row("conv", "wide")
def _broadcast_rank():
    inputs = image()
    x = conv(inputs, 6)
    y = layers.Dense(6, name="wide")(layers.GlobalAveragePooling2D()(inputs))
    y = ops.expand_dims(ops.expand_dims(y, 1), 1)
    return head(inputs, x + y)


@row("a", "b", "c", keeps=["stem"])
def _densely_connected():
    inputs = image()
    x = conv(inputs, 3, "stem", activation="softmax")
    for name in "abc":
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, conv(y, 6, name, activation=None)])
    return head(inputs, layers.BatchNormalization()(x))


@row("a", "b", "c")
def _pre_activation():
    inputs = image()
    x = conv(inputs, 8, "a", activation=None)
    y = layers.ReLU()(layers.BatchNormalization()(x))
    y = conv(y, 6, "b", activation=None, use_bias=False)
    y = layers.Activation("swish")(layers.BatchNormalization()(y))
    y = conv(y, 8, "c", activation=None, use_bias=False)
    x = layers.Add()([x, y])
    return head(inputs, layers.ReLU()(layers.BatchNormalization()(x)))


@row("a", "b")
def _shortcut_pads_channels():
    inputs = image()
    x = conv(inputs, 4, "a")
    y = conv(x, 8, "b", strides=2)
    shortcut = ops.pad(x[:, ::2, ::2, :], ((0, 0),) * 3 + ((2, 2),))
    return head(inputs, layers.ReLU()(layers.Add()([shortcut, y])))


@row("c", keeps=["a", "b"], skipped=["pad"])
def _shortcut_pads_channels_with_a_layer():
    inputs = image()
    x = conv(inputs, 4, "a")
    y = conv(x, 8, "b")
    pad = layers.Lambda(lambda x: ops.pad(x, ((0, 0),) * 3 + ((2, 2),)), name="pad")
    return head(inputs, conv(layers.Add()([pad(x), y]), 6, "c"))


def _marked(name):
    reason = BROKEN.get(name)
    marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_marked(name) for name in sorted(ROWS)])
def test_rule(name):
    check_row(name)
