"""Regularizers in closed form: values, gradients, what their minima look like."""

import itertools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfprune import regularizers
from tfprune.regularizers import (
    GroupHoyerSquare,
    HoyerSquare,
    NetworkSlimming,
    Polarization,
    push,
    strength_for_push,
)

ALL = [
    Polarization(1.3, 0.5, upper=2.0),
    NetworkSlimming(0.25),
    HoyerSquare(0.125),
    GroupHoyerSquare(0.75),
]


def gradient(regularizer, x):
    x = tf.Variable(np.array(x, "float32"))
    with tf.GradientTape() as tape:
        value = regularizer(tf.convert_to_tensor(x))
    return float(value), tape.gradient(value, x).numpy()


def polarized(scales, t):
    scales = np.asarray(scales, float)
    return np.sum(t * np.abs(scales) - np.abs(scales - scales.mean()))


# Polarization ------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 1.2, 1.5])
def test_polarization_by_hand(t):
    value, slope = gradient(Polarization(t, 1.0), [0.2, 0.4, 0.9])
    assert value == pytest.approx(1.5 * t - 0.8, abs=1e-6)
    np.testing.assert_allclose(slope, [t + 2 / 3, t + 2 / 3, t - 4 / 3], atol=1e-6)
    assert gradient(Polarization(1.2, 1.0), [0, 0, 1, 1])[0] == pytest.approx(0.4)


def test_strength_multiplies():
    weak, strong = (gradient(Polarization(1.2, s), [0.2, 0.9]) for s in (1.0, 3.0))
    assert strong[0] == pytest.approx(3 * weak[0])
    np.testing.assert_allclose(strong[1], 3 * weak[1], rtol=1e-6)


def test_gradients_go_through_the_mean():
    scales = np.random.default_rng(0).uniform(0.01, 1, 50)
    value, slope = gradient(Polarization(1.4, 1.0), scales)
    assert slope.sum() == pytest.approx(50 * 1.4, rel=1e-5)
    # Euler: the term is homogeneous of degree one.
    assert slope @ scales == pytest.approx(value, rel=1e-4)
    share = np.mean(scales > scales.mean())
    below = scales < scales.mean()
    np.testing.assert_allclose(slope[below], 1.4 + 2 * share, rtol=1e-5)
    np.testing.assert_allclose(slope[~below], 1.4 - 2 + 2 * share, rtol=1e-5)


def test_equal_scales_are_all_pulled_down_alike():
    _, slope = gradient(Polarization(1.2, 1e-2), np.full(7, 0.3))
    np.testing.assert_allclose(slope, 1.2e-2, rtol=1e-6)


