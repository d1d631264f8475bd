"""What a model is judged by: its first metric, such that more of it is better."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfprune import evaluating, sensitivities, sensitivity


def in_percent(y, y_pred):
    return keras.ops.mean(keras.ops.abs(y - y_pred)) * 100


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    return random.normal(size=(20, 4)).astype("float32"), np.ones((20, 2), "float32")


def linear(**settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2, name="a")])
    model.compile("sgd", "mse", **settings)
    return model


def scored(model, data):
    twin = type(model).from_config(model.get_config())
    twin.set_weights(model.get_weights())
    found = evaluating.evaluate(twin, model, data)
    return evaluating.score(twin, found), model.evaluate(
        data[0], data[1], verbose=0, return_dict=True
    )


@pytest.mark.parametrize(
    ("metrics", "name", "source"),
    [
        # Not in the order of the alphabet, in which Keras returns them.
        (["r2_score", "mae"], "r2_score", "r2_score"),
        (["mse", "mae"], "-mse", "mse"),
        (["mae", "r2_score"], "-mae", "mae"),
        ([keras.metrics.RootMeanSquaredError("error")], "-error", "error"),
        ([keras.metrics.F1Score(name="f1")], "f1", "f1"),
        ([keras.metrics.MeanMetricWrapper(lambda y, p: y - p), "mae"], "-mae", "mae"),
        # Nobody knows which is better of a function.
        ([in_percent, "mae"], "-mae", "mae"),
        ([in_percent], "-loss", "loss"),
        (None, "-loss", "loss"),
    ],
)
def test_first_metric_of_known_direction(data, metrics, name, source):
    if metrics is not None:
        metrics = [keras.metrics.R2Score() if m == "r2_score" else m for m in metrics]
    (named, value), found = scored(linear(metrics=metrics), data)
    assert named == name
    sign = -1 if name.startswith("-") else 1
    assert value == pytest.approx(sign * np.mean(found[source]), rel=1e-5)


def test_several_outputs_are_judged_by_their_whole_loss(data):
    x, y = data
    inputs = layers.Input((4,))
    outputs = {name: layers.Dense(2, name=name)(inputs) for name in ("a", "b")}
    model = keras.Model(inputs, outputs)
    weights = {"a": 0.1, "b": 3.0}
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights=weights)
    (name, value), found = scored(model, (x, {"a": y, "b": 2 * y}))
    assert name == "-loss"
    assert value == pytest.approx(-found["loss"], rel=1e-5)


def test_weighted_metrics_and_sample_weights(data):
    x, y = data
    weights = np.linspace(0, 1, len(x)).astype("float32")
    model = linear(weighted_metrics=["mae"])
    twin = linear(weighted_metrics=["mae"])
    found = evaluating.evaluate(twin, model, (x, y, weights))
    expected = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert evaluating.score(twin, found) == ("-mae", pytest.approx(-expected["mae"]))


@pytest.mark.parametrize("tails", [False, True])
def test_sensitivity_loses_where_the_error_grows(data, tails, monkeypatch):
    monkeypatch.setattr(sensitivities, "_WORTH_TAILS", -1 if tails else 1e9)
    x, y = data
    model = linear(metrics=[in_percent, "mae"])
    weights = np.linspace(0, 1, len(x)).astype("float32")
    data = (x, model.predict(x, verbose=0), weights)
    found = sensitivity(model, data, (0.5,))
    assert found.metric == "-mae" and found.dense == pytest.approx(0, abs=1e-6)
    assert found.drops(0.5)["a/kernel"] > 0.01


def test_parts_of_models_see_all_batches(data, monkeypatch):
    """Sensitivity took the last batch for the whole where it was evaluated in parts."""
    x, y = data
    model = linear(metrics=["mae"])
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
    found = []
    for least in (-1, 1e9):
        monkeypatch.setattr(sensitivities, "_WORTH_TAILS", least)
        found.append(sensitivity(model, batches, (0.5,)).scores["a/kernel"])
    np.testing.assert_allclose(*found, rtol=1e-5)
