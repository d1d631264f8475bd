"""scale_width: fewer channels everywhere, new weights, trainable."""

import keras
import numpy as np
import pytest
from keras import layers

import tfprune


def test_every_group_gets_narrower(make_residual):
    model = make_residual(16)
    narrow = tfprune.scale_width(model, 0.5)
    sizes = [group.size for group in tfprune.Graph(model).groups]
    assert [group.size for group in tfprune.Graph(narrow).groups] == [
        size // 2 for size in sizes
    ]
    names = [layer.name for layer in model.layers]
    assert [layer.name for layer in narrow.layers] == names


def test_weights_are_drawn_anew(make_residual):
    model = make_residual(16)
    model.layers[1].kernel.assign(np.zeros(model.layers[1].kernel.shape))
    first, second = (tfprune.scale_width(model, 0.5) for _ in range(2))
    kernels = [m.get_layer("block1_a_conv").kernel.numpy() for m in (first, second)]
    assert not np.array_equal(*kernels)
    # As the initializer says, for the fan of the narrower layer: 9 * 8 and 9 * 8.
    assert kernels[0].std() == pytest.approx(np.sqrt(2 / (72 + 72)), rel=0.15)
    assert first.layers[1].kernel.numpy().any()
    np.testing.assert_array_equal(first.get_layer("stem_bn").gamma, np.ones(8))


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
def test_flops_go_with_the_square_of_the_width(make_residual, target):
    model = make_residual(64)
    width = tfprune.width_for(model, target)
    assert width == pytest.approx(np.sqrt(1 - target), abs=0.03)
    narrow = tfprune.scale_width(model, width)
    reduction = 1 - tfprune.cost(narrow).macs / tfprune.cost(model).macs
    assert target <= reduction < target + 0.02


def test_whole_and_narrowest(make_residual):
    model = make_residual(8)
    assert tfprune.scale_width(model, 1.0).count_params() == model.count_params()
    narrow = tfprune.scale_width(model, 1e-3)
    assert all(group.size == 1 for group in tfprune.Graph(narrow).groups)


def test_multiples():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(64, 3, name="a")(inputs)
    x = layers.Conv2D(24, 3, name="b")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    narrow = tfprune.scale_width(model, 0.7, multiple_of=8)
    # 44.8 to 48; 16.8 to 16, which loses less than a tenth.
    assert narrow.get_layer("a").filters == 48 and narrow.get_layer("b").filters == 16
    narrow = tfprune.scale_width(model, 0.8, multiple_of=8)
    assert narrow.get_layer("b").filters == 24


def test_it_trains_and_is_saved(make_residual, images, tmp_path):
    model = tfprune.scale_width(make_residual(8), 0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(*images, verbose=0)
    model.save(tmp_path / "narrow.keras")
    again = keras.saving.load_model(tmp_path / "narrow.keras")
    x = images[0]
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )


def test_state_without_training_stays():
    inputs = keras.Input((4,))
    normalization = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 9, 16])
    x = layers.Dense(8)(normalization(inputs))
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(3, 2, (64, 4)))
    model = keras.Model(
        inputs, layers.Dense(2)(layers.ReLU()(x)) + 0 * adapted(inputs)[:, :2]
    )
    narrow = tfprune.scale_width(model, 0.5)
    x = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    kept = [layer for layer in narrow.layers if isinstance(layer, layers.Normalization)]
    for layer in kept:
        twin = model.get_layer(layer.name)
        np.testing.assert_allclose(layer(x), twin(x), rtol=1e-6)


@pytest.mark.parametrize("width", [0, 1.1, -0.5, True])
def test_bad_widths(make_residual, width):
    with pytest.raises(ValueError, match=r"`width` must lie in \(0, 1\]"):
        tfprune.scale_width(make_residual(4), width)


@pytest.mark.parametrize("multiple_of", [4, 8])
def test_the_width_for_multiples_meets_the_target(make_residual, multiple_of):
    model = make_residual(16)
    width = tfprune.width_for(model, 0.4, multiple_of)
    small = tfprune.scale_width(model, width, multiple_of)
    assert tfprune.cost(small).macs <= 0.6 * tfprune.cost(model).macs


def test_bad_arguments(make_residual):
    with pytest.raises(ValueError, match="`multiple_of` must be an int of at least 1"):
        tfprune.scale_width(make_residual(4), 0.5, multiple_of=0)
    with pytest.raises(ValueError, match="For 50 % pass 0.5"):
        tfprune.width_for(make_residual(4), 50)


def test_bad_models(make_residual):
    with pytest.raises(ValueError, match="has gates"):
        tfprune.scale_width(tfprune.prune_wrap(make_residual(4)), 0.5)
    with pytest.raises(
        ValueError, match="can meet: at most 0.* multiple_of=1 .* Lower"
    ):
        tfprune.width_for(make_residual(1), 0.99)
    with pytest.raises(ValueError, match="at most 0 .* multiple_of=16 .* Lower either"):
        tfprune.width_for(make_residual(8), 0.2, multiple_of=16)
