"""apply_masks, set_masks, read_masks: the same shapes, exact zeros that last."""

import checker
import keras
import numpy as np
import pytest
from invariants import fingerprint, random_masks
from keras import layers

import tfprune
from tfprune.surgery import set_masks


@pytest.fixture
def masked(make_residual):
    """A residual model, masks, and the masked model."""
    model = checker.randomize(make_residual(8))
    masks = random_masks(tfprune.Graph(model))
    return model, masks, tfprune.apply_masks(model, masks)


def zeros_of(model) -> list:
    """Where the variables of a model are exactly zero."""
    return [v.numpy() == 0 for v in model.trainable_variables]


def assert_held(before, model):
    """Whether what was zero is zero, although something has changed."""
    for zeros, variable in zip(before, model.trainable_variables, strict=True):
        assert not variable.numpy()[zeros].any(), variable.path


def test_by_eye():
    model = keras.Sequential([layers.Input((2,))])
    model.add(layers.Dense(3, "sigmoid", name="a", kernel_initializer="ones"))
    model.add(layers.BatchNormalization(name="bn"))
    model.add(layers.Dense(2, name="b", kernel_initializer="ones"))
    masks = {"a": np.array([True, False, True])}
    masked = tfprune.apply_masks(model, masks)
    a, bn, b = masked.layers
    assert a.kernel.numpy().tolist() == [[1, 0, 1], [1, 0, 1]]
    assert bn.gamma.numpy().tolist() == [1, 0, 1]
    assert bn.moving_variance.numpy().tolist() == [1, 0, 1]
    assert b.kernel.numpy().tolist() == [[1, 1], [0, 0], [1, 1]]
    assert model.get_layer("a").kernel.numpy().all()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_zeros_hold_in_training(masked, images, optimizer):
    _, masks, model = masked
    zeros = zeros_of(model)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    before = fingerprint(model)["weights"]
    model.fit(*images, epochs=2, batch_size=8, verbose=0)
    assert fingerprint(model)["weights"] != before
    assert_held(zeros, model)
    assert tfprune.read_masks(model) == masks


def test_zeros_hold_at_every_batch(masked, images):
    _, masks, model = masked
    zeros = zeros_of(model)

    class Check(keras.callbacks.Callback):
        seen = 0

        def on_train_batch_end(self, batch, logs=None):
            assert_held(zeros, self.model)
            Check.seen += 1

    model.compile(keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), "mse")
    x, y = images
    model.fit(x, np.eye(3)[y], batch_size=8, verbose=0, callbacks=[Check()])
    assert Check.seen == 4
    assert tfprune.read_masks(model) == masks


def test_zeros_hold_after_save_and_load(masked, images, tmp_path):
    model, masks, masked = masked
    zeros = zeros_of(masked)
    masked.save(tmp_path / "masked.keras")
    loaded = keras.models.load_model(tmp_path / "masked.keras")
    inputs = checker.make_inputs(model)
    assert np.array_equal(loaded(inputs), masked(inputs))
    assert tfprune.read_masks(loaded) == masks
    loaded.compile("adam", "sparse_categorical_crossentropy")
    loaded.fit(*images, epochs=2, batch_size=8, verbose=0)
    assert_held(zeros, loaded)
    assert tfprune.read_masks(loaded) == masks


LAYERS = {
    "conv": lambda: layers.Conv2D(6, 3, name="x"),
    "conv_transpose": lambda: layers.Conv2DTranspose(6, 3, name="x"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="x"),
    "separable": lambda: layers.SeparableConv2D(6, 3, depth_multiplier=2, name="x"),
    "normalization": lambda: layers.BatchNormalization(name="x"),
    "prelu": lambda: layers.PReLU(shared_axes=[1, 2], name="x"),
    "dense": lambda: layers.Dense(6, name="x"),
    "grouped": lambda: layers.Conv2D(8, 3, groups=2, name="x"),
}


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_zeros_hold_in_every_type_of_layer_also_when_saved(kind, images, tmp_path):
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(8, 3, name="a")])
    model.add(LAYERS[kind]())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(3, name="logits"))
    checker.randomize(model)
    masked = tfprune.apply_masks(model, random_masks(tfprune.Graph(model)))
    zeros = zeros_of(masked)
    assert all(v.any() for v in zeros[:-1])
    masked.save(tmp_path / "masked.keras")
    for each in (masked, keras.models.load_model(tmp_path / "masked.keras")):
        each.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        each.fit(*images, batch_size=8, verbose=0)
        assert_held(zeros, each)


