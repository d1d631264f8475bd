"""regularize: one term over all scales, and a model that computes what it did."""

import gc

import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import resnet56
from keras import layers

import tfprune
from tfprune.constraints import Clip
from tfprune.regularizers import (
    GroupHoyerSquare,
    HoyerSquare,
    NetworkSlimming,
    Polarization,
)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ALL = [Polarization(1.3, 1e-2), NetworkSlimming(1e-2), HoyerSquare(1e-2)]


def norms(model):
    found = model._flatten_layers()
    return [x for x in found if isinstance(x, layers.BatchNormalization)]


def regularized(model):
    return [x for x in norms(model) if x.gamma is not None and x.gamma.regularizer]


def loss_of(model):
    return float(sum(model.losses))


def on_scales(model, regularizer, names=None):
    scales = [x.gamma.numpy() for x in norms(model) if names is None or x.name in names]
    return float(regularizer(np.concatenate(scales)))


def same_outputs(model, other, x):
    return np.abs(model.predict(x, verbose=0) - other.predict(x, verbose=0)).max()


def train(model, images, epochs=2, learning_rate=0.1, **arguments):
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model.compile(optimizer, LOSS, **arguments)
    x, y = images
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False)
    return model


@pytest.fixture
def model(make_residual):
    """With scales of both signs, some above 1."""
    model = checker.randomize(make_residual(8))
    random = np.random.default_rng(0)
    for norm in norms(model):
        norm.gamma.assign(random.normal(0.6, 0.6, norm.gamma.shape))
    return model


@pytest.fixture
def fresh(make_residual):
    return make_residual(8)


# What it computes --------------------------------------------------------------------


@pytest.mark.parametrize("regularizer", ALL)
def test_one_term_over_all_scales(fresh, regularizer):
    before = fresh.get_weights()
    model = tfprune.regularize(fresh, regularizer)
    random = np.random.default_rng(0)
    for norm in norms(model):
        norm.gamma.assign(random.uniform(0.1, 0.9, norm.gamma.shape))
    names = {norm.name for norm in regularized(model)}
    # In the small network all but the stem and the projection.
    assert names == {"block1_a_bn", "block1_b_bn", "block2_a_bn", "block2_b_bn"} | (
        {"block2_shortcut_bn"}
    )
    assert loss_of(model) == pytest.approx(on_scales(model, regularizer, names))
    # Asked again, it is the same; and the model given has none.
    assert loss_of(model) == pytest.approx(on_scales(model, regularizer, names))
    assert not fresh.losses
    for old, new in zip(before, fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_do_not_matter_to_the_term():
    """The same scales in one layer, in three, and in another order."""
    scales = np.array([0.1, 0.9, 0.4, 0.3, 0.8, 0.2], "float32")

    def loss(*parts):
        x = inputs = layers.Input((4,))
        for width in map(len, parts):
            x = layers.BatchNormalization()(layers.Dense(width)(x))
            x = layers.ReLU()(x)
        model = keras.Model(inputs, layers.Dense(2)(x))
        model = tfprune.regularize(model, Polarization(1.2, 1.0))
        for norm, part in zip(norms(model), parts, strict=True):
            norm.gamma.assign(part)
        return loss_of(model)

    one = loss(scales)
    assert loss(scales[:2], scales[2:4], scales[4:]) == pytest.approx(one)
    assert loss(scales[4:], scales[:4]) == pytest.approx(one)


def test_negative_scales_are_turned_and_nothing_changes(model, images):
    assert any((norm.gamma.numpy() < 0).any() for norm in norms(model))
    with pytest.warns(UserWarning, match="`upper` is .*, the largest scale"):
        new = tfprune.regularize(model, Polarization())
    assert all((norm.gamma.numpy() >= 0).all() for norm in norms(new))
    assert same_outputs(model, new, images[0]) == 0
    largest = max(norm.gamma.numpy().max() for norm in norms(new))
    assert norms(new)[0].gamma.constraint.upper == pytest.approx(largest)
    # The others leave the signs alone.
    new = tfprune.regularize(model, NetworkSlimming())
    assert any((norm.gamma.numpy() < 0).any() for norm in norms(new))
    assert same_outputs(model, new, images[0]) == 0


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        lambda b: layers.Conv2D(6, 3, use_bias=b),
        lambda b: layers.Conv2DTranspose(6, 3, use_bias=b),
        lambda b: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=b),
        lambda b: layers.SeparableConv2D(6, 3, use_bias=b),
        lambda b: layers.Dense(6, use_bias=b),
    ],
)
def test_every_kind_of_layer_can_be_turned(layer, use_bias):
    inputs = layers.Input((8, 8, 3))
    x = layer(use_bias)(layers.Conv2D(3, 1)(inputs))
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(4, 1)(layers.ReLU()(x))
    model = checker.randomize(keras.Model(inputs, x))
    norms(model)[0].gamma.assign([0.5, -0.5, 0.1, -0.1, 0.9, -0.9])
    new = tfprune.regularize(model, Polarization(), layers="norm")
    np.testing.assert_allclose(norms(new)[0].gamma, [0.5, 0.5, 0.1, 0.1, 0.9, 0.9])
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    assert same_outputs(model, new, x) == 0


