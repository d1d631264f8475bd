"""fold=True: constant channels go and no output changes."""

import checker
import keras
import numpy as np
import pytest
from keras import layers

import tfprune


def silence(model, seed=0):
    """Sets the scale of half of all normalized channels to 0, shifts at random."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            gone = np.resize([True, False, False, True], size)
            layer.gamma.assign(np.where(gone, 0, layer.gamma))
            layer.beta.assign(random.normal(size=size))
    return model


def error(model, small):
    inputs = checker.make_inputs(model)
    return checker.relative_error(
        *(checker.outputs_of(each, inputs) for each in (model, small))
    )


def chain(*parts):
    inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(8, 3, use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_bn")(x)
    for part in parts:
        x = part(x)
    outputs = layers.Dense(3, name="head")(layers.Flatten(name="flat")(x))
    return silence(checker.randomize(keras.Model(inputs, outputs)))


READERS = {
    "valid": lambda: [layers.Conv2D(6, 3)],
    "same": lambda: [layers.Conv2D(6, 3, padding="same")],
    "no_bias_normalized": lambda: [
        layers.Conv2D(6, 3, use_bias=False),
        layers.BatchNormalization(),
    ],
    "no_bias": lambda: [layers.Conv2D(6, 3, use_bias=False), layers.ReLU()],
    "one_by_one_strided": lambda: [layers.Conv2D(6, 1, 2, padding="same")],
    "activation": lambda: [layers.ReLU(), layers.Conv2D(6, 3, activation="gelu")],
    "sigmoid": lambda: [
        layers.Activation("sigmoid"),
        layers.Conv2D(6, 3, padding="same"),
    ],
    "rescaled": lambda: [layers.Rescaling(2.0, 1.0), layers.Conv2D(6, 3)],
    "pooled": lambda: [layers.AveragePooling2D(2, padding="same"), layers.Conv2D(6, 3)],
    "max_pooled": lambda: [layers.MaxPooling2D(2, padding="same"), layers.Conv2D(6, 3)],
    "upsampled": lambda: [
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.Conv2D(6, 3),
    ],
    "padded": lambda: [layers.ZeroPadding2D(1), layers.Conv2D(6, 3)],
    "padded_by_ops": lambda: [
        lambda x: keras.ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))),
        layers.Conv2D(6, 3),
    ],
    "summed_in_space": lambda: [
        lambda x: keras.ops.sum(x, axis=(1, 2), keepdims=True),
        layers.Conv2D(6, 1),
    ],
    "separable": lambda: [layers.SeparableConv2D(6, 3)],
    "separable_same": lambda: [layers.SeparableConv2D(6, 3, padding="same")],
    "depthwise": lambda: [
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.Conv2D(6, 1),
    ],
    "depthwise_same": lambda: [
        layers.DepthwiseConv2D(3, padding="same"),
        layers.Conv2D(6, 1),
    ],
    "grouped": lambda: [layers.Conv2D(6, 3, groups=2)],
    "grouped_same": lambda: [layers.Conv2D(6, 3, groups=2, padding="same")],
    "transposed": lambda: [layers.Conv2DTranspose(6, 3, strides=2)],
    "transposed_one_by_one": lambda: [layers.Conv2DTranspose(6, 1)],
    "flattened": lambda: [
        layers.Flatten(),
        layers.Dense(6, use_bias=False),
        layers.ReLU(),
    ],
    "split_axis": lambda: [
        lambda x: keras.ops.reshape(x, (-1, 49, 2, 4)),
        layers.Conv2D(6, 1),
    ],
    "prelu": lambda: [layers.PReLU(shared_axes=[1, 2]), layers.Conv2D(6, 3)],
    "added_to_itself": lambda: [lambda x: x + x, layers.Conv2D(6, 3)],
    "joined_to_itself": lambda: [
        lambda x: layers.Concatenate()([x, x]),
        layers.Conv2D(6, 3, padding="same"),
    ],
    "gated_by_a_map": lambda: [
        lambda x: x * layers.Conv2D(1, 1, activation="sigmoid")(x),
        layers.Conv2D(6, 3),
    ],
    "scaled_by_constants": lambda: [
        lambda x: x * np.linspace(-1, 2, 8).astype("float32"),
        layers.Conv2D(6, 3),
    ],
    "twice_as_precise": lambda: [layers.Conv2D(6, 3, dtype="float64")],
}


@pytest.mark.parametrize("case", READERS)
def test_outputs_stay(case):
    model = chain(*READERS[case]())
    small = tfprune.compact(model, fold=True)
    assert error(model, small) < 1e-5
    sizes = [tfprune.cost(each).params for each in (small, tfprune.compact(model))]
    # Behind these a constant channel is constant no longer.
    kept_for_all = {
        "separable_same", "grouped_same", "summed_in_space", "depthwise_same",
        "gated_by_a_map", "padded", "padded_by_ops",
        "split_axis", "transposed_valid",
    }  # fmt: skip
    assert sizes[0] == sizes[1] if case in kept_for_all else sizes[0] < sizes[1]


def stem_filters(model):
    return tfprune.compact(model, fold=True).get_layer("stem").filters


def test_a_padding_reader_needs_one_carrier_and_others_none():
    valid, same = chain(*READERS["valid"]()), chain(*READERS["same"]())
    assert stem_filters(valid) == 4
    assert stem_filters(same) == 5


def test_one_layer_on_two_inputs():
    """Its constants move only where both inputs have the same."""
    inputs = keras.Input((9, 9, 3))
    parts = [layers.BatchNormalization() for _ in range(2)]
    x = layers.Conv2D(8, 3)(inputs)
    reader = layers.Conv2D(4, 3)
    outputs = [reader(part(x)) for part in parts]
    model = silence(checker.randomize(keras.Model(inputs, outputs)))
    scale = np.array([0, 0, 0, 1, 1, 1, 1, 1.0])
    for part in parts:
        part.gamma.assign(scale)
        part.beta.assign(np.arange(8.0))
    parts[1].beta.assign([0, 1, 5, 3, 4, 5, 6, 7.0])
    small = tfprune.compact(model, fold=True)
    assert error(model, small) < 1e-5
    assert small.layers[1].filters == 6


def test_every_channel_constant_leaves_one():
    model = chain(*READERS["valid"]())
    model.get_layer("stem_bn").gamma.assign(np.zeros(8))
    small = tfprune.compact(model, fold=True)
    assert small.get_layer("stem").filters == 1
    # All that is behind it is constant, too, and so are the outputs.
    assert error(model, small) < 1e-5


@pytest.mark.parametrize("inside", [False, True])
def test_softmax_of_constants_and_one_more_is_not_constant(inside):
    inputs = keras.Input((9, 9, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3)(inputs))
    if inside:
        x = layers.Conv2D(8, 1, activation="softmax", name="mixes")(x)
    else:
        x = layers.Activation("softmax")(x)
    x = layers.Conv2D(6, 1, name="reader")(x)
    x = layers.Flatten()(layers.Conv2D(4, 1)(x))
    model = checker.randomize(keras.Model(inputs, layers.Dense(3)(x)))
    model.get_layer("bn").gamma.assign([0] * 7 + [1])
    if inside:
        model.get_layer("mixes").kernel.assign(np.eye(8)[None, None])
    # The reader has no weights for what varies.
    kernel = model.get_layer("reader").kernel
    kernel.assign(kernel * (np.arange(8) < 7)[:, None])
    assert error(model, tfprune.compact(model, fold=True)) < 1e-5


def test_gates_are_taken_off_first(make_residual):
    model = silence(checker.randomize(make_residual(8)))
    gated = tfprune.prune_wrap(model)
    small = tfprune.compact(gated, fold=True)
    assert error(model, small) < 1e-5
    assert tfprune.cost(small) == tfprune.cost(tfprune.compact(model, fold=True))


def test_together_with_optimize(make_residual):
    model = silence(checker.randomize(make_residual(8)))
    fast = tfprune.compact(model, fold=True, optimize=True)
    assert error(model, fast) < 1e-5
    small = tfprune.compact(model, fold=True)
    assert tfprune.cost(fast).macs == tfprune.cost(small).macs


def test_original_is_untouched(make_residual):
    model = silence(checker.randomize(make_residual(8)))
    before = [np.array(v) for v in model.variables]
    tfprune.compact(model, fold=True)
    pairs = zip(before, model.variables, strict=True)
    assert all(np.array_equal(old, new) for old, new in pairs)


# With masks --------------------------------------------------------------------------


def without_scales(model, masks):
    """The model with the scales of masked channels at zero, their shifts as they are."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for path, mask in tfprune.Graph(model).layer_masks(masks).items():
        layer = twin.get_layer(path)
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(layer.gamma * mask)
    return twin


