"""Gates: they change nothing, close exactly, survive files, and come off again."""

import checker
import keras
import numpy as np
import pytest
from invariants import check_all, fingerprint, random_masks
from keras import layers, ops
from own import Own, register

import tfprune
from tfprune.layers import ChannelGate, ChannelMask, RuntimeGate
from tfprune.surgery import has_gates, set_masks


def gates_of(model) -> list:
    return [x for x in model._flatten_layers() if isinstance(x, ChannelGate)]


def close(model, masks):
    set_masks(tfprune.Graph(model), masks)
    return model


def difference(one, other, **kwargs):
    inputs = checker.make_inputs(one, **kwargs)
    outputs = (checker.outputs_of(each, inputs) for each in (one, other))
    return checker.relative_error(*outputs)


def hard_normalizations(model, seed=0):
    """Sets scales and shifts that a single gate cannot carry."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            if layer.gamma is not None:
                scale = random.normal(size=size) * 10.0 ** random.integers(-6, 2, size)
                scale[random.random(size) < 0.3] = 0
                layer.gamma.assign(scale)
            if layer.beta is not None:
                shift = random.normal(size=size) * 10.0 ** random.integers(-3, 2, size)
                shift[random.random(size) < 0.2] = 0
                layer.beta.assign(shift)
    return model


@pytest.fixture
def wrapped(make_residual):
    """A residual model, masks, and the wrapped model with gates closed by them."""
    model = checker.randomize(make_residual(8))
    masks = random_masks(tfprune.Graph(model))
    return model, masks, close(tfprune.prune_wrap(model), masks)


def test_gates_sit_where_they_have_to(make_residual, make_vgg):
    residual = tfprune.prune_wrap(make_residual(8))
    assert {g.name for g in gates_of(residual)} == {
        x.name for x in residual.layers if x.name.endswith("_bn")
    }
    vgg = tfprune.prune_wrap(make_vgg())
    assert {g.name for g in gates_of(vgg)} == {"conv1", "conv2"}


def test_gate_on_a_squeeze_convolution_and_on_the_reader_of_a_sigmoid():
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="makes_zero")(inputs)
    x = layers.Conv2D(6, 3, activation="sigmoid", name="makes_half")(x)
    x = layers.Conv2D(4, 3, name="reads")(x)
    model = checker.randomize(keras.Model(inputs, layers.GlobalMaxPooling2D()(x)))
    _, masks, _ = check_all(model)
    gates = {g.name: g for g in gates_of(tfprune.prune_wrap(model))}
    assert gates["makes_zero"].output_mask is not None
    assert [name for name, _ in gates["reads"].input_places] == ["_kernel"]
    assert masks["makes_half"].sum() == 3


@pytest.mark.parametrize(
    "noise", [layers.GaussianNoise, layers.AlphaDropout, layers.GaussianDropout]
)
def test_closed_channels_let_no_noise_through(noise):
    inputs = layers.Input((10,))
    x = layers.Dense(16, activation="relu", name="a")(inputs)
    x = layers.Dense(3, use_bias=False, name="reads")(noise(0.5)(x))
    wrapped = tfprune.prune_wrap(keras.Model(inputs, x))
    has_input_gate = "reads" in {gate.name for gate in gates_of(wrapped)}
    assert has_input_gate == (noise is not layers.GaussianDropout)
    tfprune.set_masks(tfprune.Graph(wrapped), {"a": np.arange(16) < 1})
    reads = wrapped.get_layer("reads")
    kernel = getattr(reads, "layer", reads).kernel
    kernel.assign(kernel * (np.arange(16) > 0)[:, None])
    assert not np.any(wrapped(np.ones((1, 10), "float32"), training=True))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_wrapping_changes_nothing_whatever_the_normalization(scale, center):
    inputs = layers.Input((8, 8, 3))
    x = inputs
    for width in (16, 12):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(scale=scale, center=center)(x)
        x = layers.ReLU()(x)
    x = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x))
    model = hard_normalizations(checker.randomize(keras.Model(inputs, x)))
    wrapped = tfprune.prune_wrap(model)
    assert len(gates_of(wrapped)) == 2
    assert difference(model, wrapped) < 1e-5
    assert difference(model, tfprune.strip(wrapped)) < 1e-5


def test_layout_of_the_variables():
    """gate = gamma where |beta / gamma| <= 10, else gate 1 and base gamma."""
    model = keras.Sequential([layers.Input((2, 2, 1)), layers.Conv2D(4, 1)])
    model.add(layers.BatchNormalization(name="bn"))
    model.add(layers.Conv2D(2, 1))
    normalization = model.get_layer("bn")
    normalization.gamma.assign([2.0, -0.5, 0.0, -0.1])
    normalization.beta.assign([4.0, 1.0, 3.0, 2.0])
    wrapped = tfprune.prune_wrap(model)
    assert difference(model, wrapped) < 1e-6
    (gate,) = gates_of(wrapped)
    assert gate.layer.gamma.numpy().tolist() == [2.0, -0.5, 1.0, 1.0]
    np.testing.assert_allclose(gate.base.numpy(), [1.0, 1.0, 0.0, -0.1])
    np.testing.assert_allclose(gate.layer.beta.numpy(), [2.0, -2.0, 3.0, 2.0])
    assert gate.layer.gamma.trainable and not gate.base.trainable
    assert gate.output_mask.mask.dtype == "bool"


def test_closed_gates_are_apply_masks(wrapped):
    model, masks, closed = wrapped
    assert difference(tfprune.apply_masks(model, masks), closed) < 1e-5
    assert tfprune.read_masks(closed) == masks
    assert difference(model, closed) > 1e-3


def test_closed_gates_stay_closed_whatever_biases_training_finds():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3)(inputs))
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.ReLU()(x))
    x = layers.Conv2D(5, 1)(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    wrapped = tfprune.prune_wrap(model)
    for each in (model, wrapped):
        layer = each.get_layer("depthwise")
        getattr(layer, "layer", layer).bias.assign(np.ones(8))
    masks = random_masks(tfprune.Graph(model))
    closed = close(wrapped, masks)
    assert difference(tfprune.apply_masks(model, masks), closed) < 1e-5


@register
class FilterResponse(Own):
    """x / root mean square of each map * scale + shift, the shift zero at first."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.shift = self.add_weight(shape=(shape[-1],), initializer="zeros")

    def call(self, x):
        square = ops.mean(ops.square(x), axis=(1, 2), keepdims=True)
        return x * ops.rsqrt(square + 1e-6) * self.scale + self.shift


