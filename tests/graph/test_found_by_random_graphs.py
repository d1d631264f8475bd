"""Every bug that random graphs have found, in the smallest model that has it."""

import checker
import keras
import pytest
from invariants import check_all
from keras import layers


def check(inputs, outputs):
    check_all(checker.randomize(keras.Model(inputs, outputs)))


def test_dense_layer_across_the_rows_of_prunable_columns():
    """Its cost did not count that it runs on fewer columns."""
    inputs = keras.Input((6, 3))
    x = layers.Permute((2, 1))(layers.Conv1D(8, 3, padding="same")(inputs))
    x = layers.Permute((2, 1))(layers.Dense(6, name="across")(x))
    check(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv1D(4, 3)(x))))


def test_grouped_query_attention_on_another_stream_of_the_same_width():
    """Keras wants as many features of the value as of the query."""
    inputs = keras.Input((6, 3))
    query, value = layers.Conv1D(8, 1)(inputs), layers.Conv1D(8, 1)(inputs)
    x = layers.GroupQueryAttention(3, 4, 2)(query, keras.ops.cumsum(value, axis=-1))
    check(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv1D(6, 1)(x))))
    y = layers.GroupQueryAttention(3, 4, 2)(query, value)
    check(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv1D(6, 1)(y))))


@pytest.mark.parametrize(
    "attend",
    [
        lambda x: layers.MultiHeadAttention(2, 2)(x, x),
        lambda x: layers.GroupQueryAttention(2, 2, 1)(x, x),
        lambda x: layers.Attention()([x, x]),
        lambda x: layers.AdditiveAttention()([x, x]),
    ],
)
def test_attention_over_places_that_are_channels_of_another_layer(attend):
    """Its places got fewer, and what it made was taken to have all of them."""
    inputs = keras.Input((6, 3))
    x = layers.Permute((2, 1))(layers.Conv1D(4, 1)(inputs))
    x = layers.Permute((2, 1))(layers.Dense(6, name="across")(x))
    x = layers.Concatenate()([layers.Dense(4)(attend(x)), layers.Dense(4)(inputs)])
    check(inputs, layers.Dense(3)(layers.Flatten()(x)))
