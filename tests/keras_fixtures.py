"""Small models, a clean Keras for every test, and TensorFlow as the tests need it."""

import gc

import tfprune_command

# What TensorFlow says while it is imported would come behind pytest's summary.
with tfprune_command.quiet_tensorflow():
    import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import ops

# A second processor in name only, for tests of distribution strategies.
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)

# TensorFlow's own heap is no garbage; Python looks through the rest when it has grown.
gc.collect()
gc.freeze()

_iterator_of = tf.data.Dataset.__iter__


def _untuned(dataset):
    # The thread that tunes a dataset may wake before it can see that its iterator is
    # deleted, which on a busy machine then waits for it, for up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    return _iterator_of(dataset.with_options(options))


tf.data.Dataset.__iter__ = _untuned


@pytest.fixture(autouse=True)
def clean_keras():
    """Seeds every test; undoes a dtype policy or data format that a test set."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    # Collecting garbage each time takes a tenth of the processor time, or more.
    keras.backend.clear_session(free_memory=False)
    # For each custom gradient met in a graph TensorFlow keeps the graph, one a `fit`:
    # after a thousand tests, millions of objects, and every test three times as slow.
    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]


@pytest.fixture(scope="session")
def two_replicas():
    """A strategy that trains on two devices; a second one would not get its own."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def make_residual():
    """Builder of an 8x8 residual CNN: stem, two blocks, one with a projection."""

    def make(width=8, classes=3):
        inputs = layers.Input((8, 8, 3), name="image")
        x = _conv_bn(inputs, width, "stem")
        x = _block(x, width, "block1")
        x = _block(x, 2 * width, "block2", strides=2)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(inputs, layers.Dense(classes, name="logits")(x))

    return make


@pytest.fixture
def make_vgg():
    """Builder of a plain 8x8 CNN, biases instead of batch normalization."""

    def make(widths=(8, 16), classes=3):
        model = keras.Sequential([layers.Input((8, 8, 3), name="image")], name="vgg")
        for i, width in enumerate(widths, 1):
            name = f"conv{i}"
            model.add(
                layers.Conv2D(width, 3, padding="same", activation="relu", name=name)
            )
            model.add(layers.MaxPooling2D(name=f"pool{i}"))
        model.add(layers.Flatten(name="flatten"))
        model.add(layers.Dense(classes, name="logits"))
        return model

    return make


@pytest.fixture
def images():
    """`(x, y)`: 32 random 8x8 images of three classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 3, 32)


def _conv_bn(x, width, name, strides=1, activation="relu"):
    x = layers.Conv2D(width, 3, strides, "same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_act")(x) if activation else x


def _block(x, width, name, strides=1):
    y = _conv_bn(x, width, f"{name}_a", strides)
    y = _conv_bn(y, width, f"{name}_b", activation=None)
    if strides != 1 or x.shape[-1] != width:
        x = _conv_bn(x, width, f"{name}_shortcut", strides, activation=None)
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))
