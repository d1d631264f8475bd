"""compact: exact slices, the same names, plain Keras, and a certificate."""

import sys

import checker
import keras
import numpy as np
import pytest
from invariants import fingerprint, random_masks
from keras import layers

import tfprune
from tfprune.surgery import certificate, set_masks


@pytest.fixture
def pruned(make_residual):
    """A residual model, masks, and what `compact` makes of them."""
    model = checker.randomize(make_residual(8))
    masks = random_masks(tfprune.Graph(model))
    return model, masks, tfprune.compact(model, masks)


def two_dense(units=4):
    """dense (2 -> units) - out (units -> 1), readable by eye."""
    model = keras.Sequential(
        [
            layers.Input((2,)),
            layers.Dense(units, "relu", name="dense"),
            layers.Dense(1, name="out"),
        ]
    )
    model.get_layer("dense").kernel.assign(np.arange(2 * units).reshape(2, units))
    model.get_layer("dense").bias.assign(np.arange(units))
    model.get_layer("out").kernel.assign(np.arange(1, units + 1)[:, None])
    return model


def test_by_eye():
    small = tfprune.compact(
        two_dense(), {"dense": np.array([True, False, False, True])}
    )
    assert small.get_layer("dense").kernel.numpy().tolist() == [[0, 3], [4, 7]]
    assert small.get_layer("dense").bias.numpy().tolist() == [0, 3]
    assert small.get_layer("out").kernel.numpy().tolist() == [[1], [4]]
    assert small.get_layer("dense").units == 2
    # relu([0 + 4, 3 + 3 + 7]) @ [1, 4]
    assert small(np.ones((1, 2))).numpy().tolist() == [[4 + 4 * 13]]


def test_groups_without_a_mask_stay_whole(pruned):
    model, masks, _ = pruned
    small = tfprune.compact(model, {"stem_conv": masks["stem_conv"]})
    checker.check_slices(model, small, least_removed=0.01)
    assert small.get_layer("block1_a_conv").filters == 8


def test_names_types_and_config_survive(pruned):
    model, _, small = pruned
    assert small.name == model.name
    assert [x.name for x in small.layers] == [x.name for x in model.layers]
    assert [type(x) for x in small.layers] == [type(x) for x in model.layers]
    for old, new in zip(model.layers[1:], small.layers[1:], strict=True):
        old_config, new_config = old.get_config(), new.get_config()
        differing = {k for k in old_config if old_config[k] != new_config[k]}
        assert differing <= {"filters", "units"}, old.name
    assert [x.name for x in small.inputs] == [x.name for x in model.inputs]
    assert small.output_shape == model.output_shape


def test_result_is_plain_keras(pruned):
    _, _, small = pruned
    for layer in small._flatten_layers():
        assert type(layer).__module__.startswith("keras.")
    assert all(v.constraint is None for v in small.variables)


def test_masks_none_of_a_masked_model(pruned):
    model, masks, small = pruned
    again = tfprune.compact(tfprune.apply_masks(model, masks))
    for one, other in zip(small.weights, again.weights, strict=True):
        assert np.array_equal(one.numpy(), other.numpy())
    assert all(v.constraint is None for v in again.variables)


def test_masks_none_of_a_gated_model(pruned):
    model, masks, small = pruned
    wrapped = tfprune.prune_wrap(model)
    set_masks(tfprune.Graph(wrapped), masks)
    again = tfprune.compact(wrapped)
    inputs = checker.make_inputs(model)
    expected, received = (checker.outputs_of(m, inputs) for m in (small, again))
    assert checker.relative_error(expected, received) < 1e-5
    for one, other in zip(small.weights, again.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)


def test_masks_of_a_gated_model_and_masks_given_are_the_same(pruned):
    model, masks, small = pruned
    again = tfprune.compact(tfprune.prune_wrap(model), masks)
    inputs = checker.make_inputs(model)
    expected, received = (checker.outputs_of(m, inputs) for m in (small, again))
    assert checker.relative_error(expected, received) < 1e-5


def test_masks_none_of_a_dense_model_removes_nothing(pruned):
    model, _, _ = pruned
    assert tfprune.cost(tfprune.compact(model)) == tfprune.cost(model)


def test_masks_none_removes_channels_with_zero_scale_and_shift(make_residual):
    model = checker.randomize(make_residual(8))
    normalization = model.get_layer("block1_a_bn")
    gamma, beta = normalization.gamma.numpy(), normalization.beta.numpy()
    gamma[[1, 4]], beta[[1, 4]] = 0, (0, 0.5)
    normalization.gamma.assign(gamma)
    normalization.beta.assign(beta)
    small = tfprune.compact(model)
    # The shift of channel 4 still reaches the next layer.
    assert small.get_layer("block1_a_conv").filters == 7
    inputs = checker.make_inputs(model)
    outputs = [checker.outputs_of(m, inputs) for m in (model, small)]
    assert checker.relative_error(*outputs) < 1e-5
    # A shift below zero does not.
    beta[4] = -0.5
    normalization.beta.assign(beta)
    assert tfprune.compact(model).get_layer("block1_a_conv").filters == 6


