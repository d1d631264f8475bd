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
        value = random.normal(size=variable.shape)
        positive = variable.name == "moving_variance"
        variable.assign(np.abs(value) + 0.5 if positive else value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": "same", "strides": 2},
        {"dilation_rate": 2, "use_bias": False},
        {
            "activation": "tanh",
            "kernel_regularizer": "l2",
            "bias_constraint": "non_neg",
        },
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
    for number, model in enumerate((grouped(), normalized(layers.Conv2D(8, 3)))):
        fast = tfprune.compact(model, optimize=True)
        fast.save(tmp_path / f"{number}.keras")
        inputs = probe_inputs(fast, 2)
        loaded = keras.models.load_model(tmp_path / f"{number}.keras")
        assert max_relative_error(run(fast, inputs), run(loaded, inputs)) == 0


def places(size=8, **arguments):
    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="before")(inputs)
    x = layers.Conv2D(8, 1, name="conv", **arguments)(x)
    x = layers.GlobalMaxPooling2D()(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    randomize(model)
    return model


@pytest.mark.parametrize(
    "arguments",
    [{}, {"use_bias": False, "padding": "same"}, {"kernel_regularizer": "l2"}],
)
def test_a_convolution_of_one_place_on_a_small_map_becomes_dense(arguments):
    model = places(**arguments)
    for small in (model, tfprune.prune(model, 0.3)):
        fast = tfprune.compact(small, optimize=True)
        layer = fast.get_layer("conv")
        assert type(layer) is layers.Dense
        assert bool(layer.kernel_regularizer) == ("kernel_regularizer" in arguments)
        inputs = probe_inputs(model, 4)
        assert max_relative_error(run(small, inputs), run(fast, inputs)) < 1e-5
        assert tfprune.cost(fast).macs == tfprune.cost(small).macs


@pytest.mark.parametrize("strides", [2, 3, (1, 2)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [8, 13])
def test_a_strided_convolution_of_one_place_becomes_dense(size, padding, strides):
    model = places(size, strides=strides, padding=padding)
    fast = tfprune.compact(model, optimize=True)
    few = np.prod(model.get_layer("conv").output.shape[1:3]) <= 64
    assert type(fast.get_layer("conv")) is (layers.Dense if few else layers.Conv2D)
    inputs = probe_inputs(model, 4)
    assert max_relative_error(run(model, inputs), run(fast, inputs)) < 1e-5
    assert tfprune.cost(fast).macs == tfprune.cost(model).macs


def test_a_convolution_that_is_called_on_a_large_map_too_stays():
    inputs = keras.Input((16, 16, 3))
    conv = layers.Conv2D(6, 1, name="conv")
    large = layers.ReLU()(layers.ReLU()(conv(inputs)))
    maps = [large, conv(layers.MaxPooling2D(4)(inputs))]
    x = layers.Concatenate()([layers.Flatten()(x) for x in maps])
    fast = tfprune.compact(keras.Model(inputs, layers.Dense(2)(x)), optimize=True)
    assert type(fast.get_layer("conv")) is layers.Conv2D


def test_strided_in_a_sequential_and_called_twice(tmp_path):
    conv = layers.Conv2D(6, 1, strides=2, name="conv")
    halves = keras.Sequential([conv, layers.ReLU()], name="halves")
    inputs = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    other = layers.Conv2D(5, 1, strides=2)
    maps = [halves(inputs[0]), halves(inputs[1]), other(inputs[0]), other(inputs[1])]
    pooled = [layers.GlobalMaxPooling2D()(x) for x in maps]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(pooled)))
    randomize(model)
    fast = tfprune.compact(model, optimize=True)
    assert type(fast.get_layer("halves").get_layer("conv")) is layers.Dense
    fast.save(tmp_path / "fast.keras")
    probe = probe_inputs(model, 4)
    for same in (fast, keras.models.load_model(tmp_path / "fast.keras")):
        assert max_relative_error(run(model, probe), run(same, probe)) < 1e-5


@pytest.mark.parametrize(
    "arguments",
    [{"size": 9}, {"groups": 2}, {"activation": "relu", "size": 16}],
)
def test_other_convolutions_of_one_place_stay(arguments):
    fast = tfprune.compact(places(**arguments), optimize=True)
    assert type(fast.get_layer("conv")) is layers.Conv2D


