"""`TimeDistributed` around a model: its channels are those of any other model."""

import keras
import numpy as np
import pytest
from checker import randomize
from invariants import check_all, random_masks
from keras import layers

import tfprune
from tfprune.callbacks import PruneToBudget
from tfprune.graph.nodes import model_of_steps

SHAPE = (8, 8, 3)


def residual():
    x = inputs = layers.Input(SHAPE)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = y = layers.ReLU()(layers.BatchNormalization(name="stem_bn")(x))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="body")(y)
    y = layers.BatchNormalization(name="body_bn")(y)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([x, y])))
    return keras.Model(inputs, x, name="frames")


def chain():
    parts = [layers.Conv2D(6, 3, activation="relu", name="conv"), layers.Flatten()]
    return keras.Sequential([layers.Input(SHAPE), *parts], name="frames")


def maps():
    x = inputs = layers.Input(SHAPE)
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(x)
    return keras.Model(inputs, layers.MaxPooling2D()(x), name="frames")


def read_out(x):
    return layers.Dense(3, name="logits")(layers.LSTM(6, name="lstm")(x))


def video(frames, steps=4, read_out=read_out):
    inputs = layers.Input((steps, *SHAPE))
    x = layers.TimeDistributed(frames, name="video")(inputs)
    return randomize(keras.Model(inputs, read_out(x)))


def of_maps(x):
    return layers.Dense(3)(layers.GlobalAveragePooling3D()(layers.Conv3D(4, 2)(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: video(residual()),
        lambda: video(chain()),
        lambda: video(maps(), read_out=of_maps),
    ],
    ids=["residual", "sequential", "maps"],
)
def test_channels_go(make):
    model = make()
    graph, _, small = check_all(model)
    assert not graph.skipped and graph.free_channels.share > 0.7
    assert isinstance(small.get_layer("video"), layers.TimeDistributed)
    assert small.count_params() < model.count_params()


def test_open_length():
    model = video(chain(), steps=None)
    graph = tfprune.Graph(model)
    masks = random_masks(graph)
    small, masked = tfprune.compact(graph, masks), tfprune.apply_masks(graph, masks)
    for steps in (1, 3):
        x = np.random.default_rng(0).normal(size=(2, steps, *SHAPE)).astype("float32")
        np.testing.assert_allclose(small(x), masked(x), rtol=1e-5, atol=1e-6)


def test_steps_are_counted():
    frames, whole = residual(), video(residual())
    inputs = layers.Input((4, 8))
    after = keras.Model(inputs, read_out(inputs))
    expected = 4 * tfprune.cost(frames).macs + tfprune.cost(after).macs
    assert tfprune.cost(whole).macs == expected


def test_a_model_of_two_sequences_has_one_width():
    frames = residual()
    inputs = [layers.Input((steps, *SHAPE)) for steps in (3, 4)]
    parts = [layers.TimeDistributed(frames)(x) for x in inputs]
    x = layers.Concatenate(axis=1)(parts)
    _, _, small = check_all(randomize(keras.Model(inputs, read_out(x))))
    first, second = (
        layer.layer
        for layer in small.layers
        if isinstance(layer, layers.TimeDistributed)
    )
    assert first is second


def test_in_training_and_afterwards(tmp_path):
    model = video(residual())
    model.get_layer("video").layer.get_layer("stem").trainable = False
    x = np.random.default_rng(0).normal(size=(6, 4, *SHAPE)).astype("float32")
    gated = tfprune.prune_wrap(model)
    gated.compile("adam", "mse")
    budget = tfprune.Budget(flops_reduction=0.4)
    callbacks = [PruneToBudget("magnitude", budget)]
    gated.fit(x, np.zeros((6, 3)), epochs=4, verbose=0, callbacks=callbacks)
    gated.save(tmp_path / "gated.keras")
    gated = keras.models.load_model(tmp_path / "gated.keras")
    small = tfprune.compact(gated, optimize=True)
    np.testing.assert_allclose(small(x), gated(x), atol=1e-5)
    assert 1 - tfprune.cost(small).macs / tfprune.cost(model).macs >= 0.4
    stem = tfprune.compact(gated).get_layer("video").layer.get_layer("stem")
    assert not stem.trainable


def test_masks_on_its_weights():
    model = video(chain())
    graph = tfprune.Graph(model, unit="weight")
    assert "video/conv/kernel" in graph.kernels
    budget = tfprune.Budget(sparsity=0.5)
    sparse = tfprune.apply_masks(graph, tfprune.select(graph, "magnitude", budget))
    assert tfprune.read_masks(sparse).density() == pytest.approx(0.5, abs=1e-3)
    conv = tfprune.strip(sparse).get_layer("video").layer.get_layer("conv")
    assert (conv.kernel.numpy() == 0).any()


def test_a_model_with_a_call_of_its_own_is_not_what_its_graph_says():
    class Scaled(keras.Model):
        def call(self, x, training=None, mask=None):
            return super().call(x / 255, training=training, mask=mask)

    plain = residual()
    scaled = Scaled(plain.inputs, plain.outputs)
    assert model_of_steps(layers.TimeDistributed(plain)) is plain
    assert model_of_steps(layers.TimeDistributed(scaled)) is None