@pytest.mark.filterwarnings("ignore:`upper` is")
def test_gates_of_a_trained_model_are_turned(model, images):
    gated = tfprune.prune_wrap(model)
    new = tfprune.regularize(gated, Polarization(upper=9.0))
    gates = [x for x in new.layers if isinstance(x, tfprune.layers.ChannelGate)]
    assert all((gate.gate_variable.numpy() >= 0).all() for gate in gates)
    assert same_outputs(gated, new, images[0]) < 1e-5
    assert loss_of(new) != 0


def test_running_means_of_a_renormalization_are_turned_too():
    inputs = layers.Input((8,))
    norm = layers.BatchNormalization(renorm=True, name="norm")
    x = layers.Dense(3)(norm(layers.Dense(6)(inputs)))
    model = checker.randomize(keras.Model(inputs, x))
    norm.gamma.assign([0.5, -0.5, 0.1, -0.1, 0.9, -0.9])
    new = tfprune.regularize(model, Polarization(), layers="norm")
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    expected, found = model(x, training=True), new(x, training=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def concatenated():
    """A normalization that has no layer of its own before it."""
    inputs = layers.Input((8, 8, 3))
    x = layers.Concatenate()([layers.Conv2D(4, 3, name=n)(inputs) for n in "ab"])
    x = layers.ReLU()(layers.BatchNormalization(name="both_bn")(x))
    x = layers.BatchNormalization(name="last_bn")(layers.Conv2D(4, 3)(x))
    return checker.randomize(keras.Model(inputs, layers.Conv2D(2, 1)(layers.ReLU()(x))))


def test_what_cannot_be_turned_is_said_and_left_alone():
    model = concatenated()
    both, last = norms(model)
    both.gamma.assign([0.5, 0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    last.gamma.assign(np.full(4, 0.5))
    with pytest.warns(UserWarning, match=r"negative scales .*: \['both_bn'\]"):
        new = tfprune.regularize(model, Polarization(1.0, 1.0))
    both, last = norms(new)
    assert both.gamma.constraint is None and both.gamma.regularizer is None
    assert last.gamma.constraint is not None
    assert loss_of(new) == pytest.approx(2.0)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    assert same_outputs(model, new, x) == 0


def lora():
    convolution = layers.Conv2D(4, 3, name="made")
    convolution.build((None, 8, 8, 3))
    convolution.enable_lora(2)
    convolution.lora_kernel_b.assign(np.ones(convolution.lora_kernel_b.shape))
    return convolution


@pytest.mark.parametrize(
    "make, axis, tapped",
    [
        (lambda: layers.Conv2D(4, 3), -1, True),
        (lora, -1, False),
        (lambda: layers.Dense(8), 1, False),
    ],
    ids=["an output of the model too", "LoRA", "another axis"],
)
def test_what_others_read_or_compute_is_not_turned(make, axis, tapped):
    made = make()(inputs := layers.Input((8, 8, 3)))
    x = layers.BatchNormalization(axis, name="norm")(made)
    x = layers.BatchNormalization(name="last")(layers.Conv2D(4, 1)(layers.ReLU()(x)))
    x = layers.Conv2D(2, 1)(x)
    model = keras.Model(inputs, [x, made] if tapped else x)
    norms(model)[0].gamma.assign(np.resize([0.5, -0.5], norms(model)[0].gamma.shape))
    with pytest.warns(UserWarning, match=r"negative scales .*: \['norm'\]"):
        new = tfprune.regularize(model, Polarization())
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    for old, own in zip(*map(keras.tree.flatten, (model(x), new(x))), strict=True):
        np.testing.assert_array_equal(old, own)


def test_an_upper_that_clips_is_said(model):
    with pytest.warns(UserWarning, match="are above `upper=0.5`"):
        tfprune.regularize(model, Polarization(upper=0.5))


# Where it acts -----------------------------------------------------------------------


def residual_names(stages, kinds):
    return {
        f"conv{s + 2}_block{b + 1}_{k}_bn"
        for s, n in enumerate(stages)
        for b in range(n)
        for k in kinds
    }


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda: keras.applications.ResNet50(weights=None, classes=10),
            residual_names((3, 4, 6, 3), (1, 2)),
        ),
        (
            lambda: keras.applications.MobileNetV2(weights=None, classes=10),
            {f"block_{i}_expand_BN" for i in range(1, 17)},
        ),
        (
            lambda: keras.applications.MobileNet(weights=None, classes=10),
            {"conv1_bn"} | {f"conv_pw_{i}_bn" for i in range(1, 14)},
        ),
    ],
)
def test_the_layers_of_published_networks(build, expected):
    model = tfprune.regularize(build(), NetworkSlimming())
    assert {norm.name for norm in regularized(model)} == expected


