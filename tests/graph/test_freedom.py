"""How much can go: counted by hand, and the reasons for the rest."""

import keras
import pytest
from builders import conv, head, image
from keras import layers

import tfprune


def test_all_but_the_logits():
    inputs = image()
    x = conv(8, "a")(inputs)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    model = keras.Model(inputs, head(conv(6, "b")(x)))
    channels = tfprune.Graph(model).free_channels
    # 8 made, 8 carried on, 6 made; the 3 logits stay.
    assert (channels.free, channels.total) == (22, 25)
    assert channels.share == pytest.approx(22 / 25)
    assert channels.reasons == {"an output of the model": 3}


def test_what_a_normalization_keeps_is_said():
    inputs = image()
    x = layers.LayerNormalization(name="norm")(conv(8, "a")(inputs))
    graph = tfprune.Graph(keras.Model(inputs, head(conv(6, "b")(x))))
    channels = graph.free_channels
    assert (channels.free, channels.total) == (6, 17)
    reason, count = next(iter(channels.reasons.items()))
    assert count == 8 and "'norm' normalizes across the channels" in reason
    for line in channels.describe():
        assert line in graph.summary()
    assert channels.describe()[0].startswith("6 of 17 kernel channels are free")


def test_frequent_reasons_are_shown_and_the_others_counted():
    channels = tfprune.graph.freedom.FreeChannels(1, 8, {"a": 4, "b": 2, "c": 1})
    assert channels.describe(shown=1)[1:] == [
        "  4 kept: a",
        "  3 kept for 2 more reasons",
    ]


def test_a_model_without_kernels():
    inputs = image()
    channels = tfprune.Graph(keras.Model(inputs, layers.ReLU()(inputs))).free_channels
    assert (channels.total, channels.share) == (0, 0.0)