def test_closed_gates_stay_closed_whatever_shifts_training_finds():
    x = inputs = keras.Input((8, 8, 3))
    for name in "ab":
        x = FilterResponse(name=f"norm_{name}")(layers.Conv2D(8, 3, name=name)(x))
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    wrapped = tfprune.prune_wrap(model)
    for each in (model, wrapped):
        for name in "ab":
            each.get_layer(f"norm_{name}").shift.assign(np.ones(8))
    masks = random_masks(tfprune.Graph(model))
    closed = close(wrapped, masks)
    assert difference(tfprune.apply_masks(model, masks), closed) < 1e-5
    assert tfprune.read_masks(closed) == masks
    assert tfprune.cost(tfprune.compact(closed)) == tfprune.cost(model, masks)


@pytest.mark.parametrize("steps", [8, 6])
def test_scales_along_another_axis_are_no_gates(steps):
    inputs = keras.Input((steps, 3))
    x = layers.Dense(8, name="made")(inputs)
    norm = layers.BatchNormalization(axis=1, name="norm")
    x = layers.GlobalMaxPooling1D()(norm(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    # A step that is zero is no channel that is.
    norm.gamma.assign(np.arange(steps) > 0)
    assert tfprune.read_masks(model)["made"].all()
    wrapped = tfprune.prune_wrap(model)
    assert "norm" not in [each.name for each in gates_of(wrapped)]
    masks = random_masks(tfprune.Graph(model))
    closed = close(wrapped, masks)
    assert difference(tfprune.apply_masks(model, masks), closed) < 1e-5
    assert tfprune.cost(tfprune.compact(closed)) == tfprune.cost(model, masks)


def test_a_layer_over_steps_has_no_gate_of_channels():
    inputs = keras.Input((6, 5))
    x = layers.Permute((2, 1))(layers.Dense(8, "sigmoid", name="made")(inputs))
    x = layers.Flatten()(layers.Dense(1, name="over_steps")(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    wrapped = tfprune.prune_wrap(model)
    assert difference(model, wrapped) < 1e-5
    masks = random_masks(tfprune.Graph(model))
    closed = close(wrapped, masks)
    assert difference(tfprune.apply_masks(model, masks), closed) < 1e-5


def test_coupled_gates_share_one_mask(wrapped):
    _, _, closed = wrapped
    gates = {g.name: g for g in gates_of(closed)}
    assert gates["stem_bn"].output_mask is gates["block1_b_bn"].output_mask
    assert gates["stem_bn"].output_mask is not gates["block1_a_bn"].output_mask


def test_save_and_load_keeps_values_and_sharing(wrapped, tmp_path):
    model, masks, closed = wrapped
    closed.save(tmp_path / "closed.keras")
    loaded = keras.models.load_model(tmp_path / "closed.keras")
    inputs = checker.make_inputs(model)
    assert np.array_equal(closed(inputs), loaded(inputs))
    assert tfprune.read_masks(loaded) == masks
    order = [[tuple(v.shape) for v in m.variables] for m in (closed, loaded)]
    assert order[0] == order[1]
    pattern = [
        [one.output_mask is other.output_mask for one in gates_of(each)]
        for each in (closed, loaded)
        for other in gates_of(each)
    ]
    assert pattern[: len(pattern) // 2] == pattern[len(pattern) // 2 :]
    # One mask, not two with the same values: opening all by hand reaches everything.
    close(loaded, {})
    assert difference(model, loaded) < 1e-5
    again = tmp_path / "again.keras"
    loaded.save(again)
    assert len(keras.models.load_model(again).variables) == len(closed.variables)


def test_clone_and_weights_file_round_trip(wrapped, tmp_path):
    model, masks, closed = wrapped
    closed.save_weights(tmp_path / "closed.weights.h5")
    fresh = tfprune.prune_wrap(model)
    fresh.load_weights(tmp_path / "closed.weights.h5")
    assert tfprune.read_masks(fresh) == masks
    inputs = checker.make_inputs(model)
    assert np.array_equal(closed(inputs), fresh(inputs))


def test_names_groups_and_costs_stay(wrapped):
    model, masks, closed = wrapped
    assert [x.name for x in closed.layers] == [x.name for x in model.layers]
    one, other = tfprune.Graph(model), tfprune.Graph(closed)
    assert one.layers == other.layers
    assert [g.layers for g in one.groups] == [g.layers for g in other.groups]
    assert tfprune.cost(one, masks) == tfprune.cost(other, masks)


def test_training_moves_gates_and_closed_channels_stay_closed(wrapped, images):
    _, masks, closed = wrapped
    closed.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    gate = gates_of(closed)[0]
    before, base = gate.layer.gamma.numpy(), gate.base.numpy()
    closed.fit(*images, epochs=2, batch_size=8, verbose=0)
    assert not np.array_equal(gate.layer.gamma.numpy(), before)
    assert np.array_equal(gate.base.numpy(), base)
    assert tfprune.read_masks(closed) == masks
    small = tfprune.compact(closed)
    assert difference(closed, small) < 1e-5
    assert tfprune.cost(small) == tfprune.cost(closed, masks)
    assert difference(closed, tfprune.strip(closed)) < 1e-5


def test_statistics_are_gathered_as_in_the_plain_model(wrapped):
    model, _, _ = wrapped
    opened = tfprune.prune_wrap(model)
    inputs = checker.make_inputs(model, batch_size=8)
    outputs = [m(inputs, training=True).numpy() for m in (model, opened)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    one, other = (m.get_layer("stem_bn") for m in (model, opened))
    np.testing.assert_allclose(
        one.moving_mean.numpy(), other.layer.moving_mean.numpy(), rtol=1e-5
    )


def test_training_from_a_file_goes_on_alike(wrapped, images, tmp_path):
    _, masks, closed = wrapped
    closed.compile(keras.optimizers.SGD(0.01), "mse")
    closed.save(tmp_path / "closed.keras")
    loaded = keras.models.load_model(tmp_path / "closed.keras")
    x, y = images
    for each in (closed, loaded):
        each.fit(x, np.eye(3)[y], shuffle=False, batch_size=8, verbose=0)
    assert tfprune.read_masks(loaded) == masks
    for one, other in zip(closed.variables, loaded.variables, strict=True):
        assert np.array_equal(one.numpy(), other.numpy()), one.path


def test_strip_of_a_model_without_gates_is_a_copy(make_residual):
    model = checker.randomize(make_residual(8))
    stripped = tfprune.strip(model)
    assert stripped is not model and not has_gates(stripped)
    inputs = checker.make_inputs(model)
    assert np.array_equal(stripped(inputs), model(inputs))


def test_strip_removes_the_constraints_that_held_zeros(wrapped):
    model, masks, _ = wrapped
    stripped = tfprune.strip(tfprune.apply_masks(model, masks))
    assert all(v.constraint is None for v in stripped.variables)
    assert tfprune.read_masks(stripped) == masks


def test_strip_is_plain_keras_in_config_too(wrapped, tmp_path):
    model, _, closed = wrapped
    stripped = tfprune.strip(closed)
    assert "tfprune" not in stripped.to_json()
    assert [type(x) for x in stripped.layers] == [type(x) for x in model.layers]
    assert difference(closed, stripped) < 1e-5


def test_strip_of_open_gates_gives_the_same_layers(make_vgg):
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(scale=False),
            layers.Conv2D(8, 3, name="b"),
        ]
    )
    checker.randomize(model)
    stripped = tfprune.strip(tfprune.prune_wrap(model))
    assert [v.shape for v in stripped.variables] == [v.shape for v in model.variables]


@pytest.mark.parametrize(
    "patterns", [["block1_*"], "*_bn", ["stem_conv", "block2_a_bn"]]
)
def test_layers_restricts_the_gates(make_residual, patterns):
    model = checker.randomize(make_residual(8))
    wrapped = tfprune.prune_wrap(model, layers=patterns)
    assert 0 < len(gates_of(wrapped)) < 14
    assert difference(model, wrapped) < 1e-5
    if patterns == ["block1_*"]:
        assert all(g.name.startswith("block1_") for g in gates_of(wrapped))


def test_custom_gate_class_is_used(make_residual):
    class MyGate(ChannelGate):
        pass

    wrapped = tfprune.prune_wrap(make_residual(8), MyGate)
    assert gates_of(wrapped) and all(type(g) is MyGate for g in gates_of(wrapped))


def test_custom_gate_callable_gets_built_layers(make_residual):
    seen = []

    def gate(layer):
        seen.append(layer.built)
        return ChannelGate(layer)

    wrapped = tfprune.prune_wrap(make_residual(8), gate)
    assert seen and all(seen) and has_gates(wrapped)


def test_original_is_untouched(make_residual):
    model = checker.randomize(make_residual(8))
    before = fingerprint(model)
    closed = close(tfprune.prune_wrap(model), random_masks(tfprune.Graph(model)))
    tfprune.strip(closed)
    assert fingerprint(model) == before
    wrapped_before = fingerprint(closed)
    tfprune.strip(closed)
    tfprune.compact(closed)
    tfprune.read_masks(closed)
    tfprune.apply_masks(closed, random_masks(tfprune.Graph(closed), seed=3))
    assert fingerprint(closed) == wrapped_before


def test_nested_and_tied_layers_get_one_gate():
    inner = keras.Sequential([layers.Input((8, 8, 3))], name="inner")
    inner.add(layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv"))
    inner.add(layers.BatchNormalization(name="bn"))
    a, b = layers.Input((8, 8, 3)), layers.Input((8, 8, 3))
    x = layers.Subtract()([inner(a), inner(b)])
    x = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    model = checker.randomize(keras.Model([a, b], x))
    check_all(model)
    wrapped = tfprune.prune_wrap(model)
    assert len(gates_of(wrapped)) == 1
    assert isinstance(wrapped.get_layer("inner").get_layer("bn"), ChannelGate)


def test_frozen_gates_stay_frozen(make_residual):
    model = checker.randomize(make_residual(8))
    model.get_layer("stem_bn").trainable = False
    wrapped = tfprune.prune_wrap(model)
    assert not wrapped.get_layer("stem_bn").trainable_variables
    assert len(wrapped.trainable_variables) == len(model.trainable_variables)
    assert tfprune.strip(wrapped).get_layer("stem_bn").trainable is False


# Errors -------------------------------------------------------------------------


def test_a_second_wrapping_is_refused(wrapped):
    with pytest.raises(ValueError, match="has gates already"):
        tfprune.prune_wrap(wrapped[2])


def test_unknown_arguments_list_the_gates_own(make_residual):
    with pytest.raises(ValueError, match="no argument `keep_ratio`"):
        tfprune.prune_wrap(make_residual(8), ChannelGate, keep_ratio=0.5)


def test_gates_of_ones_own_name_their_arguments_as_they_like(make_residual):
    class Own(ChannelGate):
        def __init__(self, layer, kind="soft", total=1, **kwargs):
            super().__init__(layer, **kwargs)
            self.kind = kind

    wrapped = tfprune.prune_wrap(make_residual(8), Own, kind="hard", total=2)
    assert wrapped.get_layer("stem_bn").kind == "hard"
    with pytest.raises(ValueError, match="no argument `kin`. Its .* are: kind, total."):
        tfprune.prune_wrap(make_residual(8), Own, kin="hard")


@pytest.mark.parametrize("wrong", ["keep_ration", "number", "policy"])
def test_arguments_of_runtime_gates_are_listed_too(make_residual, wrong):
    own = "keep_ratio, runtime_ratio, block, selection, rectify, agent, .*, groups"
    with pytest.raises(ValueError, match=f"no argument `{wrong}`.* are: {own}"):
        tfprune.prune_wrap(make_residual(8), RuntimeGate, **{wrong: 1})


def test_unknown_path_is_refused(make_residual):
    with pytest.raises(ValueError, match="'stage9/\\*' matches no layer"):
        tfprune.prune_wrap(make_residual(8), layers=["stage9/*"])


def test_nothing_to_gate_is_refused():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="no channels that can be pruned"):
        tfprune.prune_wrap(model)


def test_gate_that_is_none_is_refused(make_residual):
    with pytest.raises(ValueError, match="`gate` must be"):
        tfprune.prune_wrap(make_residual(8), gate=3)


def test_mask_knows_its_size():
    assert ChannelMask(3).mask.numpy().tolist() == [True] * 3


def test_masked_weights_are_stripped_to_plain_zeros():
    """A negative zero takes as many bytes in a sparse file as any other number."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.layers[0].kernel.assign(-np.ones((3, 4)))
    for gate in (tfprune.layers.TrainableMask, tfprune.layers.WeightMask):
        wrapped = tfprune.prune_wrap(model, gate)
        wrapped.layers[0].set_mask(0, np.eye(3, 4, dtype=bool))
        kernel = tfprune.strip(wrapped).layers[0].kernel.numpy()
        np.testing.assert_array_equal(kernel, -np.eye(3, 4))
        assert not np.signbit(kernel[~np.eye(3, 4, dtype=bool)]).any()


def test_gates_around_layers_that_were_quantized_are_refused():
    model = keras.Sequential([layers.Input((8,)), layers.Dense(6), layers.Dense(3)])
    gated = tfprune.prune_wrap(model)
    gated.quantize("int8")
    for leave in (tfprune.strip, tfprune.compact):
        with pytest.raises(
            ValueError, match="inside its gate.*quantized .int8..*first"
        ):
            leave(gated)
    lora = tfprune.prune_wrap(model, tfprune.layers.WeightMask)
    lora.layers[0].layer.enable_lora(2)
    for each in (gated, lora):
        with pytest.raises(ValueError, match="was changed inside its gate"):
            each(np.ones((1, 8)))