@pytest.mark.parametrize("t", [-1.0, 0.0, 0.5, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("n", [4, 7, 12])
def test_the_best_corner_of_the_box_is_the_papers(n, t):
    corners = itertools.product([0.0, 1.0], repeat=n)
    regularizer = Polarization(t, 1.0)
    values = {}
    for corner in corners:
        count = int(sum(corner))
        # By symmetry corners with as many ones are equal; one of each is enough.
        if count not in values:
            values[count] = float(regularizer(np.array(corner, "float32")))
    best = min(values.values())
    counts = [count for count, value in values.items() if value < best + 1e-5]
    share = np.clip(0.5 - t / 4, 0, 1)
    assert set(counts) <= {
        int(np.floor(n * share + 1e-9)),
        int(np.floor(n * share)) + 1,
    }


def test_it_is_concave():
    random = np.random.default_rng(1)
    a, b = random.uniform(0, 1, (2, 20, 9))
    regularizer = Polarization(1.3, 1.0)
    for x, y in zip(a, b, strict=True):
        ends = (float(regularizer(x)) + float(regularizer(y))) / 2
        assert float(regularizer((x + y) / 2)) >= ends - 1e-6


def test_on_its_own_it_parts_scales_as_its_forces_say():
    x = tf.Variable(np.random.default_rng(0).uniform(0, 1, 400).astype("float32"))
    regularizer = Polarization(1.5, 1.0)
    for _ in range(1500):
        with tf.GradientTape() as tape:
            value = regularizer(tf.convert_to_tensor(x))
        x.assign(tf.clip_by_value(x - 2e-3 * tape.gradient(value, x), 0, 1))
    # The upper ones stop when nothing pulls them: at a share t / 2 of zeros.
    assert np.mean(x.numpy() < 0.01) == pytest.approx(0.75, abs=0.03)


# The others --------------------------------------------------------------------------


def test_network_slimming_is_the_l1_norm():
    value, slope = gradient(NetworkSlimming(0.5), [-2.0, 0.0, 1.0])
    assert value == 1.5
    np.testing.assert_array_equal(slope, [-0.5, 0.0, 0.5])


def test_hoyer_square():
    assert gradient(HoyerSquare(1.0), [0, 3.0, 0])[0] == pytest.approx(1)
    value, slope = gradient(HoyerSquare(1.0), np.full(5, 0.7))
    assert value == pytest.approx(5) and np.abs(slope).max() < 1e-5
    x = np.array([0.1, -0.8, 0.5])
    value, slope = gradient(HoyerSquare(1.0), x)
    one, two = np.abs(x).sum(), (x**2).sum()
    assert value == pytest.approx(one**2 / two)
    expected = 2 * np.sign(x) * one / two * (1 - np.abs(x) * one / two)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)
    assert slope @ x == pytest.approx(0, abs=1e-5)
    assert gradient(HoyerSquare(1.0), 10 * x)[0] == pytest.approx(value)


def test_group_hoyer_square():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")
    kernel[..., 2] = 0
    value, slope = gradient(GroupHoyerSquare(0.5), kernel)
    filters = np.sqrt((kernel**2).sum((0, 1, 2))).sum()
    channels = np.sqrt((kernel**2).sum((0, 1, 3))).sum()
    assert value == pytest.approx(
        0.5 * (filters**2 + channels**2) / (kernel**2).sum(), rel=1e-5
    )
    assert np.isfinite(slope).all() and not slope[..., 2].any()
    assert np.sum(slope * kernel) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("regularizer", ALL[2:])
def test_zeros_give_no_nan(regularizer):
    value, slope = gradient(regularizer, np.zeros((3, 4)))
    assert value == 0 and not slope.any()


@pytest.mark.parametrize("regularizer", ALL)
def test_serialization(regularizer):
    config = keras.regularizers.serialize(regularizer)
    twin = keras.regularizers.get(config)
    assert type(twin) is type(regularizer)
    assert twin.get_config() == regularizer.get_config()


@pytest.mark.parametrize("regularizer", ALL[:3])
def test_on_one_layer_it_says_where_to_go(regularizer):
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(gamma_regularizer=regularizer)(inputs)
    with pytest.raises(ValueError, match=r"tfprune.regularize\(model, "):
        _ = keras.Model(inputs, x).losses


@pytest.mark.parametrize("name", ["Polarization", "NetworkSlimming", "HoyerSquare"])
@pytest.mark.parametrize("strength", [-1.0, float("nan"), True])
def test_bad_strengths(name, strength):
    with pytest.raises(ValueError, match="`strength` must be at least 0"):
        getattr(regularizers, name)(strength=strength)


def test_bad_upper():
    with pytest.raises(ValueError, match="`upper` must be above 0"):
        Polarization(upper=0.0)


# Push --------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_push_is_how_far_sgd_moves_a_weight(momentum):
    variable = keras.Variable([0.0])
    optimizer = keras.optimizers.SGD(0.01, momentum=momentum)
    for _ in range(2000):
        optimizer.apply([keras.ops.array([3e-3])], [variable])
    moved = -float(variable.numpy()[0])
    assert moved == pytest.approx(push(3e-3, 0.01, 2000, momentum), rel=0.01)


def test_push_of_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([999], [0.1, 0.01])
    assert push(1.0, schedule, 2000) == pytest.approx(110, rel=0.01)
    assert push(1.0, [0.1, 0.2, 0.3], 3) == pytest.approx(0.6)


def test_push_of_steps_that_a_division_gives():
    assert push(1.0, 0.1, 30 * 50_000 / 128) == push(1.0, 0.1, 11_718)


def test_push_of_many_rates_looks_at_them_together(monkeypatch):
    seen = []
    # The function hides the module of its name.
    module = sys.modules[push.__module__]
    monkeypatch.setattr(module, "check_number", lambda *args: seen.append(args))
    assert push(1.0, np.full(1000, 0.1), 1000) == pytest.approx(100)
    assert len(seen) < 9


def test_the_papers_push_in_a_shorter_run():
    # ResNet-56: 200 epochs of 782 steps of 64 images.
    rates = np.repeat([0.01, 0.1, 0.02, 0.004, 0.0008], np.array([1, 59, 60, 40, 40]))
    rates = np.repeat(rates, 782)
    wanted = push(5e-5, rates, len(rates), 0.9)
    assert wanted == pytest.approx(2.85, abs=0.01)
    strength = strength_for_push(wanted, 0.1, 500, 0.9)
    assert push(strength, 0.1, 500, 0.9) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1e-4, 0.1, 100, 1.0), "`momentum` must lie"),
        ((1e-4, 0.1, 0), "`steps` must be at least 1"),
        ((1e-4, 0.1, np.inf), "`steps` must be at least 1"),
        ((-1.0, 0.1, 100), "`strength` must be at least 0"),
        ((1e-4, -0.1, 100), "`learning_rate` must be at least 0"),
        ((1e-4, None, 100), "`learning_rate` must be at least 0"),
        ((1e-4, [0.1, np.nan], 2), "`learning_rate` must be at least 0"),
        ((1e-4, [0.1], 2), "one entry per step"),
    ],
)
def test_bad_pushes(arguments, message):
    with pytest.raises(ValueError, match=message):
        push(*arguments)


def test_bad_wanted_push():
    with pytest.raises(ValueError, match="`wanted` must be above 0"):
        strength_for_push(0.0, 0.1, 100)
    with pytest.raises(ValueError, match="`learning_rate` must be above 0"):
        strength_for_push(1.5, 0.0, 100)
