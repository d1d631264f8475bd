"""Subclassed models: taken apart where that is exact, else told the way out."""

import checker
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from own import Residual, check_own

import tfprune
from tfprune.surgery import has_gates


class Net(keras.Model):
    """conv - BN - relu - a composite layer - pooling - dropout - logits."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Conv2D(8, 3, padding="same", name="stem")
        self.bn = layers.BatchNormalization(name="bn")
        self.block = Residual(10, name="block")
        self.dropout = layers.Dropout(0.5, name="dropout")
        self.logits = layers.Dense(3, name="logits")

    def call(self, x, training=None):
        x = ops.relu(self.bn(self.stem(x), training=training))
        x = ops.mean(self.block(x, training=training), axis=(1, 2))
        return self.logits(self.dropout(x, training=training))


def test_the_policy_of_a_model_survives():
    """It says whether `compile` scales the loss."""
    model = Net(dtype="mixed_float16")
    model(np.zeros((1, 8, 8, 3), "float32"))
    for change in (tfprune.strip, tfprune.prune_wrap):
        assert change(model).dtype_policy.name == "mixed_float16"


class Pair(keras.Model):
    """Takes and returns dicts; looks tokens up."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.lookup = layers.Embedding(20, 8, name="lookup")
        self.dense = layers.Dense(8, name="dense")
        self.hidden = layers.Dense(6, "relu", name="hidden")
        self.logits = layers.Dense(3, name="logits")

    def call(self, inputs):
        x = ops.mean(self.lookup(inputs["tokens"]), axis=1)
        x = self.hidden(ops.tanh(x + self.dense(inputs["features"])))
        return {"logits": self.logits(x), "again": self.logits(ops.tanh(x))}


def data():
    return np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


def _random(model):
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(checker._values(random, variable))
    return model


@pytest.mark.parametrize("how", ["data", "symbolic", "fit"])
def test_model_that_knows_its_shape(how):
    model = Net(name="net")
    if how == "fit":
        model.compile("sgd", "mse")
        model.fit(data(), np.ones((4, 3)), verbose=0)
    else:
        model(data() if how == "data" else keras.Input((8, 8, 3)))
    _random(model)
    names = "stem", "bn", "block/one", "block/two", "block/gamma"
    small = check_own(model, *names, inputs=data())
    assert small.name == "net"
    assert small.input_shape == (None, 8, 8, 3)


def test_dicts_of_indices_and_features():
    random = np.random.default_rng(0)
    inputs = {
        "tokens": random.integers(0, 20, (4, 6)),
        "features": random.normal(size=(4, 5)).astype("float32"),
    }
    model = Pair()
    model(inputs)
    small = check_own(_random(model), "lookup", "dense", "hidden", inputs=inputs)
    kinds = {name: x.dtype for name, x in small.input.items()}
    assert kinds == {"tokens": "int32", "features": "float32"}


def test_every_door_is_open():
    model = Net()
    model(data())
    _random(model)
    assert tfprune.cost(model).params == model.count_params()
    small = tfprune.prune(model, 0.4)
    assert tfprune.cost(small).macs <= 0.6 * tfprune.cost(model).macs
    assert tfprune.read_masks(model).density() == 1
    assert has_gates(tfprune.prune_wrap(model)) and not has_gates(model)
    same = checker.outputs_of(tfprune.strip(model), data())
    assert checker.relative_error(checker.outputs_of(model, data()), same) == 0
    assert tfprune.compact(model, fold=True, optimize=True).count_params()


def test_subclassed_model_inside_a_functional_one():
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same", name="a")(inputs)
    model = checker.randomize(keras.Model(inputs, Net(name="net")(x)))
    check_own(model, "a", "net/stem", "net/block/one")


class TwoArguments(Net):
    def call(self, x, y=None):
        return super().call(x if y is None else x + y)


class Branch(Net):
    def call(self, x, training=None):
        x = ops.relu(x) if training else x
        return super().call(x, training=training)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(TwoArguments, "one tensor or several"), (Branch, "something else in training")],
)
def test_model_that_cannot_be_taken_apart_is_told_why_and_the_way_out(kind, reason):
    model = kind()
    model(data())
    with pytest.raises(ValueError, match=reason) as caught:
        tfprune.prune(model, 0.4)
    assert "keras.Model(inputs, subclassed.call(inputs))" in str(caught.value)