@pytest.mark.parametrize("shortcut", ["padding", "projection"])
def test_the_layers_of_resnet56(shortcut):
    model = tfprune.regularize(resnet56(shortcut), Polarization())
    names = {
        f"stage{stage}_block{block}_{place}_bn"
        for stage in range(3)
        for block in range(9)
        for place in ("first", "second")
    }
    assert {norm.name for norm in regularized(model)} == names
    # All are clipped, the stem and projections too.
    assert all(isinstance(norm.gamma.constraint, Clip) for norm in norms(model))


def vgg(norm, **arguments):
    x = inputs = layers.Input((8, 8, 3))
    for name in "abc":
        x = layers.Conv2D(6, 3, padding="same", name=name)(x)
        x = layers.ReLU()(norm(name=f"{name}_bn", **arguments)(x) if norm else x)
    x = layers.Dense(6, name="d")(layers.Flatten()(x))
    x = layers.ReLU()(norm(name="d_bn", **arguments)(x) if norm else x)
    return checker.randomize(keras.Model(inputs, layers.Dense(3)(x)))


def test_a_network_without_additions_gives_all(images):
    model = tfprune.regularize(vgg(layers.BatchNormalization), NetworkSlimming())
    names = {norm.name for norm in regularized(model)}
    assert names == {"a_bn", "b_bn", "c_bn", "d_bn"}


@pytest.mark.parametrize(
    "arguments", [{"norm": None}, {"norm": layers.BatchNormalization, "scale": False}]
)
def test_layers_without_a_scale_get_gates(arguments, images, tmp_path):
    model = vgg(**arguments)
    new = tfprune.regularize(model, Polarization(1.5, 1.0))
    gates = [x for x in new.layers if isinstance(x, tfprune.layers.ChannelGate)]
    assert len(gates) == 4
    # All gates are 1: what is left of the term is t times their number.
    assert loss_of(new) == pytest.approx(1.5 * 24)
    assert same_outputs(model, new, images[0]) < 1e-6
    new.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert loss_of(again) == pytest.approx(1.5 * 24)
    train(again, images)
    gates = [x for x in again.layers if isinstance(x, tfprune.layers.ChannelGate)]
    values = np.concatenate([gate.gate.numpy() for gate in gates])
    assert values.min() >= 0 and values.max() <= 1 and values.min() < 1
    small = tfprune.compact(again)
    assert not small.losses
    assert same_outputs(again, small, images[0]) < 1e-5


