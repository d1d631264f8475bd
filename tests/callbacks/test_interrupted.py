"""A `fit` that an error ends leaves models as one that ends by itself does."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gated import gates_in, small_network
from keras import layers

import tfprune
from tfprune.callbacks import MaskTraining, PolicyTraining, ReleaseScales, TickTock
from tfprune.layers import ChannelGate, RuntimeGate, TrainableMask
from tfprune.regularizers import Polarization

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LITTLE = tfprune.Budget(flops_reduction=0.05)


def batches(shape, broken=False, number=6):
    """Returns data, of which the fourth batch ends a training step with an error."""
    x = np.random.default_rng(0).normal(size=(number, 4, *shape)).astype("float32")
    x[3] = np.nan if broken else x[3]
    y = np.tile(np.arange(4) % 3, (number, 1))
    data = tf.data.Dataset.from_tensor_slices((x, y))
    return data.map(lambda x, y: (tf.debugging.check_numerics(x, "stop"), y))


def interrupted(model, shape, *callbacks, **arguments):
    settings = {"epochs": 3, "verbose": 0, "callbacks": callbacks, **arguments}
    with pytest.raises(tf.errors.InvalidArgumentError, match="stop"):
        model.fit(batches(shape, broken=True), **settings)


def wrapped(*gate, **settings):
    model = tfprune.prune_wrap(small_network(), *gate, **settings)
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    return model


class Fails(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 3:
            raise tf.errors.InvalidArgumentError(None, None, "stop")


@pytest.mark.parametrize("apart", [False, True])
def test_scores_stand_still(apart):
    x = keras.Input((6,))
    y = layers.Dense(3)(layers.Dense(8, "relu")(x))
    model = tfprune.prune_wrap(keras.Model(x, y), TrainableMask)
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    scores = [s for layer in model.layers for s in getattr(layer, "scores", ())]
    held_out = batches((6,)) if apart else None
    interrupted(model, (6,), MaskTraining(held_out, learning_rate=1.0, strength=0.1))
    before = [score.numpy() for score in scores]
    assert not any(score.trainable for score in scores)
    model.fit(batches((6,)), verbose=0)
    for score, value in zip(scores, before, strict=True):
        np.testing.assert_array_equal(score.numpy(), value)


@pytest.mark.parametrize("in_tick", [False, True])
def test_gates_have_no_penalty_left(in_tick):
    model = wrapped(ChannelGate)
    shape = model.input_shape[1:]
    before = {v.path: v.trainable for v in model.variables}
    tick_data = batches(shape, broken=in_tick)
    tick_tock = TickTock(tick_data, LITTLE, share=0.01, cycle=(1, 1), gate_l1=10.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="stop"):
        data = batches(shape, broken=not in_tick)
        model.fit(data, epochs=3, verbose=0, callbacks=[tick_tock])
    assert not model.losses
    assert {v.path: v.trainable for v in model.variables} == before
    assert np.isfinite(model.fit(batches(shape), verbose=0).history["loss"]).all()


@pytest.mark.parametrize("kind", ["masks", "gates", "scales"])
def test_next_fit_undoes_what_an_error_between_steps_has_left(kind):
    if kind == "masks":
        model, callback = wrapped(TrainableMask), MaskTraining(strength=0.1)
    elif kind == "gates":
        model = wrapped(ChannelGate)
        data = batches(model.input_shape[1:])
        callback = TickTock(data, LITTLE, share=0.01, cycle=(1, 1), gate_l1=10.0)
    else:
        model = tfprune.regularize(small_network(), Polarization(1.2, 1e-3))
        model.compile(keras.optimizers.SGD(0.01), LOSS)
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.gamma.assign(np.arange(layer.gamma.shape[0]) % 2)
        callback = ReleaseScales(LITTLE)
    shape = model.input_shape[1:]
    before = {v.path: v.trainable for v in model.variables}
    losses = len(model.losses)
    settings = {"epochs": 3, "initial_epoch": 1, "callbacks": [callback, Fails()]}
    with pytest.raises(tf.errors.InvalidArgumentError, match="stop"):
        model.fit(batches(shape), verbose=0, **settings)
    model.fit(batches(shape), verbose=0)
    assert {v.path: v.trainable for v in model.variables} == before
    assert len(model.losses) == losses
    assert "make_train_function" not in vars(model)


def test_scales_train_again():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3)(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    model = tfprune.regularize(keras.Model(inputs, x), Polarization(1.2, 1e-3))
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    norm = model.layers[2]
    norm.gamma.assign(np.repeat([1.0, 0.0], 4))
    frozen = []
    seen = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: frozen.append(not norm.gamma.trainable)
    )
    callbacks = [ReleaseScales(LITTLE), seen]
    interrupted(model, (8, 8, 3), *callbacks, initial_epoch=1)
    assert frozen == [True] and norm.gamma.trainable
    before = norm.gamma.numpy()
    model.fit(batches((8, 8, 3)), verbose=0)
    assert not np.array_equal(norm.gamma.numpy(), before)


def test_agents_have_a_say_again():
    model = wrapped(RuntimeGate, keep_ratio=0.5)
    shape = model.input_shape[1:]
    gate = gates_in(model)[0]
    warming_up = []
    seen = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda b, logs: warming_up.append(gate.policy.warming_up)
    )
    training = PolicyTraining(batches(shape), warm_up=1)
    interrupted(model, shape, training, seen)
    assert None not in warming_up and gate.policy.warming_up is None
