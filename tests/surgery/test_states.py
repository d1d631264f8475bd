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


@register
class Adapted(Own):
    """dense(normalized numbers) + table[words], both found by `adapt`."""

    def __init__(self, width=8, **kwargs):
        super().__init__(width, **kwargs)
        self.normal = layers.Normalization()
        self.lookup = layers.StringLookup()
        self.table = layers.Embedding(4, width)
        self.dense = layers.Dense(width)

    def build(self, shape):
        self.table.build((None,))
        self.dense.build(shape[0])

    def call(self, inputs):
        numbers, words = inputs
        return self.dense(self.normal(numbers)) + self.table(self.lookup(words))


def of_steps():
    normal = layers.Normalization()
    normal.adapt(np.random.default_rng(0).normal(5, 3, size=(50, 4)))
    inputs = keras.Input((6, 4))
    x = layers.Dense(8, name="hidden")(layers.TimeDistributed(normal)(inputs))
    x = layers.GlobalAveragePooling1D()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def of_parts():
    layer = Adapted()
    layer.normal.adapt(np.random.default_rng(0).normal(5, 3, size=(50, 4)))
    layer.lookup.adapt(["a", "b", "c"])
    inputs = keras.Input((4,)), keras.Input((), dtype="string")
    x = layers.Dense(8, "relu", name="hidden")(layer(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


COPIES = {
    "gated": tfprune.prune_wrap,
    "stripped": tfprune.strip,
    "masked": lambda model: tfprune.apply_masks(model, {}),
    "compacted": tfprune.compact,
}


@pytest.mark.parametrize("make", [of_steps, of_parts])
@pytest.mark.parametrize("copy", COPIES)
def test_what_adapt_has_found_inside_layers(make, copy):
    model = make()
    numbers = np.random.default_rng(1).normal(5, 3, (3, *model.inputs[0].shape[1:]))
    numbers = ops.convert_to_tensor(numbers.astype("float32"))
    words = ops.convert_to_tensor(["a", "b", "c"])
    inputs = numbers if make is of_steps else [numbers, words]
    np.testing.assert_array_equal(COPIES[copy](model)(inputs), model(inputs))


def test_each_weight_trains_or_not_as_before():
    inputs = keras.Input((4,))
    dense, norm = layers.Dense(8, name="dense"), layers.BatchNormalization(name="norm")
    model = keras.Model(inputs, layers.Dense(3, name="logits")(norm(dense(inputs))))
    norm.beta.trainable = dense.kernel.trainable = False
    expected = {"norm/gamma", "dense/bias", "logits/kernel", "logits/bias"}
    for new in (tfprune.strip(model), tfprune.prune(model, 0.3)):
        assert {v.path for v in new.trainable_variables} == expected
    gated = tfprune.prune_wrap(model)
    assert not gated.get_layer("norm").layer.beta.trainable
    for new in (tfprune.strip(gated), tfprune.compact(gated)):
        assert {v.path for v in new.trainable_variables} == expected


def test_sequential_models_with_a_step_of_their_own_stay_themselves():
    class Own(keras.Sequential):
        def train_step(self, data):
            return {"loss": 1.0}

    class Fixed(Own):
        def __init__(self):
            super().__init__([keras.Input((4,)), layers.Dense(8), layers.Dense(2)])

    model = Own([keras.Input((4,)), layers.Dense(8), layers.Dense(2)])
    assert type(tfprune.prune(model, 0.3)) is Own
    # One that takes no layers cannot be made of others.
    assert type(tfprune.prune(Fixed(), 0.3)) is keras.Sequential
