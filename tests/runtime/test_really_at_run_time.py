"""A trained network really chooses by the image, and so does what is exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

import tfprune
from tfprune.layers import RuntimeGate
from tfprune.runtime.gates import gates_of
from tfprune.runtime.work import seeing_masks


@pytest.fixture(scope="module")
def trained():
    """A network with gates, trained on most digits, and the others.

    Every other image is a negative, so that there is something to choose by.
    """
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
    x[::2] = 1 - x[::2]
    keras.utils.set_random_seed(0)
    z = inputs = layers.Input((8, 8, 1))
    for width in (16, 24, 32):
        z = layers.Conv2D(width, 3, padding="same", use_bias=False)(z)
        z = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(z))
    z = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(z))
    base = keras.Model(inputs, layers.Dense(10)(z))
    model = tfprune.prune_wrap(
        base, RuntimeGate, agent=None, keep_ratio=0.5, rectify=True
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    random = np.random.default_rng(0)
    for gate in gates_of(model):
        # On images as alike as these, predictions that begin at zero stay alike.
        gate.phi.assign(random.normal(0, 4.0, gate.phi.shape))
    model.fit(x[:1400], y[:1400], batch_size=32, epochs=8, verbose=0)
    return model, x[1400:], y[1400:]


def accuracy(logits, labels):
    return np.mean(np.argmax(logits, axis=-1) == labels)


def shuffled(model, x):
    """What comes out when every image gets the masks of another one."""
    with seeing_masks(model, lambda gate, mask: tf.roll(mask, 1, axis=0)):
        return model(x, training=False).numpy()


def test_masks_are_those_of_the_image(trained):
    model, x, y = trained
    kept = tfprune.runtime.kept_channels(model, x)
    # The first gate sees one number of an image, its mean.
    _, *others = kept.values()
    for mask in others:
        assert len(np.unique(mask, axis=0)) > 10
        # Some channels stay for some images only.
        assert ((mask.mean(axis=0) > 0.05) & (mask.mean(axis=0) < 0.95)).any()
    own = accuracy(model(x, training=False), y)
    assert own > 0.7
    assert accuracy(shuffled(model, x), y) < own - 0.1


def test_the_exported_model_chooses_by_the_image(trained, tmp_path):
    model, x, y = trained
    fast = tfprune.runtime.deploy(model, overhead=0)
    tfprune.export(fast, tmp_path / "fast")
    artefact = tf.saved_model.load(tmp_path / "fast")
    logits = np.concatenate([artefact.serve(image[None]) for image in x])
    expected = model(x, training=False).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    assert accuracy(logits, y) > accuracy(shuffled(model, x), y) + 0.1