def half(model):
    graph = tfprune.Graph(model)
    return tfprune.select(graph, "random", tfprune.Budget(flops_reduction=0.5))


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_masked_channels_leave_what_their_shifts_make(padding):
    inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(12, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(12, 3, padding=padding)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = checker.randomize(keras.Model(inputs, x))
    masks = half(model)
    small = tfprune.compact(model, masks, fold=True)
    assert error(without_scales(model, masks), small) < 1e-5
    # What is dropped without the option makes a difference.
    assert error(without_scales(model, masks), tfprune.compact(model, masks)) > 1e-2
    widths = [x.filters for x in small.layers if isinstance(x, layers.Conv2D)]
    exact = [
        x.filters
        for x in tfprune.compact(model, masks).layers
        if isinstance(x, layers.Conv2D)
    ]
    # Before padding one constant channel stays as a carrier.
    assert widths == [exact[0] + (padding == "same"), exact[1]]


@pytest.mark.parametrize("gated", [False, True])
def test_masked_channels_of_a_residual_network(make_residual, gated):
    model = checker.randomize(make_residual(8))
    masks = half(model)
    expected = without_scales(model, masks)
    small = tfprune.compact(
        tfprune.prune_wrap(model) if gated else model, masks, fold=True
    )
    assert error(expected, small) < 1e-5
    assert tfprune.cost(small).macs < 0.7 * tfprune.cost(model).macs


def test_masked_channels_without_a_scale(make_vgg):
    model = checker.randomize(make_vgg((8, 12)))
    masks = half(model)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for path, mask in tfprune.Graph(model).layer_masks(masks).items():
        layer = twin.get_layer(path)
        if isinstance(layer, layers.Conv2D):
            layer.kernel.assign(layer.kernel * mask)
    assert error(twin, tfprune.compact(model, masks, fold=True)) < 1e-5


def test_masked_channels_that_cannot_be_folded_go_altogether():
    inputs = keras.Input((9, 9, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3)(inputs))
    # Constants are different at the borders behind it.
    x = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x))
    model = checker.randomize(keras.Model(inputs, layers.Conv2D(3, 1)(x)))
    model.layers[2].beta.assign(np.full(8, 0.5))
    masks = half(model)
    small = tfprune.compact(model, masks, fold=True)
    assert error(tfprune.apply_masks(model, masks), small) < 1e-5
    assert small.layers[1].filters == sum(next(iter(masks.values())))


