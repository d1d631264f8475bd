"""Several tensors meet: sums, products, concatenations, shortcuts."""

import checker
import numpy as np
import pytest
from keras import layers, ops
from own import check_own
from table import Table, conv, head, image

from tfprune.graph.flows import mixed_axes

TABLE = Table()


# Merging ------------------------------------------------------------------------


def _merge(layer):
    inputs = image()
    x, y = conv(inputs, 8, "a"), conv(inputs, 8, "b", activation="sigmoid")
    return head(inputs, conv(layer([x, y]), 6, "conv2"))


for _name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"):
    _layer = getattr(layers, _name)
    TABLE.add(_name, lambda layer=_layer: _merge(layer()), "a", "b", "conv2")


@TABLE.row("a", "b", "conv2")
def _merge_concatenate():
    return _merge(layers.Concatenate())


@TABLE.row("a", "b", "conv2")
def _merge_concatenate_height():
    return _merge(layers.Concatenate(axis=1))


@TABLE.row("a", "b", "conv2")
def _merge_divide():
    return _merge(lambda pair: pair[0] / (pair[1] + 1.0))


@TABLE.row("a", "b", "conv2")
def _merge_stack():
    return _merge(lambda pair: ops.sum(ops.stack(pair, axis=1), axis=1))


@TABLE.row("a", "conv2")
def _concatenate_with_the_input():
    inputs = image()
    x = layers.Concatenate()([inputs, conv(inputs, 8, "a"), inputs])
    return head(inputs, conv(x, 6, "conv2"))


@TABLE.row("conv", "reduce", "expand")
def _squeeze_and_excite():
    inputs = image()
    x = conv(inputs, 12)
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(4, 1, activation="relu", name="reduce")(y)
    y = layers.Conv2D(12, 1, activation="sigmoid", name="expand")(y)
    return head(inputs, layers.Multiply()([x, y]))


@TABLE.row("conv", "expand")
def _squeeze_to_one_and_excite():
    inputs = image()
    x = conv(inputs, 12)
    y = layers.Dense(1, "relu", name="reduce")(layers.GlobalAveragePooling2D()(x))
    y = layers.Dense(12, "hard_sigmoid", name="expand")(y)
    return head(inputs, layers.Multiply()([x, layers.Reshape((1, 1, 12))(y)]))


@TABLE.row("conv", "expand", "last")
def _squeeze_by_ops_and_excite_on_new_axes():
    inputs = image()
    x = conv(inputs, 12)
    y = layers.Dense(12, "sigmoid", name="expand")(ops.mean(x, axis=(1, 2)))
    z = layers.Dense(12, "tanh", name="last")(y[..., :10])
    return head(inputs, x * y[:, None, None, :] + z[:, None, None])


@TABLE.row("conv", keeps=["picked"])
def _channel_of_a_map_on_a_new_axis():
    inputs = image()
    x = conv(inputs, 12)
    return head(inputs, x * conv(inputs, 8, "picked")[..., 3, None])


for _mode in ("reflect", "symmetric"):

    def _padded(mode=_mode):
        inputs = image()
        x = ops.pad(conv(inputs, 12), ((0, 0), (1, 1), (2, 1), (0, 0)), mode)
        return head(inputs, conv(x, 6, "conv2"))

    TABLE.add(f"pad_{_mode}", _padded, "conv", "conv2")


@TABLE.row("conv2", keeps=["conv"], skipped=["pad"])
def _pad_reflect_channels():
    inputs = image()
    x = ops.pad(conv(inputs, 12), ((0, 0), (0, 0), (0, 0), (1, 1)), "reflect")
    return head(inputs, conv(x, 6, "conv2"))


for _name in ("norm", "logsumexp", "median"):

    def _reduced(function=getattr(ops, _name)):
        inputs = image()
        x = function(conv(inputs, 12), axis=(1, 2))
        return head(inputs, layers.Dense(8, "relu", name="dense")(x)[:, None, None])

    TABLE.add(f"{_name}_of_places", _reduced, "conv", "dense")


@TABLE.row("conv")
def _rows_apart():
    inputs = image()
    first, second, *_ = ops.unstack(conv(inputs, 12), axis=1)
    return head(inputs, ops.stack([first - second, second], axis=1))