def test_layers_by_pattern(fresh):
    model = tfprune.regularize(fresh, NetworkSlimming(), layers="block1_*")
    names = {norm.name for norm in regularized(model)}
    assert names == {"block1_a_bn", "block1_b_bn"}
    with pytest.raises(ValueError, match="'nothing' matches no layer"):
        tfprune.regularize(fresh, NetworkSlimming(), layers=["nothing"])


def test_frozen_scales_are_said(fresh):
    fresh.get_layer("block1_a_bn").trainable = False
    with pytest.warns(UserWarning, match="Frozen scales .*block1_a_bn"):
        model = tfprune.regularize(fresh, NetworkSlimming(1.0))
    assert loss_of(model) == pytest.approx(8 + 16 + 16 + 16)
    fresh.trainable = False
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="all are frozen"):
        tfprune.regularize(fresh, NetworkSlimming())


def test_nested_models_and_shared_layers():
    inputs = layers.Input((8, 8, 4))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 1)(inputs))
    block = keras.Model(inputs, layers.ReLU()(x), name="block")
    inputs = layers.Input((8, 8, 4))
    x = block(block(layers.Conv2D(4, 1)(inputs)))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = tfprune.regularize(keras.Model(inputs, x), Polarization(1.5, 1.0))
    # The convolution before the blocks gets a gate, the normalization has a scale.
    assert loss_of(model) == pytest.approx(1.5 * 8)


def test_kernels(fresh, images):
    model = tfprune.regularize(fresh, GroupHoyerSquare(0.1))
    convs = [x for x in model.layers if isinstance(x, layers.Conv2D)]
    expected = sum(float(GroupHoyerSquare(0.1)(x.kernel)) for x in convs)
    assert loss_of(model) == pytest.approx(expected, rel=1e-5)
    assert model.layers[-1].kernel.regularizer is None
    model = tfprune.regularize(fresh, GroupHoyerSquare(0.1), layers=["stem_conv"])
    assert loss_of(model) == pytest.approx(
        float(GroupHoyerSquare(0.1)(fresh.get_layer("stem_conv").kernel)), rel=1e-5
    )


@pytest.mark.parametrize("function", [tfprune.strip, tfprune.compact])
def test_kernels_of_every_kind(tmp_path, function):
    inputs = layers.Input((8, 8, 3))
    x = layers.SeparableConv2D(6, 3, pointwise_regularizer="l2", name="a")(inputs)
    x = layers.DepthwiseConv2D(3, name="b")(layers.ReLU()(x))
    twice = layers.Conv2D(6, 1, kernel_regularizer="l2", name="c")
    x = layers.Conv2DTranspose(5, 3, name="d")(twice(twice(x)))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(x)))
    new = tfprune.regularize(model, GroupHoyerSquare(0.1))
    regularizer = GroupHoyerSquare(0.1)
    kernels = [model.get_layer("a").pointwise_kernel]
    kernels += [model.get_layer(name).kernel for name in "cd"]
    added = sum(float(regularizer(keras.ops.convert_to_tensor(k))) for k in kernels)
    assert loss_of(new) == pytest.approx(loss_of(model) + added, rel=1e-5)
    new.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert loss_of(again) == pytest.approx(loss_of(new))
    plain = function(new)
    assert "tfprune" not in plain.to_json()
    assert loss_of(plain) == pytest.approx(loss_of(model))


def test_no_scale_that_can_be_turned_is_said():
    inputs = layers.Input((8, 8, 3))
    x = layers.Concatenate()([layers.Conv2D(4, 3)(inputs) for _ in range(2)])
    x = layers.Conv2D(2, 1)(layers.ReLU()(layers.BatchNormalization()(x)))
    model = checker.randomize(keras.Model(inputs, x))
    norms(model)[0].gamma.assign(-np.ones(8))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="has no scales"):
        tfprune.regularize(model, Polarization(), layers="batch*")


# In training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{}, {"jit_compile": True}, {"steps_per_execution": 2}]
)
def test_scales_stay_in_range(fresh, images, arguments):
    seen = []

    def look(batch, logs):
        seen.append(np.concatenate([norm.gamma.numpy() for norm in norms(model)]))

    model = tfprune.regularize(fresh, Polarization(1.2, 0.5))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS, **arguments)
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    x, y = images
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[watch])
    assert len(seen) == 8 // arguments.get("steps_per_execution", 1)
    assert all(scales.min() >= 0 and scales.max() <= 1 for scales in seen)
    assert (seen[-1] == 0).any()


