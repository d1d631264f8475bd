"""Models that draw numbers in inference, go on from where they were, or look words up."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from own import Own, register

import tfprune


@register
class Sampling(Own):
    """The sampling of Keras's own example of a variational autoencoder."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


def autoencoder():
    inputs = keras.Input((16,))
    x = layers.Dense(12, activation="relu")(inputs)
    x = Sampling()([layers.Dense(4)(x), layers.Dense(4)(x)])
    x = layers.Dense(10, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(16)(x))


def recurrent():
    inputs = keras.Input(batch_shape=(2, 5, 4))
    x = layers.LSTM(8, stateful=True)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(6)(x)))


def exported(model, path):
    tfprune.export(model, path / "artefact")
    return None


ACTIONS = {
    "dead": lambda model, path: tfprune.compact(model),
    "masked": lambda model, path: tfprune.prune(model, 0.3),
    "faster": lambda model, path: tfprune.compact(model, optimize=True),
    "folded": lambda model, path: tfprune.compact(model, fold=True),
    "gated": lambda model, path: tfprune.compact(tfprune.prune_wrap(model)),
    "exported": exported,
    "timed": lambda model, path: tfprune.benchmark(model, batch_size=2, rounds=2),
}


@pytest.mark.parametrize("make", [autoencoder, recurrent])
@pytest.mark.parametrize("action", ACTIONS)
def test_seeds_and_states_stay(make, action, tmp_path):
    model = make()
    before = [v.numpy() for v in model.variables]
    result = ACTIONS[action](model, tmp_path)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    if isinstance(result, keras.Model):
        seeds = [v.numpy() for v in result.variables if "seed" in v.path]
        own = [v.numpy() for v in model.variables if "seed" in v.path]
        np.testing.assert_array_equal(seeds, own)


def test_words():
    """Probes are words that the model knows, so a wrong copy of a row shows."""
    words = keras.Input((7,), dtype="string")
    indices = layers.StringLookup(vocabulary=["a", "b", "c"])(words)
    x = layers.GlobalAveragePooling1D()(layers.Embedding(4, 8, name="table")(indices))
    x = layers.Dense(6, activation="relu", name="hidden")(x)
    model = keras.Model(words, layers.Dense(3)(x))
    small = tfprune.prune(model, 0.4)
    assert small.get_layer("hidden").units < 6
    probes = ops.convert_to_numpy(tfprune.surgery.certificate.probe_inputs(model, 64))
    assert {b"a", b"b", b"c"} <= set(probes.ravel())