def in_both_directions(*args, **kwargs):
    return layers.Bidirectional(layers.LSTM(*args, **kwargs))


def at_every_step(units, **kwargs):
    dense = layers.TimeDistributed(layers.Dense(units, **kwargs))
    return keras.Sequential([dense, layers.GlobalAveragePooling1D()])


RECURRENT = [
    *(layers.LSTM, layers.GRU, layers.SimpleRNN),
    *(in_both_directions, at_every_step),
]


@pytest.mark.parametrize("kind", RECURRENT)
def test_zeros_hold_in_recurrent_layers_also_when_saved(kind, tmp_path):
    # Behind a sigmoid a masked unit is no zero, so gradients would bring it back.
    inputs = layers.Input((5, 4))
    x = layers.Dense(3)(kind(12, activation="sigmoid")(inputs))
    model = checker.randomize(keras.Model(inputs, x))
    masked = tfprune.apply_masks(model, random_masks(tfprune.Graph(model)))
    zeros = zeros_of(masked)
    # Elsewhere than in what is made of it: there other channels have their places.
    for plain in (tfprune.strip(masked), tfprune.compact(masked)):
        assert all(variable.constraint is None for variable in plain.variables)
        assert not any("ZeroSlices" in repr(vars(x)) for x in plain._flatten_layers())
    masked.save(tmp_path / "masked.keras")
    x = np.random.default_rng(0).normal(size=(16, 5, 4))
    for each in (masked, keras.models.load_model(tmp_path / "masked.keras")):
        each.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        each.fit(x, np.arange(16) % 3, batch_size=8, verbose=0)
        assert_held(zeros, each)


def test_own_constraint_still_acts(images):
    inputs = layers.Input((8, 8, 3))
    norm = keras.constraints.UnitNorm(axis=[0, 1, 2])
    x = layers.Conv2D(8, 3, kernel_constraint=norm, name="a")(inputs)
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = checker.randomize(keras.Model(inputs, x))
    masked = tfprune.apply_masks(model, random_masks(tfprune.Graph(model)))
    zeros = zeros_of(masked)
    masked.compile("sgd", "sparse_categorical_crossentropy")
    masked.fit(*images, batch_size=8, verbose=0)
    sums = np.square(masked.get_layer("a").kernel.numpy()).sum((0, 1, 2))
    assert np.allclose(sums[sums > 0], 1, atol=1e-5) and (sums == 0).sum() == 4
    assert_held(zeros, masked)


def test_masking_twice_intersects(masked):
    model, masks, once = masked
    others = random_masks(tfprune.Graph(model), fraction=0.25, seed=7)
    both = tfprune.Masks({k: masks[k] & others[k] for k in masks})
    both = tfprune.Masks({k: m if m.any() else masks[k] for k, m in both.items()})
    twice = tfprune.apply_masks(once, both)
    assert tfprune.read_masks(twice) == both
    for variable in twice.trainable_variables:
        value = variable.numpy()
        if variable.constraint is not None:
            assert np.array_equal(
                variable.constraint(np.ones_like(value)) == 0, value == 0
            )


def test_masks_that_keep_everything_hold_nothing(make_residual):
    model = checker.randomize(make_residual(8))
    masks = {g.name: np.ones(g.size, bool) for g in tfprune.Graph(model).groups}
    masked = tfprune.apply_masks(model, masks)
    assert all(v.constraint is None for v in masked.variables)
    inputs = checker.make_inputs(model)
    assert np.array_equal(masked(inputs), model(inputs))