def test_several_arguments_are_fine_once_they_are_known():
    model = TwoArguments()
    model(keras.Input((8, 8, 3)), keras.Input((8, 8, 3)))
    graph = tfprune.Graph(_random(model))
    assert [group.name for group in graph.groups] == ["stem", "block/one"]
    assert len(graph.model.inputs) == 2


class Tempered(keras.Model):
    """A functional model whose `call` does more than its graph."""

    def __init__(self, inputs, outputs, temperature=2.0, **kwargs):
        super().__init__(inputs, outputs, **kwargs)
        self.temperature = temperature

    def call(self, x, training=None, mask=None):
        return super().call(x, training=training) / self.temperature


class Scaled(keras.Sequential):
    """A sequential model that prepares its input in `call`."""

    def call(self, x, training=None, mask=None):
        return super().call(x * 3.0, training=training)


def tempered():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="a")(inputs)
    return Tempered(inputs, layers.Conv2D(6, 3, name="b")(x), name="tempered")


def scaled(shape=(8, 8, 3)):
    first = layers.Conv2D(8, 1, activation="sigmoid", name="a")
    parts = [keras.Input(shape), first, layers.Conv2D(6, 3, name="b")]
    return Scaled(parts, name="scaled")


def nested():
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(scaled((4, 4, 6))(tempered()(inputs)))
    return keras.Model(inputs, layers.Dense(3)(x))


@pytest.mark.parametrize(
    ("make", "groups"),
    [
        (tempered, ["a"]),
        (scaled, ["a"]),
        (nested, ["tempered/a", "tempered/b", "scaled/a", "scaled/b"]),
    ],
)
def test_model_with_a_graph_and_a_call_of_its_own(make, groups):
    model = _random(make())
    expected = model(data())
    graph = tfprune.Graph(model)
    assert [group.name for group in graph.groups] == groups
    copies = [
        tfprune.prune_wrap(model),
        tfprune.prune_wrap(model, tfprune.layers.WeightMask),
        tfprune.strip(model),
        tfprune.apply_masks(model, {}),
        tfprune.compact(model, {}),
        tfprune.compact(model, {}, optimize=True),
    ]
    for copy in copies:
        np.testing.assert_allclose(copy(data()), expected, rtol=1e-4, atol=1e-5)
    small = tfprune.prune(model, 0.3)
    assert tfprune.cost(small).macs <= 0.7 * tfprune.cost(model).macs


@keras.saving.register_keras_serializable("tests")
class OfDict(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left, self.right = layers.Dense(16, "relu"), layers.Dense(16, "relu")
        self.logits = layers.Dense(3)

    def call(self, inputs):
        return self.logits(self.left(inputs["b"]) * self.right(inputs["a"]))


def test_inputs_have_the_names_of_their_keys(recwarn, tmp_path):
    x = {"a": np.ones((2, 4), "float32"), "b": np.ones((2, 5), "float32")}
    model = OfDict()
    expected = model(x)
    graph = tfprune.Graph(model)
    np.testing.assert_allclose(graph.model(x), expected, atol=1e-6)
    small = tfprune.prune(model, 0.5)
    assert {each.name: each.shape[-1] for each in small.inputs} == {"a": 4, "b": 5}
    small.predict(x, verbose=0)
    path = tfprune.export(small, tmp_path / "small")
    artefact = tf.saved_model.load(str(path))
    np.testing.assert_allclose(artefact.serve(x), small(x), atol=1e-6)
    assert not [each for each in recwarn if "structure" in str(each.message)]


@pytest.mark.parametrize("key", ["image", "image/left"])
def test_keys_that_are_no_names_for_inputs(key):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.image = layers.Dense(16, "relu", name="image")
            self.logits = layers.Dense(3)

        def call(self, inputs):
            return self.logits(self.image(inputs[key]))

    model, x = Net(), {key: np.ones((2, 4), "float32")}
    expected = model(x)
    np.testing.assert_allclose(tfprune.Graph(model).model(x), expected, atol=1e-6)


class WithTensorFlow(keras.Model):
    def __init__(self):
        super().__init__()
        self.logits = layers.Dense(3)

    def call(self, x):
        return self.logits(tf.nn.relu(x))


def test_functions_of_tensorflow_are_named_as_what_is_in_the_way():
    model = WithTensorFlow()
    model(np.ones((2, 4), "float32"))
    with pytest.raises(ValueError, match="use those of `keras.ops`") as caught:
        tfprune.Graph(model)
    # Which would meet the same functions.
    assert "Wrap its call" not in str(caught.value)
