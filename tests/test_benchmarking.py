"""Latency: what is computed from the rounds, and that it is measured."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfprune
from tfprune import benchmarking


def dense(units, name):
    layers = [keras.Input((64,)), keras.layers.Dense(units)]
    return keras.Sequential(layers, name=name)


def test_medians_quartiles_and_paired_speedups():
    # The second model takes half the time in every round but the last.
    seconds = np.array([[2, 1], [4, 2], [6, 3], [8, 4], [10, 100]]) / 1000
    first, second = benchmarking._summarize(["a", "b"], seconds)
    assert (first.lower, first.median, first.upper) == pytest.approx((4, 6, 8))
    assert first.speedup == 1
    assert second.median == pytest.approx(3)
    assert second.speedup == pytest.approx(2)


def test_speedup_is_the_median_of_ratios_not_the_ratio_of_medians():
    # In rounds: 1, 4 and 3 times faster; the medians are 4 s and 1 s.
    seconds = np.array([[1, 1], [4, 1], [30, 10]])
    _, row = benchmarking._summarize(["a", "b"], seconds)
    assert row.speedup == 3
    assert row.median == 1000


def test_every_round_runs_every_model_once_in_changing_order():
    calls = []
    passes = [lambda i=i: calls.append(i) for i in range(3)]
    seconds = benchmarking._measure(passes, rounds=20, seed=0)
    rounds = np.reshape(calls, (20, 3))
    assert seconds.shape == (20, 3)
    assert (np.sort(rounds, axis=1) == [0, 1, 2]).all()
    assert len({tuple(each) for each in rounds}) > 1


def test_a_slow_model_is_slow():
    passes = [lambda: time.sleep(0.02), lambda: None]
    rows = benchmarking._summarize("ab", benchmarking._measure(passes, 3, seed=0))
    assert rows[0].median >= 20
    assert rows[1].speedup > 2


def test_the_wide_model_is_slower_than_the_narrow_one():
    models = {"wide": dense(8192, "wide"), "narrow": dense(8, "narrow")}
    result = tfprune.benchmark(models, batch_size=512, rounds=9)
    assert [row.name for row in result.rows] == ["wide", "narrow"]
    assert result["wide"].speedup == 1
    assert result["narrow"].speedup > 1.5
    for row in result.rows:
        assert 0 < row.lower <= row.median <= row.upper


def test_the_conditions_are_stated():
    result = tfprune.benchmark(dense(2, "small"), batch_size=4, rounds=2)
    assert (result.batch_size, result.rounds) == (4, 2)
    lines = str(result).splitlines()
    assert lines[0].startswith("small: ") and "1.00x" in lines[0]
    assert "batch 4" in lines[1] and "cores" in lines[1] and "threads" in lines[1]


def test_lists_and_repeated_names():
    models = [dense(2, "same"), dense(2, "same")]
    result = tfprune.benchmark(models, rounds=1)
    assert [row.name for row in result.rows] == ["0: same", "1: same"]


def test_inputs_of_ones_own_set_the_batch():
    result = tfprune.benchmark(dense(2, "a"), rounds=1, inputs=np.zeros((7, 64)))
    assert result.batch_size == 7


def test_frozen_models_hold_no_variables_and_compute_the_same():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = keras.layers.Concatenate()([a, b])
    x = keras.layers.BatchNormalization()(keras.layers.Dense(5)(x))
    model = keras.Model({"a": a, "b": b}, {"x": x, "y": x + 1})
    inputs = {"a": np.ones((2, 4), "float32"), "b": np.ones((2, 3), "float32")}
    forward = tf.function(lambda a, b: model({"a": a, "b": b}, training=False)["x"])
    tensors = [tf.constant(x) for x in inputs.values()]
    frozen = benchmarking._freeze(forward.get_concrete_function(*tensors))
    assert not frozen.variables
    np.testing.assert_allclose(frozen(*tensors)[0], forward(*tensors), rtol=1e-5)
    result = tfprune.benchmark(model, rounds=2, inputs=inputs, freeze=True)
    assert result.batch_size == 2


def test_the_models_are_not_changed():
    layers = [keras.Input((4,)), keras.layers.BatchNormalization()]
    model = keras.Sequential(layers)
    before = [w.copy() for w in model.get_weights()]
    tfprune.benchmark(model, batch_size=8, rounds=2)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        ([], {}, "Received: none"),
        ({"a": "model"}, {}, "something else under"),
        (None, {"rounds": 0}, "`rounds` must be an int of at least 1"),
        (None, {"batch_size": 0}, "`batch_size` must be an int of at least 1"),
    ],
)
def test_bad_arguments(models, arguments, message):
    models = dense(2, "a") if models is None else models
    with pytest.raises(ValueError, match=message):
        tfprune.benchmark(models, **arguments)