def test_masked_channels_of_raw_variables_leave_the_model_as_it_was():
    inputs = keras.Input((9, 9, 3))
    kernel = keras.Variable(np.random.default_rng(0).normal(size=(8, 6)))
    scale = keras.Variable(np.random.default_rng(1).normal(size=(6,)))
    x = layers.Conv2D(8, 3, activation="sigmoid", name="conv")(inputs)
    x = keras.ops.sigmoid(keras.ops.matmul(x, kernel) * scale)
    model = checker.randomize(keras.Model(inputs, layers.Conv2D(3, 1)(x)))
    masks = {"matmul": np.arange(6) < 3}
    before = kernel.numpy(), scale.numpy()
    small = tfprune.compact(model, masks, fold=True)
    np.testing.assert_array_equal(kernel.numpy(), before[0])
    np.testing.assert_array_equal(scale.numpy(), before[1])
    assert tfprune.cost(small).macs == tfprune.cost(model, masks).macs


def test_nothing_masked_changes_nothing(make_residual):
    model = checker.randomize(make_residual(8))
    masks = {
        group.name: np.ones(group.size, bool) for group in tfprune.Graph(model).groups
    }
    small = tfprune.compact(model, masks, fold=True)
    assert tfprune.cost(small).macs == tfprune.cost(model).macs
    assert error(model, small) < 1e-6


def vgg():
    inputs = x = keras.Input((64, 64, 3))
    for width in (64, 128, 256):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same")(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


def application(name):
    return getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG", "ResNet50", "DenseNet121", "MobileNetV2"])
def test_real_networks(name):
    make = vgg if name == "VGG" else lambda: application(name)
    model = silence(checker.randomize(make()))
    small = tfprune.compact(model, fold=True)
    assert error(model, small) < 1e-5
    macs = tfprune.cost(tfprune.compact(model)).macs
    assert tfprune.cost(small).macs < 0.9 * macs