def test_network_slimming_does_not_clip(fresh, images):
    model = train(tfprune.regularize(fresh, NetworkSlimming(0.5)), images)
    scales = np.concatenate([norm.gamma.numpy() for norm in norms(model)])
    assert scales.min() < 0


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_step_moves_scales_by_the_gradient_of_the_term(make_residual, images, policy):
    keras.config.set_dtype_policy(policy)
    fresh = make_residual(8)
    keras.utils.set_random_seed(1)
    with_term = tfprune.regularize(fresh, NetworkSlimming(0.5))
    without = tfprune.regularize(fresh, NetworkSlimming(0.0))
    x, y = (each[:8] for each in images)
    for model in (with_term, without):
        model.compile(keras.optimizers.SGD(0.01), LOSS, jit_compile=False)
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    for one, other in zip(norms(with_term), norms(without), strict=True):
        moved = other.gamma.numpy() - one.gamma.numpy()
        expected = 0.005 if one.name != "stem_bn" else 0
        np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_no_strength_is_clipping_alone(fresh, images):
    model = train(tfprune.regularize(fresh, Polarization(1.2, 0.0)), images)
    plain = keras.models.clone_model(fresh)
    plain.set_weights(fresh.get_weights())
    for norm in norms(plain):
        norm.gamma.constraint = Clip(0.0, 1.0)
    train(plain, images)
    for one, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("frozen", ["block1_a_bn", "block2_b_bn"])
def test_a_frozen_scale_raises(fresh, images, frozen):
    model = tfprune.regularize(fresh, Polarization())
    order = [norm.name for norm in regularized(model)]
    assert frozen in order
    model.get_layer(frozen).trainable = False
    with pytest.raises(ValueError, match=f"5 variables .* frozen .*: {frozen}/gamma"):
        train(model, images)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("place", [0, -1])
def test_the_first_or_last_frozen_raises_in_the_first_pass(
    fresh, tmp_path, place, loaded
):
    model = tfprune.regularize(fresh, Polarization())
    regularized(model)[place].trainable = False
    if loaded:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="frozen by `trainable = False`"):
        model.losses


@pytest.mark.parametrize("loaded", [False, True])
def test_losses_of_one_layer_change_nothing(fresh, images, tmp_path, loaded):
    model = tfprune.regularize(fresh, Polarization(1.5, 1.0))
    if loaded:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    parts = [float(sum(norm.losses)) for norm in reversed(regularized(model))]
    assert sum(parts) == loss_of(model) > 0
    train(model, images, epochs=1)


def test_a_part_that_is_trained_alone_has_the_whole_term(images):
    model = tfprune.regularize(vgg(layers.BatchNormalization), NetworkSlimming(1.0))
    first, *others = regularized(model)
    before = keras.Model(model.input, first.output)
    after = keras.Model(first.output, model.output)
    # Asked in turn, none takes the questions of the other for its own.
    for each in (model, before, model, after, model, after):
        assert loss_of(each) == pytest.approx(on_scales(model, NetworkSlimming(1.0)))
    x = before.predict(images[0], verbose=0)
    scales = on_scales(model, NetworkSlimming(1.0), [norm.name for norm in others])
    before.compile("sgd", "mse")
    before.fit(images[0], x, verbose=0)
    train(after, (x, images[1]))
    names = [norm.name for norm in others]
    assert on_scales(after, NetworkSlimming(1.0), names) < 0.6 * scales


@pytest.mark.parametrize("place", [0, 2])
def test_a_scale_that_lost_its_share_is_not_moved_and_the_others_are(images, place):
    model = tfprune.regularize(vgg(layers.BatchNormalization), NetworkSlimming(1.0))
    regularized(model)[place].gamma.regularizer = None
    before = [abs(norm.gamma.numpy()).mean() for norm in norms(model)]
    train(model, images, learning_rate=0.02)
    after = [abs(norm.gamma.numpy()).mean() for norm in norms(model)]
    moved = [old - new > 0.1 for old, new in zip(before, after, strict=True)]
    assert moved == [number != place for number in range(4)]


