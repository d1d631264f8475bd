"""`Preflight`: what it prints, and what it refuses before the first step."""

import warnings

import keras
import numpy as np
import pytest

from tfprune.budget import Budget
from tfprune.callbacks import Preflight, PruneToBudget, Snapshots
from tfprune.costs import cost
from tfprune.graph import Graph
from tfprune.schedules import Periodic
from tfprune.surgery import prune_wrap, read_masks

HALF = Budget(flops_reduction=0.5)


@keras.saving.register_keras_serializable("tests")
class Mystery(keras.layers.Layer):
    """Mixes its channels, which no rule describes: what feeds it stays whole."""

    def call(self, inputs):
        return keras.ops.cumsum(inputs, axis=-1)


@pytest.fixture
def model(make_vgg):
    model = prune_wrap(make_vgg())
    model.compile("sgd", "mse")
    return model


def train(model, images, *callbacks, epochs=2):
    x, y = images
    targets = keras.utils.to_categorical(y, 3)
    model.fit(x, targets, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize("is_first", [True, False])
def test_says_when_and_what(model, images, capsys, is_first):
    prune = PruneToBudget("magnitude", HALF, Periodic(4, 1.0, frequency=4))
    callbacks = [prune, Preflight()]
    train(model, images, *(callbacks if is_first else callbacks[::-1]))
    printed = capsys.readouterr().out
    assert "Periodic(begin=4, end=1.0, frequency=4)" in printed
    assert "updates: 3, the first after step 8, the last after step 16 of 16" in printed
    assert "flops_reduction=0.5" in printed
    assert printed.count("PruneToBudget") == 1


def test_forecast_is_what_the_budget_removes(model, images, capsys):
    train(model, images, PruneToBudget("magnitude", HALF), Preflight())
    forecast = capsys.readouterr().out.partition("remove flops_reduction=")[2]
    assert 0.5 <= float(forecast.partition(",")[0]) < 0.6


def test_names_the_layers_it_has_no_rule_for(images, capsys):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="free")(inputs)
    x = keras.layers.Conv2D(4, 3, name="bound")(x)
    x = keras.layers.GlobalAveragePooling2D()(Mystery(name="mystery")(x))
    model = prune_wrap(keras.Model(inputs, keras.layers.Dense(3)(x)))
    model.compile("sgd", "mse")
    train(model, images, PruneToBudget("magnitude", HALF), Preflight())
    assert "kept whole: mystery" in capsys.readouterr().out


def test_quiet(model, images, capsys):
    train(model, images, PruneToBudget("magnitude", HALF), Preflight(verbose=0))
    assert "PruneToBudget" not in capsys.readouterr().out


def test_prints_once_in_every_fit_and_only_of_its_own(model, images, capsys):
    earlier = PruneToBudget("magnitude", HALF, Periodic(0, 99))
    preflight = Preflight()
    with pytest.raises(ValueError, match="does not finish"):
        train(model, images, earlier, preflight)
    for _ in range(2):
        capsys.readouterr()
        train(model, images, PruneToBudget("magnitude", HALF), preflight)
        assert capsys.readouterr().out.count("PruneToBudget") == 1


def test_warns_when_nothing_will_be_pruned(model, images, tmp_path):
    with pytest.warns(UserWarning, match="nothing will be pruned"):
        train(model, images, Preflight())
    snapshots = Snapshots(tmp_path / "{flops_reduction}.keras", 0.5)
    with pytest.warns(UserWarning, match="nothing will be pruned"):
        train(model, images, Preflight(), snapshots)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(model, images, PruneToBudget("magnitude", HALF), Preflight(verbose=0))


def test_frozen_model_is_refused(model, images):
    for layer in model.layers:
        layer.trainable = False
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="All layers of the model are frozen"):
        train(model, images, PruneToBudget("magnitude", HALF), Preflight())


# One process of its own: logical devices are set before TensorFlow runs anything.
def test_distribution_strategies(two_replicas):
    def make():
        hidden = [keras.layers.Conv2D(8, 3), keras.layers.Flatten()]
        outputs = keras.layers.Dense(1)
        return keras.Sequential([keras.Input((5, 5, 1)), *hidden, outputs])

    def fit(model):
        prune = PruneToBudget("magnitude", Budget(flops_reduction=0.5))
        data = np.ones((8, 5, 5, 1), "float32"), np.ones((8, 1), "float32")
        callbacks = [prune, Preflight(verbose=0)]
        model.fit(*data, batch_size=2, epochs=3, verbose=0, callbacks=callbacks)

    def refused(model, words):
        with pytest.raises(ValueError, match=words):
            fit(model)

    inside = r"must be made within `strategy.scope\(\)`"
    outside = prune_wrap(make())
    outside.compile("sgd", "mse")
    with two_replicas.scope():
        refused(outside, inside)
        outside.compile("sgd", "mse")
        model = prune_wrap(make())
        model.compile("sgd", "mse", jit_compile=True)
        refused(model, "`jit_compile=True` does not work on several replicas")
        model.compile("sgd", "mse", jit_compile=False)
    refused(outside, "was made outside")
    fit(model)
    graph = Graph(model)
    assert cost(graph, read_masks(model)).macs <= 0.5 * cost(graph).macs