@TABLE.row("conv2", keeps=["conv"])
def _channels_apart():
    inputs = image()
    first, second = ops.unstack(conv(inputs, 2), axis=-1)
    x = ops.stack([first - second, second], axis=-1)
    return head(inputs, conv(x, 6, "conv2"))


@TABLE.row("conv", keeps=["map"])
def _broadcast_single_channel():
    inputs = image()
    x = conv(inputs, 12)
    return head(inputs, layers.Multiply()([x, conv(inputs, 1, "map")]))


@TABLE.row("conv", "wide")
def _broadcast_rank():
    inputs = image()
    x = conv(inputs, 6)
    y = layers.Dense(6, name="wide")(layers.GlobalAveragePooling2D()(inputs))
    y = ops.expand_dims(ops.expand_dims(y, 1), 1)
    return head(inputs, x + y)


@TABLE.row("a", "b", "c", keeps=["stem"])
def _densely_connected():
    inputs = image()
    x = conv(inputs, 3, "stem", activation="softmax")
    for name in "abc":
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, conv(y, 6, name, activation=None)])
    return head(inputs, layers.BatchNormalization()(x))


@TABLE.row("a", "b", "c")
def _pre_activation():
    inputs = image()
    x = conv(inputs, 8, "a", activation=None)
    y = layers.ReLU()(layers.BatchNormalization()(x))
    y = conv(y, 6, "b", activation=None, use_bias=False)
    y = layers.Activation("swish")(layers.BatchNormalization()(y))
    y = conv(y, 8, "c", activation=None, use_bias=False)
    x = layers.Add()([x, y])
    return head(inputs, layers.ReLU()(layers.BatchNormalization()(x)))


@TABLE.row("a", "b")
def _shortcut_pads_channels():
    inputs = image()
    x = conv(inputs, 4, "a")
    y = conv(x, 8, "b", strides=2)
    shortcut = ops.pad(x[:, ::2, ::2, :], ((0, 0),) * 3 + ((2, 2),))
    return head(inputs, layers.ReLU()(layers.Add()([shortcut, y])))


@TABLE.row("conv", "bn")
def _largest_and_smallest_with_a_first_value():
    inputs = image()
    x = layers.BatchNormalization(name="bn")(conv(inputs, 12))
    x = ops.max(x, (1, 2), initial=0.5) - ops.min(x, (1, 2), initial=-0.5)
    return head(inputs, x[:, None, None])


@TABLE.row("conv2", keeps=["conv"])
def _limits_of_each_channel():
    inputs = image()
    high = np.linspace(0.1, 1, 8).astype("float32")
    x = ops.clip(conv(inputs, 8), -high, high)
    return head(inputs, conv(x, 6, "conv2"))


@TABLE.row("conv", "conv2")
def _limits_of_all_channels():
    inputs = image()
    return head(inputs, conv(ops.clip(conv(inputs, 8), 0.1, 2), 6, "conv2"))


@pytest.mark.parametrize("name", TABLE.names)
def test_row(name):
    TABLE.check(name)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (ops.sigmoid, ()),
        (ops.rsqrt, ()),
        (lambda x: x > 0, ()),
        (lambda x: ops.softmax(x, -1), (2,)),
        (lambda x: ops.cumsum(x, 1), (1,)),
        (lambda x: ops.log(ops.softmax(x, 1)), (1,)),
        (lambda x: x - ops.mean(x), (1, 2)),
        (lambda x: x * np.arange(8.0, dtype="float32"), (1, 2)),
    ],
)
def test_axes_that_a_function_mixes(function, expected):
    assert mixed_axes(function, 3) == expected


def test_shortcut_pads_channels_with_a_lambda():
    inputs = image()
    x = conv(inputs, 4, "a")
    y = conv(x, 8, "b")
    pad = layers.Lambda(lambda x: ops.pad(x, ((0, 0),) * 3 + ((2, 2),)), name="pad")
    model = head(inputs, conv(layers.Add()([pad(x), y]), 6, "c"))
    check_own(checker.randomize(model), "a", "b", "c", saves=False)