def test_a_loaded_model_that_garbage_collection_does_not_see_is_said(
    fresh, tmp_path, monkeypatch
):
    tfprune.regularize(fresh, Polarization()).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    with monkeypatch.context() as frozen:
        # To freeze and unfreeze would make all other tests slower.
        frozen.setattr(gc, "get_objects", list)
        frozen.setattr(gc, "get_freeze_count", lambda: 9)
        with pytest.raises(ValueError, match=r"`gc.freeze\(\)` hides them"):
            model.losses
    assert loss_of(model)


def test_a_clone_is_refused_by_its_name(fresh):
    clone = keras.models.clone_model(tfprune.regularize(fresh, Polarization()))
    with pytest.raises(ValueError, match="1 of them share it: .*clone_model"):
        clone.losses


def test_all_frozen_is_no_term(fresh, images):
    model = tfprune.regularize(fresh, Polarization())
    for norm in norms(model):
        norm.trainable = False
    assert not model.losses
    train(model, images)


def test_own_regularizers_and_constraints_stay(fresh, images):
    norm = fresh.get_layer("block1_a_bn")
    norm.gamma_regularizer = norm.gamma.regularizer = keras.regularizers.L2(0.5)
    norm.gamma_constraint = norm.gamma.constraint = keras.constraints.MaxNorm(0.5)
    model = tfprune.regularize(fresh, NetworkSlimming(1.0))
    assert loss_of(model) == pytest.approx(0.5 * 8 + 16 + 3 * 16)
    plain = tfprune.strip(tfprune.regularize(fresh, Polarization()))
    gamma = plain.get_layer("block1_a_bn").gamma
    assert type(gamma.regularizer) is keras.regularizers.L2
    assert type(gamma.constraint) is keras.constraints.MaxNorm
    assert loss_of(plain) == pytest.approx(0.5 * 8)


# Saving ------------------------------------------------------------------------------


@pytest.mark.parametrize("regularizer", ALL)
def test_saved_and_loaded_it_is_one_term_again(fresh, images, tmp_path, regularizer):
    model = train(tfprune.regularize(fresh, regularizer), images, epochs=1)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    terms = {id(norm.gamma.regularizer.term) for norm in regularized(again)}
    assert len(terms) == 1
    assert loss_of(again) == pytest.approx(loss_of(model))
    x, y = images
    for each in (model, again):
        each.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("function", [tfprune.strip, tfprune.compact])
def test_what_comes_out_is_plain_keras(fresh, tmp_path, function):
    plain = function(tfprune.regularize(fresh, Polarization()))
    assert not plain.losses
    assert "tfprune" not in plain.to_json()
    assert not any(norm.gamma.constraint for norm in norms(plain))


def test_gates_around_a_regularized_model(fresh, images):
    model = tfprune.regularize(fresh, Polarization(1.2, 1.0))
    gated = tfprune.prune_wrap(model)
    assert loss_of(gated) == pytest.approx(loss_of(model))
    assert same_outputs(model, gated, images[0]) < 1e-6


