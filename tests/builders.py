"""Small models, and the check that all of them go through."""

import checker
import keras
from invariants import check_all
from keras import layers


def image(size=8, channels=3, **kwargs):
    return layers.Input((size, size, channels), **kwargs)


def conv(width, name, size=3, **kwargs):
    return layers.Conv2D(
        width, size, padding="same", activation="relu", name=name, **kwargs
    )


def head(x, name="logits"):
    return layers.Dense(3, name=name)(layers.GlobalAveragePooling2D()(x))


def check(model, *loses, keeps=(), **options):
    checker.randomize(model, size=options.get("size", 16))
    graph, masks, small = check_all(model, **options)
    lost = graph.layer_masks(masks)
    assert set(loses) <= set(lost), (lost.keys(), graph.locked)
    assert not set(keeps) & set(lost), lost.keys()
    assert not graph.skipped, graph.skipped
    return graph, masks, small


def block(width, channels, name="block"):
    """A nested Functional model: conv - BN - ReLU."""
    inputs = layers.Input((None, None, channels))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    return keras.Model(inputs, x, name=name)