def test_masked_model_with_gates(masked):
    """Masks on a wrapped model: the gated layers are held as well."""
    model, masks, plain = masked
    wrapped = tfprune.apply_masks(tfprune.prune_wrap(model), masks)
    inputs = checker.make_inputs(model)
    expected, received = (checker.outputs_of(m, inputs) for m in (plain, wrapped))
    assert checker.relative_error(expected, received) < 1e-5
    assert tfprune.read_masks(wrapped) == masks


def test_set_masks_closes_and_opens_again(masked):
    model, masks, plain = masked
    wrapped = tfprune.prune_wrap(model)
    graph = tfprune.Graph(wrapped)
    inputs = checker.make_inputs(model)
    dense = checker.outputs_of(wrapped, inputs)
    set_masks(graph, masks)
    closed = checker.outputs_of(wrapped, inputs)
    assert checker.relative_error(checker.outputs_of(plain, inputs), closed) < 1e-5
    set_masks(graph, {})
    assert np.array_equal(dense, checker.outputs_of(wrapped, inputs))


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_set_masks_needs_gates(make_residual, unit):
    graph = tfprune.Graph(make_residual(4), unit=unit)
    with pytest.raises(ValueError, match="`graph` must be of a model with gates"):
        tfprune.set_masks(graph, {})


@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("layers", [None, ["block1_a_bn", "block1_a_conv"]])
@pytest.mark.parametrize(
    "gate", [tfprune.layers.ChannelGate, tfprune.layers.WeightMask]
)
def test_set_masks_closes_all_or_says_what_has_no_gates(
    make_residual, gate, layers, unit
):
    model = make_residual(4)
    kinds = {"channel": "block1_a_bn", "weight": "block1_a_conv"}
    own = "weight" if gate is tfprune.layers.WeightMask else "channel"
    names = layers if layers is None else [kinds[own]]
    graph = tfprune.Graph(tfprune.prune_wrap(model, gate, names), unit=unit)
    masks = random_masks(graph)
    if unit == own and layers is None:
        set_masks(graph, masks)
        assert tfprune.read_masks(graph) == masks
        return
    before = tfprune.read_masks(graph)
    with pytest.raises(ValueError, match="`masks` must close what has gates only"):
        set_masks(graph, masks)
    assert tfprune.read_masks(graph) == before
    if unit == own:
        own = {k: mask for k, mask in masks.items() if k.startswith("block1_a_conv")}
        set_masks(graph, own)
        (name,) = own
        assert np.array_equal(tfprune.read_masks(graph)[name], own[name])


def test_set_masks_needs_a_graph(make_residual):
    with pytest.raises(ValueError, match="`graph` must be the `tfprune.Graph` of"):
        set_masks(tfprune.prune_wrap(make_residual(4)), {})


def test_read_masks_of_a_dense_model_is_all_true(make_residual):
    model = checker.randomize(make_residual(8))
    assert tfprune.read_masks(model).density() == 1
    assert tfprune.read_masks(tfprune.prune_wrap(model)).density() == 1


def test_original_is_untouched(masked):
    model, masks, _ = masked
    before = fingerprint(model)
    tfprune.apply_masks(model, masks)
    tfprune.read_masks(model)
    assert fingerprint(model) == before


def test_masked_and_trained_model_compacts(masked, images):
    model, masks, masked = masked
    masked.compile("adam", "sparse_categorical_crossentropy")
    masked.fit(*images, batch_size=8, verbose=0)
    small = tfprune.compact(masked)
    inputs = checker.make_inputs(model)
    outputs = [checker.outputs_of(m, inputs) for m in (masked, small)]
    assert checker.relative_error(*outputs) < 1e-5
    assert tfprune.cost(small) == tfprune.cost(model, masks)
