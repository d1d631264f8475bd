"""The certificate tells rounding that a model magnifies from a wrong model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfprune
from tfprune.surgery.certificate import Certificate, certify, nudged

EXPECTED = np.array([[1.0, 2.0], [100.0, 200.0]])
# By how much the outputs change where inputs are rounded: the second sample explodes.
RERUN = EXPECTED * [[1.0], [1.005]]


@pytest.fixture
def model(make_residual):
    return make_residual(4)


def test_rounding_is_no_error(model):
    assert certify(EXPECTED, EXPECTED * (1 + 1e-5), model) == pytest.approx(1e-5)


def test_an_error_is_one_without_a_second_run(model):
    with pytest.raises(ValueError, match="error 0.01 on probe inputs"):
        certify(EXPECTED, EXPECTED * [[1], [1.01]], model)


def test_what_the_model_magnifies_by_itself_is_no_error(model):
    received = EXPECTED * [[1], [1.01]]
    assert certify(EXPECTED, received, model, lambda: RERUN) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "received",
    [
        EXPECTED * [[1], [1.05]],
        # Small beside the second sample, not beside the first.
        EXPECTED * [[1.01], [1.01]],
        EXPECTED * [[np.nan], [1.0]],
    ],
)
def test_more_than_it_magnifies_is_an_error(model, received):
    with pytest.raises(ValueError, match="does not compute what the old one does"):
        certify(EXPECTED, received, model, lambda: RERUN)


def test_one_sample_has_to_be_calm(model):
    received = EXPECTED * 1.01
    with pytest.raises(ValueError, match="does not compute what the old one does"):
        certify(EXPECTED, received, model, lambda: EXPECTED * 1.01)


def test_only_numbers_with_a_fraction_are_nudged():
    inputs = {"a": np.ones(2, "float32"), "b": np.ones(2, "int32")}
    changed = nudged(inputs)
    assert (changed["a"] != 1).all() and (changed["b"] == 1).all()


def test_samples_count_on_their_own_scale(model):
    # Inputs in 0..255 give large outputs, beside which those of others look small.
    with pytest.raises(ValueError, match="error 0.05 on probe inputs"):
        certify(EXPECTED, EXPECTED + [[0.1, 0.0], [0.0, 0.0]], model)
    # Next to nothing by chance: a rounding error of sums of much larger terms.
    expected = np.array([[1e-7], [1.0]])
    assert certify(expected, expected + 1e-7, model) == pytest.approx(1e-4)


def test_words_are_the_same_or_not(model):
    words = tf.constant([["a", "b"], ["b", "b"]])
    assert certify(words, tf.identity(words), model) == 0
    for other in ([["a", "b"], ["b", "c"]], [["a"], ["b"]]):
        with pytest.raises(ValueError, match="does not compute what the old one does"):
            certify(words, tf.constant(other), model)


def test_model_that_answers_in_words():
    inputs = keras.Input((6,))
    x = layers.Dense(4)(layers.Dense(16, name="hidden")(inputs))
    names = layers.StringLookup(vocabulary=[*"abcd"], num_oov_indices=0, invert=True)
    model = keras.Model(inputs, [names(keras.ops.argmax(x, axis=-1)), x])
    small = tfprune.compact(model, {"hidden": np.arange(16) > 0})
    assert small.get_layer("hidden").units == 15


LOW = ("mixed_float16", "mixed_bfloat16")


def small_model():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(4, dtype="float32")(x))


@pytest.mark.parametrize("policy", LOW)
def test_low_precision_hides_no_errors(policy):
    keras.config.set_dtype_policy(policy)
    model = small_model()
    policies = [layer.dtype_policy for layer in model.layers]
    other = tfprune.strip(model)
    certificate = Certificate(model)
    assert certificate.check(other) == 0
    kernel = other.layers[-1].kernel
    kernel.assign(kernel * 1.01)
    with pytest.raises(ValueError, match="allowed 0.001"):
        certificate.check(other)
    for each in (model, other):
        assert [layer.dtype_policy for layer in each.layers] == policies
        assert each.layers[1].compute_dtype == policy.removeprefix("mixed_")


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    """Computes with a constant of its own in the layer's precision."""

    def build(self, shape):
        self.constant = tf.constant(2.0, self.compute_dtype)

    def call(self, x):
        return tf.multiply(x, self.constant)


def test_what_cannot_be_computed_in_float32_is_checked_as_it_is():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), Scaled()])
    certificate = Certificate(model)
    assert certificate.check(tfprune.strip(model)) == 0
    assert model.layers[0].compute_dtype == "float16"


def test_a_cast_in_the_graph_rounds():
    inputs = keras.Input((4,))
    x = keras.ops.cast(layers.Dense(8)(inputs), "bfloat16")
    model = keras.Model(inputs, keras.ops.cast(x, "float32"))
    expected = np.array([[1.0]])
    assert certify(expected, expected * 1.01, model) == pytest.approx(0.01)


def test_masked_channels_that_give_0_by_0_are_named():
    inputs = layers.Input((4, 4, 3))
    x = layers.Conv2D(8, 3, name="a")(inputs)
    x = x / ops.std(x, axis=(1, 2), keepdims=True)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(x)))
    with pytest.raises(ValueError, match="masked channels at zero"):
        tfprune.compact(model, {"a": np.arange(8) < 4})
