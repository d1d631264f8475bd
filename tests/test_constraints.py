"""ZeroSlices: what is dropped is zero after every step, whatever else happens."""

import keras
import numpy as np
import pytest

from tfprune.constraints import ZeroSlices


def test_by_eye():
    hold = ZeroSlices({0: [1], 1: [0, 2]})
    expected = [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert hold(np.ones((3, 3), "float32")).numpy().tolist() == expected


def test_infinite_and_nan_weights_become_zero():
    hold = ZeroSlices({0: [0, 1]})
    assert hold(np.array([np.inf, np.nan, 2.0])).numpy().tolist() == [0, 0, 2]


def test_nothing_dropped_changes_nothing():
    assert ZeroSlices({})(np.ones(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_stays(dtype):
    value = keras.ops.ones((2, 2), dtype)
    assert ZeroSlices({1: [0]})(value).dtype == dtype


def test_own_constraint_comes_first():
    hold = ZeroSlices({0: [0]}, keras.constraints.NonNeg())
    assert hold(np.array([3.0, -1.0, 2.0])).numpy().tolist() == [0, 0, 2]


@pytest.mark.parametrize("own", [None, keras.constraints.MaxNorm(2.0, axis=0)])
def test_serialization(own):
    hold = ZeroSlices({0: np.array([2, 5]), 3: [1]}, own)
    config = keras.saving.serialize_keras_object(hold)
    twin = keras.saving.deserialize_keras_object(config)
    assert twin.get_config() == hold.get_config()
    assert twin.dropped == {0: [2, 5], 3: [1]}
    assert type(twin.constraint) is type(own)


def test_an_optimizer_applies_it():
    variable = keras.Variable(np.ones((2, 3), "float32"))
    variable.constraint = ZeroSlices({1: [1]})
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.apply([keras.ops.ones((2, 3))], [variable])
    value = variable.numpy()
    assert not value[:, 1].any() and np.allclose(value[:, [0, 2]], 0.9)
