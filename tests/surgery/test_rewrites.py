"""Layers that are replaced by faster ones compute the same."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tfprune.surgery.certificate import max_relative_error, probe_inputs, run


def grouped(filters=12, channels=6, groups=6, **arguments):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(channels, 1, activation="relu")(inputs)
    x = layers.Conv2D(filters, 3, groups=groups, name="grouped", **arguments)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    randomize(model)
    return model


def randomize(model):
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": "same", "strides": 2},
        {"dilation_rate": 2, "use_bias": False},
        {"activation": "tanh", "kernel_regularizer": "l2", "bias_constraint": "non_neg"},
    ],
)
def test_as_many_groups_as_channels_become_depthwise(arguments):
    model = grouped(**arguments)
    fast = tfprune.compact(model, optimize=True)
    layer = fast.get_layer("grouped")
    assert type(layer) is layers.DepthwiseConv2D and layer.depth_multiplier == 2
    assert type(tfprune.compact(model).get_layer("grouped")) is layers.Conv2D
    inputs = probe_inputs(model, 4)
    assert max_relative_error(run(model, inputs), run(fast, inputs)) < 1e-5
    assert tfprune.cost(fast) == tfprune.cost(model)
    old = model.get_layer("grouped")
    assert np.array_equal(layer.kernel.numpy().ravel(), old.kernel.numpy().ravel())
    assert bool(layer.depthwise_regularizer) == bool(old.kernel_regularizer)


@pytest.mark.parametrize(
    "arguments", [{"groups": 3}, {"groups": 1}, {"strides": (1, 2), "padding": "same"}]
)
def test_other_convolutions_stay(arguments):
    model = grouped(**arguments)
    fast = tfprune.compact(model, optimize=True)
    assert type(fast.get_layer("grouped")) is layers.Conv2D


def test_pruned_and_replaced():
    model = grouped()
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "random", tfprune.Budget(flops_reduction=0.5))
    slim = tfprune.compact(model, masks)
    fast = tfprune.compact(model, masks, optimize=True)
    inputs = probe_inputs(model, 4)
    assert max_relative_error(run(slim, inputs), run(fast, inputs)) < 1e-5
    assert tfprune.cost(fast) == tfprune.cost(model, masks)


def test_saved_and_loaded(tmp_path):
    fast = tfprune.compact(grouped(), optimize=True)
    fast.save(tmp_path / "fast.keras")
    inputs = probe_inputs(fast, 2)
    loaded = keras.models.load_model(tmp_path / "fast.keras")
    assert max_relative_error(run(fast, inputs), run(loaded, inputs)) == 0
