"""The loss of a batch: right, and without a trace on what `fit` shows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tfprune.callbacks import MaskTraining, PruneToBudget
from tfprune.layers import TrainableMask
from tfprune.losses import loss_of

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = {"a": X[:, :2], "b": X[:, :1]}
FAR = {"a": Y["a"], "b": Y["b"] + 100}


def two_outputs():
    x = keras.Input((6,))
    hidden = layers.Dense(8, "relu", name="hidden")(x)
    return keras.Model(
        x, {k: layers.Dense(y.shape[1], name=k)(hidden) for k, y in Y.items()}
    )


def compiled(model):
    loss = {"a": "mse", "b": "mse"}
    weights = {"a": 1.0, "b": 0.5}
    model.compile(keras.optimizers.SGD(1e-6), loss, loss_weights=weights)
    return model


def batches(y):
    return tf.data.Dataset.from_tensor_slices((X, y)).batch(8)


def test_loss_of_a_batch():
    model = compiled(two_outputs())
    whole = model.evaluate(X, Y, batch_size=32, verbose=0, return_dict=True)
    model.reset_metrics()
    y_pred = model(X)
    assert float(loss_of(model, X, Y, y_pred)) == pytest.approx(whole["loss"], rel=1e-5)
    assert all(float(v) == 0 for metric in model.metrics for v in metric.variables)
    # And they go on as they did.
    assert model.evaluate(X, Y, verbose=0, return_dict=True)["b_loss"] > 0


def test_compute_loss_of_an_older_kind():
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return keras.ops.sum(y_pred["a"])

    plain = two_outputs()
    model = compiled(Own(plain.inputs, plain.output))
    y_pred = model(X)
    assert float(loss_of(model, X, Y, y_pred)) == float(tf.reduce_sum(y_pred["a"]))


def masks():
    model = compiled(tfprune.prune_wrap(two_outputs(), TrainableMask))
    return model, MaskTraining(batches(FAR), learning_rate=1e-6)


def taylor():
    model = compiled(tfprune.prune_wrap(two_outputs()))
    once = tfprune.schedules.OneShot(1)
    budget = tfprune.Budget(flops_reduction=0.1)
    return model, PruneToBudget("taylor", budget, once, data=batches(FAR))


@pytest.mark.parametrize("make", [masks, taylor])
def test_fit_shows_the_losses_of_its_own_data(make):
    model, callback = make()
    history = model.fit(batches(Y), verbose=0, callbacks=[callback]).history
    # Those of data that are far away are ten thousand times as large.
    assert 0 < history["b_loss"][0] < 100