def test_masks_none_needs_every_maker_of_a_stream_to_be_zero(make_residual):
    model = checker.randomize(make_residual(8))
    for name in ("stem_bn", "block1_b_bn"):
        layer = model.get_layer(name)
        for variable in (layer.gamma, layer.beta):
            value = variable.numpy()
            value[3] = 0
            if name == "stem_bn":
                value[5] = 0
            variable.assign(value)
    small = tfprune.compact(model)
    assert small.get_layer("stem_conv").filters == 7


def test_masks_none_removes_zero_filters():
    model = two_dense()
    for name, index in (("kernel", (slice(None), 2)), ("bias", 2)):
        variable = getattr(model.get_layer("dense"), name)
        value = variable.numpy()
        value[index] = 0
        variable.assign(value)
    assert tfprune.compact(model).get_layer("dense").units == 3


@pytest.mark.parametrize("activation", ["sigmoid", "softplus", "exponential"])
def test_masks_none_keeps_zero_filters_that_are_not_zero_when_read(activation):
    model = two_dense()
    model.get_layer("dense").activation = keras.activations.get(activation)
    for variable in model.get_layer("dense").variables:
        value = variable.numpy() / 10
        value[..., 2] = 0
        variable.assign(value)
    assert tfprune.compact(model).get_layer("dense").units == 4


def test_masks_none_removes_channels_nobody_reads_with_weight():
    model = two_dense()
    model.get_layer("out").kernel.assign([[1.0], [0.0], [3.0], [0.0]])
    small = tfprune.compact(model)
    assert small.get_layer("dense").bias.numpy().tolist() == [0, 2]


def test_dead_scales_are_seen_through_gates():
    inputs = keras.Input((6,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(8, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.ReLU()(x)))
    for variable in (model.get_layer("bn").gamma, model.get_layer("bn").beta):
        variable.assign(np.arange(8) > 2)
    wrapped = tfprune.prune_wrap(model)
    for each in (model, wrapped, tfprune.strip(wrapped)):
        assert tfprune.compact(each).get_layer("a").units == 5


def test_masks_none_leaves_one_channel_of_a_dead_group():
    model = two_dense()
    for variable in model.get_layer("dense").variables:
        variable.assign(0 * variable)
    assert tfprune.compact(model).get_layer("dense").units == 1


def test_original_is_untouched(pruned):
    model, masks, _ = pruned
    model.compile("adam", "mse")
    before = fingerprint(model)
    tfprune.compact(model, masks)
    tfprune.compact(model)
    assert fingerprint(model) == before


def test_certificate_refuses_a_wrong_model(pruned, monkeypatch):
    model, masks, _ = pruned
    # The package's name `tfprune.surgery.compact` is the function.
    module = sys.modules["tfprune.surgery.compact"]
    right = module.compact_unverified

    def wrong(*args):
        small = right(*args)
        kernel = small.get_layer("block2_b_conv").kernel
        kernel.assign(kernel.numpy()[:, :, ::-1])
        return small

    monkeypatch.setattr(module, "compact_unverified", wrong)
    with pytest.raises(ValueError, match="does not compute"):
        tfprune.compact(model, masks)


def test_error_is_relative_to_the_largest_output():
    one, other = np.array([[0.0, 100.0]]), np.array([[1.0, 100.0]])
    assert certificate.max_relative_error(one, other) == pytest.approx(0.01)
    assert certificate.max_relative_error([one, one], [one, other]) == 0.01
    assert certificate.max_relative_error(one, np.zeros((1, 3))) == np.inf
    assert np.isnan(certificate.max_relative_error(one, one * np.nan))


def test_probes_have_the_structure_of_the_inputs():
    a, b = layers.Input((4,), name="a"), layers.Input((3,), dtype="int32", name="b")
    x = layers.Concatenate()([a, layers.Flatten()(layers.Embedding(9, 2)(b))])
    model = keras.Model({"b": b, "a": a}, layers.Dense(2)(x))
    probes = certificate.probe_inputs(model, batch_size=6)
    assert {k: tuple(v.shape) for k, v in probes.items()} == {"a": (6, 4), "b": (6, 3)}
    again = certificate.probe_inputs(model, batch_size=6)
    assert np.array_equal(probes["a"], again["a"])


def test_save_and_load_of_the_result(pruned, tmp_path):
    model, _, small = pruned
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    inputs = checker.make_inputs(model)
    assert np.array_equal(loaded(inputs), small(inputs))
    assert tfprune.cost(loaded) == tfprune.cost(small)