def test_on_two_replicas(two_replicas):
    def trained(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            x = inputs = layers.Input((4,))
            for _ in range(2):
                x = layers.Dense(6)(x)
                x = layers.ReLU()(layers.BatchNormalization(synchronized=True)(x))
            model = keras.Model(inputs, layers.Dense(1)(x))
            model = tfprune.regularize(model, Polarization(1.2, 1e-2))
            model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        model.fit(x, x[:, :1], batch_size=8, epochs=2, shuffle=False, verbose=0)
        return [norm.gamma.numpy() for norm in norms(model)]

    one, two = trained(tf.distribute.get_strategy()), trained(two_replicas)
    np.testing.assert_allclose(one, two, atol=1e-5)


# Selection by rules ------------------------------------------------------------------


def test_valley_takes_units_low_in_every_layer(fresh):
    model = tfprune.regularize(fresh, Polarization())
    for norm in norms(model):
        norm.gamma.assign(np.full(norm.gamma.shape, 0.6))

    def lower(name, *places):
        gamma = model.get_layer(name).gamma
        value = gamma.numpy()
        value[list(places)] = 0.004
        gamma.assign(value)

    lower("block1_a_bn", 1, 3)
    lower("stem_bn", 0, 2, 5)
    lower("block1_b_bn", 0, 5, 6)
    graph = tfprune.Graph(model)
    masks = tfprune.select(graph, "scale", threshold="valley")
    gone = {name: np.flatnonzero(~m).tolist() for name, m in masks.items() if ~m.all()}
    assert gone["block1_a_conv"] == [1, 3]
    # The stream goes where both of its layers are low.
    assert gone["stem_conv"] == [0, 5]
    assert sum(map(len, gone.values())) == 4


def test_depthwise_normalizations_have_no_say():
    model = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=10)
    gamma = model.get_layer("block_3_expand_BN").gamma
    value = np.full(gamma.shape, 0.7)
    value[:40] = 0.002
    gamma.assign(value)
    masks = tfprune.select(tfprune.Graph(model), "scale", threshold="valley")
    assert [name for name, mask in masks.items() if not mask.all()] == [
        "block_3_expand"
    ]
    assert not masks["block_3_expand"][:40].any() and masks["block_3_expand"][40:].all()


def test_a_layer_of_zeros_keeps_its_best(fresh):
    gamma = fresh.get_layer("block1_a_bn").gamma
    gamma.assign([0, 0, 0, 1e-3, 0, 0, 0, 0])
    masks = tfprune.select(tfprune.Graph(fresh), "scale", threshold="valley")
    assert np.flatnonzero(masks["block1_a_conv"]).tolist() == [3]


def test_rules_on_importances_without_layers(fresh):
    scores = {
        g.name: np.r_[0.0, np.full(g.size - 1, 0.5)]
        for g in tfprune.Graph(fresh).groups
    }
    graph = tfprune.Graph(fresh)
    masks = tfprune.select(graph, lambda g: scores, threshold="margin")
    assert all(not mask[0] and mask[1:].all() for mask in masks.values())
    quantile = tfprune.thresholds.Quantile(0.02)
    masks = tfprune.select(graph, lambda g: scores, threshold=quantile)
    assert all(not mask[0] and mask[1:].all() for mask in masks.values())


# Bad input ---------------------------------------------------------------------------


def test_rules_on_scales_that_are_no_numbers(fresh):
    fresh.get_layer("block1_a_bn").gamma.assign(np.full(8, np.nan))
    with pytest.raises(ValueError, match="scores of 'block1_a_bn' are not numbers"):
        tfprune.select(tfprune.Graph(fresh), "scale", threshold="valley")


def test_a_rule_that_leaves_a_layer_out(fresh):
    with pytest.raises(ValueError, match="gave none for layer"):
        tfprune.select(tfprune.Graph(fresh), "scale", threshold=lambda scales: {})


def test_copies_have_a_term_of_their_own_beside_what_has_no_known_name(fresh):
    for layer in fresh.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.beta_constraint = layer.beta.constraint = lambda w: w
            layer.gamma_regularizer = layer.gamma.regularizer = lambda w: 0.0
    model = tfprune.regularize(fresh, NetworkSlimming(0.1))
    twin = tfprune.prune_wrap(model)
    before = float(sum(twin.losses))
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    assert float(sum(twin.losses)) == before > 0


def test_a_second_regularizer_is_refused(fresh):
    model = tfprune.regularize(fresh, Polarization())
    with pytest.raises(ValueError, match="Polarization, on 'block1_a_bn' and others"):
        tfprune.regularize(model, NetworkSlimming())
    tfprune.regularize(tfprune.strip(model), NetworkSlimming())


@pytest.mark.parametrize("regularizer", [None, "l1", 1e-4, Polarization])
def test_what_is_no_regularizer(fresh, regularizer):
    with pytest.raises(ValueError, match="`regularizer` must be a Keras regularizer"):
        tfprune.regularize(fresh, regularizer)


def test_a_model_with_nothing_to_regularize():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="nothing for the regularizer to act on"):
        tfprune.regularize(model, Polarization())
