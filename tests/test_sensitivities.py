"""`sensitivity`: each layer pruned alone, against doing so by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfprune import Graph, apply_masks, prune_wrap, sensitivities, sensitivity
from tfprune.importances import Magnitude
from tfprune.sensitivities import Sensitivity

SPARSITIES = (0.5, 0.9)


def compiled(model, metrics=("accuracy",)):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=list(metrics))
    return model


def by_hand(model, unit, data):
    """What evaluating a masked copy for every group and fraction says."""
    graph = Graph(model, unit=unit)
    scores = Magnitude()(graph)
    found = {}
    for group in graph.groups:
        order = np.argsort(-scores[group.name], kind="stable")
        found[group.name] = []
        for sparsity in SPARSITIES:
            mask = np.zeros(group.size, bool)
            mask[order[: max(1, int(group.size * (1 - sparsity) + 1e-6))]] = True
            masked = compiled(apply_masks(graph, {group.name: mask}), ())
            found[group.name].append(-masked.evaluate(*data, verbose=0))
    return found


@pytest.mark.parametrize("unit", ["weight", "channel"])
@pytest.mark.parametrize("tails", [False, True])
def test_as_by_hand(make_residual, make_vgg, images, unit, tails, monkeypatch):
    monkeypatch.setattr(sensitivities, "_WORTH_TAILS", -1 if tails else 1e9)
    model = compiled(make_vgg() if unit == "weight" else make_residual(), ())
    before = [w.copy() for w in model.get_weights()]
    found = sensitivity(model, images, SPARSITIES, unit)
    assert found.metric == "-loss" and found.sparsities == SPARSITIES
    assert found.dense == pytest.approx(-model.evaluate(*images, verbose=0), rel=1e-5)
    expected = by_hand(model, unit, images)
    assert list(found.scores) == list(expected)
    for name, own in found.scores.items():
        np.testing.assert_allclose(own, expected[name], rtol=1e-4)
    # Layers differ, and nothing of one is left when the next is tried.
    assert len(np.unique(np.concatenate(list(found.scores.values())))) > 4
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_subclassed_model(images):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = [layers.Conv2D(8, 3, name="conv"), layers.Flatten()]
            self.logits = layers.Dense(3, name="logits")

        def call(self, x):
            for layer in self.inner:
                x = layer(x)
            return self.logits(x)

    model = Net()
    model(images[0])
    functional = compiled(Graph(model).model)
    expected = sensitivity(functional, images, SPARSITIES)
    found = sensitivity(compiled(model), images, SPARSITIES)
    assert found.dense == expected.dense
    assert list(found.scores) == ["conv/kernel", "logits/kernel"]
    for name, own in found.scores.items():
        np.testing.assert_array_equal(own, expected.scores[name])


def test_only_what_lies_behind_a_layer_runs_anew(images, monkeypatch):
    monkeypatch.setattr(sensitivities, "_WORTH_TAILS", -1)

    @keras.saving.register_keras_serializable("sensitivities")
    class Counting(layers.Layer):
        calls = 0

        def call(self, x):
            def count(x):
                Counting.calls += 1
                return x

            y = tf.numpy_function(count, [x], x.dtype)
            y.set_shape(x.shape)
            return y

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="first"),
            Counting(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="second"),
            layers.Dense(3, name="third"),
        ]
    )
    x, y = images
    sensitivity(compiled(model), (x, y), (0.2, 0.4, 0.6))
    # Once dense, three times behind the first layer, once on the way to each other.
    assert Counting.calls == 1 + 3 + 1 + 1


def test_too_much_to_keep_is_evaluated_whole(make_residual, images, monkeypatch):
    model = compiled(make_residual())
    monkeypatch.setattr(sensitivities, "_WORTH_TAILS", -1)
    expected = sensitivity(model, images, (0.9,))
    monkeypatch.setattr(sensitivities, "_MOST_BYTES", 100)
    found = sensitivity(model, images, (0.9,))
    assert found.metric == "accuracy"
    for name in expected.scores:
        np.testing.assert_allclose(found.scores[name], expected.scores[name])


def test_batches_weights_and_gates(make_residual, images):
    x, y = images
    model = compiled(prune_wrap(make_residual()))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    whole, parts = (
        sensitivity(model, each, (0.5,), "channel") for each in ((x, y), data)
    )
    for name in whole.scores:
        np.testing.assert_allclose(whole.scores[name], parts.scores[name])


def test_arrays_in_the_calls_of_a_model(images):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = x + np.arange(4, dtype="float32")
    x = layers.GlobalAveragePooling2D()(x)
    model = compiled(keras.Model(inputs, layers.Dense(3)(x)), ())
    found = sensitivity(model, images, SPARSITIES, "channel")
    expected = by_hand(model, "channel", images)
    np.testing.assert_allclose(found.scores["conv"], expected["conv"], rtol=1e-5)


FOUND = Sensitivity(
    "accuracy",
    0.98,
    (0.5, 0.9),
    {"a": np.array([0.9, 0.5]), "b": np.array([0.97, 0.96]), "c": np.array([0.9, 0.7])},
)
KEPT = {
    name: np.arange(10) < count for name, count in zip("abc", (9, 1, 4), strict=True)
}


@pytest.mark.filterwarnings("error")
def test_layers_that_keep_the_same_agree_with_nothing():
    assert np.isnan(FOUND.agreement(dict.fromkeys("abc", KEPT["a"]), 0.9))


def test_what_is_told(tmp_path):
    drops = FOUND.drops(0.9)
    assert drops == pytest.approx({"a": 0.48, "b": 0.02, "c": 0.28})
    assert FOUND.agreement(KEPT, 0.9) == pytest.approx(1)
    opposite = {**KEPT, "a": KEPT["b"], "b": KEPT["a"]}
    assert FOUND.agreement(opposite, 0.9) == pytest.approx(-1)
    # a and c are equal at 0.5, and share a rank.
    assert FOUND.agreement(KEPT, 0.5) == pytest.approx(0.866, abs=1e-3)
    lines = FOUND.summary(KEPT).splitlines()
    assert lines[0] == "accuracy: 0.9800" and lines[1].split() == [
        "pruned",
        "50%",
        "90%",
    ]
    assert lines[2].split() == ["a", "0.9000", "0.5000", "keeps", "90.00%"]
    assert "keeps" not in FOUND.summary()
    FOUND.plot(tmp_path / "figure.png", KEPT)
    assert (tmp_path / "figure.png").stat().st_size > 5000
    axes, bars = FOUND.plot(masks=KEPT).axes
    assert [line.get_label() for line in axes.lines[:2]] == ["prune 50%", "prune 90%"]
    assert [bar.get_height() for bar in bars.patches] == [0.9, 0.1, 0.4]
    with pytest.raises(ValueError, match="must be one of"):
        FOUND.drops(0.7)


@pytest.mark.parametrize("sparsities", [(), (0.0,), (0.5, 1.0)])
def test_bad_sparsities(make_vgg, images, sparsities):
    with pytest.raises(ValueError, match=r"fractions in \(0, 1\)"):
        sensitivity(compiled(make_vgg()), images, sparsities)


def test_a_model_without_a_loss(make_vgg, images):
    with pytest.raises(ValueError, match="has no loss.*model.compile"):
        sensitivity(make_vgg(), images)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_several_outputs(form, monkeypatch):
    x = hidden = keras.Input((10,))
    hidden = layers.Dense(8, "relu", name="hidden")(x)
    outputs = [layers.Dense(3, name="a")(hidden), layers.Dense(1, name="b")(hidden)]
    targets = [np.arange(64) % 3, np.zeros(64)]
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"]
    if form == "dict":
        outputs, targets, losses = (
            dict(zip("ab", each, strict=True)) for each in (outputs, targets, losses)
        )
    model = keras.Model(x, outputs)
    model.compile(loss=losses)
    data = (np.random.default_rng(0).normal(size=(64, 10)), targets)
    expected = sensitivity(model, data, SPARSITIES)
    monkeypatch.setattr(sensitivities, "_WORTH_TAILS", -1)
    found = sensitivity(model, data, SPARSITIES)
    for name, own in expected.scores.items():
        np.testing.assert_allclose(found.scores[name], own, rtol=1e-5)