def normalized(layer, **arguments):
    """A layer with batch normalization right behind it, a maker and a reader."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 1, activation="relu")(inputs)
    x = layers.BatchNormalization(**arguments)(layer(x))
    x = layers.Flatten()(layers.ReLU()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    randomize(model)
    return model


FOLDABLE = {
    "conv": (lambda: layers.Conv2D(8, 3, padding="same"), {}),
    "conv_without_bias": (lambda: layers.Conv2D(8, 3, use_bias=False), {}),
    "conv_grouped": (lambda: layers.Conv2D(8, 3, groups=2), {"scale": False}),
    "conv_transposed": (lambda: layers.Conv2DTranspose(8, 3, use_bias=False), {}),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), {}),
    "separable": (lambda: layers.SeparableConv2D(8, 3), {"center": False}),
    "dense": (lambda: layers.Dense(8), {"epsilon": 0.1}),
    "to_depthwise": (lambda: layers.Conv2D(12, 3, groups=6, use_bias=False), {}),
}


@pytest.mark.parametrize("case", FOLDABLE)
@pytest.mark.parametrize("pruned", [False, True])
def test_normalization_moves_into_the_layer_before(case, pruned):
    make, arguments = FOLDABLE[case]
    model = normalized(make(), **arguments)
    masks = None
    if pruned:
        graph = tfprune.Graph(model)
        masks = tfprune.select(graph, "random", tfprune.Budget(params_reduction=0.3))
    slim = tfprune.compact(model, masks)
    fast = tfprune.compact(model, masks, optimize=True)
    assert not any(isinstance(x, layers.BatchNormalization) for x in fast.layers)
    inputs = probe_inputs(model, 4)
    assert max_relative_error(run(slim, inputs), run(fast, inputs)) < 1e-5
    assert tfprune.cost(fast).macs == tfprune.cost(slim).macs


def two_readers(x):
    x = layers.Conv2D(4, 3)(x)
    return layers.Add()([x, layers.BatchNormalization()(x)])


def shared_layer(x):
    conv = layers.Conv2D(4, 3, padding="same")
    return layers.Add()([conv(x), layers.BatchNormalization()(conv(x))])


def shared_normalization(x):
    bn = layers.BatchNormalization()
    first, second = layers.Conv2D(4, 3)(x), layers.Conv2D(4, 3)(x)
    return layers.Add()([bn(first), bn(second)])


STAYS = {
    "activation_between": lambda x: layers.BatchNormalization()(
        layers.Conv2D(4, 3, activation="relu")(x)
    ),
    "other_axis": lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x)),
    "two_readers": two_readers,
    "shared_layer": shared_layer,
    "shared_normalization": shared_normalization,
    "model_output": lambda x: layers.Conv2D(4, 3)(x),
}


@pytest.mark.parametrize("case", STAYS)
def test_normalization_that_cannot_move_stays(case):
    inputs = keras.Input((8, 8, 3))
    x = STAYS[case](inputs)
    outputs = layers.Dense(2)(layers.Flatten()(x))
    if case == "model_output":
        outputs = [x, layers.BatchNormalization()(x)]
    model = keras.Model(inputs, outputs)
    randomize(model)
    fast = tfprune.compact(model, optimize=True)
    assert any(isinstance(x, layers.BatchNormalization) for x in fast.layers)
    inputs = probe_inputs(model, 4)
    assert max_relative_error(run(model, inputs), run(fast, inputs)) < 1e-5


def test_normalization_of_a_layer_whose_channels_must_stay_moves_too():
    inputs = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3)(inputs)
    model = keras.Model(inputs, layers.Flatten()(layers.BatchNormalization()(x)))
    randomize(model)
    fast = tfprune.compact(model, optimize=True)
    assert not any(isinstance(x, layers.BatchNormalization) for x in fast.layers)
    inputs = probe_inputs(model, 4)
    assert max_relative_error(run(model, inputs), run(fast, inputs)) < 1e-5


def test_normalization_with_mixed_precision_and_twice_as_precise():
    for policy, bound in (("mixed_bfloat16", 3e-2), ("float64", 1e-12)):
        model = normalized(layers.Conv2D(8, 3, dtype=policy), dtype=policy)
        fast = tfprune.compact(model, optimize=True)
        inputs = probe_inputs(model, 4)
        assert max_relative_error(run(model, inputs), run(fast, inputs)) < bound
