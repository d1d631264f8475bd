"""ReleaseScales: scales stand still once enough are at zero; Preflight on pushes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfprune
from tfprune import Budget
from tfprune.callbacks import Preflight, ReleaseScales, TickTock
from tfprune.regularizers import HoyerSquare, NetworkSlimming, Polarization

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BUDGET = Budget(flops_reduction=0.3)


def make(regularizer=None, learning_rate=0.1, optimizer=None):
    keras.utils.set_random_seed(0)
    x = inputs = layers.Input((8, 8, 3))
    for width in (12, 12, 12):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        half = keras.initializers.Constant(0.5)
        x = layers.ReLU()(layers.BatchNormalization(gamma_initializer=half)(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    if regularizer is not None:
        model = tfprune.regularize(model, regularizer)
    model.compile(optimizer or keras.optimizers.SGD(learning_rate, momentum=0.9), LOSS)
    return model


def scales(model):
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    return np.concatenate([norm.gamma.numpy() for norm in norms])


class Watched(keras.callbacks.Callback):
    """Records the scales and a kernel after every epoch."""

    def on_train_begin(self, logs=None):
        self.scales, self.kernels, self.reductions = [], [], []

    def on_epoch_end(self, epoch, logs=None):
        self.scales.append(scales(self.model))
        self.kernels.append(self.model.layers[1].kernel.numpy())
        self.reductions.append(logs["flops_reduction"])


def train(model, images, *callbacks, epochs=8, **arguments):
    x, y = images
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **arguments)


STRONG = Polarization(1.2, 0.03)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_scales_stand_still_once_the_budget_is_met(images, jit_compile):
    model, watched = make(STRONG), Watched()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), LOSS, jit_compile=jit_compile
    )
    train(model, images, ReleaseScales(BUDGET), watched)
    met = [n for n, each in enumerate(watched.reductions) if each >= 0.3]
    first = met[0]
    assert 0 < first < 6
    for before, after in zip(
        watched.scales[first:], watched.scales[first + 1 :], strict=False
    ):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(watched.scales[0], watched.scales[1])
    assert not np.array_equal(watched.kernels[first], watched.kernels[-1])
    # The masks that were counted are those to compact with.
    masks = tfprune.select(tfprune.Graph(model), "scale", threshold="valley")
    small = tfprune.compact(model, masks)
    reduction = 1 - tfprune.cost(small).macs / tfprune.cost(model).macs
    assert reduction == pytest.approx(watched.reductions[-1])
    assert all(variable.trainable for variable in model.trainable_variables)
    assert len(model.trainable_variables) == 11


@pytest.mark.parametrize("epoch", [2, 6])
def test_resumed_it_goes_on_as_if_never_stopped(images, tmp_path, epoch):
    whole, halved = make(STRONG), make(STRONG)
    train(whole, images, ReleaseScales(BUDGET))
    train(halved, images, ReleaseScales(Budget(flops_reduction=0.3)), epochs=epoch)
    halved.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    train(resumed, images, ReleaseScales(BUDGET), initial_epoch=epoch)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_not_met_is_said(images):
    with pytest.warns(UserWarning, match="The scales were never released"):
        train(make(Polarization(1.2, 1e-6)), images, ReleaseScales(BUDGET), epochs=1)


def test_a_mistyped_threshold_is_found_before_the_training():
    with pytest.raises(ValueError, match="`threshold` must be a float, one of"):
        ReleaseScales(BUDGET, "valey")


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_of_m": (2, 4)},
        {"sparsity": 0.3, "multiple_of": 8},
        {"flops_reduction": 0.3, "max_sparsity": 0.9},
        {"params_reduction": 0.3, "min_channels": 2},
    ],
)
def test_a_budget_that_a_threshold_cannot_heed_is_refused(arguments):
    with pytest.raises(ValueError, match="`sparsity` alone"):
        ReleaseScales(Budget(**arguments))


def test_an_optimizer_that_averages_weights_is_refused(images):
    model = make(STRONG, optimizer=keras.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(ValueError, match="Leave `use_ema` out"):
        train(model, images, ReleaseScales(BUDGET))


def test_all_scales_that_the_threshold_looks_at_stand_still(images):
    first = "batch_normalization"
    model = tfprune.regularize(make(), NetworkSlimming(1e-3), layers=[first])
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    for norm in norms:
        norm.gamma.assign(np.r_[np.zeros(6), np.ones(6)])
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    before = scales(model)
    # Resumed, it finds the budget met at once.
    train(model, images, ReleaseScales(BUDGET), epochs=2, initial_epoch=1)
    np.testing.assert_array_equal(scales(model), before)
    assert all(norm.gamma.trainable for norm in norms)


def test_a_model_without_a_regularizer(images):
    with pytest.raises(ValueError, match="`ReleaseScales` waits for a regularizer"):
        train(make(), images, ReleaseScales(BUDGET))


# Preflight ---------------------------------------------------------------------------


def test_a_strength_that_cannot_polarize_is_said(images, capsys):
    # 8 steps of 0.1 and momentum 0.9 push by 8 times the strength times t + 1.
    match = (
        "strength=0.01 moves scales by about 0.088 in this run, and their mean is 0.5"
    )
    with pytest.warns(UserWarning, match=match):
        train(make(Polarization(0.1, 0.01)), images, Preflight(), epochs=2)
    printed = capsys.readouterr().out
    assert "Polarization(strength=0.01, t=0.1, upper=1.0): over 36 scales" in printed
    assert "moves them by up to about 0.088" in printed


@pytest.mark.filterwarnings("error::UserWarning:tfprune")
@pytest.mark.parametrize(
    ("regularizer", "optimizer"),
    [
        (Polarization(1.2, 0.1), None),
        (NetworkSlimming(0.1), None),
        (HoyerSquare(1e-9), None),
        (Polarization(1.2, 1e-9), keras.optimizers.Adam),
        (Polarization(1.2, 0.0), None),
    ],
)
def test_others_are_not(images, regularizer, optimizer, recwarn):
    model = make(regularizer, optimizer=optimizer and optimizer())
    train(model, images, Preflight(verbose=0), epochs=2)
    assert not [w for w in recwarn if "moves scales" in str(w.message)]
    assert not [w for w in recwarn if "found no tfprune" in str(w.message)]


def test_a_schedule_counts(images):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 8, 0.0)
    model = make(NetworkSlimming(0.1))
    model.compile(keras.optimizers.SGD(schedule), LOSS)
    with pytest.warns(UserWarning, match="moves scales by about 0.045"):
        train(model, images, Preflight(verbose=0), epochs=2)


@pytest.mark.parametrize("is_first", [False, True])
def test_terms_are_seen_beside_the_l1_of_tick_tock(images, capsys, is_first):
    gated = tfprune.prune_wrap(make(Polarization(1.2, 0.1)))
    gated.compile("sgd", LOSS)
    data = tf.data.Dataset.from_tensor_slices(images).batch(8)
    callbacks = [TickTock(data, Budget(sparsity=0.1), cycle=(1, 1)), Preflight()]
    gated.fit(data, epochs=2, verbose=0, callbacks=callbacks[:: -1 if is_first else 1])
    assert "over 36 scales of 3 layers" in capsys.readouterr().out


def test_a_frozen_scale_is_refused(images):
    model = make(Polarization(1.2, 0.1))
    model.layers[-4].trainable = False
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="3 layers, and 2 of them train"):
        train(model, images, Preflight())
